"""What is counted, as figures: what trains in a model, and how many times fewer that is."""

from math import log2, log10

from matplotlib.figure import Figure

from llm.course.figures.canvas import label_end, new_axes, note, spread
from llm.course.figures.palette import COLOURS


def shares(models: dict[str, dict[int, float]]) -> Figure:
    """The trainable share of each model over the rank, both axes logarithmic; models: name -> rank -> share.

    The course's own model, "ours", is dashed: it falls among the larger ones.
    """
    figure, (axes,) = new_axes(7.2, 4.0)
    ends = spread([log10(list(found.values())[-1]) for found in models.values()], 0.125)
    for (name, found), end in zip(models.items(), ends):
        dashed = name == "ours"
        line = dict(color=COLOURS["lora"], ls="--" if dashed else "-", marker="o", ms=3, label=name)
        axes.plot(list(found), list(found.values()), **line)
        label_end(axes, list(found)[-1], 10**end, f"{name} (dashed)" if dashed else name, "lora")
    axes.set_xscale("log", base=2), axes.set_yscale("log")
    ranks = list(next(iter(models.values())))
    axes.set_xticks(ranks, [f"{r}" for r in ranks])
    axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g}%")
    axes.set_xlim(ranks[0] * 0.9, ranks[-1] * 1.02)
    axes.set_xlabel("rank r, on every matrix of the blocks"), axes.set_ylabel("share of the parameters that train")
    return figure


def savings(models: dict[str, int], r: int, claimed: dict[str, tuple[int, float]]) -> Figure:
    """How many times fewer numbers train in a square d x d matrix at rank r, over d; both axes logarithmic.

    models: name -> d; claimed: name -> (d, times) as a text has it, drawn as a ring.
    """
    figure, (axes,) = new_axes(7.6, 4.0)
    widths = [48, 24576]
    axes.plot(widths, [d / (2 * r) for d in widths], color=COLOURS["lora"])
    label_end(axes, widths[1], widths[1] / (2 * r), f"d / (2 * {r})", "lora")
    heights = spread([log2(d / (2 * r)) for d in models.values()], 0.75)
    for (name, d), height in zip(models.items(), heights):
        axes.plot(d, d / (2 * r), "o", color=COLOURS["lora"], ms=7)
        text = f"{name}: d = {d:,}, {d / (2 * r):,.0f} times"
        note(axes, text, (d, 2**height), (9, -11), "black", fontsize=9)
    for name, (d, times) in claimed.items():
        axes.plot(d, times, "o", mfc="none", mec=COLOURS["other"], mew=2, ms=13)
        note(axes, f'"{name}", says the chapter', (d, times), (-9, 9), "other", ha="right", fontsize=9)
    axes.set_xscale("log", base=2), axes.set_yscale("log", base=2)
    axes.set_xticks([64, 256, 1024, 4096, 16384]), axes.set_yticks([4, 16, 64, 256, 1024])
    axes.xaxis.set_major_formatter("{x:,.0f}"), axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlim(48, 2**17.2), axes.set_ylim(2.5, 2500)
    axes.set_xlabel("width d of a square matrix"), axes.set_ylabel("times fewer trained numbers")
    return figure
