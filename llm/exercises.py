"""Checks of what the learner writes: each prints one line that says what is wrong, and never raises.

A wrong answer is compared with the usual slips, so that the line can name the one that was made. Here: how a check
speaks and compares, and the checks of single matrices (notebooks 01 and 02).
"""

import copy
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import wraps

import numpy as np
import torch

CHANGED = "an input has changed: `+=`, `*=` and the like write into the caller's own; write `a + b` instead"


class Invitation(str):
    """What to say of a stub that nobody has touched: no mistake yet, only where to begin."""


def spoken(diagnose: Callable[..., str | None]) -> Callable[..., None]:
    """A check that prints what `diagnose(answer)` says: a sentence, an invitation, or None when all is well."""

    @wraps(diagnose)
    def check(answer) -> None:
        with torch.random.fork_rng(devices=[]):  # what the notebook draws afterwards does not depend on the check
            torch.manual_seed(0)
            try:
                wrong = diagnose(answer)
            except Exception as error:  # the learner's code may raise anything, and the notebook goes on
                said = str(error).strip().splitlines()
                wrong = f"it stopped with {type(error).__name__}" + (f": {said[0]}" if said else "")
        if wrong is None:
            print("right!")
        else:
            print(f"{'nothing here yet' if isinstance(wrong, Invitation) else 'not yet'}: {wrong}")

    return check


def compare(
    answer: Callable,
    cases: Sequence[tuple],
    right: Callable,
    slips: dict[str, Callable],
    *,
    invite: str,
    wanted: str,
    otherwise: str,
    misfit: str | None = None,
) -> str | None:
    """What is wrong with a function of tensors and numbers: None, or the first slip that explains it in every case.

    right and the values of `slips` take the arguments of a case. `misfit` is said when torch finds that shapes do not
    fit, `otherwise` when nothing explains the numbers.
    """
    found = []
    for args in cases:
        kept = copy.deepcopy(args)
        try:
            found.append(answer(*args))
        except RuntimeError as error:
            if misfit is None or type(error) is not RuntimeError:  # a subclass is not about shapes
                raise
            return misfit
        if not all(_untouched(now, then) for now, then in zip(args, kept)):
            return CHANGED
    if any(value is None for value in found):
        everywhere = all(value is None for value in found)
        return Invitation(invite) if everywhere else f"it returns None for some inputs; {wanted} is wanted for all"
    for value in found:
        if numbers(value) is None:
            return f"it should return {wanted}, not {type(value).__name__}"
    if _agree(found, cases, right):
        return None
    named = next((slip for slip, function in slips.items() if _agree(found, cases, function)), None)
    shapes = ((tuple(numbers(value).shape), tuple(numbers(right(*args)).shape)) for value, args in zip(found, cases))
    odd = next((f"the shape is {own}, and {goal} is wanted" for own, goal in shapes if own != goal), None)
    return named or odd or otherwise


def numbers(value) -> torch.Tensor | None:
    """A tensor, array, list or number as float64, a single number as a scalar; None for anything else."""
    with suppress(TypeError, ValueError):
        if not isinstance(value, torch.Tensor | np.ndarray | np.generic | list | int | float):
            return None
        tensor = value.cpu() if isinstance(value, torch.Tensor) else torch.as_tensor(np.asarray(value, float))
        return tensor.double().reshape(()) if tensor.numel() == 1 else tensor.double()


def close(value, goal) -> bool:
    """Whether two are the same: tensors up to float32's rounding, plain numbers nearly to the digit."""
    value, goal, tolerance = numbers(value), numbers(goal), 1e-4 if isinstance(goal, torch.Tensor) else 1e-6
    return value is not None and value.shape == goal.shape and torch.allclose(value, goal, tolerance, tolerance)


def _agree(found, cases, function):
    with suppress(Exception):  # a slip that stops for one of the cases explains nothing
        return all(close(value, function(*args)) for value, args in zip(found, cases))
    return False


def _untouched(now, then):
    return torch.equal(now, then) if isinstance(then, torch.Tensor) else now == then


# 01: the formula


@spoken
def check_forward(forward: Callable) -> str | None:
    """`forward(x, W, A, B, alpha)` against the formula. x (n, in), W (in, out), A (in, r), B (r, out)."""
    shapes = ((5, 6, 4, 2, 3.0), (3, 7, 7, 3, 0.5))
    cases = [(*(torch.randn(s) for s in ((n, i), (i, o), (i, r), (r, o))), a) for n, i, o, r, a in shapes]

    def mixed(weights):
        def formula(x, W, A, B, alpha):
            of_base, of_update = weights(alpha, A.size(1))
            return of_base * (x @ W) + of_update * (x @ A @ B)

        return formula

    return compare(
        forward,
        cases,
        mixed(lambda alpha, r: (1, alpha)),
        {
            "that is the frozen half, x @ W, alone: the update is missing": mixed(lambda alpha, r: (1, 0)),
            "that is the update alone: the base's own answer, x @ W, is missing": mixed(lambda alpha, r: (0, alpha)),
            "alpha is missing: it multiplies the update": mixed(lambda alpha, r: (1, 1)),
            "alpha multiplies everything: it belongs to the update only": mixed(lambda alpha, r: (alpha, alpha)),
            "that is alpha / r, the paper's; here the factor is alpha itself": mixed(lambda alpha, r: (1, alpha / r)),
            "the update is subtracted; it is added": mixed(lambda alpha, r: (1, -alpha)),
        },
        invite="put the formula after `return`",
        wanted="a tensor",
        otherwise="the shape is right, the numbers are not. The formula again: x @ W + alpha * (x @ A @ B)",
        misfit="the shapes do not fit. x (n, in) @ A (in, r) is (n, r), that @ B (r, out) is (n, out), as x @ W is",
    )


@spoken
def check_count(count: Callable) -> str | None:
    """`count(shapes, r)` against the numbers in every A (rows, r) and B (r, columns)."""
    block = [(128, 384), (128, 128), (128, 512), (512, 128)]

    def total(each):
        return lambda shapes, r: sum(each(m, n, r) for m, n in shapes)

    return compare(
        count,
        [([(6, 4)], 2), ([(5, 5), (3, 9)], 3), (block, 8)],
        total(lambda m, n, r: r * (m + n)),
        {
            "those are the numbers of W, and W is frozen": total(lambda m, n, r: m * n),
            "W is counted as well, and W is frozen": total(lambda m, n, r: m * n + r * (m + n)),
            "that is A alone: B (r, columns) trains too": total(lambda m, n, r: m * r),
            "that is B alone: A (rows, r) trains too": total(lambda m, n, r: n * r),
            "that is 2 * rows * r, for squares alone: B has W's columns": total(lambda m, n, r: 2 * m * r),
            "that is 2 * columns * r, for squares alone: A has W's rows": total(lambda m, n, r: 2 * n * r),
            "r is missing: A has r columns and B has r rows": total(lambda m, n, r: m + n),
            "A and B lie side by side, so their numbers add up: no m * n": total(lambda m, n, r: r * m * n),
            "that is the first matrix alone: is `return` inside the loop?": lambda shapes, r: r * sum(shapes[0]),
            "that is the last matrix alone: add to a sum that begins at 0": lambda shapes, r: r * sum(shapes[-1]),
        },
        invite="for one matrix A holds rows * r numbers, and B how many?",
        wanted="one whole number",
        otherwise="that is not the count. For W (6, 4) and r = 2, A is (6, 2) and B is (2, 4): 20 numbers",
    )


# 02: the spectrum


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
        return lambda D, r: make(*torch.linalg.svd(D.double(), full_matrices=full), r).to(D.dtype)

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
