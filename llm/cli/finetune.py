"""`python -m llm finetune`: a run of `llm/finetune/`, shown while it trains.

Imports what it needs when it runs, torch above all, so that help is there at once.
"""

import sys
from enum import StrEnum
from pathlib import Path
from signal import SIGINT
from typing import Annotated

import typer
from typer import Argument, Option

from llm.cli.app import AsJson, Base, Device, Dtype, app, number
from llm.cli.console import INTERRUPTED, Stop, say, show_json
from llm.finetune.settings import COURSE_RATE, METHODS, OTHER_RATE, Settings

RATES = f"peak learning rate: {COURSE_RATE}, real models {OTHER_RATE}"


class Scaling(StrEnum):
    alpha = "alpha"
    alpha_r = "alpha/r"
    rslora = "alpha/sqrt(r)"


class Start(StrEnum):
    chapter = "chapter"
    paper = "paper"


DEFAULT_SCALING, DEFAULT_START = Scaling(Settings.scaling), Start(Settings.start)
PARTS = 4  # of a run, after each of which the held-out loss is measured: enough to see how it bends


@app.command(short_help="Fine-tune on a corpus, or on a text of your own.")
def finetune(
    ctx: typer.Context,
    data: Annotated[str | None, Argument(metavar="DATA", hidden=True)] = None,
    out: Annotated[Path, Option(metavar="FOLDER", help="where the adapter goes")] = Path("adapters/mine"),
    base: Base = Settings.base,
    method: Annotated[str, Option(metavar="NAME", help=", ".join(METHODS), show_default=False)] = Settings.method,
    rank: number("r of every layer") = Settings.rank,
    alpha: number("strength of the update", float, "X") = Settings.alpha,
    scaling: Annotated[Scaling, Option(metavar="RULE", help="alpha, alpha/r or alpha/sqrt(r)")] = DEFAULT_SCALING,
    start: Annotated[Start, Option(metavar="WHOSE", help="A's first values: chapter or paper")] = DEFAULT_START,
    dropout: number("share of the update's inputs left out", float, "X") = Settings.dropout,
    targets: Annotated[str, Option(metavar="NAMES", help="all, attention, mlp, or layers: a,b")] = Settings.targets,
    steps: number("optimizer steps") = Settings.steps,
    lr: Annotated[float | None, Option(metavar="X", help=RATES)] = Settings.lr,
    rows: number("rows of a batch") = Settings.rows,
    block: Annotated[int | None, Option(metavar="N", help="tokens of a row, at most")] = Settings.block,
    skip_long: Annotated[bool, Option("--skip-long", help="leave out rows that are longer")] = Settings.skip_long,
    seed: number("same seed, same adapter") = Settings.seed,
    every: number("steps between two checkpoints") = 50,
    dtype: Dtype = Settings.dtype,
    precision: Annotated[str, Option(metavar="NAME", help="of products: auto, float32, bfloat16")] = Settings.precision,
    accumulate: number("pieces a batch is read in") = Settings.accumulate,
    checkpointing: Annotated[bool, Option("--checkpointing", help="less memory, more time")] = Settings.checkpointing,
    quantize: Annotated[str | None, Option(metavar="NAME", help="base in 4 bits: nf4, nf4-double")] = Settings.quantize,
    device: Device = "auto",
    resume: Annotated[bool, Option("--resume", help="go on with the run in --out")] = False,
    as_json: AsJson = False,
):
    """Fine-tune on DATA: speeches, shakespeare, python, records, .txt or .jsonl.

    Example: python -m llm finetune records --steps 150 --out adapters/records
    """
    from dataclasses import fields

    from llm.errors import RunError, TrainingError
    from llm.finetune import torchrun
    from llm.finetune.resume import resume as go_on_with
    from llm.finetune.run import begin, together
    from llm.training import best_device

    if not resume and data is None:
        raise typer.BadParameter("give DATA, the text to train on, as in `python -m llm finetune records`")
    out = out.expanduser()
    said = ctx.params | dict(scaling=scaling.value, start=start.value)
    settings = {field.name: said[field.name] for field in fields(Settings)}
    given = {k: v for k, v in settings.items() if ctx.get_parameter_source(k).name == "COMMANDLINE"}
    device = best_device(device)
    group = torchrun.join(device)
    try:
        if resume:
            run = together(lambda: go_on_with(out, given, device, group), group)
        else:
            run = together(lambda: begin(Settings(**settings), out, device, group), group)
        code = _train(run, every, as_json)
    except (RunError, TrainingError):  # every process has the same
        if group.rank:
            raise typer.Exit(1) from None
        raise
    torchrun.leave(group)
    raise typer.Exit(code)


def _train(run, every, as_json):
    """Show `run` while it trains; the exit code."""
    from tqdm import tqdm

    from llm.finetune.verdict import verdict

    main, steps = run.group.rank == 0, run.settings.steps
    show = show_json if as_json and main else lambda **_: None
    tell = say if main and not as_json else lambda *_: None
    measured = {round(steps * part / PARTS) for part in range(1, PARTS + 1)}
    before = run.heldout() if main else None
    trainable, all_of_them = run.counts()
    show(
        event="start",
        done=run.done,
        steps=steps,
        trainable=trainable,
        parameters=all_of_them,
        heldout=before,
        skipped=run.data.skipped,
    )
    if run.data.skipped:
        tell(f"{run.data.skipped} rows are left out: they are too long")
    tell(f"{trainable:,} of {all_of_them:,} parameters train; held-out loss {before or 0:.4f}")
    bar = tqdm(total=steps, initial=run.done, unit="step", disable=not main, file=sys.stderr)
    with bar, Stop() as stop:
        for step in run.steps(every, stop):
            bar.update()
            bar.set_postfix_str(f"loss {step.loss:.3f}")
            row = dict(step=run.done, loss=step.loss, lr=step.lr, seconds=step.seconds, tokens=step.tokens)
            if main and run.done in measured:
                row["heldout"] = run.heldout()
            show(event="step", **row)
    if run.done < steps:
        show(event="stopped", done=run.done, steps=steps, adapter=str(run.out))
        if main:
            again = f"`python -m llm finetune --resume --out {run.out}`"
            print(f"stopped after step {run.done} of {steps}, and saved: go on with {again}", file=sys.stderr)
        return INTERRUPTED + (stop.signal or SIGINT)  # another process may have been asked
    after = run.heldout() if main else None
    found = verdict(run.curve, run.losses)
    ends = dict(done=run.done, steps=steps, adapter=str(run.out), heldout=after, curve=run.curve)
    show(event="end", **ends, verdict=found and vars(found))
    tell(f"held-out loss {after or 0:.4f}; the adapter is in {run.out}")
    if found:
        tell(f"{found.sentence}; {found.try_next}")
    return 0
