"""What one does with an adapter without a notebook: `generate`, `adapters`, `merge`.

Each imports what it needs when it runs, torch above all, so that help is there at once.
"""

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from llm.cli.app import AsJson, Device, Dtype, app, number
from llm.cli.console import complain, fail, show_json
from llm.errors import SettingError


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
    from llm.adapters import inspect_adapter, load_adapter
    from llm.finetune.resume import read_report
    from llm.text.examples import ask

    report = read_report(adapter)
    scheme = adapter and inspect_adapter(adapter).quantized
    loaded = _base(base or report.get("base", "course"), dtype, device, scheme)
    if adapter is not None:
        load_adapter(loaded.model, adapter)
    asked = ask(prompt, report.get("join")) if report.get("completes") else prompt
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
    from llm.adapters import inspect_adapter, load_adapter
    from llm.errors import AdapterError, BaseError
    from llm.relatives import remove

    loaded, rows = {None: base and _base(base)}, []  # by scheme: an adapter fits the base as it was when it was trained
    for folder in folders:
        row = dict(folder=str(folder), fits=None, error=None)
        try:
            info = inspect_adapter(folder)
            row |= vars(info) | dict(targets=list(info.targets))
            if base:
                row["fits"], scheme = False, info.quantized
                loaded[scheme] = loaded.get(scheme) or _base(base, scheme=scheme)
                remove(load_adapter(loaded[scheme].model, folder))
                row["fits"] = True
        except (AdapterError, BaseError) as error:
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
    """Merge ADAPTER into its base and write that as a base, dense.

    Example: python -m llm merge adapters/mine --out build/mine
    """
    from llm import bases
    from llm.adapters import inspect_adapter, load_adapter
    from llm.finetune.resume import read_report
    from llm.quantize import dequantize
    from llm.relatives import merge as merge_into

    out = out.expanduser()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise fail(f"{out} is in use: choose another --out, or move it away")
    scheme = inspect_adapter(adapter).quantized
    loaded = _base(base or read_report(adapter).get("base", "course"), dtype, scheme=scheme)
    dequantize(merge_into(load_adapter(loaded.model, adapter)))  # over what it was trained on, and not the original
    bases.save(loaded, out)
    if as_json:
        show_json(base=loaded.name, adapter=str(adapter), out=str(out))
    else:
        print(f"{loaded.name} with {adapter} is in {out}: python -m llm generate PROMPT --base {out}")


def _base(name, dtype="float32", device="cpu", scheme=None):
    import torch

    from llm import bases
    from llm.finetune.settings import DTYPES
    from llm.training import best_device

    if dtype not in DTYPES:
        raise SettingError(f"there is no --dtype {dtype} here: choose one of {', '.join(DTYPES)}")
    return bases.load(name, getattr(torch, dtype), best_device(device), scheme)
