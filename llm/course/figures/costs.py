"""What a step costs, as figures: bars made of their parts."""

from matplotlib.figure import Figure

from llm.course.figures.canvas import new_axes

PARTS = ("#BBBBBB", "#332288", "#DDCC77", "#88CCEE")  # Tol's muted set: parts of one thing, and no method's colour


def stacked(bars: dict[str, dict[str, float]], label: str) -> Figure:
    """A horizontal bar each, made of its parts in their order; label: what the axis measures, with its unit."""
    figure, (axes,) = new_axes(8.0, 1.1 + 0.42 * len(bars))
    ends = dict.fromkeys(bars, 0.0)
    for part, colour in zip(next(iter(bars.values())), PARTS):
        sizes = [parts[part] for parts in bars.values()]
        axes.barh(list(bars), sizes, left=list(ends.values()), color=colour, label=part)
        ends = {bar: end + size for (bar, end), size in zip(ends.items(), sizes)}
    for bar, end in ends.items():
        axes.annotate(f"{end:.3g}", (end, bar), (4, 0), textcoords="offset points", va="center")
    axes.invert_yaxis()
    axes.margins(x=0.08)
    axes.set_xlabel(label)
    axes.legend(frameon=False, ncols=4, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0)
    return figure
