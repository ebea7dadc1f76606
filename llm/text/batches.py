"""Batches of tokens: windows of a long text, and the one rule by which a batch gets its seed.

Batch i depends on (seed, i) only, so a run resumes with the batches that it would have seen.
"""

from collections.abc import Callable, Iterator
from itertools import count

import torch

from llm.errors import SettingError
from llm.loss import IGNORE

Batch = tuple[torch.Tensor, torch.Tensor]  # inputs and targets, both (rows, block)
# The seed of what no training run reads. Not a negative one: Python's generator drops the sign, and -1 gave the
# hundred "unseen" records the first rows of batch 1 of seed 0.
UNSEEN = 2_000_003


def seed_of(seed: int, i: int) -> int:
    """The seed of what is drawn for batch `i` of a run with `seed`."""
    return seed * 1_000_003 + i


def endless(make: Callable[[int], Batch], seed: int, start: int = 0) -> Iterator[Batch]:
    """Batches `start`, `start` + 1, ... for ever, each made by `make` from a seed of its own."""
    for i in count(start):
        yield make(seed_of(seed, i))


def draw(n: int, rows: int, seed: int) -> torch.Tensor:
    """`rows` numbers below `n`, drawn with `seed` (rows,), which may be larger than torch takes it."""
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
    """Random windows of `tokens` for ever: inputs (rows, block) and the same windows one token on.

    begin: the tokens that texts of this base began with. They stand before each window, as they will stand before each
    prompt: a model may have put into that place what it cannot read without. What comes next is the middle of a text,
    and does not count. windows: how many different ones there are, drawn once by the seed; by default every one.
    Raises SettingError when the stream is shorter than one window.
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
    """Up to `limit` batches of windows spread evenly over `tokens`: the same ones every time."""
    block = _check(tokens, block, begin)
    count = min(rows * limit, (len(tokens) - 1) // block)
    at = torch.arange(count) * (len(tokens) - block - 1) // max(count - 1, 1)  # float32 is not exact above 2**24
    return [_windows(tokens, some, block, begin) for some in at.split(rows)]


def _check(tokens, block, begin):
    """How many tokens of the text a window of `block` holds."""
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
