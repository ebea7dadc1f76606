"""Checks of notebook 05: what a budget allows, and what another convention of alpha needs."""

import math
from collections.abc import Callable

from llm.course.exercises.speak import compare, spoken
from llm.lora import SCALING


@spoken
def check_rank_for_budget(largest_rank: Callable) -> str | None:
    """`largest_rank(shapes, kilobytes, bytes_each)`: the largest r whose A and B of all `shapes` fit the budget.

    A kilobyte is 1,000 bytes; r is at most the smallest side, and 0 when not even rank 1 fits.
    """
    block = [(128, 384), (128, 128), (128, 512), (512, 128)]
    cases = [
        (block, 150, 4),
        (block, 150, 2),
        ([(100, 150)], 8, 4),  # exactly rank 8
        ([(300, 40), (64, 200)], 55, 2),
        (block, 5, 4),  # not even rank 1
        ([(16, 90)], 50, 4),  # more room than rank
    ]

    def right(shapes, kilobytes, bytes_each, kilo=1000, numbers=lambda m, n: m + n, spare=0, top=True):
        whole = kilo * kilobytes - spare
        r = whole // (bytes_each * sum(numbers(m, n) for m, n in shapes))
        return min(r, *(min(shape) for shape in shapes)) if top else r

    def but(**changes):
        return lambda *case: right(*case, **changes)

    def exact(shapes, kilobytes, bytes_each):
        return 1000 * kilobytes / (bytes_each * sum(m + n for m, n in shapes))

    def side(shapes):
        return min(map(min, shapes))

    return compare(
        largest_rank,
        cases,
        right,
        {
            "a rank may not exceed the smallest side of a matrix": but(top=False),
            "a rank is a whole number: round down": lambda *case: min(exact(*case), side(case[0])),
            "a rank is a whole number, and it may not exceed the smallest side of a matrix": exact,
            "rounded up, it no longer fits: round down": lambda *case: min(math.ceil(exact(*case)), side(case[0])),
            "rounded to the nearest, it may no longer fit: round down": lambda *case: min(
                round(exact(*case)), side(case[0])
            ),
            "B is forgotten: it has r * columns numbers": but(numbers=lambda m, n: m),
            "A is forgotten: it has rows * r numbers": but(numbers=lambda m, n: n),
            "that counts W's own numbers, rows * columns: A and B have r * (rows + columns)": but(
                numbers=lambda m, n: m * n
            ),
            "that is 2 * rows for each matrix, which holds for squares alone": but(numbers=lambda m, n: 2 * m),
            "a kilobyte is 1,000 bytes here, not 1,024": but(kilo=1024),
            "the budget is in kilobytes, of 1,000 bytes each": but(kilo=1),
            "each number is taken for one byte: it has bytes_each": lambda s, k, b: right(s, k, 1),
            "each number is taken for four bytes: it has bytes_each": lambda s, k, b: right(s, k, 4),
            "bytes_each is counted in bits": lambda s, k, b: right(s, k, 8 * b),
            "a budget that is met exactly is met: <= and not <": but(spare=1),
            "one rank more would still fit": lambda *case: max(right(*case) - 1, 0),
            "at r = 0 nothing is learned, but where not even rank 1 fits the answer is 0": lambda *case: max(
                right(*case), 1
            ),
            "the budget is for all matrices together": lambda s, k, b: right(s[:1], k, b),
        },
        invite="how many bytes does rank 1 take, for all shapes together?",
        wanted="one whole number",
        otherwise="that is not the rank. One 100 x 150 matrix at rank 1 and 4 bytes takes 1 kB, so 8 kB hold rank 8",
    )


@spoken
def check_alpha(convert_alpha: Callable) -> str | None:
    """`convert_alpha(alpha, r, old, new)`: the alpha that gives under `new` the scale that alpha gives under `old`."""
    cases = [(alpha, r, old, new) for old in SCALING for new in SCALING for alpha, r in ((16.0, 4), (3.0, 9))]

    def scale(name, r):
        return SCALING[name](1.0, r)

    return compare(
        convert_alpha,
        cases,
        lambda alpha, r, old, new: alpha * scale(old, r) / scale(new, r),
        {
            "alpha is as it was: the same alpha has another scale under another convention": (
                lambda alpha, r, old, new: alpha
            ),
            "that is the scale: the alpha that gives it under the new convention is asked": (
                lambda alpha, r, old, new: alpha * scale(old, r)
            ),
            "that is the scale which the same alpha has under the new convention": (
                lambda alpha, r, old, new: alpha * scale(new, r)
            ),
            "the wrong way round: it leads from new to old": (
                lambda alpha, r, old, new: alpha * scale(new, r) / scale(old, r)
            ),
            "divided twice: divide by the old divisor to get the scale, then multiply by the new one": (
                lambda alpha, r, old, new: alpha * scale(old, r) * scale(new, r)
            ),
            "old is not looked at: what is the scale now?": lambda alpha, r, old, new: alpha / scale(new, r),
            "the root is forgotten: alpha/sqrt(r) divides by r ** 0.5": lambda alpha, r, old, new: (
                alpha * (r if new != "alpha" else 1) / (r if old != "alpha" else 1)
            ),
            "that is r squared where its root is meant: r ** 0.5": lambda alpha, r, old, new: (
                alpha * _squared(r, new) / _squared(r, old)
            ),
        },
        invite="work out the scale under the old convention first. Which alpha gives the same under the new one?",
        wanted="one number",
        otherwise="the scales differ. alpha 16 at r = 4: alpha/r is 4, so alpha/sqrt(r) needs 8 for that, and alpha 4",
    )


def _squared(r, name):
    return {"alpha": 1, "alpha/r": r, "alpha/sqrt(r)": r**2}[name]
