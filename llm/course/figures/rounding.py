"""Four bits a weight, as figures: levels over weights, errors by block and layer, what a merge keeps of an update."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Polygon
from matplotlib.ticker import MultipleLocator, NullLocator

from llm.course.figures.canvas import label_end, new_axes, note, spread
from llm.course.figures.palette import COLOURS, FORMATS
from llm.course.four_bits import Rounded, Survival

GRAY = "#cccccc"
TITLES = {"nf4": "NF4", "fp4": "FP4", "int4": "int4"}


def levels(parts: list[Rounded]) -> Figure:
    """Weights over their block's absmax, in gray, and each scheme's sixteen levels, how often each is used as its height."""
    figure, axes = new_axes(8.6, 2.0 + 1.1 * len(parts), rows=len(parts), sharex=True)
    for panel, part in zip(axes, parts):
        _levels(panel, part)
        panel.set_xlim(-1.04, 1.04), panel.set_ylim(0, 1.08 * part.shares.max().item())
        panel.yaxis.set_major_formatter("{x:.0%}")
        title = f"{TITLES[part.format]}: entropy {part.entropy:.2f} bits, error {part.error:.1%}"
        panel.set_title(title, fontsize=10, loc="left", color=FORMATS[part.format])
    axes[-1].set_xlabel("weight over its block's absmax")
    figure.supylabel("share of the weights at a level", fontsize=10)
    return figure


def _levels(panel, part):
    """The weights' shape, and the levels over it."""
    used, n = part.shares.numpy(), len(part.shape)
    # as high as the tallest level, so that the shapes can be compared
    heights = (part.shape / part.shape.max()).numpy() * used.max()
    middles = (2 * np.arange(n) + 1) / n - 1
    corners = [(middles[0], 0), *zip(middles, heights), (middles[-1], 0)]
    panel.add_artist(Polygon(corners, color=GRAY, lw=0))
    panel.vlines(part.levels, 0, used, color=FORMATS[part.format], lw=2.5)
    panel.plot(part.levels, used, "o", color=FORMATS[part.format], ms=4)


def rounding_errors(by_block: dict[str, dict[str, list[float]]], blocks: list[int], by_layer: dict) -> Figure:
    """Left: error over block size, weights solid, Gaussian noise dashed. Right: each layer's, at one block size.

    by_block: format -> {"weights": errors, "noise": errors}; by_layer: format -> layer -> error.
    """
    figure, (left, right) = new_axes(8.6, 4.4, columns=2)
    x = range(len(blocks))
    ends = spread([kinds["weights"][-1] for kinds in by_block.values()], 0.008)
    for (format, kinds), end in zip(by_block.items(), ends):
        left.plot(x, kinds["weights"], color=FORMATS[format], marker="o", ms=4, label=TITLES[format])
        left.plot(x, kinds["noise"], color=FORMATS[format], ls="--", lw=1.2, label=f"{TITLES[format]} on noise")
        label_end(left, len(blocks) - 1, end, TITLES[format], FORMATS[format])
    left.set_xticks(x, blocks), left.set_xlim(-0.2, len(blocks) + 0.2)
    left.set_xlabel("weights in a block (dashed: Gaussian noise)"), left.set_ylabel("error")
    layers = list(next(iter(by_layer.values())))
    for format, errors in by_layer.items():
        right.plot(list(errors.values()), range(len(layers)), "o", color=FORMATS[format], ms=5)
        note(right, TITLES[format], (errors[layers[0]], 0), (0, 8), FORMATS[format], ha="center")
    right.set_yticks(range(len(layers)), layers, fontsize=8)
    right.set(ylim=(len(layers) - 0.5, -1.4), xlabel="error of each layer, blocks of 64")
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
        panel.annotate("blue: no error", (0.98, 0.04), xycoords="axes fraction", ha="right", color=COLOURS["lora"])
        panel.set_xlim(-limit, limit), panel.set_ylim(-high, high)
        panel.set_title(f"{title}\n{part.same:.0%} keep their code; relative error {part.error:.0%}", fontsize=10)
        panel.xaxis.set_minor_locator(NullLocator())
        panel.set_xlabel("the update (in standard deviations of W)")
    axes[0].set_ylabel("change after rounding")
    return figure
