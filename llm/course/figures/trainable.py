"""What is counted, as figures: what trains in a model, and how many times fewer that is."""

from math import log2, log10

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from llm.course.audit import AuditRow
from llm.course.figures.canvas import emptied, label_end, new_axes, note, spread
from llm.course.figures.palette import COLOURS


def shares(models: dict[str, dict[int, float]]) -> Figure:
    """The trainable share of each model over the rank, both axes logarithmic; models: name -> rank -> share."""
    figure, (axes,) = new_axes(7.2, 4.0)
    ends = spread([log10(list(found.values())[-1]) for found in models.values()], 0.125)
    for (name, found), end in zip(models.items(), ends):
        axes.plot(list(found), list(found.values()), color=COLOURS["lora"], marker="o", ms=3, label=name)
        label_end(axes, list(found)[-1], 10**end, name, "lora")
    axes.set_xscale("log", base=2), axes.set_yscale("log")
    ranks = list(next(iter(models.values())))
    axes.set_xticks(ranks, [f"{r}" for r in ranks])
    axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g}%")
    axes.set_xlim(ranks[0] * 0.9, ranks[-1] * 1.02)
    axes.set_xlabel("rank r, on every matrix of the blocks"), axes.set_ylabel("share of the parameters that train")
    return figure


def audit(rows: list[AuditRow], figure: Figure | None = None) -> Figure:
    """What a model holds by kind of module, in gray, and what of it trains, in color; draws into `figure` if given."""
    n = len(rows)
    figure, [axes], new = emptied(figure, 8.6, 3.4, left=0.13, right=0.77, top=0.98, bottom=0.15)
    if new:
        axes.set_axis_off()  # its ticks would take a quarter of the time: lines and texts stand in for them
        axes.set_xscale("log")
    kinds, decades = [row.kind for row in rows], [10**e for e in range(2, 8)]
    if [text.get_text() for text in axes.texts[:n]] != kinds:
        for text in list(axes.texts):
            text.remove()
        for i, kind in enumerate(kinds):
            axes.text(90, i, kind, va="center", ha="right", fontsize=9)
        for decade in decades:
            axes.text(decade, n - 0.2, f"{decade:,}", ha="center", va="top", fontsize=9)
        title = "numbers (gray: all, blue: in A and B, orange: of the base, not frozen)"
        axes.text(100, n + 0.75, title, va="top", fontsize=9)
    axes.set_xlim(100, 1.2e7), axes.set_ylim(n - 0.4, -0.6)
    for i, row in enumerate(rows):
        text, color = f"{row.parameters:,} frozen", "#777777"
        _bar(axes, i, row.parameters, 0.72, "#dddddd")
        if row.trained:
            _bar(axes, i, row.trained, 0.4, COLOURS["full" if row.of_base else "lora"])
            text, color = f"{row.trained:,} of {row.parameters:,} train", "black"
        axes.text(1.6e7, i, text, va="center", fontsize=9, color=color, animated=True)
    axes.vlines(decades, -0.6, n - 0.4, color="white", lw=1, animated=True)  # over the bars
    return figure


def _bar(axes, y, width, height, color):
    # `barh` takes ten times as long
    axes.add_artist(Rectangle((0, y - height / 2), width, height, fc=color, ec="none", animated=True))


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
