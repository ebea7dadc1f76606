"""Recorded sweeps as figures: rows of `data/results/*.csv` in, a point a seed."""

from itertools import cycle
from math import inf, log10
from statistics import median

from matplotlib.figure import Figure

from llm.course.comparison import at_best, by_method, group
from llm.course.figures.canvas import axes_gap, label_end, new_axes, note, seeds, spread
from llm.course.figures.palette import COLOURS, NAMES, task_name

Panels = dict[str, dict[str, list[dict]]]  # {title: {label of a curve: its rows}}
MEASURES = {
    "after": "held-out loss, nats per token",
    "right": "share of answers that are right",
    "speeches_after": "loss on speeches, nats per token",
    "seconds_a_step": "seconds a step",
    "rank90": "rank that holds 90% of the update",
    "lr": "learning rate",
    "examples": "different examples",
    "rows": "rows of a batch",
    "steps": "steps",
    "r": "rank r",
}


def grouped(rows: list[dict], key: str, measure: str) -> dict:
    """key's values, in order -> the measure of each row that has it."""
    return {at: [row[measure] for row in found] for (at,), found in sorted(group(rows, key).items())}


def at_best_rate(rows: list[dict]) -> list[dict]:
    """Of the rows of each task, method and rank those at the learning rate whose median loss is lowest."""
    return [row for kind in group(rows, "task", "method", "r").values() for row in at_best(kind)]


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
        methods = by_method(rows, task)
        found = grouped(methods["lora"], "r", measure)
        axes.set_xscale("log", base=2)
        for r, values in found.items():
            seeds(axes, r, values, "lora")
        middle = [median(values) for values in found.values()]
        axes.plot(list(found), middle, color=COLOURS["lora"], label=NAMES["lora"])
        levels = {name: median(row[measure] for row in methods[name]) for name in ("full", "norm")}
        if before := {"after": "before", "speeches_after": "speeches_before"}.get(measure):
            levels["base"] = methods["lora"][0][before]
        ends = {**levels, "lora": middle[-1]}
        heights, back = [*ends.values(), *middle], float
        if measure == "after" and max(heights) > 100 * min(heights):  # all but the highest would lie on the axis
            axes.set_yscale("log")
            heights, back = [log10(y) for y in heights], lambda y: 10**y
        gap = axes_gap([heights], heights[0])
        for (name, level), y in zip(ends.items(), map(back, spread(heights[: len(ends)], gap))):
            if name != "lora":
                axes.axhline(level, color=COLOURS[name], lw=1.2, ls="--", label=NAMES[name])
            axes.annotate(NAMES[name], (78, y), va="center", color=COLOURS[name], annotation_clip=False, fontsize=9)
        axes.set_xticks(list(found), [f"{r:g}" for r in found])
        axes.set_xlim(0.9, 72)
        axes.minorticks_off()
        axes.set(title=task_name(task), xlabel="rank r")
    return figure


def curves(panels: Panels, x: str, measure: str = "after", level: str | None = None) -> Figure:
    """A measure over the column x, logarithmic: a point a seed, a line through the medians, a label at its end.

    A curve has its method's color, the lighter the earlier among those of one method. Three or more of one method have
    a marker each. level: a column, drawn dashed;
    what is worse than it by far leaves the picture.
    """
    figure, all_axes = new_axes(8.6 if len(panels) > 1 else 5.8, 3.6, columns=len(panels))
    for axes, (title, here) in zip(all_axes, panels.items()):
        axes.set_xscale("log")
        every, ends = [row for rows in here.values() for row in rows], []
        ticks, losses = sorted({row[x] for row in every}), [row[measure] for row in every]
        low, top, highest = min(losses), inf, 0
        for (label, rows), (color, shade), marker in zip(here.items(), _shades(here), _markers(here)):
            label, line = task_name(label), grouped(rows, x, measure)
            for at, values in line.items():
                seeds(axes, at, values, color, 0.3, 4)
            middle = [median(values) for values in line.values()]
            axes.plot(
                list(line), middle, color=color, alpha=shade, marker=marker, ms=4 if marker == "o" else 6, label=label
            )
            ends.append((label, color, list(line), middle))
            highest = max(highest, *middle)
        if level:
            base = every[0][level]
            axes.plot([ticks[0], ticks[-1]], [base, base], color=COLOURS["base"], lw=1.2, ls="--", zorder=1.9)
            ends.append(("base", "base", ticks[-1:], [base]))
            top = base + 0.4 * (base - low)
        if highest > top:
            axes.set_ylim(low - 0.1 * (top - low), top)
        heights = spread([min(line[-1], top) for *_, line in ends], axes_gap([[low, min(top, max(losses))]], low))
        for (label, color, *line), y in zip(ends, heights):
            label_end(axes, ticks[-1] * (ticks[-1] / ticks[0]) ** 0.04, y, label, color, _last_seen(*line, top))
        axes.set_xticks(ticks, [f"{at:g}" for at in ticks])
        axes.minorticks_off()
        axes.set(title=task_name(title), xlabel=MEASURES[x])
    all_axes[0].set_ylabel(MEASURES[measure])
    return figure


