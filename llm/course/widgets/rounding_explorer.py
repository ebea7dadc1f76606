"""An explorer: weights in a format, in blocks of a size, and what that costs in bits and in error."""

from itertools import product

import torch

from llm.course.figures.palette import FORMATS as COLORS
from llm.course.figures.rounding import TITLES
from llm.course.four_bits import BLOCKS, rounded
from llm.course.widgets.explorer import Explorer
from llm.quantize import FORMATS


def rounding_explorer(layers: dict[str, torch.Tensor]) -> Explorer:
    """A matrix in four bits: format, block size, double quantization. layers: name -> (out, in)."""
    schemes, weights = [], {name: [[], []] for name in layers}
    for (name, W), double, block, format in product(layers.items(), (False, True), BLOCKS, FORMATS):
        part = rounded(W, format, block, double)
        scheme = dict(layer=name, format=format, block=block, double=double, bits=part.bits, error=part.error)
        schemes.append(scheme | dict(counts=(part.shares * W.numel()).round().int().tolist()))
        if format == "nf4":  # the weights over their absmax are the same in every format
            weights[name][double].append(part.shape.int().tolist())
    formats = {
        name: dict(title=TITLES[name], color=COLORS[name], levels=levels().unique().tolist())
        for name, levels in FORMATS.items()
    }
    about = "Weights in four bits: how often each level is used, and the error of every format and block size over its bits per weight."
    return Explorer("rounding", about, formats=formats, schemes=schemes, weights=weights)
