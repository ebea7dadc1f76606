"""What all commands share: errors in one sentence, output that survives a closed pipe, and JSON. Knows no command.

Imports nothing slow, so that `--help` appears at once.
"""

import json
import os
import sys
from traceback import walk_tb

import typer
from typer.core import TyperGroup

from llm.cli.interrupts import stopped
from llm.errors import CourseError

DEBUG = "--debug"  # anywhere on the line: show tracebacks of our own errors too


def sentence(error: BaseException) -> str | None:
    """The message for an expected error of ours or of the machine; None for a defect."""
    text = str(error)
    if isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text:
        return "out of memory: give fewer --rows, a shorter --block or --dtype bfloat16, or close other programs"
    if isinstance(error, ImportError):  # report the package that it names, or else the one whose code raised it
        *_, (frame, _) = walk_tb(error.__traceback__)
        package = (error.name or frame.f_globals.get("__name__", "llm")).partition(".")[0]
        if package == "llm":
            return None
        if isinstance(error, ModuleNotFoundError):
            return f"{package} is missing or does not load ({text}): `python -m llm doctor` says how to get it"
        return (
            f"{package} does not load ({text}): install it anew, with pip install --force-reinstall --no-deps {package}"
        )
    if isinstance(error, OSError) and error.filename and not isinstance(error, CourseError):
        return f"{error.filename} cannot be used ({error.strerror}): give another name, or put that right"
    return text if isinstance(error, CourseError | OSError) and not isinstance(error, BrokenPipeError) else None


def complain(text: str) -> None:
    """Print an error on stderr in one line, with the rank of a process under torchrun."""
    rank = os.environ.get("RANK") or "0"
    process = "" if rank == "0" else f"process {rank}: "
    print(f"error: {process}{' '.join(text.split())}", file=sys.stderr)


def settle_streams() -> None:
    """Make stdout and stderr replace characters that their encoding lacks, instead of raising an error."""
    for name, mark in (("stdout", "replace"), ("stderr", "backslashreplace")):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever started this process
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=mark)


def say(text: str) -> None:
    """Print a line at once. If stdout fails, discard all further output, so that the work can go on."""
    try:
        print(text, flush=True)
    except OSError as error:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            print(f"what is printed is lost from here on ({error.strerror}); the work goes on", file=sys.stderr)


def show_json(**fields) -> None:
    """Print one JSON object on a line of stdout, in ASCII, because `settle_streams` would replace other characters."""
    say(json.dumps(fields))


class Commands(TyperGroup):
    """The commands. Our own errors end in one sentence, or in a traceback with `--debug`."""

    def main(self, args=None, **extra):
        settle_streams()
        args = list(sys.argv[1:] if args is None else args)
        end = args.index("--") if "--" in args else len(args)  # everything after it is text
        self.debug = DEBUG in args[:end]
        return super().main([arg for arg in args[:end] if arg != DEBUG] + args[end:], **extra)

    def list_commands(self, ctx):
        """List what a learner runs before `maintenance.py`, whatever was imported first."""
        last = {name for name, command in self.commands.items() if command.callback.__module__ == "llm.cli.maintenance"}
        return sorted(self.commands, key=last.__contains__)

    def invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise typer.Exit(stopped()) from None
        except Exception as error:
            text = sentence(error)
            if text is None or self.debug:
                raise  # also Typer's own: usage errors and exits
            complain(text)
            raise typer.Exit(1) from None
