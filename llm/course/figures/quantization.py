"""Four bits a weight, as figures: levels over weights, errors by block and layer, what a merge keeps of an update."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator, NullLocator

from llm.course.figures.canvas import label_end, moving, new_axes, new_figure, spread
from llm.course.figures.palette import COLOURS, FORMATS
from llm.course.four_bits import Rounded, Survival

GREY = "#cccccc"
TITLES = {"nf4": "NF4", "fp4": "FP4", "int4": "int4"}


def levels(parts: list[Rounded]) -> Figure:
    """Weights over their block's absmax, in grey, and each scheme's sixteen levels, how often each is used as its height."""
    figure, axes = new_axes(8.6, 2.0 + 1.1 * len(parts), rows=len(parts), sharex=True)
    for panel, part in zip(axes, parts):
        _levels(panel, part)
        title = f"{TITLES[part.format]}: a level tells {part.entropy:.2f} bits, error {part.error:.1%}"
        panel.set_title(title, fontsize=10, loc="left", color=FORMATS[part.format])
    axes[-1].set_xlabel("weight over its block's absmax")
    figure.supylabel("share of the weights at a level", fontsize=10)
    return figure


def _levels(panel, part):
    """The weights' shape and the levels over it, as artists: the shape, bars, dots."""
    [shape] = panel.fill([], [], color=GREY, lw=0)
    bars = panel.vlines([], 0, 1, color=FORMATS[part.format], lw=2.5)
    [dots] = panel.plot([], [], "o", color=FORMATS[part.format], ms=4)
    panel.set_ylim(0, 1.08 * part.shares.max().item())
    panel.set_xlim(-1.04, 1.04)
    panel.yaxis.set_major_formatter("{x:.0%}")
    _show_levels(part, shape, bars, dots)
    return shape, bars, dots


def _show_levels(part, shape, bars, dots):
    used, n = part.shares.numpy(), len(part.shape)
    # as high as the tallest level, so that the shapes can be compared
    heights = (part.shape / part.shape.max()).numpy() * used.max()
    middles = (2 * np.arange(n) + 1) / n - 1
    shape.set_xy([(middles[0], 0), *zip(middles, heights), (middles[-1], 0)])
    tops = np.stack((part.levels.numpy(), used), 1)
    bars.set_segments([((x, 0), (x, y)) for x, y in tops]), bars.set_color(FORMATS[part.format])
    dots.set_data(tops.T), dots.set_color(FORMATS[part.format])


def scheme(
    found: tuple[Rounded, dict[tuple, dict[int, tuple[float, float]]], tuple[float, float]],
    figure: Figure | None = None,
) -> Figure:
    """One scheme's levels over the weights, and its place among all: error over bits. Draws into `figure` if given.

    found: the scheme; (format, double) -> block -> (bits, error) of all there are; and the largest share of a level and
    the largest error that will ever be shown, where the axes end: axes that moved would have all drawn again.
    """
    part, others, most = found
    figure = figure or _scheme(part, others, most)
    shape, place = figure.axes
    _show_levels(part, *shape.patches, *shape.collections, *shape.lines)
    *lines, ring = place.lines
    # each name at its smallest block, the dearest one
    first = {format: next(iter(points.values())) for (format, double), points in others.items() if not double}
    low, high = place.get_ylim()
    heights = spread([error for _, error in first.values()], 0.075 * (high - low))
    for name, (bits, _), height in zip(place.texts, first.values(), heights):
        name.xy = bits - 4, height
    for line, (key, points) in zip(lines, others.items()):
        line.set_data([bits - 4 for bits, _ in points.values()], [error for _, error in points.values()])
        line.set_alpha(1.0 if key == (part.format, part.double) else 0.3)
    ring.set_data([part.bits - 4], [part.error]), ring.set_color(FORMATS[part.format])
    return figure


