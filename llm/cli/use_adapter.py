"""The commands that use an adapter: `generate`, `adapters`, `merge`.

Each imports torch and other slow packages only when it runs, so that help appears at once.
"""

import json
import os
import shlex
import sys
from dataclasses import replace
from pathlib import Path, PureWindowsPath
from typing import Annotated

import typer
from typer import Argument, Option

from llm.cli.app import AsJson, Device, Dtype, OwnBase, app, number, path
from llm.cli.console import complain, say, sentence, show_json
from llm.errors import AdapterError, CourseError
from llm.paths import user_path


@app.command()
def generate(
    prompt: Annotated[str, Argument(metavar="PROMPT", hidden=True)],
    adapter: Annotated[Path | None, Option(metavar="FOLDER", parser=path, help="default: only the base")] = None,
    base: OwnBase = None,
    max_new_tokens: number("maximum new tokens", high=10**6) = 60,
    temperature: number("0 always takes the likeliest token", float, "X", low=0, high=10**6) = 0.8,
    top_k: number("sample from the N likeliest tokens") = 40,
    seed: number("same seed, same text", int | None, low=0) = None,
    system: Annotated[str | None, Option(metavar="TEXT", help="system message of a chat")] = None,
    dtype: Dtype = "float32",
    device: Device = "auto",
    as_json: AsJson = False,
):
    """Continue PROMPT, or answer it if the run was on chats.

    Example: python -m llm generate "To be, or" --adapter adapters/mine
    """
    from llm.bases.loading import NAMES
    from llm.finetune.run import read_report
    from llm.text.chat import with_template
    from llm.text.examples import ask
    from llm.text.txt import check_text

    check_text(prompt, "the prompt")
    check_text(system or "", "--system")
    loaded = load_with(base, dtype, device, adapter)
    report = read_report(adapter or (None if loaded.name in NAMES else Path(loaded.name)))  # a merged base has one too
    chats = system is not None or report.get("chat")
    if markers := sum(map(prompt.count, loaded.tokenizer.special)):
        read_as = "such" if chats else "ordinary text"
        _note(f"the prompt spells out special tokens ({markers}), which are read as {read_as}")
    if chats:
        if report.get("template"):
            loaded = replace(loaded, tokenizer=with_template(loaded.tokenizer, str(report["template"])))
        messages = [dict(role="system", content=system)] * bool(system) + [dict(role="user", content=prompt)]
        text = loaded.chat(messages, max_new_tokens, temperature, top_k, seed)
    else:
        whole = ask(prompt, report.get("join")) if report.get("completes") else prompt
        text = loaded.generate(whole, max_new_tokens, temperature, top_k, seed)
    if as_json:
        show_json(prompt=prompt, text=text, base=loaded.name, adapter=adapter and str(adapter), seed=seed)
    else:
        say(text)
        if not text.strip():
            _note("the model ended its text at once: try another --seed, or another prompt")


@app.command()
def adapters(
    folders: Annotated[list[Path], Argument(metavar="FOLDER", hidden=True, parser=path)],
    base: Annotated[str | None, Option(metavar="NAME", help="check whether each fits this base")] = None,
    as_json: AsJson = False,
):
    """Show the rank, targets, size and base of adapters.

    Example: python -m llm adapters adapters/* --base course
    """
    from llm.adapters import inspect_adapter, load_adapter
    from llm.relatives import remove

    # one base per scheme: an adapter fits a base that is quantized as in its training
    loaded, rows = {} if base is None else {None: load_with(base)}, []
    for folder in folders:
        row = dict(folder=str(folder), fits=None, note=None, error=None)
        rows.append(row)
        try:
            info = inspect_adapter(folder)
            row |= vars(info) | dict(targets=list(info.targets))
            if base is not None:
                row["fits"], scheme = False, info.quantized
                loaded[scheme] = loaded.get(scheme) or load_with(base, scheme=scheme)
                remove(load_adapter(loaded[scheme].model, folder))
                row["fits"], row["note"] = True, _named_otherwise(info, base)
        except (CourseError, OSError) as error:
            row["error"] = sentence(error)
        if not as_json and "r" in row:
            fits = f"\nfits {base}" + f", but {row['note']}" * bool(row["note"])
            say(f"{folder}\n{info}" + fits * bool(row["fits"]))
        if not as_json and row["error"]:
            complain(row["error"])
    if as_json:
        show_json(adapters=rows)
    raise typer.Exit(int(any(row["error"] for row in rows)))


