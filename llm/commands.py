"""The commands over the course's code: fine-tune, generate, inspect and merge, without a notebook.

Each imports what it needs when it runs, torch above all, so that help is there at once.
"""

import sys
from enum import StrEnum
from pathlib import Path
from signal import SIGINT
from typing import Annotated

import typer
from typer import Argument, Option

from llm.console import INTERRUPTED, Commands, Stop, complain, fail, show_json

app = typer.Typer(
    cls=Commands,
    help="LoRA without a notebook.",
    epilog="Begin with `python -m llm doctor`; `python -m llm COMMAND --help` has an example of each.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    no_args_is_help=True,
)


class Scaling(StrEnum):
    alpha = "alpha"
    alpha_r = "alpha/r"
    rslora = "alpha/sqrt(r)"


Base = Annotated[str, Option(metavar="NAME", help="course, smollm2, gpt2, or a folder")]
Device = Annotated[str, Option(metavar="NAME", help="auto, cpu, cuda or mps")]
Dtype = Annotated[str, Option(metavar="NAME", help="float32 or bfloat16")]
AsJson = Annotated[bool, Option("--json", help="print JSON for a program")]


def number(text: str, kind=int, metavar: str = "N"):
    return Annotated[kind, Option(metavar=metavar, help=text)]


@app.command(short_help="Fine-tune on a corpus, or on a text of your own.")
def finetune(
    ctx: typer.Context,
    data: Annotated[str | None, Argument(metavar="DATA", hidden=True)] = None,
    out: Annotated[Path, Option(metavar="FOLDER", help="where the adapter goes")] = Path("adapters/mine"),
    base: Base = "course",
    rank: number("r of every layer") = 8,
    alpha: number("strength of the update", float, "X") = 8.0,
    scaling: Annotated[Scaling, Option(metavar="RULE", help="alpha, alpha/r or alpha/sqrt(r)")] = Scaling.alpha_r,
    targets: Annotated[str, Option(metavar="NAMES", help="all, attention, mlp, or layers: a,b")] = "all",
    steps: number("optimizer steps") = 100,
    lr: Annotated[float | None, Option(metavar="X", help="peak learning rate: 0.01, real models 0.001")] = None,
    rows: number("rows of a batch") = 16,
    block: Annotated[int | None, Option(metavar="N", help="tokens of a row, at most")] = None,
    seed: number("same seed, same adapter") = 0,
    every: number("steps between two checkpoints") = 50,
    dtype: Dtype = "float32",
    device: Device = "auto",
    resume: Annotated[bool, Option("--resume", help="go on with the run in --out")] = False,
    as_json: AsJson = False,
):
    """Fine-tune on DATA: speeches, shakespeare, python, records, .txt or .jsonl.

    Example: python -m llm finetune records --steps 150 --out adapters/records
    """
    from dataclasses import fields

    from llm import distributed
    from llm.finetune import RunError, begin, together
    from llm.finetune import resume as go_on
    from llm.settings import Settings
    from llm.training import TrainingError

    if not resume and data is None:
        raise typer.BadParameter("give DATA, the text to train on, as in `python -m llm finetune records`")
    said = ctx.params | dict(scaling=scaling.value)
    settings = {field.name: said[field.name] for field in fields(Settings)}
    given = {k: v for k, v in settings.items() if ctx.get_parameter_source(k).name == "COMMANDLINE"}
    device = distributed.pick_device(device)
    group = distributed.join(device)
    try:
        if resume:
            run = together(lambda: go_on(out, given, device, group), group)
        else:
            run = together(lambda: begin(Settings(**settings), out, device, group), group)
        code = _train(run, every, as_json)
    except (RunError, TrainingError):  # every process has the same
        if group.rank:
            raise typer.Exit(1) from None
        raise
    distributed.leave(group)
    raise typer.Exit(code)


def _train(run, every, as_json):
    """Show `run` while it trains; the exit code."""
    from tqdm import tqdm

    main, steps = run.group.rank == 0, run.settings.steps
    show = show_json if as_json and main else lambda **_: None
    tell = print if main and not as_json else lambda *_: None
    before = run.heldout() if main else None
    trainable, all_of_them = run.counts()
    show(event="start", done=run.done, steps=steps, trainable=trainable, parameters=all_of_them, heldout=before)
    tell(f"{trainable:,} of {all_of_them:,} parameters train; held-out loss {before or 0:.4f}")
    bar = tqdm(total=steps, initial=run.done, unit="step", disable=not main, file=sys.stderr)
    with bar, Stop() as stop:
        for step in run.steps(every, stop):
            bar.update()
            bar.set_postfix_str(f"loss {step.loss:.3f}")
            show(event="step", step=run.done, loss=step.loss, lr=step.lr, seconds=step.seconds, tokens=step.tokens)
    if run.done < steps:
        show(event="stopped", done=run.done, steps=steps, adapter=str(run.out))
        if main:
            again = f"`python -m llm finetune --resume --out {run.out}`"
            print(f"stopped after step {run.done} of {steps}, and saved: go on with {again}", file=sys.stderr)
        return INTERRUPTED + (stop.signal or SIGINT)  # another process may have been asked
    after = run.heldout() if main else None
    show(event="end", done=run.done, steps=steps, adapter=str(run.out), heldout=after)
    tell(f"held-out loss {after or 0:.4f}; the adapter is in {run.out}")
    return 0


