"""Matrices as figures: the best rank-r parts, and a layer with its A and B."""

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from llm.course.figures.canvas import new_axes
from llm.course.figures.palette import COLOURS, SIGNED
from llm.course.toy_matrices import THICKEST, WIDEST, Approximation, Wrapped

GAP = 26  # between two matrices in a row, in entries: room for a sign
LOOK = dict(cmap=matplotlib.colormaps[SIGNED], aspect="auto", interpolation="nearest")


def show_matrix(axes: Axes, matrix: torch.Tensor, title: str, limit: float | None = None) -> None:
    """A matrix in red and blue, white at zero; limit: the value of the deepest color."""
    limit = limit or matrix.abs().max().item() or 1.0
    axes.set_title(title, fontsize=10)
    axes.imshow(matrix.numpy(), **LOOK, vmin=-limit, vmax=limit)
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


def layer(part: Wrapped) -> Figure:
    """A, B, their scaled product, W and the sum, each at its own size."""
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
    figure, [axes] = new_axes(8.6, 2.6, gridspec_kw=dict(left=0.005, right=0.995, top=0.92, bottom=0.02))
    figure.set_layout_engine("none")
    x, middle = 0, len(part.W) / 2
    for title, matrix, most, room, sign in pieces:
        height, width = matrix.shape
        axes.imshow(matrix.numpy(), **LOOK, vmin=-most, vmax=most, extent=(x, x + width, height, 0))
        axes.add_artist(Rectangle((x, 0), width, height, fill=False, ec="#bbbbbb", lw=0.6))
        axes.text(x, -6, title, fontsize=10, va="bottom")
        axes.text(x + room + GAP / 2, middle, sign, fontsize=13, ha="center", va="center")
        x += room + GAP
    axes.set_axis_off()
    axes.set_xlim(-1, x - GAP + 1), axes.set_ylim(WIDEST + 1, -24)
    axes.set_aspect("equal")  # an image has set its own
    return figure