def _last_seen(x, y, top):
    """Where a curve ends, or leaves a picture that is logarithmic in x through its top."""
    if y[-1] <= top or len(x) < 2 or y[-2] >= top:
        return x[-1], min(y[-1], top)
    return x[-2] * (x[-1] / x[-2]) ** ((top - y[-2]) / (y[-1] - y[-2])), top


def frontier(panels: Panels) -> Figure:
    """What is forgotten over what is learned: a point a learning rate (the median of its seeds), a line from gentle to hot,
    a marker an arm, and a number its hottest rate.

    Left and down is better: little loss on the task, little on the speeches. Dashed: what the base loses on them. A rate
    at which the task was not learned at all is left out.
    """
    figure, all_axes = new_axes(8.6, 4.0, columns=len(panels))
    for axes, (title, here) in zip(all_axes, panels.items()):
        first, reached, lost = next(iter(here.values()))[0], [], []
        for (label, rows), (color, shade), mark in zip(here.items(), _shades(here), cycle("os^Dv")):
            found = [grouped(rows, "lr", key) for key in ("after", "speeches_after")]
            middle = [(lr, *(median(by_rate[lr]) for by_rate in found)) for lr in found[0]]
            rates, x, y = zip(*(point for point in middle if point[1] < first["before"]))
            axes.plot(x, y, color=color, alpha=shade, marker=mark, ms=5.5, label=label)
            note(axes, f"{rates[-1]:g}", (x[-1], y[-1]), (5, 4), color, fontsize=8.5)
            reached, lost = [*reached, *x], [*lost, *y]
        axes.axhline(first["speeches_before"], color=COLOURS["base"], lw=1.2, ls="--")
        if max(reached) > 20 * min(reached):
            axes.set_xscale("log")
        axes.set_yscale("log")
        ticks = [tick for tick in (4.4, 4.6, 4.8, 5, 5.5, 6, 7, 8, 12, 20) if tick < 1.1 * max(lost)]
        axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.set(title=task_name(title), xlabel=MEASURES["after"])
    all_axes[0].set_ylabel(MEASURES["speeches_after"])
    all_axes[-1].legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1, 1))  # curves are everywhere
    return figure


def _shades(curves):
    """(color, opacity) for each curve: of one method the lighter the earlier."""
    methods = [rows[0]["method"] for rows in curves.values()]
    for i, method in enumerate(methods):
        nth, of = methods[:i].count(method) + 1, methods.count(method)
        yield COLOURS.get(method, COLOURS["other"]), 1 if of == 1 else 0.35 + 0.65 * (nth - 1) / (of - 1)


def _markers(curves):
    """A marker for each curve: of three or more of one method its own, as three shades are hard to tell apart."""
    methods = [rows[0]["method"] for rows in curves.values()]
    for i, method in enumerate(methods):
        yield "^sDvP"[methods[:i].count(method) % 5] if methods.count(method) > 2 else "o"


def by_target(rows: list[dict]) -> Figure:
    """Loss of each choice of targets over the numbers it trains, a panel for each task; a point a seed."""
    figure, panels = new_axes(8.0, 3.3, columns=2)
    for axes, task in zip(panels, ("records", "shakespeare")):
        for (target,), found in group([row for row in rows if row["task"] == task], "targets").items():
            x, y = found[0]["trainable"], [row["after"] for row in found]
            seeds(axes, x, y, "lora")
            axes.plot(x, median(y), "_", color=COLOURS["lora"], ms=18, mew=2.5, label=target)
            label_end(axes, x, median(y), f"   {target}", "lora")
        axes.set(title=task_name(task), xlabel="trainable parameters", xlim=(15_000, 80_000))
        axes.set_xticks([20_000, 40_000, 60_000], ["20,000", "40,000", "60,000"])
        axes.margins(y=0.15)
    panels[0].set_ylabel(MEASURES["after"])
    return figure


def by_seed(panels: dict[str, dict[str, list[float]]], colors: dict[str, str]) -> Figure:
    """Arms side by side, a panel for each title: a point a seed, a thin line from each seed's to its next, a bar at the
    median, a band over the seeds of the first arm. panels: title -> arm -> values, seed by seed; colors: arm -> its method
    in `COLOURS`."""
    many = len(next(iter(panels.values()))) > 2  # whose names would touch
    figure, panels_of = new_axes(2.15 * len(panels), 3.8 if many else 3.2, columns=len(panels))
    for axes, (title, arms) in zip(panels_of, panels.items()):
        first = next(iter(arms.values()))
        axes.axhspan(min(first), max(first), color=COLOURS["control"], alpha=0.15, lw=0, zorder=0)
        for values in zip(*arms.values()):
            axes.plot(values, color=COLOURS["control"], lw=0.8, zorder=1)
        for x, (arm, values) in enumerate(arms.items()):
            seeds(axes, x, values, colors[arm], 0.6)
            axes.plot(x, median(values), "_", color=COLOURS[colors[arm]], ms=18, mew=2.5, label=arm)
        axes.set_xticks(range(len(arms)), arms, rotation=90 if many else 0)
        axes.set_xlim(-0.5, len(arms) - 0.5)
        axes.margins(y=0.1)
        axes.set_title(title, fontsize=10)
    panels_of[0].set_ylabel("loss, nats per token")
    return figure
