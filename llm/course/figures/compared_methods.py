"""LoRA's relatives as figures: loss over rate and over numbers, and what each does to a layer."""

from itertools import groupby
from math import log10
from statistics import median

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from llm.course.comparison import Order, at_best, best_rate, by_method, by_rate, forgotten
from llm.course.figures.canvas import label_end, new_axes, note, seeds, spread
from llm.course.figures.palette import COLOURS, METHODS, color_of, task_name
from llm.course.movements import Moved

RATES = [1e-4, 1e-3, 1e-2, 1e-1, 1.0]
PALE = "#dddddd"
# where a name stands: beside the lowest, the highest or the middle one of its dots
BELOW, ABOVE = (min, (0, -6), "center", "top"), (max, (0, 6), "center", "bottom")
RIGHT, ABOVE_RIGHT = (median, (9, 0), "left", "center"), (max, (-4, 6), "left", "bottom")
AT_THE_EDGE = {"top": (min, (25, -6), "right", "top"), "bottom": (max, (25, 6), "right", "bottom")}

# whose forgetting is drawn, and how many points from its ring a name stands
FORGETTING = {
    "shakespeare": {"lora": (0, 14), "dora": (28, 0), "ia3": (26, 14), "bitfit": (-4, 14), "full": (48, 0)},
    "facts": {"lora": (0, 14), "rslora": (-30, 2), "dora": (-16, 15), "full": (52, 0)},
}


def rates(rows: list[dict], task: str) -> Figure:
    """Loss over the learning rate of one task: a panel for each method, the others in gray, its best in a ring, the base
    dashed. What is worse by far leaves the picture.
    """
    here = by_method(rows, task)
    curves = {name: by_rate(found) for name, found in here.items()}
    base, low = next(iter(here.values()))[0]["before"], min(min(curve.values()) for curve in curves.values())
    far = base > 3 * low  # then the base is out of sight
    top = 1.6 * max(min(curve.values()) for curve in curves.values()) if far else base + 0.35 * (base - low)
    deep = low - 0.3 * ((top if far else base) - low)
    figure, panels = new_axes(8.6, 5.2, 3, 4, sharex=True, sharey=True)
    for axes, name in zip(panels, METHODS):
        axes.set_title(METHODS[name], fontsize=10, color=color_of(name))
        for other, curve in curves.items():
            if other != name:
                axes.plot(list(curve), list(curve.values()), color=PALE, lw=0.9, zorder=1)
        axes.axhline(base, color=COLOURS["base"], lw=1, ls="--", zorder=2)
        if name in curves:
            curve, color = curves[name], color_of(name)
            axes.plot(list(curve), list(curve.values()), color=color, marker="o", ms=4, zorder=3)
            best = min(curve, key=curve.__getitem__)
            axes.plot(best, curve[best], "o", color=color, ms=11, mfc="none", zorder=4, label="best")
            place = dict(ha="center", va="top", fontsize=9)
            note(axes, f"{curve[best]:.2f}", (best, curve[best]), (0, -8), color, **place)
    axes = panels[0]
    axes.set_xscale("log"), axes.set_xlim(6e-5, 5)
    axes.set_xticks(RATES, ["0.0001", "", "0.01", "", "1"]), axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(deep, top)
    if base < top:
        note(axes, "base", (7e-5, base), (0, 3), "base", fontsize=9)
    figure.supxlabel("learning rate (its peak)", fontsize=10)
    figure.supylabel("loss, nats per token", fontsize=10)
    return figure


def compared(rows: list[dict]) -> Figure:
    """Each method at its best rate over the numbers that it trains, a panel for facts and one for plays: a dot a seed, a
    bar at the median; pale blue: from LoRA's lowest seed to its highest. Equal numbers stand side by side.
    """
    figure, (facts, plays) = new_axes(8.6, 4.0, columns=2)
    facts.set_ylim(-0.09, 1.1), facts.yaxis.set_major_formatter("{x:.0%}")
    beside = {"prompt": ABOVE, "bitfit": ABOVE_RIGHT, "prefix": RIGHT, "full": AT_THE_EDGE["top"]}
    _compared(facts, by_method(rows, "facts"), "right", beside)
    facts.set_ylabel("share of 100 facts that are right")
    facts.set_title("facts to be stored: higher is better", fontsize=10)
    here = by_method(rows, "shakespeare")
    base = next(iter(here.values()))[0]["before"]
    low = min(row["after"] for found in here.values() for row in at_best(found))
    plays.set_ylim(low - 0.12 * (base - low), base + 0.03 * (base - low))
    plays.axhline(base, color=COLOURS["base"], lw=1, ls="--")
    _compared(plays, here, "after", {"full": AT_THE_EDGE["bottom"]})
    note(plays, "base", (3e7, base), (0, 4), "base", ha="right")
    plays.set_ylabel("held-out loss, nats per token")
    plays.set_title("the plays: lower is better", fontsize=10)
    return figure


