"""Matrices as figures: the best rank-r parts, and a layer with its A and B."""

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from llm.course.figures.canvas import emptied, new_axes, new_figure
from llm.course.figures.palette import COLOURS, SIGNED
from llm.course.matrices import THICKEST, WIDEST, Approximation, Wrapped


def show_matrix(axes, matrix: torch.Tensor, title: str, limit: float | None = None) -> None:
    """A matrix in red and blue, white at zero, in place of one that is there; limit: the value of the deepest colour."""
    limit = limit or matrix.abs().max().item() or 1.0
    axes.set_title(title, fontsize=10)
    if axes.images:
        [image] = axes.images
        image.set_data(matrix.numpy())
        image.set_clim(-limit, limit)
        image.set_extent((-0.5, matrix.size(1) - 0.5, matrix.size(0) - 0.5, -0.5))
        return
    axes.imshow(matrix.numpy(), cmap=SIGNED, vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
    axes.set_xticks([]), axes.set_yticks([])
    axes.spines[:].set(visible=True, color="#bbbbbb", lw=0.6)


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
    if figure is None:
        figure = new_figure(8.6, 2.9)
        grid = figure.add_gridspec(2, 3, width_ratios=(0.22, 1, 1), height_ratios=(0.3, 1))
        for place in (grid[1, 0], grid[0, 1], grid[1, 1], grid[1, 2]):
            figure.add_subplot(place)
    a, b, product, whole = figure.axes
    r, limit = part.A.size(1), part.target.abs().max().item()
    show_matrix(a, part.A, f"A: {part.A.size(0)} x {r}")
    show_matrix(b, part.B, f"B: {r} x {part.B.size(1)}")
    show_matrix(product, part.A @ part.B, f"A @ B: {part.error:.1%} off", limit)
    show_matrix(whole, part.target, "the matrix itself", limit)
    return figure


def layer(part: Wrapped, figure: Figure | None = None) -> Figure:
    """A, B, their scaled product, W and the sum, each at its own size; draws into `figure` if given."""
    figure = emptied(figure, 8.6, 2.6)
    figure.set_layout_engine("none")
    axes = figure.axes[0] if figure.axes else figure.add_axes((0.005, 0.02, 0.99, 0.9))
    axes.set_axis_off()
    limit = 4 * part.W.std().item()
    factors = 3 * max(part.A.std().item(), part.B.std().item())
    pieces = (
        ("A", part.A, factors, THICKEST, "@"),
        ("B", part.B, factors, WIDEST, "→"),
        (f"{part.scale:g} * A @ B", part.update, limit, WIDEST, "+"),
        ("W, frozen", part.W, limit, WIDEST, "="),
        (f"W + {part.scale:g} * A @ B", part.W + part.update, limit, WIDEST, ""),
    )
    x, gap = 0, 26
    for title, matrix, top, room, sign in pieces:
        height, width = matrix.shape
        place = (x, x + width, height, 0)
        axes.imshow(matrix.numpy(), cmap=SIGNED, vmin=-top, vmax=top, extent=place, interpolation="nearest")
        axes.add_patch(Rectangle((x, 0), width, height, fill=False, ec="#bbbbbb", lw=0.6))
        axes.text(x, -6, title, fontsize=10, va="bottom")
        axes.text(x + room + gap / 2, len(part.W) / 2, sign, fontsize=13, ha="center", va="center")
        x += room + gap
    axes.set_xlim(-1, x - gap + 1), axes.set_ylim(WIDEST + 1, -24)
    return figure
