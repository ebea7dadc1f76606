"""The explorer of notebook 02: a layer's update, its singular values, and its best rank-r part."""

import torch

from llm import spectra
from llm.course.figures import spectrum
from llm.course.widgets.explorer import Explorer, choice, slider


def delta_explorer(deltas: dict[str, dict[str, torch.Tensor]]) -> Explorer:
    """A layer's delta W and its best rank-r part. deltas: task -> weight name -> (out, in)."""
    done: dict[tuple[str, str], spectra.Parts] = {}  # a decomposition costs more than a picture

    def numbers(task: str, layer: str, r: int) -> tuple[spectra.Parts, int]:
        if (task, layer) not in done:
            done[task, layer] = spectra.decompose(deltas[task][layer])
        return done[task, layer], r

    def describe(found: tuple) -> str:
        parts, r = found
        [held] = spectra.energy(parts.s, [r])
        return f"rank {r} of {len(parts.s)}: {held:.0%} of the energy in {r / len(parts.s):.0%} of the directions"

    first = next(iter(deltas.values()))
    controls = {
        "task": choice("task", list(deltas)),
        "layer": choice("layer", [(name.removeprefix("transformer.").removesuffix(".weight"), name) for name in first]),
        "r": slider("rank r", 8, 1, 64),
    }
    return Explorer(controls, numbers, spectrum, describe)
