"""What every figure stands on: sizes, style, and labels that do not touch. Knows no numbers."""

from math import inf
from statistics import fmean

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch

from llm.course.figures.palette import COLOURS

STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.labelsize": 10,
    "font.size": 10,
    "lines.linewidth": 1.8,
    "figure.constrained_layout.use": True,
    "figure.dpi": 100,
}


class Picture(Figure):
    """A figure whose picture has an alternative text in a notebook: what it shows, in words and numbers.

    It stands on a white card with round corners, so that its colors read the same on a light page and on a dark one.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.patch.set_alpha(0)
        width, height = self.get_size_inches()
        corners = dict(boxstyle=f"round,pad=0,rounding_size={0.1 / width}", mutation_aspect=width / height)
        card = FancyBboxPatch((0, 0), 1, 1, **corners, transform=self.transFigure, fc="white", lw=0, zorder=-1)
        self.add_artist(card)

    def _repr_mimebundle_(self, include=None, exclude=None) -> tuple[dict, dict]:
        return {}, {"image/png": {"alt": in_words(self)}}


def in_words(figure: Figure) -> str:
    """Each panel's title and axes, where every curve with a label begins and ends, the bars, and texts with a number."""
    figure.draw_without_rendering()  # only now ticks have their texts
    return ". ".join(filter(None, (_panel(figure, axes) for axes in figure.axes if axes.get_visible())))


def _panel(figure, axes):
    across, up = axes.get_xlabel() or figure.get_supxlabel(), axes.get_ylabel() or figure.get_supylabel()
    said = [] if axes.images or not axes.axison else [" over ".join(filter(None, (up, across)))]
    said += [_curve(axes, line) for line in axes.lines if line.get_label() and not line.get_label().startswith("_")]
    for bars in axes.containers:
        flat = getattr(bars, "orientation", "") == "horizontal"
        sizes = [bar.get_width() if flat else bar.get_height() for bar in bars]
        names = _names(axes.yaxis if flat else axes.xaxis) or _names(figure.axes[0].yaxis)  # shared
        group = "" if bars.get_label().startswith("_") or bars.get_label() == across else f"{bars.get_label()}, "
        said += [f"{group}{name}: {_said(size)}" for name, size in zip(names, sizes)]
    plain = [" ".join(text.get_text().split()) for text in axes.texts[:24]]
    texts = [] if axes.containers else _rows(figure, axes) or plain
    said += [text for text in texts if any(map(str.isdigit, text)) and not any(text in part for part in said)]
    title = f"{axes.get_title()} {axes.get_title(loc='left')}"
    return ": ".join(filter(None, (" ".join(part.split()) for part in (title, "; ".join(filter(None, said))))))


def _rows(figure, axes):
    """Of texts in rows that have names: each name, with the row's first number and its last."""
    columns, said = dict(zip(axes.get_xticks(), _names(axes.xaxis))), []
    for at, name in zip(axes.get_yticks(), _names(figure.axes[0].yaxis)):
        here = [text for text in axes.texts if text.get_position()[1] == at and any(map(str.isdigit, text.get_text()))]
        if here and name[0].isalpha():
            ends = {text.get_position()[0]: text.get_text() for text in (here[0], here[-1])}
            said.append(
                f"{name}: " + ", ".join(y + (f" at {columns[x]}" if x in columns else "") for x, y in ends.items())
            )
    return said


def _names(axis):
    return [text.get_text() for text in axis.get_ticklabels() if text.get_text()]


def _curve(axes, line):
    ticks = {at: text.get_text() for at, text in zip(axes.get_xticks(), axes.get_xticklabels())}
    (x, y), (last, end) = line.get_xydata()[[0, -1]]
    first, then = (ticks.get(at) if ticks.get(at, "$").isalnum() else _said(at) for at in (x, last))
    level = x == last or y == end  # a point, or a line across the picture
    return f"{line.get_label()}: {_said(y)}" + ("" if level else f" at {first}, {_said(end)} at {then}")


def _said(value):
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def new_axes(
    width: float = 7.0, height: float = 3.6, rows: int = 1, columns: int = 1, **share
) -> tuple[Figure, list[Axes]]:
    """An empty figure in the course's style (inches) and its axes as a flat list, row by row.

    The figure is shown when it is a cell's value, and only then. `share` goes to `Figure.subplots`.
    """
    with plt.rc_context(STYLE):
        figure = plt.figure(FigureClass=Picture, figsize=(width, height))
        plt.close(figure)  # pyplot would show every open figure a second time at the end of the cell
        return figure, list(figure.subplots(rows, columns, squeeze=False, **share).flat)


def note(axes: Axes, text: str, at: tuple, points: tuple[float, float], color: str, **style) -> None:
    """A text beside a place of the axes, so many points away from it; color: by its name in `COLOURS`, or another one."""
    axes.annotate(text, at, points, textcoords="offset points", color=COLOURS.get(color, color), **style)


def label_end(axes: Axes, x: float, y: float, text: str, color: str, end: tuple | None = None, **style) -> None:
    """A label beside a curve's last point, in the curve's color; `spread` finds places for several.

    end: that point, where the label may stand elsewhere: a thin line then leads to it.
    """
    if end and end != (x, y):
        look = dict(color=COLOURS.get(color, color), lw=1, ls=":", zorder=1.5, clip_on=False, label="_leader")
        axes.add_artist(Line2D([end[0], x], [end[1], y], **look))
    note(axes, text, (x, y), (6, 0), color, va="center", annotation_clip=False, **style)


def seeds(axes: Axes, x: float, values: list[float], color: str, alpha: float = 0.4, size: float = 5) -> None:
    """A pale point for each seed's value, above one place; color: as in `note`."""
    axes.plot([x] * len(values), values, "o", color=COLOURS.get(color, color), alpha=alpha, ms=size, mec="none")


def axes_gap(curves: list[list[float]], start: float) -> float:
    """The least distance at which two labels beside curves of this height do not touch."""
    values = [start, *(y for curve in curves for y in curve)]
    return 0.07 * (max(values) - min(values))


def spread(values: list[float], gap: float, low: float = -inf) -> list[float]:
    """The values, in their order, moved apart until neighbors are `gap` away: where labels can stand, none below `low`.

    Neighbours that would touch stand around the mean of where they belong, so that none is pushed far.
    """

    def bottom(group):
        return max(low, fmean(values[i] for i in group) - gap * (len(group) - 1) / 2)

    groups: list[list[int]] = []
    for i in sorted(range(len(values)), key=values.__getitem__):
        groups.append([i])
        while len(groups) > 1 and bottom(groups[-1]) < bottom(groups[-2]) + gap * len(groups[-2]):
            groups[-2:] = [groups[-2] + groups[-1]]
    places = {i: bottom(group) + gap * k for group in groups for k, i in enumerate(group)}
    return [places[i] for i in range(len(values))]
