"""Weights in four bits, to look at: what rounding does to them, and what of an update is left when it is rounded again.

Knows nothing of models or training: matrices go in, numbers come out.
"""

from dataclasses import dataclass

import torch
import torch.nn as nn

from llm.quantize import BLOCK, FORMATS, Linear4bit, bits_per_weight, unpack

BLOCKS = (16, 32, 64, 128, 256, 512, 1024)  # weights that share an absmax, to choose from


def four_bit(W: torch.Tensor, format: str = "nf4", block: int = BLOCK, double: bool = False) -> Linear4bit:
    """A matrix (out, in) as a quantised layer without a bias."""
    linear = nn.Linear(W.size(1), W.size(0), bias=False, device="meta")
    linear.weight = nn.Parameter(W, requires_grad=False)
    return Linear4bit(linear, format, block, double)


@dataclass(frozen=True)
class Rounded:
    """A matrix in one scheme. shape: how many weights over their block's absmax fall into each of 101 equal parts of -1
    to 1. levels: its different ones, shares: of the weights at each; two codes for zero are one level.
    """

    format: str
    block: int
    double: bool
    levels: torch.Tensor
    shape: torch.Tensor
    shares: torch.Tensor
    error: float  # size of what rounding did, over the matrix's own
    bits: float  # a weight

    @property
    def entropy(self) -> float:
        """Bits that a level tells on average: 4 where all sixteen are used alike."""
        used = self.shares[self.shares > 0]
        return -(used * used.log2()).sum().item()


def rounded(W: torch.Tensor, format: str = "nf4", block: int = BLOCK, double: bool = False) -> Rounded:
    """What a scheme makes of a matrix (out, in)."""
    layer = four_bit(W, format, block, double)
    scale = layer.scales().clamp(min=1e-38).repeat_interleave(block)[: W.numel()]
    levels, which = FORMATS[format]().unique(return_inverse=True)
    shares = torch.bincount(which[unpack(layer.codes)[: W.numel()].long()], minlength=len(levels)) / W.numel()
    error = ((layer.weight - W).norm() / W.norm()).item()
    shape = torch.histc((W.flatten() / scale).clamp(-1, 1), bins=101, min=-1, max=1)
    return Rounded(format, block, double, levels, shape, shares, error, bits_per_weight(block, double))


def relative_error(W: torch.Tensor, format: str = "nf4", block: int = BLOCK, double: bool = False) -> float:
    """The size of what rounding does to a matrix (out, in), over the matrix's own (Frobenius norms)."""
    return ((four_bit(W, format, block, double).weight - W).norm() / W.norm()).item()


@dataclass(frozen=True)
class Survival:
    """Of an update, weight by weight, when W + update is rounded again, in units of W's typical weight.

    wanted: the update (n,). moved: what the rounded weight did (n,). arrived: how much of the update is in what they
    did; off: how far what they did is from the update, over the update; same: the share of the weights whose code
    stayed; size: the update over W.
    """

    wanted: torch.Tensor
    moved: torch.Tensor
    arrived: float
    off: float
    same: float
    size: float


def survival(layer: Linear4bit, update: torch.Tensor) -> Survival:
    """What is left of an update (out, in) that is merged into a quantised layer which is then quantised again."""
    W = layer.weight
    again = four_bit(W + update, layer.format, layer.block, layer.double)
    moved, unit = again.weight - W, W.std()
    arrived = ((moved * update).sum() / (update * update).sum()).item()
    off = ((moved - update).norm() / update.norm()).item()
    same = (unpack(again.codes) == unpack(layer.codes)).float().mean().item()
    size = (update.norm() / W.norm()).item()
    return Survival((update / unit).flatten(), (moved / unit).flatten(), arrived, off, same, size)
