"""`python -m llm finetune`: a run of `llm/finetune/`, shown while it trains.

Imports torch and other slow packages only when it runs, so that help appears at once.
"""

import signal
import sys
import warnings
from contextlib import ExitStack, closing
from dataclasses import fields
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from llm.cli.app import AsJson, Base, Device, Dtype, app, number, path
from llm.cli.console import say, show_json
from llm.cli.interrupts import asked_to_stop
from llm.errors import RunError, SettingError, TrainingError
from llm.finetune.settings import COURSE_RATE, METHODS, OTHER_RATE, STEPS, Settings

RATES = f"peak learning rate: {COURSE_RATE}, real models {OTHER_RATE}"
Scaling = StrEnum("Scaling", {rule: rule for rule in ("alpha", "alpha/r", "alpha/sqrt(r)")})
Start = StrEnum("Start", ["chapter", "paper"])
DEFAULT_SCALING, DEFAULT_START = Scaling(Settings.scaling), Start(Settings.start)
POSITIVE = dict(low=1e-30, high=1e30)
Log = StrEnum("Log", ["tensorboard"])


@app.command(short_help="Fine-tune on a corpus, or on a text of your own.")
def finetune(
    ctx: typer.Context,
    data: Annotated[str | None, Argument(metavar="DATA", hidden=True)] = None,
    out: Annotated[Path, Option(metavar="FOLDER", parser=path, help="where the adapter goes")] = Path("adapters/mine"),
    base: Base = Settings.base,
    method: Annotated[str, Option(metavar="NAME", help=", ".join(METHODS), show_default=False)] = Settings.method,
    rank: number("rank r of every layer") = Settings.rank,
    alpha: number("strength of the update", float, "X", **POSITIVE) = Settings.alpha,
    scaling: Annotated[Scaling, Option(metavar="RULE", help="alpha, alpha/r or alpha/sqrt(r)")] = DEFAULT_SCALING,
    start: Annotated[Start, Option(metavar="RULE", help="how A starts: chapter or paper")] = DEFAULT_START,
    dropout: number("share of the update's inputs dropped", float, "X", low=0, high=0.999) = Settings.dropout,
    targets: Annotated[str, Option(metavar="NAMES", help="all, attention, mlp or layer names: a,b")] = Settings.targets,
    steps: number(f"optimizer steps; default: {STEPS}", int | None) = Settings.steps,
    epochs: number("instead of --steps: passes over the rows", float | None, "X", **POSITIVE) = Settings.epochs,
    lr: number(RATES, float | None, "X", **POSITIVE) = Settings.lr,
    rows: number("rows per batch") = Settings.rows,
    block: number("maximum tokens per row", int | None) = Settings.block,
    skip_long: Annotated[bool, Option("--skip-long", help="leave out longer rows")] = Settings.skip_long,
    map: Annotated[str | None, Option(metavar="PAIRS", help="field names: prompt=a,completion=b")] = Settings.map,
    train_on: Annotated[str, Option(metavar="WHAT", help="in chats: answers, last or all")] = Settings.train_on,
    template: Annotated[
        str | None, Option(metavar="NAME", help="chat template: plain, chatml or a file")
    ] = Settings.template,
    seed: number("same seed, same adapter", low=0) = Settings.seed,
    measure: number("steps between held-out losses; default: up to 12 a run", int | None) = Settings.measure,
    patience: number("stop after N held-out losses without a new best", int | None) = Settings.patience,
    every: number("steps between checkpoints") = 50,
    dtype: Dtype = Settings.dtype,
    precision: Annotated[str, Option(metavar="NAME", help="matmuls: auto, float32, bfloat16")] = Settings.precision,
    accumulate: number("micro-batches per batch") = Settings.accumulate,
    checkpointing: Annotated[bool, Option("--checkpointing", help="less memory, more time")] = Settings.checkpointing,
    quantize: Annotated[str | None, Option(metavar="NAME", help="base in 4 bits: nf4, nf4-double")] = Settings.quantize,
    device: Device = "auto",
    log: Annotated[Log | None, Option(metavar="NAME", help="also log curves: tensorboard")] = None,
    resume: Annotated[bool, Option("--resume", help="resume the run in --out")] = False,
    as_json: AsJson = False,
):
    """Fine-tune on DATA: speeches, shakespeare, python, records, or your file.

    Example: python -m llm finetune records --steps 150 --out adapters/records
    """
    from llm.finetune import torchrun
    from llm.finetune.resume import resume as go_on_with
    from llm.finetune.run import RESUME, begin, together

    if not resume and data is None:
        raise typer.BadParameter("give DATA, the text to train on, as in `python -m llm finetune records`")
    try:
        curves = log and import_module("tensorboardX").SummaryWriter
    except ImportError as error:
        raise SettingError(f"--log {log} needs another package ({error}): pip install -e '.[data]'") from None
    options = ctx.params | dict(scaling=scaling.value, start=start.value)
    settings = {field.name: options[field.name] for field in fields(Settings)}
    given = {name: x for name, x in settings.items() if ctx.get_parameter_source(name).name == "COMMANDLINE"}
    warnings.filterwarnings("ignore", ".* are in no linear layer")  # `_train` prints it
    device, group = torchrun.join(device)

    def make():
        return go_on_with(out, given, device, group) if resume else begin(Settings(**settings), out, device, group)

    try:
        with together(make, out, group) as run:
            code = _train(run, every, as_json, curves)
    except (RunError, TrainingError) as error:  # every process raises it: rank 0 reports it
        if group.rank:
            raise typer.Exit(1) from None
        if isinstance(error, TrainingError) and (out / RESUME).exists():
            raise TrainingError(
                f"{error}; {out} keeps the run up to there, and a new one needs another --out"
            ) from None
        raise
    torchrun.leave(group)
    raise typer.Exit(code)


