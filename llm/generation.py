"""Text generation, one token at a time: greedy, or sampled at a temperature from the top k.

`generate` is the loop of the course's GPT. A cache of keys and values saves reading the same tokens again, and a window
slides once the text exceeds the context. Knows nothing about weights: it asks a model for states or logits.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from numbers import Integral, Real

import torch
import torch.nn as nn
import torch.nn.functional as F

from llm.errors import BaseError, SettingError


def generate(
    model, idx, max_new_tokens, temperature=1.0, top_k=None, seed=None, stop=None, never=(), keep=0, use_cache=True
):
    """Continue `idx` (B, T) by up to `max_new_tokens` ids of `model`, a `GPT`.

    temperature: 0 takes the most likely token. top_k: sample from the k most likely tokens only. seed: makes the draw
    repeatable. stop: a token id, or several, that ends a row; the first of them fills the rest of the row. never: ids
    that are never drawn. Once the text exceeds the context, `window` cuts it, keeping the first `keep` ids.
    Raises SettingError as `check_sampling` does, and when `idx` is empty.
    """
    context, past = model.config.block_size, None
    done = torch.zeros(idx.size(0), dtype=torch.bool, device=idx.device)
    stops = stop_ids(stop, idx.device)
    with sampling(model, idx, max_new_tokens, temperature, top_k, seed, never) as draw:
        for _ in range(max_new_tokens):
            # positions are absolute: once the window slides, every cached key is stale
            if past is None or idx.size(1) > context or not use_cache:
                hidden, past = model.hidden(window(idx, context, keep))
            else:
                hidden, past = model.hidden(idx[:, -1:], past)
            new = draw(model.lm_head(hidden[:, -1]))  # (B,)
            if len(stops):
                new = torch.where(done, stops[0], new)
                done |= torch.isin(new, stops)
            idx = torch.cat((idx, new[:, None]), dim=1)
            if done.all():
                break
    return idx


def stop_ids(stop: int | tuple[int, ...] | None, device: torch.device) -> torch.Tensor:
    """Return the ids that end a row as a tensor (n,); the first also fills the rest of the row."""
    ids = () if stop is None else (stop,) if isinstance(stop, Integral) else stop
    return torch.tensor(ids, dtype=torch.long, device=device)


def window(idx: torch.Tensor, context: int, keep: int = 0) -> torch.Tensor:
    """Cut `idx` (B, T) to at most `context` ids: the first `keep`, then the most recent ones."""
    if idx.size(1) <= context:
        return idx
    keep = min(keep, context - 1)
    return torch.cat((idx[:, :keep], idx[:, keep - context :]), dim=1)


@contextmanager
def sampling(
    model: nn.Module, idx: torch.Tensor, max_new_tokens: int, temperature=1.0, top_k=None, seed=None, never=()
) -> Iterator[Callable[[torch.Tensor], torch.Tensor]]:
    """Put any model in eval mode without gradients, and yield a function that draws ids (B,) from logits (B, vocab).

    The logits may have any dtype. The arguments and errors are those of `generate`.
    """
    check_sampling(max_new_tokens, temperature, top_k, seed)
    if idx.size(1) == 0:
        raise SettingError("the prompt is empty: give at least one token (END_OF_TEXT will do)")
    generator = torch.Generator(idx.device).manual_seed(seed) if seed is not None else None
    barred = torch.tensor(never, dtype=torch.long, device=idx.device)
    modes = [(module, module.training) for module in model.modules()]

    def draw(logits):
        logits = logits.float()
        if len(barred):  # otherwise this would be a needless copy
            logits = logits.index_fill(1, barred, float("-inf"))
        return sample(logits, temperature, top_k, generator)

    model.eval()
    try:
        with torch.no_grad():
            yield draw
    finally:
        for module, mode in modes:
            module.training = mode


def check_sampling(
    max_new_tokens: int, temperature: float = 1.0, top_k: int | None = None, seed: int | None = None
) -> None:
    """Raise SettingError when an option of `generate` has an invalid value or type."""
    for name, value, least, most, cure in (
        ("max_new_tokens", max_new_tokens, 0, float("inf"), "makes no sense: use a whole number, 0 or more"),
        ("top_k", 1 if top_k is None else top_k, 1, float("inf"), "keeps no token: use 1 or more, or None for all"),
        ("seed", 0 if seed is None else seed, 0, 2**63 - 1, "is no seed: use a whole number from 0 to 2**63 - 1"),
    ):
        if not isinstance(value, Integral) or isinstance(value, bool) or not least <= value <= most:
            raise SettingError(f"{name}={value} {cure}")
    if not isinstance(temperature, Real) or isinstance(temperature, bool) or not 0 <= temperature < float("inf"):
        raise SettingError(
            f"temperature={temperature} makes no sense: use 0 for the likeliest token, or a number above 0"
        )


def sample(logits, temperature=1.0, top_k=None, generator=None):
    """Draw one token id per row, (B,), from float32 logits (B, vocab); temperature 0 takes the most likely.

    Raises BaseError when a logit on a CPU is NaN.
    """
    ids = None
    if temperature == 0:
        logits, ids = logits.max(-1, keepdim=True)  # (B, 1) of (B, vocab)
    elif top_k is not None:  # a draw over the whole vocabulary costs more than the model
        logits, ids = logits.topk(min(top_k, logits.size(-1)))  # (B, k) of (B, vocab)
    top = logits.amax(-1, keepdim=True)  # (B, 1), NaN where any logit is NaN: amax propagates it
    if logits.is_cpu and top.isnan().any():  # a GPU would stall here
        raise BaseError("the model computes NaN: use float32, or an adapter whose training did not diverge")
    if temperature == 0:
        return ids[:, 0]
    # subtract the largest logit first, so that even a tiny temperature overflows nothing
    smallest, largest = torch.finfo(logits.dtype).tiny, torch.finfo(logits.dtype).max
    scaled = (logits - top) / min(max(temperature, smallest), largest)
    drawn = torch.multinomial(F.softmax(scaled, -1), 1, generator=generator)  # (B, 1)
    return (drawn if ids is None else ids.gather(1, drawn))[:, 0]
