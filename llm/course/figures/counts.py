"""What is counted, as figures: what trains in a model, what is saved, what lies on disk."""

from math import log10

from matplotlib.figure import Figure

from llm.course.audit import AuditRow
from llm.course.figures.canvas import label_end, moving, new_axes, new_figure, spread
from llm.course.figures.palette import COLOURS


def shares(models: dict[str, dict[int, float]]) -> Figure:
    """The trainable share of each model over the rank, both axes logarithmic; models: name -> rank -> share."""
    figure, (axes,) = new_axes(7.2, 4.0)
    ends = spread([log10(list(found.values())[-1]) for found in models.values()], 0.125)
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


def audit(rows: list[AuditRow], figure: Figure | None = None) -> Figure:
    """What a model holds by kind of module, in grey, and what of it trains, in colour; draws into `figure` if given."""
    if figure is None or len(figure.axes[0].patches) != 2 * len(rows):
        figure = _audit_rows(len(rows))
    [axes] = figure.axes
    for i, row in enumerate(rows):
        whole, trained, said, kind = axes.patches[i], axes.patches[len(rows) + i], *axes.texts[2 * i : 2 * i + 2]
        whole.set_width(row.parameters)
        trained.set(width=row.trained, visible=row.trained > 0, facecolor=COLOURS["full" if row.of_base else "lora"])
        said.set_text(f"{row.trained:,} of {row.parameters:,} train" if row.trained else f"{row.parameters:,} frozen")
        said.set_color("black" if row.trained else "#777777")
        kind.set_text(row.kind)
    return figure


def _audit_rows(n):
    """The figure of `audit` for n rows without their numbers, which move."""
    figure = new_figure(8.6, 3.4)
    figure.set_layout_engine("none")
    axes = figure.add_axes((0.13, 0.15, 0.66, 0.83))
    axes.set_axis_off()  # its ticks would take a quarter of the time: lines and texts stand in for them
    axes.set_xscale("log")
    axes.set_xlim(100, 1.2e7), axes.set_ylim(n - 0.4, -0.6)
    moving(*axes.barh(range(n), 1, color="#dddddd", height=0.72), *axes.barh(range(n), 1, height=0.4))
    for i in range(n):
        moving(axes.text(1.6e7, i, "", va="center", fontsize=9))
        axes.text(90, i, "", va="center", ha="right", fontsize=9)
    decades = [10**e for e in range(2, 8)]
    moving(axes.vlines(decades, -0.6, n - 0.4, color="white", lw=1))  # over the bars
    for decade in decades:
        axes.text(decade, n - 0.2, f"{decade:,}", ha="center", va="top", fontsize=9)
    title = "numbers (grey: all, blue: in A and B, orange: of the base, not frozen)"
    axes.text(100, n + 0.75, title, va="top", fontsize=9)
    return figure


def savings(models: dict[str, int], r: int, claimed: dict[str, tuple[int, float]]) -> Figure:
    """How many times fewer numbers train in a square d x d matrix at rank r, over d; both axes logarithmic.

    models: name -> d; claimed: name -> (d, times) as a text has it, drawn as a ring.
    """
    figure, (axes,) = new_axes(7.6, 4.0)
    widths = [48, 24576]
    axes.plot(widths, [d / (2 * r) for d in widths], color=COLOURS["lora"])
    label_end(axes, widths[1], widths[1] / (2 * r), f"d / (2 * {r})", "lora")
    for name, d in models.items():
        axes.plot(d, d / (2 * r), "o", color=COLOURS["lora"], ms=7)
        text = f"{name}: d = {d:,}, {d / (2 * r):,.0f} times"
        axes.annotate(text, (d, d / (2 * r)), (9, -11), textcoords="offset points", fontsize=9)
    for name, (d, times) in claimed.items():
        axes.plot(d, times, "o", mfc="none", mec=COLOURS["other"], mew=2, ms=13)
        style = dict(textcoords="offset points", ha="right", fontsize=9, color=COLOURS["other"])
        axes.annotate(f'"{name}", says the chapter', (d, times), (-9, 9), **style)
    axes.set_xscale("log", base=2), axes.set_yscale("log", base=2)
    axes.set_xticks([64, 256, 1024, 4096, 16384]), axes.set_yticks([4, 16, 64, 256, 1024])
    axes.xaxis.set_major_formatter("{x:,.0f}"), axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlim(48, 2**17.2), axes.set_ylim(2.5, 2500)
    axes.set_xlabel("width d of a square matrix"), axes.set_ylabel("times fewer trained numbers")
    return figure


def footprint(base: float, adapter: float, most: int = 1000) -> Figure:
    """Bytes on disk over the number of fine-tunes kept: a checkpoint each, or one base and an adapter each."""
    figure, (axes,) = new_axes(7.4, 3.4)
    x = range(1, most + 1)
    for size, first, text, colour in (
        (base, 0.0, "a checkpoint each", "full"),
        (adapter, base, "one base, an adapter each", "lora"),
    ):
        y = [(first + size * n) / 1e6 for n in x]
        axes.plot(x, y, color=COLOURS[colour])
        label_end(axes, x[-1], y[-1], f"{text}\n{y[-1]:,.0f} MB at {most:,}", colour)
    axes.set_xscale("log"), axes.set_yscale("log")
    axes.xaxis.set_major_formatter("{x:,.0f}"), axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlim(1, most)
    axes.set_xlabel("fine-tunes kept"), axes.set_ylabel("on disk, MB")
    return figure
