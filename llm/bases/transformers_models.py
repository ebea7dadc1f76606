"""Models of transformers: read them, compute their loss without holding all logits, generate, save.

Exceptions of transformers and its models become one sentence; their output is dropped, or cut to one line.
transformers is imported only where it is used, as those who adapt only the course's own model do not have it.
"""

import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from inspect import signature
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

from llm.checkpoint_folder import compare, first_line
from llm.errors import BaseError, CourseError
from llm.generation import sampling, stop_ids, window
from llm.loss import head_loss

INSTALL = "run `make real`, or pip install -e '.[real]'"
# parts of warnings that are harmless here: slower code, old names, unused options, tensors that `read` checks
NOTICES = "much slower|fast path|deprecated|use_cache=True|we recommend|within the vocabulary|LOAD REPORT"


def is_transformers(model: nn.Module) -> bool:
    """Whether `model` is one of transformers', whose logits, loss and generation need their own calls."""
    transformers = sys.modules.get("transformers")  # if it is not imported, nobody can have made one
    return transformers is not None and isinstance(model, transformers.PreTrainedModel)


def read(folder: Path, dtype: torch.dtype) -> nn.Module:
    """Read the causal language model in `folder`, in eval mode: safetensors only, no code from the folder, no network.

    Weights are in `dtype`, buffers in the model's own dtypes; the global random state is unchanged. Raises BaseError
    when the model is damaged, incomplete, of an unknown kind, or cannot be trained here.
    """
    cure = "copy it again, or take another model or a newer transformers (code in a folder is never run)"
    options = dict(local_files_only=True, use_safetensors=True, trust_remote_code=False, output_loading_info=True)
    with quiet(), theirs(f"transformers cannot read {folder}", cure), torch.random.fork_rng(devices=[]):
        from transformers import AutoModelForCausalLM

        model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **options)
    surplus = (key for key in info["unexpected_keys"] if _is_part(model, key))
    compare(dict.fromkeys(surplus, "one"), dict.fromkeys(info["missing_keys"], "one"), folder)
    for name, p in model.eval().named_parameters():
        if not p.isfinite().all():
            raise BaseError(f"{folder}: {name} holds NaN or infinity in {dtype}: use float32, or copy it again")
    with quiet(), torch.no_grad(), torch.random.fork_rng(devices=[]):
        with theirs(f"the model in {folder} reads no text", "take another base"):
            ids = torch.arange(2, 6)[None]
            one, other = (_call(model, x)[:, :3].float() for x in (ids, ids - torch.tensor([[0, 0, 0, 1]])))
            _plain_logits(model)  # also tries what `loss` will call
        if not torch.allclose(one, other, rtol=1e-2, atol=1e-4):
            raise BaseError(f"the model in {folder} looks ahead at the text that it is to write: take another base")
    return model


def _is_part(model, key):
    """Whether a tensor that the model did not load belongs to a layer that it has, or to a further block.

    Tensors of other parts (a value head, an image encoder) and non-weights (a mask, angles) may be left out.
    """
    modules, names = dict(model.named_modules()), (key, f"{model.base_model_prefix}.{key}")
    parents = [path for path in modules if any(name.startswith(f"{path}.") for name in names)]
    parent = modules[max(parents, key=len, default="")]
    return isinstance(parent, nn.ModuleList) or isinstance(getattr(parent, "weight", None), nn.Parameter)


def write(model: nn.Module, folder: Path) -> None:
    """Save the model to `folder`, as transformers does."""
    # a head that was wrapped and merged is no longer tied to the embedding
    model.config.tie_word_embeddings = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    with quiet():
        model.save_pretrained(folder)


def loss(model: nn.Module, x: torch.Tensor, y: torch.Tensor, precision: str = "float32") -> torch.Tensor:
    """Mean next-token loss of a transformers model for x, y (rows, block), without holding all the logits.

    precision: of the head's products, as in `head_loss`. On a CPU, "bfloat16" also applies to the blocks' products,
    which are most of a large model's step.
    """
    if _plain_logits(model):
        with torch.autocast("cpu", torch.bfloat16) if precision == "bfloat16" and x.is_cpu else nullcontext():
            hidden = _call(model.base_model, x)  # (rows, block, d)
        return head_loss(hidden, model.get_output_embeddings(), y, precision)
    # only the model itself knows how it makes logits from states
    return F.cross_entropy(_call(model, x).flatten(0, 1).float(), y.flatten())


def _call(module, ids):
    """Return a model's logits, or its body's hidden states, without filling a cache."""
    uncached = {"use_cache": False} if {"use_cache", "kwargs"} & signature(module.forward).parameters.keys() else {}
    output = module(input_ids=ids, **uncached)
    return output.logits if hasattr(output, "logits") else output[0]  # [0] may be a mixture's own loss