@app.command()
def merge(
    adapter: Annotated[Path, Argument(metavar="ADAPTER", hidden=True, parser=path)],
    out: Annotated[Path, Option(metavar="FOLDER", parser=path, help="where the merged model goes")],
    base: OwnBase = None,
    dtype: Dtype = "float32",
    as_json: AsJson = False,
):
    """Merge ADAPTER into its base and write a new, dense base.

    Example: python -m llm merge adapters/mine --out build/mine
    """
    from llm import bases, files
    from llm.finetune.run import REPORT, read_report
    from llm.quantize import dequantize
    from llm.relatives import merge as merge_into

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CourseError(f"{out} is there already and is not an empty folder: choose another --out, or move it away")
    loaded = load_with(base, dtype, adapter=adapter)
    dequantize(merge_into(loaded.model))  # merge into the weights it was trained on, not the original ones
    bases.save(loaded, out)
    report = read_report(adapter)
    if report.get("completes") or report.get("chat"):  # the merged model is prompted as the adapter was
        asked = ("completes", "join", "chat", "template")
        keep = json.dumps({key: report[key] for key in asked if key in report}) + "\n"
        files.replace(out / REPORT, lambda to: to.write_text(keep, encoding="utf-8"))
    if as_json:
        show_json(base=loaded.name, adapter=str(adapter), out=str(out))
    else:
        at = shlex.quote(f"./{out}" if str(out) in bases.NAMES else str(out))
        say(f"{loaded.name} with {adapter} is in {out}: python -m llm generate PROMPT --base {at}")


def load_with(base, dtype="float32", device="cpu", adapter=None, scheme=None):
    """Load the base called `base` (or the one that the adapter's run or config names) with `adapter` on it."""
    import torch

    from llm import bases
    from llm.adapters import inspect_adapter, load_adapter
    from llm.bases.loading import OURS
    from llm.finetune.run import read_report
    from llm.training import best_device

    if adapter:
        info = inspect_adapter(adapter)
        scheme = info.quantized
        if base is None:
            base = read_report(adapter).get("base", info.base or "course")
            if base not in (*bases.NAMES, *OURS) and not os.path.isdir(user_path(base)):
                absent = f"the base of {adapter}, {base[:120]!r}, is not here"
                raise CourseError(f"{absent}: give the folder of that model with --base")
        if note := _named_otherwise(info, base):
            _note(f"{adapter}: {note}")
    loaded = bases.load("course" if base is None else base, getattr(torch, dtype, dtype), best_device(device), scheme)
    if adapter:
        try:
            load_adapter(loaded.model, adapter)
        except AdapterError as error:
            if (trained_on := read_report(adapter).get("base", base)) in (base, None):
                raise
            raise AdapterError(f"{error}; {adapter} was trained on {trained_on}: leave --base out") from None
    return loaded


def _named_otherwise(info, base):
    """A note if an adapter's config names another base and no fingerprint can decide; otherwise None."""
    from llm.bases.loading import HUB

    # compare last parts alone: the Hub's owner and parent folders do not count
    ends = {PureWindowsPath(os.path.realpath(HUB.get(name, name))).name.lower() for name in (base, info.base or base)}
    return f"its config names another base, {info.base[:120]!r}" if len(ends) > 1 and not info.fingerprint else None


def _note(text):
    print(f"note: {text}", file=sys.stderr)
