"""LoRA's relatives as figures: loss over rate and over numbers, and what each does to a layer."""

from itertools import groupby
from math import log10
from statistics import median

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from llm.course.comparison import Order, at_best, by_method, by_rate
from llm.course.figures.canvas import label_end, moving, new_axes, new_figure, spread
from llm.course.figures.palette import COLOURS, METHODS, colour_of
from llm.course.movements import Moved

RATES = [1e-4, 1e-3, 1e-2, 1e-1, 1.0]
PALE = "#dddddd"
SIZES = {1e2: "100", 1e3: "1,000", 1e4: "10,000", 1e5: "100,000", 1e6: "1 million", 1e7: "10 million"}


def rates(rows: list[dict], task: str) -> Figure:
    """Loss over the learning rate of one task: a panel for each method, the others in grey, its best in a ring, the base
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
        axes.set_title(METHODS[name], fontsize=10, color=colour_of(name))
        for other, curve in curves.items():
            if other != name:
                axes.plot(list(curve), list(curve.values()), color=PALE, lw=0.9, zorder=1)
        axes.axhline(base, color=COLOURS["base"], lw=1, ls="--", zorder=2)
        if name in curves:
            curve, colour = curves[name], colour_of(name)
            axes.plot(list(curve), list(curve.values()), color=colour, marker="o", ms=4, zorder=3)
            best = min(curve, key=curve.__getitem__)
            axes.plot(best, curve[best], "o", color=colour, ms=11, mfc="none", zorder=4)
            axes.annotate(f"{curve[best]:.2f}", (best, curve[best]), (0, -8), textcoords="offset points", ha="center",
                          va="top", color=colour, fontsize=9)  # fmt: skip
    axes = panels[0]
    axes.set_xscale("log"), axes.set_xlim(6e-5, 5)
    axes.set_xticks(RATES, ["0.0001", "", "0.01", "", "1"]), axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(deep, top)
    if base < top:
        axes.annotate("base", (7e-5, base), (0, 3), textcoords="offset points", color=COLOURS["base"], fontsize=9)
    figure.supxlabel("learning rate (its peak)", fontsize=10)
    figure.supylabel("loss, nats a token", fontsize=10)
    return figure


def compared(rows: list[dict]) -> Figure:
    """Each method at its best rate over the numbers that it trains, a panel for facts and one for plays: a dot a seed, a
    bar at the median; pale blue: from LoRA's lowest seed to its highest. Equal numbers stand side by side.
    """
    figure, (facts, plays) = new_axes(8.6, 4.0, columns=2)
    facts.set_ylim(-0.09, 1.1), facts.yaxis.set_major_formatter("{x:.0%}")
    _compared(facts, by_method(rows, "facts"), "right")
    facts.set_ylabel("share of 100 facts that are right")
    facts.set_title("facts to be stored: higher is better", fontsize=10)
    here = by_method(rows, "shakespeare")
    base = next(iter(here.values()))[0]["before"]
    low = min(row["after"] for found in here.values() for row in at_best(found))
    plays.set_ylim(low - 0.12 * (base - low), base + 0.03 * (base - low))
    plays.axhline(base, color=COLOURS["base"], lw=1, ls="--")
    _compared(plays, here, "after")
    plays.annotate("base", (3e7, base), (0, 4), textcoords="offset points", ha="right", color=COLOURS["base"])
    plays.set_ylabel("held-out loss, nats a token")
    plays.set_title("the plays: lower is better", fontsize=10)
    return figure


def _compared(axes, here, measure):
    found = {name: [row[measure] for row in at_best(rows)] for name, rows in here.items()}
    places = _side_by_side({name: rows[0]["trainable"] for name, rows in here.items()})
    axes.set_xscale("log"), axes.set_xlim(40, 4e7)
    if "lora" in found:
        axes.axhspan(min(found["lora"]), max(found["lora"]), color=COLOURS["lora"], alpha=0.13, lw=0, zorder=0)
    for name, values in found.items():
        colour = colour_of(name)
        axes.plot([places[name]] * len(values), values, "o", color=colour, ms=5, alpha=0.45, mec="none")
        axes.plot(places[name], median(values), "_", color=colour, ms=11, mew=2.4)
    ticks = {at: said for at, said in SIZES.items() if at in (1e2, 1e4, 1e6)}
    axes.set_xticks(list(ticks), list(ticks.values())), axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("numbers that train")
    low, high = axes.get_ylim()
    middle, gap = {name: median(values) for name, values in found.items()}, 0.06 * (high - low)
    # those of about LoRA's size share one column of names to their right, joined by thin lines
    crowd = [name for name in middle if 2e4 < places[name] < 1e6]
    rows_of = spread([middle[name] for name in crowd], gap)
    edge = max((places[name] for name in crowd), default=1e5)
    for name, y in zip(crowd, rows_of):
        axes.plot([places[name] * 1.12, edge * 1.7, edge * 2.3], [middle[name], y, y], color=colour_of(name), lw=0.6,
                  alpha=0.6, zorder=1)  # fmt: skip
        style = dict(weight="bold") if name == "lora" else {}
        axes.annotate(METHODS[name], (edge * 2.5, y), va="center", color=colour_of(name), fontsize=9, **style)
    column = {METHODS[name]: (edge * 2.5, y) for name, y in zip(crowd, rows_of)}
    _name(axes, [name for name in found if name not in crowd], places, found, column)


def _name(axes, names, places, found, column):
    """Each name below, above, left or right of its own dots: where it covers least of dots, names and a column of names."""
    (first, last), (low, high) = axes.get_xlim(), axes.get_ylim()

    def box(x, y, wide, tall):  # inches, roughly: the panel is laid out only when it is drawn
        return 3.5 * log10(x / first) / log10(last / first), 3.1 * (y - low) / (high - low), wide / 2, tall / 2

    sides = (("right", -1), ("left", 1))
    taken = [box(places[name], y, 0.17, 0.07) for name, values in found.items() for y in values]
    for text, (x, y) in column.items():
        at = box(x, y, 0.07 * len(text), 0.14)
        taken.append((at[0] + at[2], *at[1:]))
    for name in sorted(names, key=places.__getitem__):
        x, values, text = places[name], found[name], METHODS[name]
        if x > 1e6:  # at the edge there is room for two short lines
            text = text.replace(" ", "\n")
        lines = text.split("\n")
        wide, tall = 0.07 * max(map(len, lines)), 0.14 * len(lines)
        up = 0.09 + tall / 2
        if x > 1e6:
            ways = [
                (max(values), (25, 6), "right", "bottom", 0.35 - wide / 2, up),
                (min(values), (25, -6), "right", "top", 0.35 - wide / 2, -up),
            ]
        else:
            ways = [
                (min(values), (0, -6), "center", "top", 0, -up),
                (max(values), (0, 6), "center", "bottom", 0, up),
                (median(values), (-9, 0), "right", "center", -0.13 - wide / 2, 0),
                (median(values), (9, 0), "left", "center", 0.13 + wide / 2, 0),
                *((max(values), (-4 * way, 6), ha, "bottom", way * (wide / 2 - 0.05), up) for ha, way in sides),
                *((min(values), (-4 * way, -6), ha, "top", way * (wide / 2 - 0.05), -up) for ha, way in sides),
            ]
        boxes = []
        for y, _offset, _ha, _va, right, above in ways:
            at = box(x, y, wide, tall)
            boxes.append((at[0] + right, at[1] + above, *at[2:]))
        inside = [i for i, here in enumerate(boxes) if here[0] > here[2] and here[1] + here[3] < 3.1] or [0]
        i = min(inside, key=lambda i: sum(_covered(boxes[i], there) for there in taken))
        taken.append(boxes[i])
        y, offset, ha, va, *_ = ways[i]
        axes.annotate(text, (x, y), offset, textcoords="offset points", ha=ha, va=va, color=colour_of(name),
                      fontsize=9)  # fmt: skip


def _covered(one, other):
    """The area that two boxes share, each a centre and half of its width and height."""
    wide, tall = (one[k + 2] + other[k + 2] - abs(one[k] - other[k]) for k in (0, 1))
    return max(0, wide) * max(0, tall)


def _side_by_side(numbers: dict[str, int]) -> dict[str, float]:
    """Where each stands on a logarithmic axis: those of nearly equal numbers next to each other, in their order."""
    ordered, found = sorted(numbers, key=lambda name: (numbers[name], list(METHODS).index(name))), {}
    for _, names in groupby(ordered, key=lambda name: round(4 * log10(numbers[name]))):
        names = list(names)
        for i, name in enumerate(names):
            found[name] = numbers[names[0]] * 1.28**i
    return found


def order(found: Order, figure: Figure | None = None) -> Figure:
    """Methods from best to worst, each at its own rate (a ring), and where one rate for all puts them (a dot, and the
    place that it would get). A triangle: beyond the picture. Draws into `figure` if given.
    """
    names = list(found.best)
    if new := figure is None:
        figure = new_figure(8.6, 3.9)
        figure.set_layout_engine("none")  # margins by hand: the picture shall not jump
        axes = figure.subplots(gridspec_kw=dict(left=0.13, right=0.92, top=0.95, bottom=0.13))
        axes.spines[["top", "right"]].set_visible(False)
        axes.plot([], [], "o", color="black", ms=10, mfc="none", mew=1.2, zorder=2)
        axes.axvline(0, color=COLOURS["base"], lw=1, ls="--")
        axes.annotate("base", (0, 0), (4, 0), textcoords="offset points", color=COLOURS["base"], fontsize=9)
        lines = axes.hlines([0] * len(names), 0, 0, lw=2, alpha=0.5)
        dots = axes.scatter([0] * len(names), range(len(names)), s=42, zorder=3)
        beyond = axes.scatter([0] * len(names), range(len(names)), s=42, marker=">", zorder=3)
        where = axes.get_yaxis_transform()
        axes.text(1.03, -0.8, "place", transform=where, ha="center", fontsize=9)
        said = [
            axes.text(1.03, i, "", transform=where, ha="center", va="center", fontsize=10) for i in range(len(names))
        ]
        axes.set_ylim(len(names) - 0.4, -0.8), axes.set_xlabel("loss, nats a token")
        moving(lines, dots, beyond, *said)
    [axes] = figure.axes
    rings, base, *_ = axes.lines
    lines, dots, beyond = axes.collections
    low = min(found.best.values())
    high = min(found.base + 0.6 * (found.base - low), 3 * max(found.best.values()))
    if new or list(rings.get_xdata()) != list(found.best.values()):
        rings.set_data(list(found.best.values()), range(len(names)))
        base.set_xdata([found.base] * 2)
        axes.texts[0].xy = found.base, len(names) - 0.5
        axes.set_xlim(low - 0.06 * (high - low), high)
        axes.set_yticks(range(len(names)), [METHODS[name] for name in names])
        for tick, name in zip(axes.get_yticklabels(), names):
            tick.set_color(colour_of(name))
    colours = [colour_of(name) for name in names]
    at = [min(found.now[name], high) if name in found.now else None for name in names]
    lines.set_segments(
        [[(best, i), (best if x is None else x, i)] for i, (best, x) in enumerate(zip(found.best.values(), at))]
    )
    lines.set_color(colours)
    for marks, shown in (
        (dots, [x is not None and x < high for x in at]),
        (beyond, [x is not None and x >= high for x in at]),
    ):
        marks.set_offsets([(x, i) for i, (x, here) in enumerate(zip(at, shown)) if here] or [(-1e9, 0)])
        marks.set_color([colour for colour, here in zip(colours, shown) if here] or ["none"])
    for name, text in zip(names, axes.texts[2:]):
        place = found.places.get(name)
        text.set_text(str(place or "-"))  # short: to draw text takes longest of all
        text.set_color(colour_of(name))
    return figure


def sizes_by_rank(panels: dict[str, dict[str, dict[int, float]]]) -> Figure:
    """A size over the rank under each scale, both logarithmic: title -> name of a scale -> rank -> size."""
    figure, all_axes = new_axes(8.6, 3.1, columns=len(panels))
    for axes, (title, lines) in zip(all_axes, panels.items()):
        axes.set_xscale("log", base=2), axes.set_yscale("log")
        ends = spread([log10(list(found.values())[-1]) for found in lines.values()], 0.12)
        for (name, found), end, style in zip(lines.items(), ends, ("--", "-")):
            axes.plot(list(found), list(found.values()), color=COLOURS["lora"], marker="o", ms=4, ls=style)
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
        axes.plot(part.turned.tolist(), part.grown.tolist(), "o", color=colour_of(name), ms=3, alpha=0.45, mec="none")
        axes.set_xlim(0, 1.05 * part.turned.max().item()), axes.set_ylim(0, 1.05 * part.grown.max().item())
        axes.set_title(f"{METHODS[name]}: correlation {part.correlation:+.2f}", fontsize=10, color=colour_of(name))
        axes.set_xlabel("turned (1 - cosine)")
        axes.locator_params(nbins=4)
    panels[0].set_ylabel("change of length")
    return figure


def largest_parts(whole: list[float], rest: list[float], taken: list[float], show: int = 40) -> Figure:
    """Singular values, largest first: of a weight, of PiSSA's residual, and of what its factors begin with."""
    figure, (axes,) = new_axes(7.6, 3.2)
    at = range(1, show + 1)
    axes.plot(at, whole[:show], "o", color=COLOURS["base"], ms=9, mfc="none", mew=1.2)
    axes.plot(at[: len(taken)], taken, "o", color=COLOURS["lora"], ms=5)
    axes.plot(at, rest[:show], "o", color=COLOURS["other"], ms=4)
    r = len(taken)
    axes.annotate(f"s A B at the start: W's {r} largest", (1.8, whole[0]), va="center", color=COLOURS["lora"])
    axes.annotate("W (rings)", (show / 2, whole[show // 2] + 0.08 * whole[0]), color=COLOURS["base"])
    axes.annotate("R = W - s A B begins where they end", (2, 0.65 * rest[0]), color=COLOURS["other"])
    axes.set_ylim(bottom=0), axes.set_xlabel("index of the singular value"), axes.set_ylabel("singular value")
    return figure
