"""An explorer: a layer's update, its singular values, and its best rank-r part."""

import torch

from llm import spectra
from llm.course.figures import spectrum
from llm.course.widgets.old_explorer import Explorer, choice, slider, take_the_place_of_the_last, undelayed


def delta_explorer(deltas: dict[str, dict[str, torch.Tensor]]) -> Explorer:
    """A layer's delta W and its best rank-r part. deltas: task -> weight name -> (out, in)."""
    with undelayed():  # all of them before the first key
        done = {task: {name: spectra.decompose(w) for name, w in named.items()} for task, named in deltas.items()}

    def numbers(task: str, layer: str, r: int) -> tuple[spectra.Parts, int]:
        return done[task][layer], r

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
    made = Explorer(controls, numbers, spectrum, describe)
    take_the_place_of_the_last("delta explorer", made)  # it holds every layer's singular vectors
    return made
