"""Models that nobody here wrote, through transformers: read, graded without holding their logits, continued, saved.

transformers is imported where it is used: who only adapts the course's own model does not have it.
"""

import sys
from contextlib import nullcontext
from inspect import signature
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

from llm.bases.theirs import line, quiet, theirs, too_old
from llm.bases.transformers_tokenizers import TransformersTokenizer, check_fit, read_tokenizer
from llm.errors import BaseError
from llm.gpt2_weights import ADAPTER, weights
from llm.lora import LoraLinear
from llm.loss import asked_for_bfloat16, next_token_loss
from llm.model import decode


def is_transformers(model: nn.Module) -> bool:
    """Whether `model` is one of transformers' own, which are called, graded and continued in their own way."""
    transformers = sys.modules.get("transformers")  # not imported: then nobody can have made one
    return transformers is not None and isinstance(model, transformers.PreTrainedModel)


def read_both(folder: Path, dtype: torch.dtype, name: str | None = None) -> tuple[TransformersTokenizer, nn.Module]:
    """Tokenizer (called `name`) and model of `folder`. Raises BaseError as both do, and when they do not fit together."""
    tokenizer, model = read_tokenizer(folder, name), read(folder, dtype)
    check_fit(tokenizer, model.get_input_embeddings().weight.size(0), folder)
    return tokenizer, model


def read(folder: Path, dtype: torch.dtype) -> nn.Module:
    """The causal language model in `folder`, in eval mode: safetensors alone, no code from the folder, no network.

    Weights are in `dtype`, buffers as the model itself has them; the global random numbers stay where they were.
    Raises BaseError when it is damaged, of an unknown kind, its weights are not all there, or it cannot be trained here.
    """
    if (folder / ADAPTER).is_file():  # transformers would put it on, and say nothing
        raise BaseError(
            f"{folder} holds a model and an adapter: move the adapter's two files into a folder of their own"
        )
    with quiet(), torch.random.fork_rng(devices=[]):
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
            raise BaseError(f"transformers cannot read {folder} ({line(error)}): {_cure(str(error))}") from None
    _check_tensors(model, info, folder)
    for name, p in model.named_parameters():
        if not p.isfinite().all():
            raise BaseError(f"{folder}: {name} holds NaN or infinity in {dtype}: use float32, or copy it again")
    _check_head(model, folder)
    _try(model.eval(), folder)
    return model


def _cure(said):
    if "trust_remote_code" in said:
        return "it wants code from its folder, which is never run here: take a model that transformers itself knows"
    if "does not recognize" in said or "Unrecognized" in said:
        return "it writes no text, or a newer transformers knows it"
    return too_old() or "copy or download it again, or try a newer transformers"


def _check_tensors(model, info, folder):
    """Refuse a file whose tensors are not those of the model that its config describes."""
    lost = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
    if lost:
        head = model.get_output_embeddings()
        alone = len(lost) == 1 and any(f"{name}.weight" == lost[0] for name, m in model.named_modules() if m is head)
        tie = 'set "tie_word_embeddings" to true in its config.json where head and embedding are one, or '
        raise BaseError(
            f"{folder} lacks {len(lost)} of its model's tensors, {lost[0]} first: {tie * alone}copy or download it again"
        )
    if dropped := sorted(key for key in info["unexpected_keys"] if _is_part(model, key)):
        raise BaseError(
            f"{folder}: its config.json drops {len(dropped)} tensors of the file, {dropped[0]} first, so it is another "
            "model's: copy both again"
        )


def _is_part(model, key):
    """Whether a tensor that the model did not take is a layer's that it has, or a further block's.

    What stands beside the model (a value head, an image's part), or is no weight (a mask, angles), may be left out.
    """
    modules = dict(model.named_modules())
    for name in (key, f"{model.base_model_prefix}.{key}"):
        while name:
            name = name.rpartition(".")[0]
            if name in modules and name:
                found = modules[name]
                return isinstance(found, nn.ModuleList) or isinstance(getattr(found, "weight", None), nn.Parameter)
    return False


