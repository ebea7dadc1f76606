"""Models that nobody here wrote, through transformers: read, graded without holding their logits, continued, saved.

transformers is imported where it is used: who only adapts the course's own model does not have it.
"""

import hashlib
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

from llm.errors import BaseError
from llm.lora import LoraLinear
from llm.loss import next_token_loss
from llm.model import decode
from llm.tokenizer import Tokenizer


@dataclass(frozen=True)
class TransformersTokenizer(Tokenizer):
    """A `Tokenizer` that remembers the one of transformers behind it, to save it with its model."""

    source: object = None


def is_transformers(model: nn.Module) -> bool:
    """Whether `model` is one of transformers' own, which are called, graded and continued in their own way."""
    transformers = sys.modules.get("transformers")  # not imported: then nobody can have made one
    return transformers is not None and isinstance(model, transformers.PreTrainedModel)


@contextmanager
def quiet():
    """transformers without its progress bars; afterwards they are as they were."""
    try:
        from transformers.utils import logging
    except ImportError:
        raise BaseError("this base needs transformers: run `make real`, or pip install -e '.[real]'") from None
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

    Raises BaseError when it is damaged, of an unknown kind, or its weights are not all there.
    """
    with quiet():
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
            raise BaseError(f"transformers cannot read {folder} ({_line(error)}): copy or download it again") from None
    lost = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
    if lost:
        raise BaseError(
            f"{folder} lacks {len(lost)} of its model's tensors, {lost[0]} first: copy or download it again"
        )
    for name, p in model.named_parameters():
        if not p.isfinite().all():
            raise BaseError(f"{folder}: {name} holds NaN or infinity in {dtype}: use float32, or copy it again")
    return model.eval()


def _line(error):
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200].rstrip(".:")


def read_tokenizer(folder: Path, name: str | None = None) -> TransformersTokenizer:
    """The tokenizer in `folder`. Raises BaseError when there is none, or none that says how a text ends."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise BaseError(f"{folder} has no tokenizer.json: copy the tokenizer's files into it too")
    with quiet():
        from transformers import AutoTokenizer

        try:
            source = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:
            raise BaseError(
                f"transformers cannot read the tokenizer in {folder} ({_line(error)}): copy it again"
            ) from None
    if source.eos_token_id is None:
        raise BaseError(
            f"the tokenizer in {folder} names no eos_token, the token that ends a text: set one and save it"
        )
    return TransformersTokenizer(
        name or f"tokenizer-{hashlib.sha256(file.read_bytes()).hexdigest()[:12]}",
        lambda text: source.encode(text, add_special_tokens=False, split_special_tokens=True),
        lambda ids: source.decode(list(map(int, ids)), clean_up_tokenization_spaces=False),
        source.eos_token_id,
        len(source),
        source,
    )


def write(model: nn.Module, tokenizer: TransformersTokenizer, folder: Path) -> None:
    """Model and tokenizer into `folder`, as transformers saves them."""
    # a head that was wrapped and merged is no longer the embedding, whatever the model began as
    before = model.config.tie_word_embeddings
    model.config.tie_word_embeddings = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    try:
        with quiet():
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


def generate(model, idx, max_new_tokens, temperature=1.0, top_k=None, seed=None, stop=None):
    """`idx` (B, T) continued by a transformers model; the options are those of the course's `GPT.generate`.

    transformers' own `generate` draws from the global generator, and takes further options from the model's folder.
    """
    past = None

    def next_logits(idx):
        nonlocal past
        if past is None and idx.size(1) > 1:  # without the head: logits of a whole prompt can be half a gigabyte
            past = model.base_model(input_ids=idx[:, :-1], use_cache=True).past_key_values
        out = model(input_ids=idx[:, -1:], past_key_values=past, use_cache=True)
        past = out.past_key_values
        return out.logits[:, -1]

    return decode(model, next_logits, idx, max_new_tokens, temperature, top_k, seed, stop)
