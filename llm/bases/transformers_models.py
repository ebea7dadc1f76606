"""Models that nobody here wrote, through transformers: read, graded without holding their logits, continued, saved.

What transformers and its models raise becomes one sentence, and what they print is silence or a line.
transformers is imported where it is used: who only adapts the course's own model does not have it.
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
# parts of warnings that change no number here: slower code, old names, unused options, tensors that `read` checks
NOTICES = "much slower|fast path|deprecated|use_cache=True|we recommend|within the vocabulary|LOAD REPORT"


def is_transformers(model: nn.Module) -> bool:
    """Whether `model` is one of transformers' own, which are called, graded and continued in their own way."""
    transformers = sys.modules.get("transformers")  # not imported: then nobody can have made one
    return transformers is not None and isinstance(model, transformers.PreTrainedModel)


def read(folder: Path, dtype: torch.dtype) -> nn.Module:
    """The causal language model in `folder`, in eval mode: safetensors alone, no code from the folder, no network.

    Weights are in `dtype`, buffers as the model itself has them; the global random numbers stay where they were.
    Raises BaseError when it is damaged, of an unknown kind, its weights are not all there, or it cannot be trained here.
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
            _plain_logits(model)  # it is graded as `loss` grades
        if not torch.allclose(one, other, rtol=1e-2, atol=1e-4):
            raise BaseError(f"the model in {folder} looks ahead at the text that it is to write: take another base")
    return model


def _is_part(model, key):
    """Whether a tensor that the model did not take is a layer's that it has, or a further block's.

    What stands beside the model (a value head, an image's part), or is no weight (a mask, angles), may be left out.
    """
    modules, names = dict(model.named_modules()), (key, f"{model.base_model_prefix}.{key}")
    parents = [path for path in modules if any(name.startswith(f"{path}.") for name in names)]
    parent = modules[max(parents, key=len, default="")]
    return isinstance(parent, nn.ModuleList) or isinstance(getattr(parent, "weight", None), nn.Parameter)


def write(model: nn.Module, folder: Path) -> None:
    """The model into `folder`, as transformers saves it."""
    # a head that was wrapped and merged is no longer the embedding, whatever the model began as
    model.config.tie_word_embeddings = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    with quiet():
        model.save_pretrained(folder)


def loss(model: nn.Module, x: torch.Tensor, y: torch.Tensor, precision: str = "float32") -> torch.Tensor:
    """Mean next-token loss of a transformers model, a `training.Loss`: x, y (rows, block), logits never held whole.

    precision: of the head's products, as `head_loss` has it. Under "bfloat16" the blocks' products on a processor are
    in bfloat16, too: they are most of a large model's step.
    """
    if _plain_logits(model):
        with torch.autocast("cpu", torch.bfloat16) if precision == "bfloat16" and x.is_cpu else nullcontext():
            hidden = _call(model.base_model, x)  # (rows, block, d)
        return head_loss(hidden, model.get_output_embeddings(), y, precision)
    # a kind of head that only the model itself knows
    return F.cross_entropy(_call(model, x).flatten(0, 1).float(), y.flatten())


def _call(module, ids):
    """A model's logits, or its body's hidden states, without filling a cache where it has one."""
    uncached = {"use_cache": False} if {"use_cache", "kwargs"} & signature(module.forward).parameters.keys() else {}
    output = module(input_ids=ids, **uncached)
    return output.logits if hasattr(output, "logits") else output[0]  # before the logits a mixture has its own loss


def _plain_logits(model):
    """Whether logits are head(hidden) and nothing more; some models scale them or cap them. Asked once a model."""
    if "plain_logits" not in model.__dict__:
        x = torch.arange(2, 6, device=model.device)[None]
        with sampling(model, x, 0):
            head = model.get_output_embeddings()
            model.plain_logits = isinstance(head, nn.Module) and torch.allclose(
                head(_call(model.base_model, x)), _call(model, x), rtol=1e-3, atol=1e-5
            )
    return model.plain_logits


def context(model: nn.Module) -> int:
    """The most tokens that it reads at once: what its config says, 1,024 where it does not, or its table of positions."""
    config = model.config.get_text_config()
    names = ("max_position_embeddings", "max_target_positions", "max_seq_len", "seq_length")
    lengths = (getattr(config, name, None) for name in names)
    most = next((n for n in lengths if type(n) is int and n > 0), 1024)
    for name, table in model.named_modules():
        if name.endswith("position_embeddings") and getattr(table, "padding_idx", None) is not None:
            most = min(most, table.num_embeddings - table.padding_idx - 1)  # the first rows are for padding
    return most


def generate(model, idx, max_new_tokens, temperature=1.0, top_k=None, seed=None, stop=None, never=(), keep=0):
    """`idx` (B, T) continued by a transformers model; the options are those of `generation.generate`.

    transformers' own `generate` calls the model, as only that knows what its cache needs. Each token is drawn here, and
    the options in the model's folder do not count.
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
                # all that fits the context, and past it one token, before the window slides
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
    """transformers without its progress bars and its notices on speed, style and what `read` itself checks.

    Gives the list of its warnings as they come. What is still in it at the end is told on stderr, once a process, as a
    line each: other tokens or other numbers than the model's own would come out, and nothing else would say so.
    Raises BaseError when transformers does not load.
    """
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401  # what is broken shows here
        from transformers.utils import logging as settings
    except Exception as error:  # it is not there, or another package does not fit it, in whatever way
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
    """Whatever other people's code raises inside the `with`, as one sentence: what (its first line): cure.

    Our own errors and a full memory go through as they are. Raises `kind`.
    """
    try:
        yield
    except BaseException as error:
        panicked = type(error).__name__ == "PanicException"  # Rust's, which is no Exception
        if isinstance(error, CourseError) or is_full(error) or not (isinstance(error, Exception) or panicked):
            raise
        raise kind(f"{what} ({first_line(error)}): {cure}") from None


def is_full(error: BaseException) -> bool:
    """Whether an error says that no memory is left."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
