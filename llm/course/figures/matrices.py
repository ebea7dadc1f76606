"""Matrices as figures: the best rank-r parts, and a layer with its A and B."""

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from llm.course.figures.canvas import moving, new_axes, new_figure
from llm.course.figures.palette import COLOURS, SIGNED
from llm.course.matrices import THICKEST, WIDEST, Approximation, Wrapped

GAP = 26  # between two matrices in a row, in entries: room for a sign


def show_matrix(axes: Axes, matrix: torch.Tensor, title: str, limit: float | None = None) -> None:
    """A matrix in red and blue, white at zero, in place of one that is there; limit: the value of the deepest colour."""
    values, limit = matrix.numpy(), limit or matrix.abs().max().item() or 1.0
    if not axes.images:
        axes.set_title("", fontsize=10)
        # over the whole of the axes, whatever its shape: limits that change would have all else drawn again
        axes.imshow(values, cmap=SIGNED, aspect="auto", interpolation="nearest", extent=(0, 1, 1, 0))
        axes.set_xticks([]), axes.set_yticks([])
        axes.spines[:].set(visible=True, color="#bbbbbb", lw=0.6)
    axes.title.set_text(title)  # `set_title` would place it anew, and have all that stands drawn again
    [image] = axes.images
    if image.get_clim() != (-limit, limit) or not np.array_equal(image.get_array(), values):
        image.set_data(values), image.set_clim(-limit, limit)


def moving_matrix(axes: Axes) -> None:
    """Say of the axes' matrix that it is another one every time, while the rest of the figure stands."""
    moving(*axes.images, *axes.spines.values(), axes.title)


def rank_strip(parts: list[Approximation], errors: list[float]) -> Figure:
    """A matrix, its best parts at a few ranks, and the error over all ranks from 0."""
    figure, axes = new_axes(8.6, 4.4, rows=3, columns=2)
    target = parts[0].target
    limit = target.abs().max().item()
    show_matrix(axes[0], target, f"the matrix, {target.size(0)} x {target.size(1)}", limit)
    for panel, part in zip(axes[1:], parts):
        show_matrix(panel, part.A @ part.B, f"rank {part.A.size(1)}: {part.error:.0%} off", limit)
    last = axes[len(parts) + 1]
    last.plot(range(len(errors)), errors, color=COLOURS["lora"], marker="o", ms=4)
    last.set_xlabel("rank r"), last.set_ylabel("error")
    last.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    last.set_ylim(0, 1.05)
    return figure


def factors(part: Approximation, figure: Figure | None = None) -> Figure:
    """A, B and their product laid out as one multiplies by hand, the target beside it; draws into `figure` if given."""
    new = figure is None
    if new:
        figure = new_figure(8.6, 2.9)
        figure.set_layout_engine("none")  # margins by hand: to find them at every move takes half of the time
        margins = dict(left=0.0048, right=0.9952, top=0.9205, bottom=0.0144, wspace=0.03, hspace=0.2354)
        grid = figure.add_gridspec(2, 3, width_ratios=(0.22, 1, 1), height_ratios=(0.3, 1), **margins)
        for place in (grid[1, 0], grid[0, 1], grid[1, 1], grid[1, 2]):
            figure.add_subplot(place)
    a, b, product, whole = figure.axes
    r, limit = part.A.size(1), part.target.abs().max().item()
    show_matrix(a, part.A, f"A: {part.A.size(0)} x {r}")
    show_matrix(b, part.B, f"B: {r} x {part.B.size(1)}")
    show_matrix(product, part.A @ part.B, f"A @ B: {part.error:.1%} off", limit)
    show_matrix(whole, part.target, "the matrix itself", limit)
    if new:
        for axes in (a, b, product):
            moving_matrix(axes)
    return figure


def layer(part: Wrapped, figure: Figure | None = None) -> Figure:
    """A, B, their scaled product, W and the sum, each at its own size; draws into `figure` if given."""
    limit = 4 * part.W.std().item()
    top = 3 * max(part.A.std().item(), part.B.std().item())
    update = part.update
    pieces = (
        ("A", part.A, top, THICKEST, "@"),
        ("B", part.B, top, WIDEST, "→"),
        (f"{part.scale:g} * A @ B", update, limit, WIDEST, "+"),
        ("W, frozen", part.W, limit, WIDEST, "="),
        (f"W + {part.scale:g} * A @ B", part.W + update, limit, WIDEST, ""),
    )
    if figure is None:
        figure = _places(pieces)
    [axes] = figure.axes
    titles, signs, x = axes.texts[: len(pieces)], axes.texts[len(pieces) :], 0
    for piece, image, frame, above, after in zip(pieces, axes.images, axes.patches, titles, signs):
        title, matrix, most, room, _ = piece
        height, width = matrix.shape
        image.set_data(matrix.numpy()), image.set_clim(-most, most)
        image.set_extent((x, x + width, height, 0)), frame.set_bounds(x, 0, width, height)
        above.set_text(title)
        if after.get_position()[1] != len(part.W) / 2:
            after.set_y(len(part.W) / 2)
        x += room + GAP
    return figure


def _places(pieces):
    """A figure with a place for each matrix of the row, its frame, its title and the sign after it."""
    figure = new_figure(8.6, 2.6)
    figure.set_layout_engine("none")
    axes, x = figure.add_axes((0.005, 0.02, 0.99, 0.9)), 0
    axes.set_axis_off()
    signs = []
    for title, matrix, _, room, sign in pieces:
        image = axes.imshow(matrix.numpy(), cmap=SIGNED, aspect="auto", interpolation="nearest")
        frame = axes.add_patch(Rectangle((x, 0), 1, 1, fill=False, ec="#bbbbbb", lw=0.6))
        moving(image, frame, axes.text(x, -6, title, fontsize=10, va="bottom"))
        signs.append((x + room + GAP / 2, sign))
        x += room + GAP
    for place, sign in signs:
        axes.text(place, 0, sign, fontsize=13, ha="center", va="center")
    axes.set_xlim(-1, x - GAP + 1), axes.set_ylim(WIDEST + 1, -24)
    axes.set_aspect("equal"), axes.autoscale(False)  # an image would move the limits to its own
    return figure
