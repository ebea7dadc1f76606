"""`python -m llm finetune`: a run of `llm/finetune/`, shown while it trains.

Imports what it needs when it runs, torch above all, so that help is there at once.
"""

import signal
import sys
import warnings
from dataclasses import fields
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from llm.cli.app import AsJson, Base, Device, Dtype, app, number, path
from llm.cli.console import say, show_json
from llm.cli.interrupts import asked_to_stop
from llm.errors import RunError, TrainingError
from llm.finetune.settings import COURSE_RATE, METHODS, OTHER_RATE, Settings

RATES = f"peak learning rate: {COURSE_RATE}, real models {OTHER_RATE}"
Scaling = StrEnum("Scaling", {rule: rule for rule in ("alpha", "alpha/r", "alpha/sqrt(r)")})
Start = StrEnum("Start", ["chapter", "paper"])
DEFAULT_SCALING, DEFAULT_START = Scaling(Settings.scaling), Start(Settings.start)
POSITIVE = dict(low=1e-30, high=1e30)
PARTS = 4  # of a run, after each of which the held-out loss is measured: enough to see how it bends


@app.command(short_help="Fine-tune on a corpus, or on a text of your own.")
def finetune(
    ctx: typer.Context,
    data: Annotated[str | None, Argument(metavar="DATA", hidden=True)] = None,
    out: Annotated[Path, Option(metavar="FOLDER", parser=path, help="where the adapter goes")] = Path("adapters/mine"),
    base: Base = Settings.base,
    method: Annotated[str, Option(metavar="NAME", help=", ".join(METHODS), show_default=False)] = Settings.method,
    rank: number("r of every layer") = Settings.rank,
    alpha: number("strength of the update", float, "X", **POSITIVE) = Settings.alpha,
    scaling: Annotated[Scaling, Option(metavar="RULE", help="alpha, alpha/r or alpha/sqrt(r)")] = DEFAULT_SCALING,
    start: Annotated[Start, Option(metavar="WHOSE", help="A's first values: chapter or paper")] = DEFAULT_START,
    dropout: number("share of the update's inputs left out", float, "X", low=0, high=0.999) = Settings.dropout,
    targets: Annotated[str, Option(metavar="NAMES", help="all, attention, mlp, or layers: a,b")] = Settings.targets,
    steps: number("optimizer steps") = Settings.steps,
    lr: number(RATES, float | None, "X", **POSITIVE) = Settings.lr,
    rows: number("rows of a batch") = Settings.rows,
    block: number("tokens of a row, at most", int | None) = Settings.block,
    skip_long: Annotated[bool, Option("--skip-long", help="leave out rows that are longer")] = Settings.skip_long,
    seed: number("same seed, same adapter", low=0) = Settings.seed,
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
    from llm.finetune import torchrun
    from llm.finetune.resume import resume as go_on_with
    from llm.finetune.run import begin, together

    if not resume and data is None:
        raise typer.BadParameter("give DATA, the text to train on, as in `python -m llm finetune records`")
    options = ctx.params | dict(scaling=scaling.value, start=start.value)
    settings = {field.name: options[field.name] for field in fields(Settings)}
    given = {name: x for name, x in settings.items() if ctx.get_parameter_source(name).name == "COMMANDLINE"}
    warnings.filterwarnings("ignore", ".* are in no linear layer")  # `_train` says it
    device, group = torchrun.join(device)

    def make():
        return go_on_with(out, given, device, group) if resume else begin(Settings(**settings), out, device, group)

    try:
        with together(make, out, group) as run:
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
    from llm.surgery import left_out

    main, steps = run.group.rank == 0, run.settings.steps
    show = show_json if as_json and main else lambda **_: None
    tell = say if main and not as_json else lambda *_: None
    measured = {round(steps * part / PARTS) for part in range(1, PARTS + 1)}
    before = run.heldout() if main else None
    trainable, parameters = run.counts()
    share, sentence = left_out(run.base.model)
    notes = [*run.data.notes, *filter(None, [sentence])]
    start = dict(done=run.done, steps=steps, trainable=trainable, parameters=parameters, heldout=before)
    show(event="start", **start, skipped=run.data.skipped, left_out=round(share, 4), notes=notes)
    for note in notes:
        tell(note)
    tell(f"{trainable:,} of {parameters:,} parameters train; held-out loss {before or 0:.4f}")
    bar = tqdm(total=steps, initial=run.done, unit="step", disable=not main, file=sys.stderr)
    with bar, asked_to_stop(speaks=main) as signals:
        for step in run.steps(every, lambda: bool(signals)):
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
        return 128 + (signals or [signal.SIGINT])[-1]  # another process may have been asked
    after = run.heldout() if main else None
    meaning = verdict(run.curve, run.losses)
    end = dict(done=run.done, steps=steps, adapter=str(run.out), heldout=after, curve=run.curve)
    show(event="end", **end, verdict=meaning and vars(meaning))
    tell(f"held-out loss {after or 0:.4f}; the adapter is in {run.out}")
    if meaning:
        tell(f"{meaning.sentence}; {meaning.try_next}")
    return 0
