"""A question that the reader answers before the result appears: a number, a choice or a curve (anywidget).

The browser does all the work: it takes the guess, hides the truth until then, and says how the two compare.
"""

import math
import uuid
from collections.abc import Sequence
from typing import Any

import anywidget
import traitlets

from llm.course.widgets.explorer import bundle
from llm.errors import SettingError

NOTEBOOK = uuid.uuid4().hex  # predictions of one kernel share a score in the page


class Prediction(anywidget.AnyWidget):
    """What `number`, `choice` and `curve` return. `.guess` is None until the reader commits."""

    _esm = bundle()
    view = traitlets.Unicode("predict").tag(sync=True)
    notebook = traitlets.Unicode(NOTEBOOK).tag(sync=True)
    kind = traitlets.Unicode().tag(sync=True)
    question = traitlets.Unicode().tag(sync=True)
    spec = traitlets.Dict().tag(sync=True)
    guess = traitlets.Any(None, allow_none=True).tag(sync=True)
    truth = traitlets.Any(None, allow_none=True).tag(sync=True)

    def compare(self, truth: Any) -> None:
        """Give the widget the answer: it shows guess against truth as soon as the reader has committed.

        truth: one number (Python, NumPy or torch), one of the options, or one number for each x of the curve.
        """
        spec = self.spec
        if self.kind == "choice":
            if truth not in spec["options"]:
                raise SettingError(f"{truth!r} is not one of the options: {', '.join(spec['options'])}")
        elif self.kind == "number":
            truth = _number(truth)
            if spec["log"] and truth <= 0:
                raise SettingError(f"a logarithmic slider needs a truth above zero, not {truth}")
        else:
            try:
                truth = [_number(value) for value in truth]
            except TypeError:  # a single number
                raise SettingError(f"a curve needs one number for each x, not {truth!r}") from None
            if len(truth) != len(spec["x"]):
                raise SettingError(f"the curve has {len(spec['x'])} points, and the truth has {len(truth)}")
        self.truth = truth

    def __repr__(self) -> str:  # what a reader without a kernel sees in its place
        return f"(a question to answer before the next cell: {self.question}{_in_words(self.kind, self.spec)})"


def number(
    question: str, low: float, high: float, log: bool = False, unit: str = "", close: float | None = None
) -> Prediction:
    """Ask for a number from `low` to `high`. close: the factor (log) or the distance that still counts as close."""
    low, high = _range(low, high)
    if log and low <= 0:
        raise SettingError(f"a logarithmic slider begins above zero, not at {low}")
    whole = isinstance(low, int) and isinstance(high, int) and high - low >= 10
    close = close or (2 if log else 0.1 * (high - low))
    return _ask("number", question, low=low, high=high, log=log, unit=unit, close=close, whole=whole)


def choice(question: str, options: Sequence[str]) -> Prediction:
    """Ask for one of two or more options."""
    if isinstance(options, str) or not all(isinstance(option, str) for option in options):
        raise SettingError("the options must be a list of strings")
    if len(set(options)) != len(options) or len(options) < 2:
        raise SettingError(f"a choice needs two or more different options, not {list(options)}")
    return _ask("choice", question, options=list(options))


def curve(
    question: str,
    x: Sequence[float],
    low: float,
    high: float,
    x_label: str = "x",
    y_label: str = "y",
    log_x: bool = False,
    close: float | None = None,
) -> Prediction:
    """Ask for a curve: a height from `low` to `high` at each x. close: the mean distance that still counts as close."""
    low, high = _range(low, high)
    x = [_number(value) for value in x]
    if len(x) < 2 or sorted(set(x)) != x or (log_x and x[0] <= 0):
        raise SettingError(f"x must be two or more rising numbers{', above zero' if log_x else ''}, not {x}")
    close, labels = close or 0.1 * (high - low), dict(x_label=x_label, y_label=y_label)
    return _ask("curve", question, x=x, low=low, high=high, log_x=log_x, close=close, **labels)


def _ask(kind: str, question: str, **spec: Any) -> Prediction:
    return Prediction(kind=kind, question=question, spec=spec)


def _number(value: Any) -> int | float:
    try:
        value = value.item() if hasattr(value, "item") else value
    except (ValueError, RuntimeError):  # an array or a tensor of several
        pass
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise SettingError(f"a finite number is needed, not {value!r}")
    return value


def _range(low: Any, high: Any) -> tuple[int | float, int | float]:
    low, high = _number(low), _number(high)
    if low >= high:
        raise SettingError(f"low must be below high, not {low} and {high}")
    return low, high


def _in_words(kind: str, spec: dict[str, Any]) -> str:
    if kind == "choice":
        return f" Options: {', '.join(spec['options'])}."
    name = spec.get("y_label") or spec.get("unit")
    return f" From {spec['low']:,} to {spec['high']:,}{f' {name}' if name and kind == 'number' else ''}."
