"""Batches of tokens: windows of a long text, and the rule that gives each batch its seed.

Batch i depends only on (seed, i), so a resumed run continues with the batches that it would have seen.
"""

from collections.abc import Callable, Iterator
from itertools import count

import torch

from llm.errors import SettingError
from llm.loss import IGNORE

Batch = tuple[torch.Tensor, torch.Tensor]  # inputs and targets, both (rows, block)
# The seed of data that no training run reads. It is not negative, because Python's generator drops the sign: with -1
# the hundred "unseen" records were the first rows of batch 1 of seed 0.
UNSEEN = 2_000_003


def seed_of(seed: int, i: int) -> int:
    """The seed of batch `i` in a run with `seed`."""
    return seed * 1_000_003 + i


def endless(make: Callable[[int], Batch], seed: int, start: int = 0) -> Iterator[Batch]:
    """Yield batches `start`, `start` + 1, ... without end; `make` builds each one from its own seed."""
    for i in count(start):
        yield make(seed_of(seed, i))


def draw(n: int, rows: int, seed: int) -> torch.Tensor:
    """Draw `rows` random integers below `n` (rows,); `seed` may be larger than torch accepts."""
    return torch.randint(n, (rows,), generator=torch.Generator().manual_seed(seed % 2**63))


def batches(
    tokens: torch.Tensor,
    rows: int = 32,
    block: int = 64,
    seed: int = 0,
    start: int = 0,
    begin: tuple[int, ...] = (),
    windows: int | None = None,
) -> Iterator[Batch]:
    """Yield random windows of `tokens` without end: inputs (rows, block) and targets, which are one token later.

    begin: the tokens that every text began with when this base was trained. They stand before each window, as they do
    before each prompt, because the model may rely on that position. What follows them is the middle of a text, so its
    first token is no target. windows: the number of different windows, drawn once from the seed; the default is all.
    Raises SettingError when `tokens` or `block` is too short.
    """
    block = _check(tokens, block, begin)
    few = None if windows is None else draw(len(tokens) - block, windows, seed)

    def made(own):
        at = draw(len(tokens) - block, rows, own) if few is None else few[draw(windows, rows, own)]
        return _windows(tokens, at, block, begin)

    return endless(made, seed, start)


def heldout_batches(
    tokens: torch.Tensor, rows: int = 32, block: int = 64, limit: int = 8, begin: tuple[int, ...] = ()
) -> list[Batch]:
    """Up to `limit` batches of windows spaced evenly over `tokens`, the same ones on every call."""
    block = _check(tokens, block, begin)
    count = min(rows * limit, (len(tokens) - 1) // block)
    at = torch.arange(count) * (len(tokens) - block - 1) // max(count - 1, 1)  # float32 is inexact above 2**24
    return [_windows(tokens, some, block, begin) for some in at.split(rows)]


def _check(tokens, block, begin):
    """The number of text tokens in a window of `block`."""
    if block <= len(begin):
        raise SettingError(
            f"a window of {block} has no room behind the token that a text begins with: give a larger one"
        )
    if len(tokens) <= block:
        raise SettingError(f"{len(tokens)} tokens are too few for one window of {block} + 1: give a longer text")
    return block - len(begin)


def _windows(tokens, at, block, begin):
    window = tokens[at[:, None] + torch.arange(block + 1)]  # (rows, block + 1)
    first = torch.tensor([begin] * len(at), dtype=window.dtype).view(len(at), len(begin))
    x, y = torch.cat((first, window[:, :-1]), dim=1), torch.cat((first, window[:, 1:]), dim=1)
    y[:, : len(begin)] = IGNORE
    return x, y