def _check_head(model, folder):
    """Refuse a head that stands in the file and was dropped, because the config says that it is the embedding."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or head.weight is not embedding.weight:
        return
    names = [name.rpartition(".")[2] for name, module in model.named_modules() if module in (head, embedding)]
    ends = tuple(f"{name}.weight" for name in names)  # a file may leave out or add what stands before them
    with weights(folder) as files:
        found = [files[key].get_tensor(key) for key in files if key.endswith(ends)]
    if len(found) == 2 and not (found[0].shape == found[1].shape and torch.equal(*found)):
        raise BaseError(
            f"{folder} holds a head that is not its embedding, and its config.json says that they are one: set "
            '"tie_word_embeddings" to false there'
        )


def _try(model, folder):
    """Let it read before anybody trains it: it is graded as `loss` grades and continued as `generate` continues."""
    with quiet(), torch.no_grad(), torch.random.fork_rng(devices=[]):
        with theirs(f"the model in {folder} reads no text", "take another base"):
            x = _some_ids(model)
            end = torch.tensor([[0, 0, 0, 1]])
            one, other = (_logits(model, ids)[:, :3].float() for ids in (x, x - end))
            _plain_logits(model), _caches(model)
        if not torch.allclose(one, other, rtol=1e-2, atol=1e-4):
            raise BaseError(f"the model in {folder} looks ahead at the text that it is to write: take another base")


def write(model: nn.Module, tokenizer: TransformersTokenizer, folder: Path) -> None:
    """Model and tokenizer into `folder`, as transformers saves them."""
    # a head that was wrapped and merged is no longer the embedding, whatever the model began as
    before = model.config.tie_word_embeddings
    model.config.tie_word_embeddings = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    try:
        with quiet():
            model.save_pretrained(folder)
        tokenizer.save(folder)
    finally:
        model.config.tie_word_embeddings = before


def loss(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Mean next-token loss of a transformers model, a `training.Loss`: x, y (rows, block), logits never held whole.

    On a processor the blocks' products are in bfloat16 where that was asked for by name: they are most of a large
    model's step, and `loss.head_precision` sees to the head alone.
    """
    head = model.get_output_embeddings()
    if type(head) in (nn.Linear, LoraLinear) and _plain_logits(model):
        with torch.autocast("cpu", torch.bfloat16) if asked_for_bfloat16(x.device) else nullcontext():
            hidden = model.base_model(input_ids=x, **_uncached(model.base_model))[0]  # (rows, block, d)
        weight = head.weight  # (vocab, d)
        if head.bias is not None:  # one more column that is always 1
            hidden = F.pad(hidden, (0, 1), value=1.0)
            weight = torch.cat((weight, head.bias[:, None]), dim=1)
        return next_token_loss(hidden, weight, y)
    logits = _logits(model, x)  # a kind of head that only the model itself knows
    return F.cross_entropy(logits.flatten(0, 1).float(), y.flatten())


def _uncached(module):
    """The argument that keeps it from filling a cache, where it has one."""
    return {"use_cache": False} if {"use_cache", "kwargs"} & signature(module.forward).parameters.keys() else {}


def _logits(model, idx):
    return model(input_ids=idx, **_uncached(model)).logits


def _some_ids(model):
    """Four tokens to ask a model something with (1, 4)."""
    rows = model.get_input_embeddings().weight.size(0)
    return (torch.arange(2, 6, device=next(model.parameters()).device) % rows)[None]


def _asked(question):
    """What `question` answers of a model in eval mode, asked once a model."""

    def answer(model):
        if question.__name__ not in model.__dict__:
            was_training = model.training
            model.eval()
            with torch.no_grad():
                setattr(model, question.__name__, question(model))
            model.train(was_training)
        return model.__dict__[question.__name__]

    return answer


@_asked
def _plain_logits(model):
    """Whether logits are head(hidden) and nothing more; some models scale them or cap them."""
    x, head = _some_ids(model), model.get_output_embeddings()
    if not isinstance(head, nn.Module):
        return False
    own = head(model.base_model(input_ids=x, **_uncached(model.base_model))[0])
    return torch.allclose(own, _logits(model, x), rtol=1e-3, atol=1e-5)


@_asked
def _caches(model):
    """Whether it goes on from keys and values as a Llama does; some keep a state of another kind, or none."""
    x = _some_ids(model)
    try:
        past = model.base_model(input_ids=x[:, :-1], use_cache=True).past_key_values
        one = model(input_ids=x[:, -1:], past_key_values=past, use_cache=True)
        return one.past_key_values is not None and torch.allclose(
            one.logits[:, -1].float(), _logits(model, x)[:, -1].float(), rtol=1e-2, atol=1e-2
        )
    except Exception:  # whatever it says to arguments that it does not know
        return False


def context(model: nn.Module) -> int:
    """The most tokens that it reads at once, 1,024 where its config does not say."""
    config = model.config.get_text_config()
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "context_length"):
        if type(length := getattr(config, name, None)) is int and length > 0:
            return length
    return 1024


def generate(model, idx, max_new_tokens, temperature=1.0, top_k=None, seed=None, stop=None, never=None):
    """`idx` (B, T) continued by a transformers model; the options are those of the course's `GPT.generate`.

    A prompt longer than the context is read from its end; past the context the window slides.
    transformers' own `generate` draws from the global generator, and takes further options from the model's folder.
    """
    past, most, caches = None, context(model), _caches(model)

    def next_logits(idx):
        nonlocal past
        if not caches or idx.size(1) > most:  # positions are absolute in many a model: every cached key is stale
            return _logits(model, idx[:, -most:])[:, -1]
        if past is None and idx.size(1) > 1:  # without the head: logits of a whole prompt can be half a gigabyte
            past = model.base_model(input_ids=idx[:, :-1], use_cache=True).past_key_values
        out = model(input_ids=idx[:, -1:], past_key_values=past, use_cache=True)
        past = out.past_key_values
        return out.logits[:, -1]

    with quiet(), theirs(f"the model {type(model).__name__} cannot go on with this text", "take another base"):
        return decode(model, next_logits, idx, max_new_tokens, temperature, top_k, seed, stop, never)
