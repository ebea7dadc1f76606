"""An explorer: every method at one learning rate for all, or each at its own."""

from llm.course import comparison
from llm.course.figures.palette import METHODS, color_of, task_name
from llm.course.widgets.explorer import Explorer

TASKS = ("shakespeare", "facts")


def rate_explorer(rows: list[dict]) -> Explorer:
    """Recorded losses (rows of `data/results/relatives.csv`) as one shared rate moves."""
    methods = set.intersection(*(set(comparison.by_method(rows, task)) for task in TASKS))  # the same in both pictures
    rows = [row for row in rows if row["method"] in methods]
    tried = [{row["lr"] for row in comparison.half_powers(rows) if row["task"] == task} for task in TASKS]
    return Explorer(
        "rates",
        "The loss of every method over the learning rate, and the order of the methods at one rate for all.",
        rates=sorted(set.intersection(*tried)),  # what lies between was tried for a few alone
        tasks={task_name(task): _losses(rows, task) for task in TASKS},
        methods={name: {"name": METHODS[name], "color": color_of(name)} for name in METHODS if name in methods},
    )


def _losses(rows: list[dict], task: str) -> dict:
    """The loss before training, and each method's curve: [rate, median loss] by rising rate."""
    found = comparison.order(rows, task)
    by_method = comparison.by_method(rows, task)
    return {"base": found.base, "curves": {name: [*comparison.by_rate(by_method[name]).items()] for name in found.best}}
