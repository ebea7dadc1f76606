"""Recorded sweeps as figures: rows of `data/results/*.csv` in, a point a seed."""

from itertools import product
from math import log10
from statistics import median

from matplotlib.figure import Figure

from llm.course.figures.canvas import axes_gap, label_end, new_axes, spread
from llm.course.figures.palette import COLOURS, NAMES

MEASURES = {
    "after": "held-out loss, nats a token",
    "right": "share of answers that are right",
    "speeches_after": "loss on speeches, nats a token",
    "seconds_a_step": "seconds a step",
}


def grouped(rows: list[dict], key: str, measure: str) -> dict:
    """key's values, in order -> the measure of each row that has it."""
    found: dict = {}
    for row in sorted(rows, key=lambda row: row[key]):
        found.setdefault(row[key], []).append(row[measure])
    return found


def at_best_rate(rows: list[dict], measure: str = "after") -> list[dict]:
    """Of the rows of each task, method and rank those at the learning rate whose median is lowest."""
    kinds: dict = {}
    for row in rows:
        kinds.setdefault((row["task"], row["method"], row["r"]), []).append(row)
    found = []
    for here in kinds.values():
        middle = {lr: median(values) for lr, values in grouped(here, "lr", measure).items()}
        best = min(middle, key=middle.__getitem__)
        found += [row for row in here if row["lr"] == best]
    return found


def by_rank(
    rows: list[dict], measure: str | tuple[str, ...] = "after", tasks: tuple[str, ...] = ("records", "shakespeare")
) -> Figure:
    """A measure over the rank, a panel for each task: a point a seed, a line through the medians; the base, the full
    fine-tune and the final norm alone as levels to compare with. measure: one for all panels, or one each."""
    figure, panels = new_axes(8.6 if len(tasks) > 1 else 5.6, 3.7, columns=len(tasks))
    measures = (measure,) * len(tasks) if isinstance(measure, str) else measure
    for axes, task, measure in zip(panels, tasks, measures):
        if axes is panels[0] or len(set(measures)) > 1:
            axes.set_ylabel(MEASURES[measure])
        here = [row for row in rows if row["task"] == task]
        found = grouped([row for row in here if row["method"] == "lora"], "r", measure)
        axes.set_xscale("log", base=2)
        for r, values in found.items():
            axes.plot([r] * len(values), values, "o", color=COLOURS["lora"], alpha=0.4, ms=5, mec="none")
        middle = [median(values) for values in found.values()]
        axes.plot(list(found), middle, color=COLOURS["lora"])
        levels = {m: median(row[measure] for row in here if row["method"] == m) for m in ("full", "norm")}
        before = {"after": "before", "speeches_after": "speeches_before"}.get(measure)
        if before:
            levels["base"] = here[0][before]
        ends = {**levels, "lora": middle[-1]}
        gap = axes_gap([list(ends.values()), middle], middle[0])
        for (name, level), y in zip(ends.items(), spread(list(ends.values()), gap)):
            if name != "lora":
                axes.axhline(level, color=COLOURS[name], lw=1.2, ls="--")
            axes.annotate(NAMES[name], (78, y), va="center", color=COLOURS[name], annotation_clip=False, fontsize=9)
        axes.set_xticks(list(found), [f"{r:g}" for r in found])
        axes.set_xlim(0.9, 72)
        axes.minorticks_off()
        axes.set_title(task)
        axes.set_xlabel("rank r")
    return figure


def rates_by_scaling(rows: list[dict]) -> Figure:
    """Loss over the learning rate: a panel for each convention of the scale, a row of them for each start of A, a curve
    for each rank (darker: higher) with a ring around its best."""
    scalings, starts = (list(dict.fromkeys(row[key] for row in rows)) for key in ("scaling", "start"))
    figure, panels = new_axes(8.6, 0.6 + 2.6 * len(starts), len(starts), len(scalings), sharex=True, sharey=True)
    for axes, (start, scaling) in zip(panels, product(starts, scalings)):
        here = [row for row in rows if (row["start"], row["scaling"]) == (start, scaling)]
        ranks = sorted({row["r"] for row in here})
        curves = {r: grouped([row for row in here if row["r"] == r], "lr", "after") for r in ranks}
        ends = spread([log10(median(list(found.values())[-1])) for found in curves.values()], 0.1)
        for shade, end, (r, found) in zip((0.45, 1.0), ends, curves.items()):
            x, y = list(found), [median(values) for values in found.values()]
            axes.plot(x, y, color=COLOURS["lora"], alpha=shade, marker="o", ms=4)
            best = min(range(len(y)), key=y.__getitem__)
            axes.plot(x[best], y[best], "o", color=COLOURS["lora"], ms=11, mfc="none")
            label_end(axes, x[-1], 10**end, f"r = {r}", "lora")
        axes.set_xscale("log"), axes.set_yscale("log")
        axes.set_yticks([0.5, 1, 2, 4, 8], ["0.5", "1", "2", "4", "8"])
        axes.minorticks_off()
        axes.set_title(f"scale = {scaling}" if start == starts[0] else "")
        axes.set_xlabel("learning rate" if start == starts[-1] else "")
        axes.set_xlim(6e-5, 0.9)
    for start, axes in zip(starts, panels[:: len(scalings)]):
        axes.set_ylabel(f"held-out loss\nA as in the {start}")
    return figure


def by_target(rows: list[dict]) -> Figure:
    """Loss of each choice of targets over the numbers it trains, a panel for each task; a point a seed."""
    figure, panels = new_axes(8.0, 3.3, columns=2)
    for axes, task in zip(panels, ("records", "shakespeare")):
        for target in dict.fromkeys(row["targets"] for row in rows):
            here = [row for row in rows if row["task"] == task and row["targets"] == target]
            x, y = here[0]["trainable"], [row["after"] for row in here]
            axes.plot([x] * len(y), y, "o", color=COLOURS["lora"], alpha=0.4, ms=5, mec="none")
            axes.plot(x, median(y), "_", color=COLOURS["lora"], ms=18, mew=2.5)
            label_end(axes, x, median(y), f"   {target}", "lora")
        axes.set_title(task)
        axes.set_xlabel("trainable parameters")
        axes.set_xlim(15_000, 80_000)
        axes.set_xticks([20_000, 40_000, 60_000], ["20,000", "40,000", "60,000"])
        axes.margins(y=0.15)
    panels[0].set_ylabel(MEASURES["after"])
    return figure
