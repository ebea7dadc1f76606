"""Models that nobody here wrote, through transformers: read, graded without holding their logits, continued, saved.

transformers is imported where it is used: who only adapts the course's own model does not have it.
"""

import copy
import hashlib
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

from llm.lora import LoraLinear
from llm.loss import next_token_loss
from llm.model import sample
from llm.tokenizer import Tokenizer


class HFError(ValueError):
    """A model of transformers cannot be had; the message says what to do."""


@dataclass(frozen=True)
class HFTokenizer(Tokenizer):
    """A `Tokenizer` that remembers the one of transformers behind it, to save it with its model."""

    source: object = None


def is_transformers(model: nn.Module) -> bool:
    """Whether `model` is one of transformers' own, which are called, graded and continued in their own way."""
    transformers = sys.modules.get("transformers")  # not imported: then nobody can have made one
    return transformers is not None and isinstance(model, transformers.PreTrainedModel)


@contextmanager
def _quiet():
    """transformers without its progress bars; afterwards they are as they were."""
    try:
        from transformers.utils import logging
    except ImportError:
        raise HFError("this base needs transformers: run `make real`, or pip install -e '.[real]'") from None
    before = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar(), logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before[1])
        if before[0]:
            logging.enable_progress_bar()


def read(folder: Path, dtype: torch.dtype) -> nn.Module:
    """The causal language model in `folder`, in eval mode: safetensors alone, no code from the folder, no network.

    Raises HFError when it is damaged, of an unknown kind, or its weights are not all there.
    """
    with _quiet():
        from transformers import AutoModelForCausalLM

        try:
            model, info = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # transformers raises a dozen kinds here, some of many lines
            if "can't allocate memory" in str(error):
                raise
            raise HFError(f"transformers cannot read {folder} ({_line(error)}): copy or download it again") from None
    lost = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
    if lost:
        raise HFError(f"{folder} lacks {len(lost)} of its model's tensors, {lost[0]} first: copy or download it again")
    for name, p in model.named_parameters():
        if not p.isfinite().all():
            raise HFError(f"{folder}: {name} holds NaN or infinity in {dtype}: use float32, or copy it again")
    return model.eval()


def _line(error):
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200].rstrip(".:")


def read_tokenizer(folder: Path, name: str | None = None) -> HFTokenizer:
    """The tokenizer in `folder`. Raises HFError when there is none, or none that says how a text ends."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise HFError(f"{folder} has no tokenizer.json: copy the tokenizer's files into it too")
    with _quiet():
        from transformers import AutoTokenizer

        try:
            source = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:
            raise HFError(
                f"transformers cannot read the tokenizer in {folder} ({_line(error)}): copy it again"
            ) from None
    if source.eos_token_id is None:
        raise HFError(f"the tokenizer in {folder} names no eos_token, the token that ends a text: set one and save it")
    return HFTokenizer(
        name or f"tokenizer-{hashlib.sha256(file.read_bytes()).hexdigest()[:12]}",
        lambda text: source.encode(text, add_special_tokens=False, split_special_tokens=True),
        lambda ids: source.decode(list(map(int, ids)), clean_up_tokenization_spaces=False),
        source.eos_token_id,
        len(source),
        source,
    )


def unpack_gguf(gguf: Path, folder: Path) -> None:
    """A GGUF's packed weights as float16 safetensors, with config and tokenizer, in the new folder `folder`.

    transformers needs half a minute to read a GGUF, mostly for its tokenizer, and two seconds for this.
    """
    with _quiet():
        from transformers import AutoModelForCausalLM, AutoTokenizer

        options = dict(gguf_file=gguf.name, local_files_only=True)
        try:
            packed = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **options)
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **options)
        except ImportError:
            raise HFError("this base needs gguf to be unpacked: run `make real`, or pip install -e '.[real]'") from None
        config = copy.deepcopy(packed.config)
        # it would call the model quantized for ever, and refuse to save it; older versions set none
        vars(config).pop("quantization_config", None)
        with torch.device("meta"):
            plain = type(packed)(config)
        plain.load_state_dict({name: t.half() for name, t in packed.state_dict().items()}, assign=True)
        plain.tie_weights()
        plain.save_pretrained(folder), tokenizer.save_pretrained(folder)


def write(model: nn.Module, tokenizer: HFTokenizer, folder: Path) -> None:
    """Model and tokenizer into `folder`, as transformers saves them."""
    # a head that was wrapped and merged is no longer the embedding, whatever the model began as
    before = model.config.tie_word_embeddings
    model.config.tie_word_embeddings = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    try:
        with _quiet():
            model.save_pretrained(folder), tokenizer.source.save_pretrained(folder)
    finally:
        model.config.tie_word_embeddings = before


def loss(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Mean next-token loss of a transformers model, a `training.Loss`: x, y (rows, block), logits never held whole."""
    head = model.get_output_embeddings()
    if type(head) in (nn.Linear, LoraLinear) and _plain_logits(model):
        hidden, weight = model.base_model(input_ids=x, use_cache=False)[0], head.weight  # (rows, block, d), (vocab, d)
        if head.bias is not None:  # one more column that is always 1
            hidden = F.pad(hidden, (0, 1), value=1.0)
            weight = torch.cat((weight, head.bias[:, None]), dim=1)
        return next_token_loss(hidden, weight, y)
    logits = model(input_ids=x, use_cache=False).logits  # a kind of head that only the model itself knows
    return F.cross_entropy(logits.flatten(0, 1).float(), y.flatten())


def _plain_logits(model):
    """Whether logits are head(hidden) and nothing more; some models scale them or cap them. Asked once a model."""
    if "_plain_logits" not in model.__dict__:
        device, was_training = next(model.parameters()).device, model.training
        model.eval()
        with torch.no_grad():
            x = torch.arange(1, 4, device=device)[None]
            own = model.get_output_embeddings()(model.base_model(input_ids=x, use_cache=False)[0])
            model._plain_logits = torch.allclose(own, model(input_ids=x, use_cache=False).logits, rtol=1e-3, atol=1e-5)
        model.train(was_training)
    return model._plain_logits


@torch.no_grad()
def generate(model, idx, max_new_tokens, temperature=1.0, top_k=None, seed=None, stop=None):
    """`idx` (B, T) continued by a transformers model; the options are those of the course's `GPT.generate`.

    transformers' own `generate` draws from the global generator, and takes further options from the model's folder.
    """
    generator = torch.Generator(idx.device).manual_seed(seed) if seed is not None else None
    was_training, past, new = model.training, None, idx[:, -1:]
    done = torch.zeros(idx.size(0), dtype=torch.bool, device=idx.device)
    model.eval()
    try:
        if idx.size(1) > 1:  # all but the last token without the head: logits of a whole prompt can be half a gigabyte
            past = model.base_model(input_ids=idx[:, :-1], use_cache=True).past_key_values
        for _ in range(max_new_tokens):
            out = model(input_ids=new, past_key_values=past, use_cache=True)
            past, chosen = out.past_key_values, sample(out.logits[:, -1].float(), temperature, top_k, generator)
            if stop is not None:
                chosen = torch.where(done, torch.full_like(chosen, stop), chosen)
                done |= chosen == stop
            new = chosen[:, None]
            idx = torch.cat((idx, new), dim=1)
            if stop is not None and done.all():
                break
    finally:
        model.train(was_training)
    return idx
