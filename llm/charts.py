"""The recorded sweeps as pictures: rows of `data/results/*.csv` in, a matplotlib Figure out, in the style of plots.py."""

from math import log10
from statistics import median

from matplotlib.figure import Figure

from llm.plots import COLOURS, NAMES, axes_gap, label_end, new_axes, spread

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


def by_rank(rows: list[dict], measure: str = "after", tasks: tuple[str, ...] = ("records", "shakespeare")) -> Figure:
    """A measure over the rank, a panel for each task: a point a seed, a line through the medians; the base, the full
    fine-tune and the final norm alone as levels to compare with."""
    figure, panels = new_axes(8.6 if len(tasks) > 1 else 5.6, 3.7, columns=len(tasks))
    for axes, task in zip(panels, tasks):
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
    panels[0].set_ylabel(MEASURES[measure])
    return figure


def rates_by_scaling(rows: list[dict]) -> Figure:
    """Loss over the learning rate, a panel for each convention of the scale, a curve for each rank (darker: higher)."""
    scalings = list(dict.fromkeys(row["scaling"] for row in rows))
    figure, panels = new_axes(8.6, 3.5, columns=len(scalings), sharey=True)
    for axes, scaling in zip(panels, scalings):
        here = [row for row in rows if row["scaling"] == scaling]
        ranks = sorted({row["r"] for row in here})
        for shade, r in zip((0.45, 1.0), ranks):
            found = grouped([row for row in here if row["r"] == r], "lr", "after")
            x, y = list(found), [median(values) for values in found.values()]
            axes.plot(x, y, color=COLOURS["lora"], alpha=shade, marker="o", ms=4)
            best = min(range(len(y)), key=y.__getitem__)
            axes.plot(x[best], y[best], "o", color=COLOURS["lora"], ms=11, mfc="none")
            label_end(axes, x[-1], y[-1], f"r = {r}", "lora", dy=5 if r == ranks[-1] else -5)
        axes.set_xscale("log"), axes.set_yscale("log")
        axes.set_yticks([0.5, 1, 2, 4], ["0.5", "1", "2", "4"])
        axes.minorticks_off()
        axes.set_title(f"scale = {scaling}")
        axes.set_xlabel("learning rate")
        axes.set_xlim(2e-4, 3e-2)
    panels[0].set_ylabel(MEASURES["after"])
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


def shares(models: dict[str, dict[int, float]]) -> Figure:
    """The trainable share of each model over the rank, both axes logarithmic; models: name -> rank -> share."""
    figure, (axes,) = new_axes(7.2, 4.0)
    ends = spread([log10(list(found.values())[-1]) for found in models.values()], 0.13)
    for (name, found), end in zip(models.items(), ends):
        axes.plot(list(found), list(found.values()), color=COLOURS["lora"], marker="o", ms=3)
        label_end(axes, list(found)[-1], 10**end, name, "lora")
    axes.set_xscale("log", base=2), axes.set_yscale("log")
    ranks = list(next(iter(models.values())))
    axes.set_xticks(ranks, [f"{r}" for r in ranks])
    axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g} %")
    axes.set_xlim(ranks[0] * 0.9, ranks[-1] * 1.02)
    axes.set_xlabel("rank r, on every matrix of the blocks"), axes.set_ylabel("share of the parameters that train")
    return figure
