"""What every command needs around it: errors in one sentence, Ctrl-C and SIGTERM, output, JSON. Knows no command.

Imports nothing that takes time, so that `--help` is there at once.
"""

import json
import os
import signal
import sys
from traceback import walk_tb

import typer
from typer.core import TyperGroup

from llm.errors import CourseError

DEBUG = "--debug"  # anywhere on the line: tracebacks of our own errors as well
INTERRUPTED = 128  # plus the signal's number is the exit code, the shell's own convention: 130 is Ctrl-C


def sentence(error: BaseException) -> str | None:
    """What to tell the learner about an error that is ours or the machine's; None for one that is a defect."""
    said = " ".join(str(error).split())
    if isinstance(error, MemoryError) or "out of memory" in said or "can't allocate memory" in said:
        return "out of memory: give fewer --rows, a shorter --block or --dtype bfloat16, or close other programs"
    ours = isinstance(error, CourseError | OSError) and not isinstance(error, BrokenPipeError)
    return said if ours else None


def _package(error):
    """Which package an ImportError is about: the one that it names, or else the one whose code raised it."""
    *_, (frame, _) = walk_tb(error.__traceback__)
    return (error.name or frame.f_globals.get("__name__", "llm")).partition(".")[0]


def complain(said: str) -> None:
    """Say on stderr what is wrong."""
    rank = os.environ.get("RANK", "0")
    print(f"error: {said}" if rank == "0" else f"error: process {rank}: {said}", file=sys.stderr)


def settle_streams() -> None:
    """Let stdout and stderr take whatever is printed: what their encoding lacks becomes a mark, not an error."""
    for name, mark in (("stdout", "replace"), ("stderr", "backslashreplace")):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever started this process
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=mark)


def say(text: str) -> None:
    """Print a line at once; when nobody reads any more, say so once and let the work go on, as it is worth more."""
    try:
        print(text, flush=True)
    except OSError as error:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            print(f"what is printed is lost from here on ({error.strerror}); the work goes on", file=sys.stderr)


def fail(said: str) -> typer.Exit:
    """Say what is wrong, and give the exit to raise."""
    complain(said)
    return typer.Exit(1)


class Commands(TyperGroup):
    """The commands, in none of which an error that is ours ends in a traceback, unless `--debug` asks for it."""

    def main(self, args=None, **extra):
        settle_streams()
        args = list(sys.argv[1:] if args is None else args)
        end = args.index("--") if "--" in args else len(args)  # behind it all is text
        self.debug = DEBUG in args[:end]
        return super().main([a for i, a in enumerate(args) if a != DEBUG or i > end], **extra)

    def invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
            raise typer.Exit(INTERRUPTED + signal.SIGINT) from None
        except ImportError as error:
            package = _package(error)
            if package == "llm" or self.debug:
                raise
            if isinstance(error, ModuleNotFoundError):
                raise fail(f"{package} is missing: `python -m llm doctor` says how to get it") from None
            raise fail(
                f"{package} is installed but does not load ({' '.join(str(error).split())}): install it anew, with pip "
                f"install --force-reinstall --no-deps {package}"
            ) from None
        except Exception as error:
            if type(error).__module__.partition(".")[0] in ("typer", "click"):
                raise  # usage, or an exit
            said = sentence(error)
            if said is None or self.debug:
                raise
            raise fail(said) from None


class Stop:
    """While it holds, the first Ctrl-C or SIGTERM is a wish: calling it says whether there is one.

    The second one stops at once, but not under torchrun, which passes on each signal that the process has had already.
    """

    def __init__(self):
        self.signal = 0

    def __call__(self) -> bool:
        return self.signal > 0

    def __enter__(self) -> "Stop":
        self._before = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number, _):
        if self.signal and "TORCHELASTIC_RUN_ID" not in os.environ:
            raise KeyboardInterrupt
        if not self.signal and os.environ.get("RANK", "0") == "0":
            os.write(2, b"\nstopping after this step\n")  # print may be busy with a line of its own
        self.signal = number


def show_json(**found) -> None:
    """One JSON object on a line of stdout, readable where its encoding has the letters, in escapes where not."""
    text = json.dumps(found, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:  # a replaced character would be another text
        text = json.dumps(found)
    say(text)
