"""What every figure stands on: sizes, style, labels that do not touch, and a PNG. Knows no numbers."""

import io
import threading
from math import inf
from statistics import fmean

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imsave

from llm.course.figures.palette import COLOURS

# matplotlib knows one thread only, and JupyterLab calls widgets back on several (kernel subshells, since ipykernel 7)
DRAWING = threading.RLock()
STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
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


def emptied(figure: Figure | None, width: float, height: float) -> Figure:
    """`figure` with its axes bare, to be drawn into again, or a new one (inches): what pictures that move begin with.

    The axes stay: to make them takes as long as all the rest, and the old ones are garbage whose collection is felt.
    """
    for axes in figure.axes if figure else ():
        for artist in (*axes.lines, *axes.collections, *axes.images, *axes.patches, *axes.texts):
            artist.remove()
        axes.relim(), axes.autoscale()  # forget how far they reached
    return figure or new_figure(width, height)


def moving(*artists: Artist) -> None:
    """Say of these artists that they change while the rest of their figure stands: `png` draws them over the rest.

    What lies over them and touches them, as the frame of an image, moves with them.
    """
    for artist in artists:
        artist.set_animated(True)


class Pixels(FigureCanvasAgg):
    """A figure's pixels, in which what stands is drawn once, until some of it changes, and what moves again each time."""

    _standing = None

    def redraw(self) -> None:
        # an artist that changes makes its figure stale, but not one that moves
        if self._standing is None or self.figure.stale:
            self.draw()
            self._standing = self.copy_from_bbox(self.figure.bbox)
        else:
            self.restore_region(self._standing)
        for axes in self.figure.axes:
            for artist in sorted(axes.get_children(), key=Artist.get_zorder):
                if artist.get_animated():
                    axes.draw_artist(artist)


def png(figure: Figure) -> bytes:
    """The figure as a PNG, of which only what has changed is drawn: `savefig` would even lay it out twice."""
    pixels = figure.canvas if isinstance(figure.canvas, Pixels) else Pixels(figure)
    pixels.redraw()
    buffer = io.BytesIO()
    # Pillow's own level takes 30 ms longer for a picture full of noise, to save 3 % of its bytes
    imsave(buffer, np.asarray(pixels.buffer_rgba()), format="png", pil_kwargs={"compress_level": 1})
    return buffer.getvalue()


def label_end(axes: Axes, x: float, y: float, text: str, colour: str) -> None:
    """A label beside a curve's last point, in the curve's colour; `spread` finds places for several."""
    axes.annotate(
        text,
        (x, y),
        (6, 0),
        textcoords="offset points",
        va="center",
        color=COLOURS.get(colour, colour),
        annotation_clip=False,
    )


def axes_gap(curves: list[list[float]], start: float) -> float:
    """The least distance at which two labels beside curves of this height do not touch."""
    values = [start, *(y for curve in curves for y in curve)]
    return 0.07 * (max(values) - min(values))


def spread(values: list[float], gap: float, low: float = -inf) -> list[float]:
    """The values, in their order, moved apart until neighbours are `gap` away: where labels can stand, none below `low`.

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
