"""The command line itself: one Typer app, and the options that several commands share."""

from typing import Annotated

import typer
from typer import Option

from llm.cli.console import Commands

app = typer.Typer(
    cls=Commands,
    help="LoRA without a notebook.",
    epilog="Begin with `python -m llm doctor`; `python -m llm COMMAND --help` has an example of each; --debug shows where an error came from.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    no_args_is_help=True,
)

Base = Annotated[str, Option(metavar="NAME", help="course, smollm2, gpt2, or a folder")]
Device = Annotated[str, Option(metavar="NAME", help="auto, cpu, cuda or mps")]
Dtype = Annotated[str, Option(metavar="NAME", help="float32 or bfloat16")]
AsJson = Annotated[bool, Option("--json", help="print JSON for a program")]


def number(text: str, kind=int, metavar: str = "N"):
    return Annotated[kind, Option(metavar=metavar, help=text)]
