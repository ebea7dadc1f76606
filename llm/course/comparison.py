"""Methods by the rows of a recorded sweep: the best rate of each, its seeds there, and what one rate for all would say.

Knows nothing of models or pictures: rows go in, numbers come out.
"""

from dataclasses import dataclass
from statistics import median

Rows = list[dict]


def group(rows: Rows, *keys: str) -> dict[tuple, Rows]:
    """The values of these columns -> the rows that have them, in their order."""
    groups: dict[tuple, Rows] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return groups


def by_method(rows: Rows, task: str) -> dict[str, Rows]:
    """Method -> its rows of one task."""
    return {method: found for (of, method), found in group(rows, "task", "method").items() if of == task}


def by_rate(rows: Rows, measure: str = "after") -> dict[float, float]:
    """Rate -> the median of a measure, rising, for the rows of one task, method and rank.

    Where some rates have more seeds than others, those that all have are compared: else more luck would count as better.
    """
    rates = group(sorted(rows, key=lambda row: row["lr"]), "lr")
    seeds = [{row["seed"] for row in found} for found in rates.values()]
    shared = set.intersection(*seeds) if seeds else set()
    return {
        lr: median(row[measure] for row in found if row["seed"] in shared or not shared)
        for (lr,), found in rates.items()
    }


def best_rate(rows: Rows) -> float:
    """The rate at which the loss is lowest, for the rows of one task, method and rank."""
    found = by_rate(rows)
    return min(found, key=found.__getitem__)


def at_best(rows: Rows) -> Rows:
    """The rows at that rate: a seed each."""
    best = best_rate(rows)
    return [row for row in rows if row["lr"] == best]


def half_powers(rows: Rows) -> Rows:
    """The rows at 1 or 3 times a power of ten: the coarse grid, whatever was tried between."""
    return [row for row in rows if f"{row['lr']:.0e}"[0] in "13"]


def forgotten(row: dict) -> float:
    """Nats per token that a run has cost on the speeches, which it was not trained on."""
    return row["speeches_after"] - row["speeches_before"]


@dataclass(frozen=True)
class Order:
    """Where methods stand. best: method -> its loss at its own rate, the lowest first. now: its loss at the rate that is
    looked at, for those that were tried there. rate: that one, None for each at its own. base: the loss before training.
    """

    task: str
    best: dict[str, float]
    now: dict[str, float]
    rate: float | None
    base: float

    @property
    def places(self) -> dict[str, int]:
        """method -> 1 for the lowest loss that is looked at, and so on."""
        return {name: i for i, name in enumerate(sorted(self.now, key=self.now.__getitem__), 1)}


def order(rows: Rows, task: str, rate: float | None = None) -> Order:
    """Every method of a task at one rate for all, or at its own best."""
    curves = {name: by_rate(here) for name, here in by_method(rows, task).items()}
    best = {name: min(curve.values()) for name, curve in curves.items()}
    best = dict(sorted(best.items(), key=lambda pair: pair[1]))
    now = best if rate is None else {name: curves[name][rate] for name in best if rate in curves[name]}
    return Order(task, best, now, rate, next(row["before"] for row in rows if row["task"] == task))