def _compared(axes, here, measure, beside):
    """beside: where names stand that are neither below their dots nor in the column."""
    found = {name: [row[measure] for row in at_best(rows)] for name, rows in here.items()}
    places = _side_by_side({name: rows[0]["trainable"] for name, rows in here.items()})
    axes.set_xscale("log"), axes.set_xlim(40, 4e7)
    if "lora" in found:
        axes.axhspan(min(found["lora"]), max(found["lora"]), color=COLOURS["lora"], alpha=0.13, lw=0, zorder=0)
    for name, values in found.items():
        color = color_of(name)
        seeds(axes, places[name], values, color, 0.45)
        axes.plot(places[name], median(values), "_", color=color, ms=11, mew=2.4, label=METHODS[name])
    axes.set_xticks([1e2, 1e4, 1e6], ["100", "10,000", "1 million"]), axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("numbers that train")
    low, high = axes.get_ylim()
    middle, gap = {name: median(values) for name, values in found.items()}, 0.06 * (high - low)
    # those of about LoRA's size share one column of names to their right, joined by thin lines
    crowd = [name for name in middle if 2e4 < places[name] < 1e6]
    rows_of = spread([middle[name] for name in crowd], gap)
    edge = max((places[name] for name in crowd), default=1e5)
    for name, y in zip(crowd, rows_of):
        axes.plot([places[name] * 1.12, edge * 1.7, edge * 2.3], [middle[name], y, y], color=color_of(name), lw=0.6,
                  alpha=0.6, zorder=1)  # fmt: skip
        style = dict(weight="bold") if name == "lora" else {}
        axes.annotate(METHODS[name], (edge * 2.5, y), va="center", color=color_of(name), fontsize=9, **style)
    for name in found.keys() - set(crowd):
        which, points, ha, va = beside.get(name, BELOW)
        text = METHODS[name].replace(" ", "\n") if name == "full" else METHODS[name]  # no room for it at the edge
        note(axes, text, (places[name], which(found[name])), points, color_of(name), ha=ha, va=va, fontsize=9)


def _side_by_side(numbers: dict[str, int]) -> dict[str, float]:
    """Where each stands on a logarithmic axis: those of nearly equal numbers next to each other, in their order."""
    ordered, found = sorted(numbers, key=lambda name: (numbers[name], list(METHODS).index(name))), {}
    for _, names in groupby(ordered, key=lambda name: round(4 * log10(numbers[name]))):
        names = list(names)
        for i, name in enumerate(names):
            found[name] = numbers[names[0]] * 1.28**i
    return found


def forgetting(rows: list[dict]) -> Figure:
    """What some methods forget over the loss that they reach, a panel for plays and one for facts: a line through a
    method's rates up to its best, a ring at that. Seed 0, the only one that every rate has.
    """
    figure, panels = new_axes(8.6, 3.9, columns=2)
    for axes, (task, names) in zip(panels, FORGETTING.items()):
        here = by_method(rows, task)
        for name, points in names.items():
            found = [row for row in here[name] if row["seed"] == 0 and row["lr"] <= best_rate(here[name])]
            found.sort(key=lambda row: row["lr"])
            x, y = [row["after"] for row in found], [forgotten(row) for row in found]
            color = color_of(name)
            axes.plot(x, y, color=color, marker="o", ms=4, lw=1.2, label=METHODS[name])
            axes.plot(x[-1], y[-1], "o", color=color, ms=11, mfc="none")
            note(axes, METHODS[name], (x[-1], y[-1]), points, color, fontsize=9, ha="center", va="center")
        axes.set_xmargin(0.1), axes.set_ymargin(0.12), axes.autoscale_view(), axes.set_ylim(bottom=0)
        axes.set_title(f"{task_name(task)}: down and left is better", fontsize=10)
        axes.set_xlabel("loss, nats per token")
    panels[0].set_ylabel("forgotten, nats per token")
    return figure


