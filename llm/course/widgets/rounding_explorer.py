"""An explorer: weights in a format, in blocks of a size, and what that costs in bits and in error."""

import ipywidgets as widgets
import torch

from llm.course.figures import scheme
from llm.course.four_bits import BLOCKS, Rounded, rounded
from llm.course.widgets.old_explorer import Explorer, choice, undelayed
from llm.quantize import FORMATS


def rounding_explorer(layers: dict[str, torch.Tensor]) -> Explorer:
    """A matrix in four bits: format, block size, double quantisation. layers: name -> (out, in)."""

    def all_of(layer):
        parts = {
            (format, double): [rounded(layer, format, block, double) for block in BLOCKS]
            for format in FORMATS
            for double in (False, True)
        }
        places = {key: {p.block: (p.bits, p.error) for p in found} for key, found in parts.items()}
        return {(p.format, p.block, p.double): p for found in parts.values() for p in found}, places

    with undelayed():  # all of them before the first key
        done = {name: all_of(layer) for name, layer in layers.items()}
    every = [part for parts, _ in done.values() for part in parts.values()]
    most = max(part.shares.max().item() for part in every), max(part.error for part in every)

    def numbers(layer: str, format: str, block: int, double: bool) -> tuple[Rounded, dict, tuple[float, float]]:
        parts, places = done[layer]
        return parts[format, block, double], places, most

    def describe(found: tuple[Rounded, dict, tuple[float, float]]) -> str:
        part, *_ = found
        twice = ", absmaxes in 8 bits" if part.double else ""
        return (
            f"{part.format} in blocks of {part.block}{twice}: {part.bits:.3f} bits a weight, {part.error:.2%} off; "
            f"a level tells {part.entropy:.2f} bits"
        )

    wide = widgets.Layout(width="420px")
    controls = {
        "layer": choice("layer", list(layers)),
        "format": choice("format", list(FORMATS)),
        "block": widgets.SelectionSlider(options=BLOCKS, value=64, description="block", layout=wide),
        "double": widgets.Checkbox(False, description="double quantisation", indent=False),
    }
    return Explorer(controls, numbers, scheme, describe, beside=("layer", "format", "double"))