def _plain_logits(model):
    """Whether logits are just head(hidden), which some models scale or cap. Checked once per model."""
    if "plain_logits" not in model.__dict__:
        x = torch.arange(2, 6, device=model.device)[None]
        with sampling(model, x, 0):
            head = model.get_output_embeddings()
            model.plain_logits = isinstance(head, nn.Module) and torch.allclose(
                head(_call(model.base_model, x)), _call(model, x), rtol=1e-3, atol=1e-5
            )
    return model.plain_logits


def context(model: nn.Module) -> int:
    """Return the most tokens that a model reads at once: its config's number or 1,024, at most its position table's."""
    config = model.config.get_text_config()
    names = ("max_position_embeddings", "max_target_positions", "max_seq_len", "seq_length")
    lengths = (getattr(config, name, None) for name in names)
    most = next((n for n in lengths if type(n) is int and n > 0), 1024)
    for name, table in model.named_modules():
        if name.endswith("position_embeddings") and getattr(table, "padding_idx", None) is not None:
            most = min(most, table.num_embeddings - table.padding_idx - 1)  # the first rows are for padding
    return most


def generate(model, idx, max_new_tokens, temperature=1.0, top_k=None, seed=None, stop=None, never=(), keep=0):
    """Continue `idx` (B, T) with a transformers model; the options are those of `generation.generate`.

    transformers' own `generate` calls the model, because only it knows what the model's cache needs. Each token is
    drawn here, and the generation options in the model's folder are ignored.
    """
    most, end = context(model), idx.size(1) + max_new_tokens
    done = torch.zeros(idx.size(0), 1, dtype=torch.bool, device=idx.device)
    stops = stop_ids(stop, idx.device)
    ends = dict(eos_token_id=stops.tolist() or None, pad_token_id=next(iter(stops.tolist()), 0))
    folders_options = model.generation_config
    failing = theirs(f"the model {type(model).__name__} cannot go on with this text", "take another base")
    with sampling(model, idx, max_new_tokens, temperature, top_k, seed, never) as draw, quiet(), failing:
        from transformers import GenerationConfig

        def only_the_drawn(_, logits):
            return torch.full_like(logits, float("-inf")).scatter_(1, draw(logits)[:, None], 0.0)

        try:
            while idx.size(1) < end and not done.all():
                x = window(idx, most, keep)
                # as many tokens as fit the context; once it is full, one, before the window slides
                length = min(end - idx.size(1), most - x.size(1) + 1)
                config = model.generation_config = GenerationConfig(max_new_tokens=length, use_cache=True, **ends)
                inputs = dict(input_ids=x, attention_mask=torch.ones_like(x), logits_processor=[only_the_drawn])
                new = model.generate(**inputs, generation_config=config)[:, x.size(1) :]
                if len(stops):
                    new = torch.where(done, stops[0], new)
                    done |= torch.isin(new, stops).any(1, keepdim=True)
                idx = torch.cat((idx, new), dim=1)
        finally:
            model.generation_config = folders_options
    return idx


@contextmanager
def quiet() -> Iterator[list[str]]:
    """Silence transformers' progress bars and its notices on speed, style and what `read` itself checks.

    Yields the list of its warnings, as they come. Those left in it at the end are logged, one line each and once per
    process, because they mean that tokens or numbers may differ from the model's own. Raises BaseError when
    transformers cannot be imported.
    """
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401  # a broken installation fails here
        from transformers.utils import logging as settings
    except Exception as error:  # it is missing, or another package breaks it in some way
        raise BaseError(f"this base needs transformers ({first_line(error)}): {INSTALL}") from None
    warnings, listener, log = [], logging.Handler(logging.WARNING), logging.getLogger("transformers")
    listener.emit = lambda record: warnings.append(" ".join(record.getMessage().split()))
    with_bars, before = settings.is_progress_bar_enabled(), (log.handlers, log.propagate)
    log.handlers, log.propagate = [listener], False
    settings.disable_progress_bar()
    try:
        yield warnings
    finally:
        log.handlers, log.propagate = before
        if with_bars:
            settings.enable_progress_bar()
        for warning in warnings:
            if not re.search(NOTICES, warning):
                _tell(warning)


@cache
def _tell(warning):
    logging.getLogger(__name__).warning("transformers warns: %s", warning)


@contextmanager
def theirs(what: str, cure: str, kind: type[CourseError] = BaseError) -> Iterator[None]:
    """Turn an exception of foreign code inside the `with` into a `kind` that says: what (its first line): cure.

    Course errors, out-of-memory errors and interrupts pass through unchanged.
    """
    try:
        yield
    except BaseException as error:
        panicked = type(error).__name__ == "PanicException"  # Rust's, which is not an Exception
        if isinstance(error, CourseError) or is_full(error) or not (isinstance(error, Exception) or panicked):
            raise
        raise kind(f"{what} ({first_line(error)}): {cure}") from None


def is_full(error: BaseException) -> bool:
    """Whether an error says that memory is exhausted."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
