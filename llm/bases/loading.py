"""A base by name or folder: the course's own, SmolLM2, GPT-2, or any language model that transformers reads."""

from dataclasses import asdict, replace
from pathlib import Path

import torch

from llm import gpt2_weights
from llm.bases import transformers_models, transformers_tokenizers
from llm.bases.base import Base
from llm.bases.course import fill, load_base
from llm.bases.smollm2 import fetch_smollm2
from llm.bases.transformers_models import is_transformers
from llm.errors import BaseError
from llm.model import GPT, GPTConfig
from llm.quantize import quantize, read_scheme
from llm.tokenizer import GPT2
from llm.training import own_loss

TIED = "lm_head.weight", "transformer.wte.weight"
NAMES = ("course", "smollm2", *gpt2_weights.HUB)


def load(
    name: str | Path = "course",
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    scheme: str | None = None,
) -> Base:
    """The base called `name`: one of `NAMES`, or a folder of the course's, of GPT-2, or of any transformers model.

    scheme: how its linear layers but the head are quantised, a word as `quantize.read_scheme` has it: "nf4".
    Raises BaseError, in one sentence, when it cannot be had, is damaged, or does not fit dtype, device or memory.
    """
    if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point and dtype.itemsize >= 2):
        raise BaseError(f"a model cannot be in {dtype}: use torch.float32, torch.bfloat16 or torch.float16")
    try:
        base = _load(str(Path(name).expanduser()), dtype)
    except (MemoryError, RuntimeError) as error:
        raise (_no_memory(name) if _is_full(error) else error) from None
    if scheme:  # before it moves: a device need not hold more than the four bits
        try:
            quantize(base.model, **read_scheme(scheme))
        except ValueError as error:  # `quantize.py` knows none of our errors
            raise BaseError(f"{name} cannot be quantised: {error}") from None
    try:
        # of a model from elsewhere the weights have their dtype, and its buffers one of their own: rotary angles in 16
        # bits are off by whole turns
        base.model.to(device) if is_transformers(base.model) else base.model.to(device, dtype)
    except (MemoryError, RuntimeError, AssertionError) as error:  # torch asserts that it was compiled with CUDA
        if _is_full(error):
            raise _no_memory(name) from None
        raise BaseError(f"{name} cannot be put on {device} ({str(error).splitlines()[0]}): use device='cpu'") from None
    return base


def _is_full(error):
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _no_memory(name):
    return BaseError(f"{name} does not fit into memory: close other programs, or use torch.bfloat16")


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
    if folder.suffix.lower() == ".gguf" and folder.is_file():
        raise BaseError(f"a GGUF file is for llama.cpp, so not {gpt2_weights.gguf(folder)}")
    if folder.is_file():
        raise BaseError(f"{name} is a file: give the folder that it lies in, with the model's config.json")
    raise BaseError(f"there is no base called {name!r}: choose one of {', '.join(NAMES)}, or give a model's folder")


def _own(name, model, tokenizer=GPT2):
    return Base(name, model, tokenizer, model.config.block_size, own_loss)


def _foreign(name, folder, dtype, tokenizer_name=None):
    tokenizer, model = transformers_models.read_both(folder, dtype, tokenizer_name)
    return Base(name, model, tokenizer, transformers_models.context(model), transformers_models.loss)


def _from_folder(folder, dtype):
    config = gpt2_weights.read_config(folder)
    if config.get("model_type", "gpt2") != "gpt2":
        return _foreign(str(folder), folder, dtype)
    model = GPT.from_pretrained(folder) if "model_type" in config else _read_own(folder, config)
    rows = model.config.vocab_size
    if transformers_tokenizers.files(folder):
        tokenizer = transformers_tokenizers.read_tokenizer(folder)
    elif rows < GPT2.size:
        raise BaseError(f"{folder} has {rows} tokens and no tokenizer.json: copy its tokenizer too")
    else:
        tokenizer = GPT2
    transformers_tokenizers.check_fit(tokenizer, rows, folder)
    return _own(str(folder), model, tokenizer)


def _read_own(folder, config):
    try:
        config = GPTConfig(**config)
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise BaseError(
            f"{folder / gpt2_weights.CONFIG} is not the course's ({error}): copy or save the model again"
        ) from None
    with gpt2_weights.weights(folder) as files:
        sizes = [v for k, v in asdict(config).items() if k not in ("dropout", "bias", "tied_lm_head")]
        if not all(type(n) is int and n > 0 for n in sizes) or config.n_layer > len(files):
            raise BaseError(
                f"{folder / gpt2_weights.CONFIG} gives no sizes that fit its weights: copy or save the model again"
            )
        state = {name: f.get_tensor(name) for name, f in files.items()}
        if config.tied_lm_head and not gpt2_weights.one_matrix(files):
            config = replace(config, tied_lm_head=False)
    if config.tied_lm_head:  # of two names for one matrix a file keeps either
        for name, other in (TIED, TIED[::-1]):
            if other in state:
                state.setdefault(name, state[other])
    return fill(folder / gpt2_weights.TENSORS, state, config)
