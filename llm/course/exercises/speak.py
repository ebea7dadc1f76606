"""How a check reports: it prints one line that names what is wrong, and it never raises.

A wrong answer is compared with the usual slips, so that the line can name the learner's own mistake.
"""

import copy
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import wraps

import numpy as np
import torch
import torch.nn as nn

CHANGED = "an input has changed: `+=`, `*=` and the like write into the caller's own; write `a + b` instead"
LEAF = "`+=` on a weight that trains: put it under `with torch.no_grad():`, or write to `.weight.data`"


class Invitation(str):
    """The sentence for a stub that nobody has touched: it names no mistake, only where to begin."""


def spoken(diagnose: Callable[..., str | None]) -> Callable[..., None]:
    """A check that prints what `diagnose(answer)` returns: a sentence, an invitation, or None when all is well."""

    @wraps(diagnose)
    def check(answer) -> None:
        with torch.random.fork_rng(devices=[]):  # what the notebook draws afterward does not depend on the check
            torch.manual_seed(0)
            try:
                wrong = diagnose(answer)
            except Exception as error:  # the learner's code may raise anything, and the notebook goes on
                first_line = str(error).strip().splitlines()[:1]
                wrong = ": ".join([f"it stopped with {type(error).__name__}", *first_line])
        verdict = "nothing here yet" if isinstance(wrong, Invitation) else "not yet"
        print("right!" if wrong is None else f"{verdict}: {wrong}")

    return check


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


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What to say of an answer, and how to compare it. An answer is a tensor or a number unless `unfit` is given."""

    invite: str  # when every answer is None
    otherwise: str  # when no slip explains the answers
    wanted: str = ""  # the kind of answer, in words
    misfit: str = ""  # when torch cannot combine the shapes
    unfit: Callable[..., str | None] | None = None  # unfit(answer, *case): what is wrong with the kind of an answer
    read: Callable = lambda answer: answer  # takes out of an answer what is compared
    same: Callable[..., bool] = close

    def diagnose(self, function: Callable, cases: Sequence[tuple], right: Callable, slips: dict) -> str | None:
        """What is wrong with the learner's function: None, or the first slip that explains its answer in every case.

        slips {sentence: formula}; right and the formulas take the arguments of a case.
        """
        originals = copy.deepcopy(cases)
        try:
            answers = [function(*case) for case in cases]
        except RuntimeError as error:
            if "leaf Variable" in str(error):
                return LEAF
            if self.misfit and type(error) is RuntimeError:  # a subclass is not about shapes
                return self.misfit
            raise
        changed = not _equal(cases, originals)
        if all(answer is None for answer in answers):
            return CHANGED if changed else Invitation(self.invite)
        for answer, case in zip(answers, cases):
            if wrong := self.unfit(answer, *case) if self.unfit else self._no_number(answer):
                return wrong
        if changed:
            return CHANGED
        results = [self.read(answer) for answer in answers]

        def explains(formula):
            with suppress(Exception):  # a slip that stops in one of the cases explains nothing
                return all(self.same(result, formula(*case)) for result, case in zip(results, cases))
            return False

        for sentence, formula in {None: right, **slips}.items():
            if explains(formula):
                return sentence
        for result, case in zip(results, cases) if self.same is close else ():
            shape, goal = (tuple(numbers(value).shape) for value in (result, right(*case)))
            if shape != goal:
                return f"the shape is {shape}, and {goal} is wanted"
        return self.otherwise

    def _no_number(self, answer):
        if answer is None:
            return f"it returns None for some inputs; {self.wanted} is wanted for all"
        if numbers(answer) is None:
            return f"it should return {self.wanted}, not {type(answer).__name__}"


def _equal(inputs, originals):
    if isinstance(originals, nn.Module):
        inputs, originals = list(inputs.parameters()), list(originals.parameters())
    if isinstance(originals, list | tuple):
        return len(inputs) == len(originals) and all(map(_equal, inputs, originals))
    return torch.equal(inputs, originals) if isinstance(originals, torch.Tensor) else inputs == originals
