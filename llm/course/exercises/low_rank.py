"""Checks of low rank: the rank that holds a share of the energy, and the best rank-r part."""

from collections.abc import Callable
from functools import partial

import torch

from llm.course.exercises.speak import Comparison, spoken
from llm.spectra import decompose


@spoken
def check_rank(rank_needed: Callable) -> str | None:
    """`rank_needed(s, share)`: the fewest singular values, largest first, whose squares hold `share` of all squares."""
    spectra = [torch.rand(n).square().sort(descending=True).values for n in (40, 25, 60)]
    exact = [(torch.tensor([2.0, 1.0, 1.0, 1.0, 1.0]), 0.5), (torch.ones(4), 0.5)]  # one value, and two, hold just that
    cases = [*zip(spectra, (0.9, 0.5, 0.75)), *exact]

    def energy(s):
        return (s**2).cumsum(0) / (s**2).sum()

    def right(s, share, too_little=torch.lt):
        return int(too_little(energy(s), share).sum()) + 1

    slips = {
        "this is a share of the sum of s, but energy is the sum of the squares": lambda s, share: right(
            s.sqrt(), share
        ),
        "one too few. A list counts from 0, and a rank counts from 1": lambda s, share: right(s, share) - 1,
        "one too many. The rank before it already holds the share": lambda s, share: right(s, share) + 1,
        "a rank that holds exactly the share is enough, so compare with >= instead of >": partial(
            right, too_little=torch.le
        ),
    }
    return Comparison(
        invite="begin with the energy of each value, `s**2`, and its running sum",
        wanted="one whole number",
        otherwise="this is not the rank. For s = [2, 1, 1, 1, 1] the squares are 4, 1, 1, 1, 1, so rank 1 holds half",
    ).diagnose(rank_needed, cases, right, slips)


@spoken
def check_truncate(truncate: Callable) -> str | None:
    """`truncate(D, r)` against the best rank-r part of D (m, n), the same shape."""
    cases = [(torch.randn(m, n), r) for m, n, r in ((7, 5, 2), (4, 6, 1), (5, 5, 3))]

    def best(D, r, scaled=True):
        u, s, vh = decompose(D)
        return ((u[:, :r] * (s[:r] if scaled else 1)) @ vh[:r]).to(D.dtype)

    def transposed_twice(D, r):
        u, s, vh = decompose(D, full=True)
        return ((u[:, :r] * s[:r]) @ vh.T[:r]).to(D.dtype)

    slips = {
        "the singular values are missing. Each piece is u * s * v": partial(best, scaled=False),
        "V is transposed already, because svd gives Vh. Take its first r rows": transposed_twice,
        "this is what is left over, D without its best part": lambda D, r: D - best(D, r),
        "this is rank r - 1. `[:r]` keeps r pieces": lambda D, r: best(D, r - 1),
    }
    return Comparison(
        invite="`U, s, Vh = torch.linalg.svd(D, full_matrices=False)` takes D apart. Which parts stay?",
        wanted="one matrix, the factors multiplied",
        otherwise="the shape is right, but the numbers are not. Multiply U's first r columns, s, and Vh's first r rows",
        misfit="the shapes do not fit. U[:, :r] is (m, r), Vh[:r] is (r, n), and s[:r] scales the columns of U",
    ).diagnose(truncate, cases, best, slips)
