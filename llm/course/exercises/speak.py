"""How a check speaks: it prints one line that says what is wrong, and never raises.

A wrong answer is compared with the usual slips, so that the line can name the one that was made.
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
