"""An explorer: every method at one learning rate for all, or each at its own."""

import ipywidgets as widgets

from llm.course import comparison, figures
from llm.course.figures.palette import METHODS
from llm.course.widgets.old_explorer import Explorer, choice

TASKS = {"shakespeare": "the plays", "facts": "the facts"}


def rate_explorer(rows: list[dict]) -> Explorer:
    """Recorded losses (rows of `data/results/relatives.csv`) as one shared rate moves."""
    methods = set.intersection(*(set(comparison.by_method(rows, task)) for task in TASKS))  # the same in both pictures
    rows = [row for row in rows if row["method"] in methods]
    tried = [{row["lr"] for row in comparison.half_powers(rows) if row["task"] == task} for task in TASKS]
    rates = sorted(set.intersection(*tried))  # what lies between was tried for a few alone
    # before the first key
    done = {(task, rate): comparison.order(rows, task, rate) for task in TASKS for rate in (*rates, None)}

    def numbers(task: str, rate: float, own: bool) -> comparison.Order:
        return done[task, None if own else rate]

    def describe(found: comparison.Order) -> str:
        first, *_, last = sorted(found.now, key=found.now.__getitem__) * 2
        where = "each at its own rate" if found.rate is None else f"rate {found.rate:g} for all"
        tried = f"{len(found.now)} of {len(found.best)} tried"
        worse = sum(loss > found.base for loss in found.now.values())
        return (
            f"{where}, {tried}: lowest {METHODS[first]} with {found.now[first]:.2f}, highest {METHODS[last]} with "
            f"{found.now[last]:.2f}; {worse} worse than no training"
        )

    controls = {
        "task": choice("task", [(said, name) for name, said in TASKS.items()]),
        "rate": widgets.SelectionSlider(
            options=[(f"{rate:g}", rate) for rate in rates],
            value=0.01 if 0.01 in rates else rates[0],
            description="one rate",
            layout=widgets.Layout(width="420px"),
        ),
        "own": widgets.Checkbox(False, description="each at its own best", indent=False),
    }
    return Explorer(controls, numbers, figures.order, describe, beside=("task", "own"))
