"""What a step costs, as figures: bars made of their parts."""

import re

from matplotlib.figure import Figure

from llm.course.figures.canvas import new_axes, note

PARTS = ("#BBBBBB", "#332288", "#DDCC77", "#88CCEE")  # Tol's muted set: parts of one thing, and no method's color
MEMORY, TIME = "#44AA99", "#AA4499"  # in every picture


def stacked(bars: dict[str, dict[str, float]], label: str) -> Figure:
    """A horizontal bar each, made of its parts in their order; label: what the axis measures, with its unit."""
    figure, (axes,) = new_axes(8.0, 1.1 + 0.42 * len(bars))
    _parts(axes, bars, label)
    axes.invert_yaxis()
    axes.margins(x=0.08)
    axes.legend(frameon=False, ncols=4, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0)
    return figure


def side_by_side(measures: dict[str, dict[str, float]]) -> Figure:
    """The same bars under several measures: {label of the axis, with its unit: {bar: size}}."""
    bars = max(map(len, measures.values()))
    figure, row = new_axes(8.0, 0.8 + 0.36 * bars, columns=len(measures), sharey=True)
    for axes, (label, sizes) in zip(row, measures.items()):
        color = MEMORY if re.search(r"\b[MG]B\b", label) else TIME
        _parts(axes, {bar: {label: size} for bar, size in sizes.items()}, label, (color,))
        axes.margins(x=0.18)
    row[0].invert_yaxis()  # shared by all
    return figure


def _parts(axes, bars, label, colors=PARTS):
    ends = dict.fromkeys(bars, 0.0)
    for part, color in zip(next(iter(bars.values())), colors):
        sizes = [parts[part] for parts in bars.values()]
        axes.barh(list(bars), sizes, left=list(ends.values()), color=color, label=part)
        ends = {bar: end + size for (bar, end), size in zip(ends.items(), sizes)}
    for bar, end in ends.items():
        note(axes, f"{end:.3g}", (end, bar), (4, 0), "black", va="center")
    axes.set_xlabel(label)
