"""A base by name or folder: the course's own, SmolLM2, GPT-2, or any language model that transformers reads."""

from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from llm import gpt2_weights
from llm.bases import transformers_models
from llm.bases.base import Base
from llm.bases.course import fill, load_base
from llm.bases.smollm2 import fetch_smollm2
from llm.errors import BaseError
from llm.model import GPT, GPTConfig
from llm.tokenizer import GPT2
from llm.training import own_loss

NAMES = ("course", "smollm2", *gpt2_weights.HUB)


def load(name: str | Path = "course", dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> Base:
    """The base called `name`: one of `NAMES`, or a folder of the course's, of GPT-2, or of any transformers model.

    Raises BaseError, in one sentence, when it cannot be had, is damaged, or does not fit dtype, device or memory.
    """
    if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point and dtype.itemsize >= 2):
        raise BaseError(f"a model cannot be in {dtype}: use torch.float32, torch.bfloat16 or torch.float16")
    try:
        base = _load(str(name), dtype)
        base.model.to(device=device, dtype=dtype)
    except (MemoryError, RuntimeError, AssertionError) as error:  # torch asserts that it was compiled with CUDA
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            raise BaseError(f"{name} does not fit into memory: close other programs, or use torch.bfloat16") from None
        raise BaseError(f"{name} cannot be put on {device} ({str(error).splitlines()[0]}): use device='cpu'") from None
    return base


def _load(name, dtype):
    folder = Path(name)
    if folder.is_dir():
        return _from_folder(folder, dtype)
    if name == "course":
        return _own(name, load_base())
    if name == "smollm2":
        return _foreign(name, fetch_smollm2(), dtype, tokenizer_name="smollm2")
    if name in gpt2_weights.HUB:
        return _own(name, GPT.from_pretrained(name))
    raise BaseError(f"there is no base called {name!r}: choose one of {', '.join(NAMES)}, or give a model's folder")


def _own(name, model, tokenizer=GPT2):
    return Base(name, model, tokenizer, model.config.block_size, own_loss)


def _foreign(name, folder, dtype, tokenizer_name=None):
    tokenizer, model = (
        transformers_models.read_tokenizer(folder, tokenizer_name),
        transformers_models.read(folder, dtype),
    )
    if tokenizer.size > (rows := model.get_input_embeddings().weight.size(0)):
        raise BaseError(f"{folder}: its tokenizer has {tokenizer.size} tokens, its model {rows}: copy both again")
    return Base(
        name, model, tokenizer, getattr(model.config, "max_position_embeddings", None) or 1024, transformers_models.loss
    )


def _from_folder(folder, dtype):
    config = gpt2_weights.read_config(folder)
    if "model_type" not in config:
        return _own(str(folder), _read_own(folder, config))
    if config["model_type"] != "gpt2":
        return _foreign(str(folder), folder, dtype)
    model = GPT.from_pretrained(folder)
    if (folder / "tokenizer.json").is_file() and model.config.vocab_size != GPT2.size:
        return _own(str(folder), model, transformers_models.read_tokenizer(folder))
    if model.config.vocab_size < GPT2.size:
        raise BaseError(f"{folder} has {model.config.vocab_size} tokens and no tokenizer.json: copy its tokenizer too")
    return _own(str(folder), model)


def _read_own(folder, config):
    path = folder / gpt2_weights.TENSORS
    try:
        config = GPTConfig(**config)
        state = load_file(path)
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise BaseError(
            f"{folder / gpt2_weights.CONFIG} is not the course's ({error}): copy or save the model again"
        ) from None
    except (SafetensorError, OSError) as error:
        raise BaseError(f"{path} is damaged ({error}): copy or save the model again") from None
    sizes = [v for k, v in asdict(config).items() if k not in ("dropout", "bias", "tied_lm_head")]
    if not all(type(n) is int and n > 0 for n in sizes) or config.n_layer > len(state):
        raise BaseError(
            f"{folder / gpt2_weights.CONFIG} gives no sizes that fit {path.name}: copy or save the model again"
        )
    if config.tied_lm_head and "transformer.wte.weight" in state:
        state.setdefault("lm_head.weight", state["transformer.wte.weight"])
    for name, tensor in state.items():
        if not tensor.isfinite().all():
            raise BaseError(f"{path}: {name} holds NaN or infinity: copy or save the model again")
    return fill(path, state, config)