def order(found: Order) -> Figure:
    """Methods from best to worst, each at its own rate (a ring), and where one rate for all puts them (a dot, and the
    place that it would get). A triangle: beyond the picture.
    """
    figure, [axes] = new_axes(8.6, 3.9)
    names, ours = list(found.best), list(found.best.values())
    n, low, colors = len(names), ours[0], [color_of(name) for name in names]
    high = min(found.base + 0.6 * (found.base - low), 3 * ours[-1])
    beside = axes.get_yaxis_transform()
    axes.set_ylim(n - 0.4, -0.8), axes.set_xlabel("loss, nats per token")
    axes.text(1.03, -0.8, "place", transform=beside, ha="center", fontsize=9)
    axes.set_xlim(low - 0.06 * (high - low), high), axes.set_yticks(range(n), [METHODS[name] for name in names])
    for label, color in zip(axes.get_yticklabels(), colors):
        label.set_color(color)
    axes.plot(ours, range(n), "o", color="black", ms=10, mfc="none", mew=1.2, zorder=2)
    axes.axvline(found.base, color=COLOURS["base"], lw=1, ls="--")
    note(axes, "base", (found.base, n - 0.5), (4, 0), "base", fontsize=9)
    at = [min(found.now.get(name, best), high) for name, best in found.best.items()]
    axes.hlines(range(n), ours, at, colors, lw=2, alpha=0.5)
    for marker in "o>":
        shown = [i for i, name in enumerate(names) if name in found.now and (marker == "o") == (at[i] < high)]
        where = dict(marker=marker, c=[colors[i] for i in shown], zorder=3)
        axes.scatter([at[i] for i in shown], shown, 42, **where)
    for i, (name, color) in enumerate(zip(names, colors)):
        place = str(found.places.get(name, "-"))
        axes.text(1.03, i, place, transform=beside, ha="center", va="center", color=color)
    return figure


def sizes_by_rank(panels: dict[str, dict[str, dict[int, float]]]) -> Figure:
    """A size over the rank under each scale, both logarithmic: title -> name of a scale -> rank -> size."""
    figure, all_axes = new_axes(8.6, 3.1, columns=len(panels))
    for axes, (title, lines) in zip(all_axes, panels.items()):
        axes.set_xscale("log", base=2), axes.set_yscale("log")
        ends = spread([log10(list(found.values())[-1]) for found in lines.values()], 0.12)
        for (name, found), end, style in zip(lines.items(), ends, ("--", "-")):
            axes.plot(list(found), list(found.values()), color=COLOURS["lora"], marker="o", ms=4, ls=style, label=name)
            label_end(axes, list(found)[-1], 10**end, name, "lora")
        every = [y for found in lines.values() for y in found.values()]
        axes.set_ylim(min(every) / 3, max(every) * 3)
        ranks = [r for r in found if log10(r) / log10(4) % 1 < 1e-9]
        axes.set_xticks(ranks, [str(r) for r in ranks]), axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_title(title, fontsize=10), axes.set_xlabel("rank r")
    return figure


def lengths_and_turns(found: dict[str, Moved]) -> Figure:
    """How far each output's weights have grown or shrunk over how far they have turned: a panel a method, a dot an output."""
    figure, panels = new_axes(8.6, 3.2, columns=len(found))
    for axes, (name, part) in zip(panels, found.items()):
        axes.plot(part.turned.tolist(), part.grown.tolist(), "o", color=color_of(name), ms=3, alpha=0.45, mec="none")
        axes.set_xlim(0, 1.05 * part.turned.max().item()), axes.set_ylim(0, 1.05 * part.grown.max().item())
        axes.set_title(f"{METHODS[name]}: correlation {part.correlation:+.2f}", fontsize=10, color=color_of(name))
        axes.set_xlabel("turned (1 - cosine)")
        axes.locator_params(nbins=4)
    panels[0].set_ylabel("change of length")
    return figure


def largest_parts(whole: list[float], rest: list[float], taken: list[float], show: int = 40) -> Figure:
    """Singular values, largest first: of a weight, of PiSSA's residual, and of what its factors begin with."""
    figure, (axes,) = new_axes(7.6, 3.2)
    at = range(1, show + 1)
    axes.plot(at, whole[:show], "o", color=COLOURS["base"], ms=9, mfc="none", mew=1.2, label="W")
    ours = f"s A B at the start: W's {len(taken)} largest"
    axes.plot(at[: len(taken)], taken, "o", color=COLOURS["lora"], ms=5, label=ours)
    axes.plot(at, rest[:show], "o", color=COLOURS["other"], ms=4, label="R = W - s A B, which keeps the others")
    axes.legend(frameon=False, loc="upper right", labelcolor="linecolor")  # the values fall: this corner is empty
    axes.set_ylim(bottom=0), axes.set_xlabel("index of the singular value"), axes.set_ylabel("singular value")
    return figure
