"""Weights in four bits, to look at: what rounding does to them, and how much of an update survives a second rounding.

Knows nothing of models or training: matrices go in, numbers come out.
"""

from dataclasses import dataclass

import torch
import torch.nn as nn

from llm.quantize import BLOCK, FORMATS, Linear4bit, bits_per_weight, unpack

BLOCKS = (16, 32, 64, 128, 256, 512, 1024)  # block sizes to choose from


def four_bit(W: torch.Tensor, format: str = "nf4", block: int = BLOCK, double: bool = False) -> Linear4bit:
    """A matrix (out, in) as a quantized layer without a bias."""
    linear = nn.Linear(W.size(1), W.size(0), bias=False, device="meta")
    linear.weight = nn.Parameter(W, requires_grad=False)
    return Linear4bit(linear, format, block, double)


@dataclass(frozen=True)
class Rounded:
    """A matrix in one scheme.

    shape: a histogram of weight / absmax of its block, in 101 equal bins from -1 to 1. levels: the distinct ones, as two
    codes for zero are one level; shares: of the weights at each.
    """

    format: str
    block: int
    double: bool
    levels: torch.Tensor
    shape: torch.Tensor
    shares: torch.Tensor
    error: float  # relative error: norm of the change over norm of the matrix
    bits: float  # per weight

    @property
    def entropy(self) -> float:
        """Entropy of the levels, in bits: 4 where all sixteen are used equally often."""
        used = self.shares[self.shares > 0]
        return -(used * used.log2()).sum().item()


def rounded(W: torch.Tensor, format: str = "nf4", block: int = BLOCK, double: bool = False) -> Rounded:
    """A matrix (out, in) in a scheme, measured."""
    layer = four_bit(W, format, block, double)
    scale = layer.scales().clamp(min=1e-38).repeat_interleave(block)[: W.numel()]
    levels, which = FORMATS[format]().unique(return_inverse=True)
    shares = torch.bincount(which[unpack(layer.codes)[: W.numel()].long()], minlength=len(levels)) / W.numel()
    error = ((layer.weight - W).norm() / W.norm()).item()
    shape = torch.histc((W.flatten() / scale).clamp(-1, 1), bins=101, min=-1, max=1)
    return Rounded(format, block, double, levels, shape, shares, error, bits_per_weight(block, double))


def relative_error(W: torch.Tensor, format: str = "nf4", block: int = BLOCK, double: bool = False) -> float:
    """Frobenius norm of the change that rounding makes to a matrix (out, in), over the norm of the matrix."""
    return ((four_bit(W, format, block, double).weight - W).norm() / W.norm()).item()


@dataclass(frozen=True)
class Survival:
    """What happens to an update, weight by weight, when W + update is rounded again.

    wanted: the update (n,), moved: the change after rounding (n,), both in units of the standard deviation of W.
    survives: the share of the update that survives, the change projected on the update, over the update. error: norm of
    the difference between the two, over the norm of the update. same: the share of the weights that keep their code.
    size: norm of the update over the norm of W.
    """

    wanted: torch.Tensor
    moved: torch.Tensor
    survives: float
    error: float
    same: float
    size: float


def survival(layer: Linear4bit, update: torch.Tensor) -> Survival:
    """How much of an update (out, in) survives when it is merged into a quantized layer and the sum is rounded again."""
    W = layer.weight
    again = four_bit(W + update, layer.format, layer.block, layer.double)
    moved, unit = again.weight - W, W.std()
    survives = ((moved * update).sum() / (update * update).sum()).item()
    error = ((moved - update).norm() / update.norm()).item()
    same = (unpack(again.codes) == unpack(layer.codes)).float().mean().item()
    size = (update.norm() / W.norm()).item()
    return Survival((update / unit).flatten(), (moved / unit).flatten(), survives, error, same, size)
