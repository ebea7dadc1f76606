"""Writes a folder ready for the Hugging Face Hub: PEFT's two files, the run's report, and a model card."""

import json
import os
import re
from pathlib import Path

from llm.adapters import inspect_adapter
from llm.adapters.folder import CONFIG, TENSORS
from llm.bases.loading import HUB, NAMES
from llm.bases.transformers_models import INSTALL
from llm.errors import AdapterError, BaseError
from llm.finetune.run import REPORT, read_report
from llm.paths import user_path

UNKNOWN = "unknown"


def public_name(adapter: Path, given: str | None = None) -> str:
    """The Hub's name of an adapter's base. Raises AdapterError if neither `given` nor the adapter has one."""
    named = inspect_adapter(adapter).base
    name = given or HUB.get(read_report(adapter).get("base"), HUB.get(named, named)) or ""
    if not re.fullmatch(r"\w[\w.-]*/[\w.-]+", name) or os.path.isdir(user_path(name)):
        raise AdapterError(f"{adapter} does not say under which name the hub has its base: give --base-id OWNER/NAME")
    return name


def write_hub_folder(adapter: Path, to: Path, base_id: str | None = None, licence: str = UNKNOWN) -> None:
    """Fill the folder `to` with an adapter and its model card. Nothing in it identifies this machine.

    Raises AdapterError as `public_name` does, and when the adapter is damaged.
    """
    name, report = public_name(adapter, base_id), read_report(adapter)
    config = json.loads((adapter / CONFIG).read_text(encoding="utf-8")) | dict(base_model_name_or_path=name)
    (to / TENSORS).write_bytes((adapter / TENSORS).read_bytes())
    if report.get("base") not in NAMES:
        report.pop("base", None)  # a local folder; the config has the public name
    for file, content in ((CONFIG, config), (REPORT, report)):
        if content:
            (to / file).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (to / "README.md").write_text(card(adapter, report, name, licence), encoding="utf-8")


def card(adapter: Path, report: dict, base: str, licence: str = UNKNOWN) -> str:
    """The text of the model card: what the run's report says, and no claim beyond it."""
    try:
        from huggingface_hub import ModelCard, ModelCardData
    except ImportError:
        raise BaseError(f"a model card needs the package huggingface_hub: {INSTALL}") from None
    title, info = Path(os.path.realpath(adapter)).name, inspect_adapter(adapter)
    tags = ["lora" if "lora" in info.method else info.method, "lora-course"]
    data = ModelCardData(
        base_model=base, license=licence, library_name="peft", pipeline_tag="text-generation", tags=tags
    )
    best, curve = report.get("best") or {}, report.get("curve") or []
    trained = f"on `{report['data']}`" if report.get("data") else "on data that its report does not name"
    trained += f" (sha256 `{report['digest']}`)" if report.get("digest") else ""
    if report.get("base") == "smollm2":  # what the course fetches is not the original
        trained += ". In training, the base's weights were decoded from four bits (Q4_1)"
    losses = [[f"step {step}", f"{loss:.4f}"] for step, loss in (curve[:1] + curve[-1:] if curve[1:] else curve)]
    if best.get("heldout") is not None:
        losses.append([f"step {best.get('step')}, the best, which this is", f"{best['heldout']:.4f}"])
    hidden = ("base", "data", "digest", "curve", "best", "losses", "template", "join", "counts", "rows_of")
    settings = [
        [k, v] for k, v in report.items() if k not in hidden and v is not None and not isinstance(v, dict | list)
    ]
    asked = "a conversation in the chat template" if report.get("chat") else "the text itself, without a chat template"
    ask = "a conversation in the tokenizer's chat template" if not report else asked
    text = f"""# {title}

An adapter ({str(info).splitlines()[0]}; {info.parameters:,} parameters) for [{base}](https://huggingface.co/{base}), trained {trained}.
It reads {ask}. License: {"not declared; that of the base and of the data apply" if licence == UNKNOWN else licence}.

## Measured
{_table(["held-out loss, nats per token", "loss"], losses) if losses else "Its report holds no held-out loss."}

## Use
```python
from peft import AutoPeftModelForCausalLM

model = AutoPeftModelForCausalLM.from_pretrained("FOLDER_OR_NAME")
```
In the course: `python -m llm generate PROMPT --adapter FOLDER`. For llama.cpp: `python -m llm export FOLDER --format gguf`.

## Settings
{_table(["setting", "value"], settings) if settings else "Its report holds no settings."}
"""
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n{text}", ignore_metadata_errors=True))


def _table(head, rows):
    rows = [
        [str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in (head, ["---"] * len(head), *rows)
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