def _train(run, every, as_json, curves):
    """Show `run` while it trains; returns the exit code. curves: tensorboardX's SummaryWriter, or None."""
    from tqdm import tqdm

    from llm.finetune.verdict import verdict
    from llm.surgery import left_out
    from llm.text.chat import template_notes

    main, steps = run.group.rank == 0, run.settings.steps
    show = show_json if as_json and main else lambda **_: None
    tell = say if main and not as_json else lambda *_: None
    before = run.heldout()
    trainable, parameters = run.counts()
    share, sentence = left_out(run.base.model)
    of_template = template_notes(run.base.tokenizer, run.base.model) if run.data.chat else []  # needs the model, too
    notes = [*dict.fromkeys([*run.data.notes, *of_template, *filter(None, [sentence])])]
    start = dict(done=run.done, steps=steps, trainable=trainable, parameters=parameters, heldout=before)
    show(event="start", **start, skipped=run.data.skipped, left_out=round(share, 4), notes=notes)
    for note in notes:
        tell(note)
    tell(f"{trainable:,} of {parameters:,} parameters train; held-out loss {before or 0:.4f}")
    bar = tqdm(total=steps, initial=run.done, unit="step", disable=not main, file=sys.stderr)
    with bar, asked_to_stop(speaks=main) as signals, ExitStack() as opened:
        writer = curves and main and opened.enter_context(closing(curves(str(run.out / Log.tensorboard), purge_step=0)))
        for row in run.log if writer else ():  # purge what a killed run drew after its last checkpoint
            _draw(writer, row)
        for step in run.steps(every, lambda: bool(signals)):
            bar.update()
            bar.set_postfix_str(f"loss {step.loss:.3f}")
            show(event="step", **run.log[-1])
            if writer:
                _draw(writer, run.log[-1])
    end = dict(done=run.done, steps=steps, adapter=str(run.out), best=run.best and run.best[0])
    if not run.finished:
        show(event="stopped", **end)
        if main:
            again = f"go on with `python -m llm finetune --resume --out {run.out}`"
            best = f"; the adapter is that of step {run.best[0]}, the best so far" if run.best else ""
            print(f"stopped after step {run.done} of {steps}, and saved: {again}{best}", file=sys.stderr)
        return 128 + (signals or [signal.SIGINT])[-1]  # another process may have received the signal
    if not main:
        return 0
    (_, base), *_, (_, last) = run.curve
    at, kept = run.best or run.curve[-1]
    meaning = verdict(run.curve, run.losses)
    show(event="end", **end, heldout=kept, curve=run.curve, verdict=meaning and vars(meaning))
    if run.done < steps:
        late = "1 measurement" if run.settings.patience == 1 else f"{run.settings.patience} measurements"
        tell(f"ended after step {run.done} of {steps}: {late} behind the best step brought no better one")
    better = f" at step {at}, the best of {len(run.curve) - 1} measured ({last:.4f} at the last, step {run.done})"
    tell(f"held-out loss {kept:.4f}{better * (at < run.done)}; the adapter is in {run.out}")
    if kept >= base:
        tell(f"no step was better than the base, whose held-out loss is {base:.4f}")
    if meaning:
        tell(f"{meaning.sentence}; {meaning.try_next}")
    return 0


def _draw(writer, row):
    for name, tag in dict(loss="loss/training", heldout="loss/held-out", lr="rate").items():
        if name in row:
            writer.add_scalar(tag, row[name], row["step"])
