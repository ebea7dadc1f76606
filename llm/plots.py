"""Numbers in, a matplotlib Figure out: no training, no files, no widgets.

One colour is one method in every notebook (Okabe and Ito's palette, which colour-blind readers tell apart).
"""

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = {
    "full": "#D55E00",  # full fine-tuning
    "lora": "#0072B2",  # LoRA, and anything with A and B in it
    "norm": "#009E73",  # the final norm only: the cheap control
    "base": "#555555",  # the model before training
    "control": "#999999",  # noise, chance, the wrong way round
    "other": "#CC79A7",  # a further arm of a comparison
}
STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.labelsize": 10,
    "font.size": 10,
    "lines.linewidth": 1.8,
    "figure.constrained_layout.use": True,
    "figure.dpi": 100,
}


def new_figure(width: float = 7.0, height: float = 3.6) -> Figure:
    """An empty figure in the course's style (inches): shown when it is a cell's value, and only then."""
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(width, height))
    plt.close(figure)  # pyplot would show every open figure a second time at the end of the cell
    return figure


def new_axes(
    width: float = 7.0, height: float = 3.6, rows: int = 1, columns: int = 1, **share
) -> tuple[Figure, list[Axes]]:
    """A figure and its axes as a flat list, row by row; `share` goes to `Figure.subplots`."""
    figure = new_figure(width, height)
    with plt.rc_context(STYLE):
        return figure, list(figure.subplots(rows, columns, squeeze=False, **share).flat)


def label_end(axes: Axes, x: float, y: float, text: str, colour: str, dy: float = 0) -> None:
    """A label beside a curve's last point, in the curve's colour; `dy` in points keeps neighbours apart."""
    axes.annotate(
        text,
        (x, y),
        (6, dy),
        textcoords="offset points",
        va="center",
        color=COLOURS.get(colour, colour),
        annotation_clip=False,
    )