@app.command()
def generate(
    prompt: Annotated[str, Argument(metavar="PROMPT", hidden=True)],
    adapter: Annotated[Path | None, Option(metavar="FOLDER", help="the adapter; without one the base speaks")] = None,
    base: Annotated[str | None, Option(metavar="NAME", help="the run's own, else course")] = None,
    max_new_tokens: number("tokens at most") = 60,
    temperature: number("0 takes the likeliest token", float, "X") = 0.8,
    top_k: number("choose among the N likeliest") = 40,
    seed: Annotated[int | None, Option(metavar="N", help="the same seed, the same text")] = None,
    dtype: Dtype = "float32",
    device: Device = "auto",
    as_json: AsJson = False,
):
    """Continue PROMPT, with an adapter or without.

    Example: python -m llm generate "To be, or" --adapter adapters/mine
    """
    from llm.adapters import load_adapter
    from llm.datasets import BREAK
    from llm.finetune import read_report

    report = read_report(adapter)
    loaded = _base(base or report.get("base", "course"), dtype, device)
    if adapter is not None:
        load_adapter(loaded.model, adapter)
    asked = prompt + BREAK if report.get("completes") and not prompt.endswith(BREAK) else prompt
    text = loaded.generate(asked, max_new_tokens, temperature, top_k, seed)
    if as_json:
        show_json(prompt=prompt, text=text, base=loaded.name, adapter=adapter and str(adapter), seed=seed)
    else:
        print(text)


@app.command()
def adapters(
    folders: Annotated[list[Path], Argument(metavar="FOLDER", hidden=True)],
    base: Annotated[str | None, Option(metavar="NAME", help="say whether each fits this base")] = None,
    as_json: AsJson = False,
):
    """Show adapters: rank, targets, size, base, and if they fit.

    Example: python -m llm adapters adapters/* --base course
    """
    from llm.adapters import AdapterError, inspect_adapter, load_adapter
    from llm.lora import remove_lora

    loaded, rows = base and _base(base), []
    for folder in folders:
        row = dict(folder=str(folder), fits=None, error=None)
        try:
            info = inspect_adapter(folder)
            row |= vars(info) | dict(targets=list(info.targets))
            if loaded:
                row["fits"] = False
                remove_lora(load_adapter(loaded.model, folder))
                row["fits"] = True
        except AdapterError as error:
            row["error"] = str(error)
        rows.append(row)
        if not as_json and "r" in row:
            print(f"{folder}\n{info}" + (f"\nfits {base}" if row["fits"] else ""))
        if not as_json and row["error"]:
            complain(row["error"])
    if as_json:
        show_json(adapters=rows)
    raise typer.Exit(int(any(row["error"] for row in rows)))


@app.command()
def merge(
    adapter: Annotated[Path, Argument(metavar="ADAPTER", hidden=True)],
    out: Annotated[Path, Option(metavar="FOLDER", help="where the merged model goes")],
    base: Annotated[str | None, Option(metavar="NAME", help="the run's own, else course")] = None,
    dtype: Dtype = "float32",
    as_json: AsJson = False,
):
    """Merge ADAPTER into its base and write that as a base.

    Example: python -m llm merge adapters/mine --out build/mine
    """
    from llm import bases
    from llm.adapters import load_adapter
    from llm.finetune import read_report
    from llm.lora import merge_lora

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise fail(f"{out} is in use: choose another --out, or move it away")
    loaded = _base(base or read_report(adapter).get("base", "course"), dtype)
    merge_lora(load_adapter(loaded.model, adapter))
    bases.save(loaded, out)
    if as_json:
        show_json(base=loaded.name, adapter=str(adapter), out=str(out))
    else:
        print(f"{loaded.name} with {adapter} is in {out}: python -m llm generate PROMPT --base {out}")


def _base(name, dtype="float32", device="cpu"):
    from llm import bases, distributed
    from llm.settings import dtype_of

    return bases.load(name, dtype_of(dtype), distributed.pick_device(device))
