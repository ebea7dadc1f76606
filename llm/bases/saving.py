"""Save a whole model, such as a merged one, to a new folder that `load` reads."""

import json
from dataclasses import asdict, replace
from pathlib import Path

from safetensors.torch import save_file

from llm.bases import transformers_models
from llm.bases.base import Base
from llm.bases.transformers_tokenizers import TransformersTokenizer
from llm.checkpoint_folder import CONFIG, TENSORS
from llm.errors import BaseError
from llm.files import whole_folder
from llm.model import GPT
from llm.paths import user_path
from llm.quantize import four_bit_layers
from llm.relatives import METHODS, method_of
from llm.tokenizer import GPT2


def save(base: Base | GPT, folder: str | Path) -> None:
    """Save a whole model, such as a merged one, to a new folder that `load(folder)` reads.

    Raises BaseError when the model still has layers of LoRA or a relative, virtual tokens or 4-bit layers, and
    WriteError when the folder is not empty or the disk refuses.
    """
    model, folder, tokenizer = getattr(base, "model", base), user_path(folder), getattr(base, "tokenizer", None)
    method = METHODS.get(method_of(model))
    if method and (method.layer or not method.merges):
        cure = "merge(model) or remove(model)" if method.merges else "remove(model)"
        raise BaseError(f"this model is prepared for {method.name}: {cure} of llm.relatives first")
    if four_bit_layers(model):
        raise BaseError("this model has layers in four bits, which no base's files hold: dequantize(model) first")
    theirs, plain = isinstance(tokenizer, TransformersTokenizer), tokenizer in (None, GPT2)
    if not (theirs and transformers_models.is_transformers(model) or isinstance(model, GPT) and (theirs or plain)):
        raise BaseError("only a GPT, or the Base of a transformers model with its tokenizer, can be saved")

    def write(to):
        (_write_own if isinstance(model, GPT) else transformers_models.write)(model, to)
        if theirs:
            tokenizer.save(to)

    whole_folder(folder, write)


def _write_own(model, folder):
    # a head that was wrapped and merged is no longer tied to the embedding
    tied = model.lm_head.weight is model.transformer.wte.weight
    state = {k: v.contiguous() for k, v in model.state_dict().items() if not (tied and k == "lm_head.weight")}
    save_file(state, folder / TENSORS, {"format": "pt"})
    config = asdict(replace(model.config, tied_lm_head=tied))
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
