"""`python -m llm export`: writes an adapter for programs outside Python."""

import shlex
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from llm.cli.app import AsJson, OwnBase, app, path
from llm.cli.console import say, show_json
from llm.errors import SettingError

FORMATS = "gguf", "merged", "hub"
ASK = {"merged": "-m {}/model.gguf", "gguf": "-m BASE.gguf --lora {}/adapter.gguf"}  # arguments for llama.cpp


@app.command()
def export(
    adapter: Annotated[Path, Argument(metavar="ADAPTER", hidden=True, parser=path)],
    format: Annotated[str, Option(metavar="NAME", help="gguf, merged (whole model) or hub")] = "gguf",
    out: Annotated[Path | None, Option(metavar="FOLDER", parser=path, help="a new folder")] = None,
    base: OwnBase = None,
    gguf: Annotated[Path | None, Option(metavar="FILE", parser=path, help="merged: the base's own GGUF")] = None,
    dtype: Annotated[str, Option(metavar="NAME", help="merged: float16 or float32")] = "float16",
    base_id: Annotated[str | None, Option(metavar="OWNER/NAME", help="hub: the base's public name")] = None,
    licence: Annotated[str, Option(metavar="NAME", help="hub: the adapter's licence")] = "unknown",
    as_json: AsJson = False,
):
    """Write ADAPTER for llama.cpp, Ollama, or the Hugging Face hub.

    gguf and merged are for llama.cpp, and come with a Modelfile for Ollama.

    Example: python -m llm export adapters/mine --format merged
    """
    from llm import files

    if format not in FORMATS:
        raise SettingError(f"there is no --format {format} here: choose one of {', '.join(FORMATS)}")
    if dtype not in ("float16", "float32"):
        raise SettingError(f"there is no --dtype {dtype} here: choose float16 or float32")
    out = out or Path("build") / f"{adapter.resolve().name}-{format}"
    if format == "hub":
        from llm.export.model_card import write_hub_folder

        files.whole_folder(out, lambda to: write_hub_folder(adapter, to, base_id, licence), "adapter_config.json")
    else:
        files.whole_folder(out, _for_llama_cpp(adapter, format, base, gguf, dtype), "Modelfile")
    if as_json:
        show_json(adapter=str(adapter), format=format, out=str(out))
    else:
        say(f"wrote {shlex.quote(str(out))}: {', '.join(sorted(path.name for path in out.iterdir()))}")
        if format in ASK:
            say(f"llama-server {ASK[format].format(shlex.quote(str(out)))}; for Ollama, see its Modelfile")


def _for_llama_cpp(adapter, format, base, gguf, dtype):
    """Return a function that fills a folder with a GGUF and its Modelfile."""
    import torch

    from llm.cli.use_adapter import load_with
    from llm.errors import BaseError
    from llm.export.gguf import architecture, write_adapter, write_merged
    from llm.export.modelfile import modelfile
    from llm.finetune.run import read_report
    from llm.paths import CACHE
    from llm.text import chat
    from llm.text.download import fetch_model

    loaded, report = load_with(base, adapter=adapter), read_report(adapter)
    tokenizer, template = loaded.tokenizer, report.get("template")
    if template:
        tokenizer = chat.with_template(tokenizer, template)
    if gguf is None and loaded.name == "smollm2":
        gguf = fetch_model("smollm2", CACHE)
    if gguf is None and format == "merged":
        architecture(loaded)  # whether there can be a GGUF of it at all
        raise BaseError(f"a merged model takes its tokenizer from a GGUF of {loaded.name}: give that with --gguf")

    def write(to):
        if format == "gguf":
            write_adapter(loaded, to / "adapter.gguf")
        else:
            # the GGUF's own template may differ from the one that the run used
            own = dict(template=chat.jinja(tokenizer), eot=chat.end_of_turn(tokenizer)) if report.get("chat") else {}
            write_merged(loaded, gguf, to / "model.gguf", getattr(torch, dtype), adapter.resolve().name, **own)
        text = modelfile(tokenizer, report, gguf.name if gguf else "base.gguf")
        (to / "Modelfile").write_text(text, encoding="utf-8")

    return write
