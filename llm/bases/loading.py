"""Load a base by name or folder: the course's own, SmolLM2, GPT-2, or any language model that transformers reads.

Weights are read from safetensors. Only a learner's own `.pt` is unpickled, with `weights_only=True`.
"""

import json
import os
from dataclasses import replace
from pathlib import Path

import torch

from llm import gpt2_weights
from llm.bases import transformers_models
from llm.bases.base import Base, vocabulary_rows
from llm.bases.smollm2 import fetch_smollm2
from llm.bases.transformers_models import is_full, theirs
from llm.bases.transformers_tokenizers import has_vocabulary, read_tokenizer
from llm.checkpoint_folder import CONFIG, TENSORS, fill, read_file, read_folder
from llm.errors import BaseError
from llm.model import GPT, GPTConfig
from llm.paths import BASE, CHECKPOINT, user_path
from llm.quantize import quantize, read_scheme
from llm.tokenizer import GPT2, Tokenizer
from llm.training import own_loss

HUB = {"smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct"} | gpt2_weights.HUB  # our names, and the hub's for them
OURS = {name: ours for ours, name in HUB.items()}
NAMES = ("course", *HUB)
MOVE, RESTORE = "move it away to use the shipped base", "restore it with `git checkout data/base`"


def load(
    name: str | Path = "course",
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    scheme: str | None = None,
) -> Base:
    """Load the base called `name`: one of `NAMES`, or a folder with a model of the course, GPT-2 or transformers.

    For a folder that has one of these names, give "./gpt2" or a Path. The hub's name for one of them works too. scheme:
    how to quantize the linear layers except the head, as in `quantize.read_scheme`: "nf4". Raises BaseError, in one
    sentence, when the base cannot be fetched, is damaged, or does not fit dtype, device or memory.
    """
    if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point and dtype.itemsize >= 2):
        raise BaseError(f"a model cannot be in {dtype}: use torch.float32, torch.bfloat16 or torch.float16")
    try:
        with theirs(f"{name} cannot be put on {device}", "use device='cpu'"):
            torch.empty(1, device=device)
        base = _load(name, dtype)
        if scheme is not None:  # before the move, so that the device holds only the 4-bit weights
            try:
                quantize(base.model, **read_scheme(scheme))
            except ValueError as error:  # `quantize.py` does not know BaseError
                raise BaseError(f"{name} cannot be quantized: {error}") from None
        # a transformers model has its dtype, and must keep its buffers': 16-bit rotary angles are off by whole turns
        base.model.to(device, dtype if isinstance(base.model, GPT) else None)
    except (MemoryError, RuntimeError) as error:
        if is_full(error):
            raise BaseError(f"{name} does not fit into memory: close other programs, or use torch.bfloat16") from None
        raise
    return base


def load_tokenizer(name: str | Path = "course") -> tuple[Tokenizer, int]:
    """Return the tokenizer and the context of the base that `load` calls `name`; a large model's weights are not read.

    Raises BaseError as `load` does.
    """
    folder, ours = user_path(name), OURS.get(name, name)
    if not name or name in NAMES or not os.path.isdir(folder):
        if ours == "course" or ours in gpt2_weights.HUB:
            return GPT2, GPTConfig().block_size if ours == "course" else 1024
        folder = fetch_smollm2() if ours == "smollm2" else folder
    try:
        kind = json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("model_type", "gpt2")
    except (OSError, ValueError, AttributeError):
        kind = "gpt2"
    if kind == "gpt2":  # or not a base: `load` says why
        base = load(name)
        return base.tokenizer, base.context
    with transformers_models.quiet(), theirs(f"transformers cannot read {folder}", "copy it again"):
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    return read_tokenizer(folder), transformers_models.context(model)


def _load(name, dtype):
    folder = user_path(name)
    if name and name not in NAMES and os.path.isdir(folder):  # "" would be the current folder
        return _from_folder(folder, dtype)
    name = OURS.get(name, name)
    if name == "smollm2":
        base = _from_folder(fetch_smollm2(), dtype)
        return replace(base, name=name, tokenizer=replace(base.tokenizer, name=name), origin=HUB[name])
    if name not in NAMES:
        raise BaseError(
            f"there is no base called {str(name)[:120]!r}: choose one of {', '.join(NAMES)}, or give the folder of a model"
        )
    model = load_base() if name == "course" else GPT.from_pretrained(name)
    return Base(name, model, GPT2, model.config.block_size, own_loss, HUB.get(name))


def _from_folder(folder, dtype):
    """Load the base in a folder: a GPT if its config is the course's or GPT-2's, else a model of transformers."""
    config, _ = read_folder(folder)  # for damaged or packed weights, this has better errors than transformers
    own = config.get("model_type", "gpt2") == "gpt2"
    tokenizer = GPT2 if own and not has_vocabulary(folder) else read_tokenizer(folder)
    if own:
        model = GPT.from_pretrained(folder)
        context, loss = model.config.block_size, own_loss
    else:
        model = transformers_models.read(folder, dtype)
        context, loss = transformers_models.context(model), transformers_models.loss
    rows, needs = vocabulary_rows(model), getattr(tokenizer, "needs", tokenizer.size)
    if needs > rows:
        whose, cure = ("GPT-2's", "copy its own too") if tokenizer is GPT2 else ("its", "copy both again")
        raise BaseError(f"{folder}: {whose} tokenizer has {needs} tokens, its model {rows}: {cure}")
    return Base(str(folder), model, tokenizer, context, loss, folder.resolve().name)


def load_base(own: Path | None = CHECKPOINT, shipped: Path = BASE) -> GPT:
    """Load the chapter-12 model in float32: the learner's own checkpoint if there is one, else the shipped base.

    own: None for the shipped base, whatever the learner has. Raises BaseError when a file is damaged or of another
    shape, or when a requested one is missing.
    """
    if own and own != CHECKPOINT and not own.is_file():
        raise BaseError(f"there is no checkpoint {own}: check the path, or leave it out for the shipped base")
    path, cure = (own, MOVE) if own and own.is_file() else (shipped / TENSORS, RESTORE)
    tensors = _read_pt(own) if path == own else read_file(path, cure)
    with torch.device("meta"):  # avoids a second copy and a useless random initialization
        model = GPT(GPTConfig())
    return fill(model, tensors, path, cure)


def _read_pt(path):
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # torch raises many types here, for damage and for pickles that it refuses
        raise BaseError(
            f"{path} is not a plain PyTorch state dict: save one with torch.save(model.state_dict(), path), or {MOVE}"
        ) from None
    state = state.get("model", state) if isinstance(state, dict) else state
    if not isinstance(state, dict):
        return {}
    # torch.compile and DistributedDataParallel put prefixes before the model's own names
    return {str(name).removeprefix("module.").removeprefix("_orig_mod."): tensor for name, tensor in state.items()}