def _scheme(part, others, most):
    """The figure of `scheme` without its numbers, which move."""
    figure = new_figure(8.6, 3.2)
    figure.set_layout_engine("none")  # margins by hand: the picture shall not jump
    figure.subplots(1, 2, gridspec_kw=dict(left=0.085, right=0.97, top=0.96, bottom=0.16, wspace=0.24))
    shape, place = figure.axes
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        moving(*axes.spines.values())
    moving(*_levels(shape, part))
    shape.set_ylim(0, 1.05 * most[0])
    shape.set_xlabel("weight over its block's absmax"), shape.set_ylabel("share at a level")
    for format, double in others:
        moving(*place.plot([], [], marker="o", ms=3, lw=1.2, color=FORMATS[format], ls="--" if double else "-"))
        if not double:
            style = dict(textcoords="offset points", va="center", color=FORMATS[format])
            moving(place.annotate(TITLES[format], (1, 0), (5, 0), **style))
    moving(*place.plot([], [], "o", ms=11, mfc="none", mew=2))
    place.set_xscale("log"), place.set_xlim(0.006, 5)
    place.set_xticks([0.01, 0.1, 0.5, 2], ["0.01", "0.1", "0.5", "2"]), place.xaxis.set_minor_locator(NullLocator())
    place.set_ylim(0.06, 1.05 * most[1])
    place.yaxis.set_major_formatter("{x:.0%}")
    place.set_xlabel("bits a weight above the code's 4 (dashed: double)"), place.set_ylabel("error")
    return figure


def rounding_errors(by_block: dict[str, dict[str, list[float]]], blocks: list[int], by_layer: dict) -> Figure:
    """Left: error over block size, weights solid, Gaussian noise dashed. Right: each layer's, at one block size.

    by_block: format -> {"weights": errors, "noise": errors}; by_layer: format -> layer -> error.
    """
    figure, (left, right) = new_axes(8.6, 4.4, columns=2)
    x = range(len(blocks))
    ends = spread([kinds["weights"][-1] for kinds in by_block.values()], 0.008)
    for (format, kinds), end in zip(by_block.items(), ends):
        left.plot(x, kinds["weights"], color=FORMATS[format], marker="o", ms=4)
        left.plot(x, kinds["noise"], color=FORMATS[format], ls="--", lw=1.2)
        label_end(left, len(blocks) - 1, end, TITLES[format], FORMATS[format])
    left.set_xticks(x, blocks), left.set_xlim(-0.2, len(blocks) + 0.2)
    left.set_xlabel("weights in a block (dashed: Gaussian noise)"), left.set_ylabel("error")
    layers = list(next(iter(by_layer.values())))
    for format, errors in by_layer.items():
        right.plot(list(errors.values()), range(len(layers)), "o", color=FORMATS[format], ms=5)
        right.annotate(TITLES[format], (errors[layers[0]], 0), (0, 8), textcoords="offset points", ha="center",
                       color=FORMATS[format])  # fmt: skip
    right.set_yticks(range(len(layers)), layers, fontsize=8)
    right.set_ylim(len(layers) - 0.5, -1.4)
    right.set_xlabel("error of each layer, blocks of 64")
    left.yaxis.set_major_formatter("{x:.0%}"), right.xaxis.set_major_formatter("{x:.0%}")
    right.xaxis.set_major_locator(MultipleLocator(0.01))
    return figure


def kept_updates(panels: dict[str, Survival]) -> Figure:
    """What each weight was to move, and what it did once it was rounded again: a panel for each update."""
    figure, axes = new_axes(8.6, 3.7, columns=len(panels))
    for panel, (title, part) in zip(axes, panels.items()):
        limit = 3.5 * part.wanted.std().item()
        high = max(limit, 0.5)
        grid = dict(bins=(90, 90), range=((-limit, limit), (-high, high)), cmap="Greys", norm="log")
        panel.hist2d(part.wanted.numpy(), part.moved.numpy(), **grid)
        panel.plot((-limit, limit), (-limit, limit), color=COLOURS["lora"], lw=1.2)
        panel.annotate("blue: as wanted", (0.98, 0.04), xycoords="axes fraction", ha="right", color=COLOURS["lora"])
        panel.set_xlim(-limit, limit), panel.set_ylim(-high, high)
        panel.set_title(f"{title}\n{part.same:.0%} keep their code; the update is off by {part.off:.0%}", fontsize=10)
        panel.xaxis.set_minor_locator(NullLocator())
        panel.set_xlabel("wanted (1: a typical weight)")
    axes[0].set_ylabel("moved")
    return figure
