"""Checks of notebook 02: the rank that holds a share of the energy, and the best rank-r part."""

from collections.abc import Callable

import torch

from llm.course.exercises.speak import compare, spoken
from llm.spectra import decompose


@spoken
def check_rank(rank_needed: Callable) -> str | None:
    """`rank_needed(s, share)`: the fewest singular values, largest first, whose squares hold `share` of all squares."""
    drawn = [torch.rand(n).square().sort(descending=True).values for n in (40, 25, 60)]
    # in the last two the share is met exactly, by one value and by two
    even = [torch.tensor([2.0, 1.0, 1.0, 1.0, 1.0]), torch.ones(4)]
    cases = [*zip(drawn, (0.9, 0.5, 0.75)), *((s, 0.5) for s in even)]

    def held(s):
        return (s**2).cumsum(0) / (s**2).sum()

    def right(s, share):
        return int((held(s) < share).sum()) + 1

    return compare(
        rank_needed,
        cases,
        right,
        {
            "that is the share of the sum of s: energy is a sum of squares": lambda s, share: right(s.sqrt(), share),
            "one too few: a list counts from 0, and a rank from 1": lambda s, share: right(s, share) - 1,
            "one too many: the rank itself already holds the share": lambda s, share: right(s, share) + 1,
            "to hold exactly the share is enough: compare with >= instead of >": lambda s, share: (
                int((held(s) <= share).sum()) + 1
            ),
            "that is how many values can be cut off, not how many must stay": lambda s, share: len(s) - right(s, share),
            "that is the rank for 1 - share, the part that may be lost": lambda s, share: right(s, 1 - share),
            "that is the energy held there; the rank itself is asked": lambda s, share: held(s)[right(s, share) - 1],
            "those are the values near the largest; the share is of the sum": lambda s, share: sum(s >= share * s[0]),
            "all values are counted, so the share makes no difference": lambda s, share: len(s),
        },
        invite="begin with the energy of each value, `s**2`, and its running sum",
        wanted="one whole number",
        otherwise="that is not the rank. For s = [2, 1, 1, 1, 1] the squares are 4, 1, 1, 1, 1: half is held at rank 1",
    )


@spoken
def check_truncate(truncate: Callable) -> str | None:
    """`truncate(D, r)` against the best rank-r part of D (m, n), the same shape."""
    cases = [(torch.randn(m, n), r) for m, n, r in ((7, 5, 2), (4, 6, 1), (5, 5, 3))]

    def pieces(make, full=False):
        return lambda D, r: make(*decompose(D, full), r).to(D.dtype)

    best = pieces(lambda u, s, vh, r: (u[:, :r] * s[:r]) @ vh[:r])
    return compare(
        truncate,
        cases,
        best,
        {
            "those are the smallest pieces: the values come largest first, so keep the first r": pieces(
                lambda u, s, vh, r: (u[:, -r:] * s[-r:]) @ vh[-r:]
            ),
            "the singular values are missing: each piece is u * s * v": pieces(lambda u, s, vh, r: u[:, :r] @ vh[:r]),
            "the singular values are squared: energy is squared, the matrix is not": pieces(
                lambda u, s, vh, r: (u[:, :r] * s[:r] ** 2) @ vh[:r]
            ),
            "V is transposed already (svd gives Vh): take its first r rows": pieces(
                lambda u, s, vh, r: (u[:, :r] * s[:r]) @ vh.T[:r], full=True
            ),
            "that is what is left over, D without its best part": lambda D, r: D - best(D, r),
            "that is D itself: nothing was cut": lambda D, r: D,
            "that is rank r - 1: `[:r]` keeps r pieces": lambda D, r: best(D, r - 1),
            "that is rank r + 1: `[:r]` keeps r pieces": lambda D, r: best(D, r + 1),
            "that is the r-th piece alone: the first r are summed": lambda D, r: best(D, r) - best(D, r - 1),
            "those are rows of D: cut the pieces of the svd instead": lambda D, r: D[:r],
            "those are columns of D: cut the pieces of the svd instead": lambda D, r: D[:, :r],
        },
        invite="`U, s, Vh = torch.linalg.svd(D, full_matrices=False)` takes D apart. Which parts stay?",
        wanted="one matrix, the factors multiplied",
        otherwise="the shape is right, the numbers are not: U's first r columns, times s, times Vh's first r rows",
        misfit="the shapes do not fit: U[:, :r] is (m, r), Vh[:r] is (r, n), and s[:r] scales the columns of the first",
    )
