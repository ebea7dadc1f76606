"""Checks of rank and alpha: the rank that a budget allows, and the alpha that another convention needs."""

import math
from collections.abc import Callable
from functools import partial

from llm.course.exercises.speak import Comparison, spoken
from llm.lora import SCALING


@spoken
def check_rank_for_budget(largest_rank: Callable) -> str | None:
    """`largest_rank(shapes, kilobytes, bytes_each)`: the largest r whose A and B of all `shapes` fit the budget.

    A kilobyte is 1,000 bytes; r is at most the smallest side, and 0 when not even rank 1 fits.
    """
    block = [(128, 384), (128, 128), (128, 512), (512, 128)]
    cases = [(block, 150, 4), (block, 150, 2), ([(300, 40), (64, 200)], 55, 2)]
    cases += [([(100, 150)], 8, 4), (block, 5, 4), ([(16, 90)], 50, 4)]  # exactly 8; not even 1; more room than rank

    def right(shapes, kilobytes, bytes_each, kilo=1000, numbers=lambda m, n: m + n, rounded=math.floor, capped=True):
        r = rounded(kilo * kilobytes / (bytes_each * sum(numbers(m, n) for m, n in shapes)))
        return min(r, *(min(shape) for shape in shapes)) if capped else r

    slips = {
        "a rank cannot exceed the smallest side of a matrix": partial(right, capped=False),
        "a rank is a whole number, so round down": partial(right, rounded=float),
        "rounded up, the adapter no longer fits; round down": partial(right, rounded=math.ceil),
        "you left out B, which has r * columns numbers": partial(right, numbers=lambda m, n: m),
        "those are W's own numbers; A and B have r * (rows + columns)": partial(right, numbers=lambda m, n: m * n),
        "a kilobyte is 1,000 bytes here, not 1,024": partial(right, kilo=1024),
        "the budget is in kilobytes, of 1,000 bytes each": partial(right, kilo=1),
        "you count one byte for each number, but it takes bytes_each": lambda s, k, b: right(s, k, 1),
    }
    return Comparison(
        invite="how many bytes does rank 1 take, for all shapes together?",
        wanted="one whole number",
        otherwise="that is not the rank. At 4 bytes, one 100 x 150 matrix takes 1 kB for rank 1, so 8 kB hold rank 8",
    ).diagnose(largest_rank, cases, right, slips)


@spoken
def check_alpha(convert_alpha: Callable) -> str | None:
    """`convert_alpha(alpha, r, old, new)`: the alpha that gives under `new` the scale that alpha gives under `old`."""
    cases = [(alpha, r, old, new) for old in SCALING for new in SCALING for alpha, r in ((16.0, 4), (3.0, 9))]
    rootless = SCALING | {"alpha/sqrt(r)": SCALING["alpha/r"]}

    def right(alpha, r, old, new, scaling=SCALING):
        return scaling[old](alpha, r) / scaling[new](1.0, r)

    slips = {  # under the convention "alpha" a scale is its alpha
        "the same alpha gives another scale under another convention": lambda alpha, r, old, new: alpha,
        "that is the scale; return the new alpha instead": lambda alpha, r, old, new: right(alpha, r, old, "alpha"),
        "the wrong way around: this converts from new to old": lambda alpha, r, old, new: right(alpha, r, new, old),
        "you left out the square root: alpha/sqrt(r) divides by r ** 0.5": partial(right, scaling=rootless),
    }
    return Comparison(
        invite="work out the scale under the old convention first. Which alpha gives the same under the new one?",
        wanted="one number",
        otherwise="the scales differ. At r = 4, alpha = 16 over r is 4; over the square root of r it takes an alpha of 8",
    ).diagnose(convert_alpha, cases, right, slips)
