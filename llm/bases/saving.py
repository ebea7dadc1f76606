"""A whole model to a new folder, from which `load` has it back: the merged one, for example."""

import json
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from safetensors.torch import save_file

from llm import gpt2_weights
from llm.bases import transformers_models
from llm.bases.base import Base
from llm.bases.transformers_tokenizers import TransformersTokenizer
from llm.errors import BaseError
from llm.files import whole_folder
from llm.lora import lora_layers
from llm.model import GPT
from llm.quantize import four_bit_layers
from llm.relatives import METHODS, method_of
from llm.tokenizer import GPT2


def save(base: Base | GPT, folder: str | Path) -> None:
    """Write a whole model to a new folder, from which `load(folder)` has it back: the merged one, for example.

    Raises BaseError when it still wears LoRA layers or a relative's or has layers in four bits, the folder holds something,
    or the disk refuses.
    """
    model, folder = getattr(base, "model", base), Path(folder).expanduser()
    now = METHODS.get(method_of(model))
    if lora_layers(model):
        raise BaseError("this model wears LoRA layers: merge_lora(model) or remove_lora(model) first")
    if now and (now.layer or not now.merges):
        raise BaseError(f"this model is prepared for {now.name}: {'merge(model) or ' * now.merges}remove(model) first")
    if four_bit_layers(model):
        raise BaseError("this model has layers in four bits, which no base's files hold: dequantize(model) first")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BaseError(f"{folder} is there already and is not an empty folder: choose another name")
    tokenizer = getattr(base, "tokenizer", None)
    theirs = isinstance(tokenizer, TransformersTokenizer)
    if isinstance(model, GPT) and (theirs or tokenizer in (None, GPT2)):
        whole_folder(folder, partial(_write_own, model, tokenizer if theirs else None))
    elif transformers_models.is_transformers(model) and theirs:
        whole_folder(folder, partial(transformers_models.write, model, tokenizer))
    else:
        raise BaseError("only a GPT, or the Base of a transformers model with its tokenizer, can be saved")


def _write_own(model, tokenizer, folder):
    # a head that was wrapped and merged is no longer the embedding, whatever the model began as
    tied = model.lm_head.weight is model.transformer.wte.weight
    state = {k: v.contiguous() for k, v in model.state_dict().items() if not (tied and k == "lm_head.weight")}
    save_file(state, folder / gpt2_weights.TENSORS, {"format": "pt"})
    config = asdict(replace(model.config, tied_lm_head=tied))
    (folder / gpt2_weights.CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if tokenizer:
        tokenizer.save(folder)
