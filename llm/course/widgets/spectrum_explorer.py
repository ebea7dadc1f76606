"""An explorer: a layer's update, its singular values, and its best rank-r part."""

import torch

from llm import spectra
from llm.course.figures.palette import task_name
from llm.course.widgets.explorer import Explorer, packed

SHOWN, MOST = 16, 64  # rows and columns of the pictures, and ranks: of every layer, and still a small page


def delta_explorer(deltas: dict[str, dict[str, torch.Tensor]]) -> Explorer:
    """A layer's delta W and its best rank-r part. deltas: task -> weight name -> (out, in), the same names in each.

    All singular values are sent, and singular vectors for the pictures of the first rows and columns.
    """
    layers = [name.removeprefix("transformer.").removesuffix(".weight") for name in next(iter(deltas.values()))]
    return Explorer(
        "delta",
        "What fine-tuning added to a layer, its largest singular values, its best part of rank r, and what is left.",
        layers=layers,
        most=MOST,
        tasks={task_name(task): [_taken_apart(matrix) for matrix in named.values()] for task, named in deltas.items()},
    )


def _taken_apart(matrix: torch.Tensor) -> dict:
    u, s, vh = spectra.decompose(matrix)
    return {
        "shape": list(matrix.shape),
        "s": packed(s, bits=16),
        "update": packed(matrix[:SHOWN, :SHOWN]),
        "u": packed(u[:SHOWN, :MOST]),
        "v": packed(vh[:MOST, :SHOWN]),
    }
