"""The command line itself: one Typer app, and the options that several commands share."""

import os
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from llm.cli.console import Commands
from llm.errors import CourseError, SettingError
from llm.paths import user_path

app = typer.Typer(
    cls=Commands,
    help="LoRA without a notebook.",
    epilog="Start with `python -m llm doctor`. Each command's --help has an example. --debug shows tracebacks.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    no_args_is_help=True,
)


def path(text: str | Path) -> Path:
    """The path that a person typed; raises CourseError if it is empty or not UTF-8, which safetensors cannot read."""
    name = os.fsencode(text)
    if not name or name.decode(errors="ignore").encode() != name:
        raise CourseError(f"{str(text)!r} cannot be a path here: give another one")
    return user_path(text)


Base = Annotated[str, Option(metavar="NAME", help="course, smollm2, gpt2 or a folder (./x)")]
OwnBase = Annotated[str | None, Option(metavar="NAME", help="default: the adapter's own, or course")]
Device = Annotated[str, Option(metavar="NAME", help="auto, cpu, cuda or mps")]
Dtype = Annotated[str, Option(metavar="NAME", help="float32 or bfloat16")]
AsJson = Annotated[bool, Option("--json", help="print JSON for a program")]


def number(text: str, kind=int, metavar: str = "N", low: float = 1, high: float = 2**31 - 1):
    """An option for a number from `low` to `high`; it raises SettingError for any other value, including NaN."""

    def within(option: typer.CallbackParam, value: kind):
        if value is not None and not low <= value <= high:
            bounds = f"from {low} to {high}"
            if value < low:  # the upper bound, often of no interest, has nothing to do with it
                bounds = "above 0" if 0 < low < 1 else f"from {low} up" if high >= 10**6 else bounds
            raise SettingError(f"{option.opts[0]} {value} makes no sense: give a number {bounds}")
        return value

    return Annotated[kind, Option(metavar=metavar, help=text, callback=within)]
