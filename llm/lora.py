"""LoRA for any PyTorch model: freeze W, learn A and B (Hu et al. 2021, arXiv 2106.09685).

    y = x @ W.T + bias + scale * (x @ A @ B)        A: (in, r)   B: (r, out), zero at the start

Needs torch, and `surgery.py` beside it: `python -m llm copy-lora` writes the two as one file for any project.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.nn as nn
import torch.nn.functional as F

from llm.surgery import Targets, check_fit, chosen_linears, places, plain_linear, replace_layers, silenced, weight_like

SCALING: dict[str, Callable[[float, int], float]] = {
    "alpha": lambda alpha, r: alpha,  # the chapter: the update grows with r
    "alpha/r": lambda alpha, r: alpha / r,  # the paper, section 4.1
    "alpha/sqrt(r)": lambda alpha, r: alpha / math.sqrt(r),  # rsLoRA, Kalajdzievski 2023
}
START = {"chapter": "fan_in", "paper": "fan_out"}  # of A (in, r): torch's fan-in is r, the paper's is in


class LoraLinear(nn.Module):
    """A frozen `nn.Linear` plus a trainable low-rank update: x (..., in) -> (..., out).

    B starts at zero, so the first output is the base's own. A starts Kaiming-uniform over the fan that `start` names.
    dropout: the share of the update's inputs that is left out in training. Over a 16-bit base A and B are float32,
    because most steps are too small to move a 16-bit number. Raises ValueError as `check` does; the base is as it was.
    """

    def __init__(
        self,
        base: nn.Linear,
        r: int = 8,
        alpha: float = 16.0,
        scaling: str = "alpha",
        start: str = "chapter",
        dropout: float = 0.0,
    ):
        super().__init__()
        self.check(base, r, alpha, scaling, start, dropout)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.r, self.alpha, self.scaling, self.start, self.dropout = r, alpha, scaling, start, dropout
        self.scale = SCALING[scaling](alpha, r)
        self.enabled = True
        W = weight_like(base)
        like = dict(dtype=torch.promote_types(W.dtype, torch.float32), device=W.device)
        self.A = nn.Parameter(torch.empty(self.in_features, r, **like))
        self.B = nn.Parameter(torch.zeros(r, self.out_features, **like))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5), mode=START[start])
        self.base = base.requires_grad_(False)  # last: whatever fails above leaves the base as it was
        self.train(base.training)

    @staticmethod
    def check(base: nn.Linear, r: int, alpha: float, scaling: str, start: str, dropout: float) -> None:
        """Raise ValueError for packed weights, and for a rank, scaling, start or dropout that makes no sense."""
        check_fit(base, r, dropout, scaling=(scaling, SCALING), start=(start, START))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.base(x)
        if not self.enabled:
            return y
        x = F.dropout(x.to(self.A.dtype), self.dropout, self.training)
        low = self.scale * (x @ self.A)  # (..., in) @ (in, r), scaled where it is narrow
        return y + (low @ self.B).to(y.dtype)  # (..., r) @ (r, out)

    def update(self) -> torch.Tensor:
        """What is added to the base's weight (out, in), in A's precision: scale * (A @ B).T."""
        return self.scale * (self.A @ self.B).T

    @property
    def weight(self) -> torch.Tensor:
        """The effective weight (out, in) in the base's dtype: W + update, or W alone while disabled."""
        W = self.base.weight
        return (W + self.update()).to(W.dtype) if self.enabled else W

    @property
    def bias(self) -> torch.Tensor | None:
        return self.base.bias

    def extra_repr(self) -> str:
        options = f"r={self.r}, alpha={self.alpha:g}, scaling={self.scaling!r}, scale={self.scale:g}"
        return options + f", dropout={self.dropout:g}" * (self.dropout > 0)


def apply_lora(
    model: nn.Module,
    r: int = 8,
    alpha: float = 16.0,
    scaling: str = "alpha",
    targets: Targets = None,
    skip: str | Iterable[str] | None = None,
    start: str = "chapter",
    dropout: float = 0.0,
    kind: type[LoraLinear] = LoraLinear,
) -> nn.Module:
    """Freeze `model` and wrap its linear layers in `LoraLinear`; returns the same model.

    targets and skip: module paths or their last parts, such as "c_attn" or "mlp.c_fc". By default every linear layer
    but the output head is wrapped. targets may also be a function of the path, which then decides alone. A layer that
    is used in several places is wrapped once. kind: the wrappers' class; a parameter that it freezes stays frozen.
    Warns of weights outside the linear layers. Raises ValueError when the model is wrapped already, when a target
    matches nothing, and as `LoraLinear.check` does; the model is then unchanged.
    """
    if lora_layers(model):
        raise ValueError("this model already has LoRA layers: call remove_lora(model) or merge_lora(model) first")
    linears = chosen_linears(model, targets, skip)
    options = r, alpha, scaling, start, dropout
    for layer in linears:
        kind.check(layer, *options)  # check all before freezing the first
    wrapped = {layer: kind(layer, *options) for layer in linears}
    return replace_layers(model.requires_grad_(False), wrapped)


def lora_layers(model: nn.Module) -> dict[str, LoraLinear]:
    """The wrapped layers of `model`, keyed by the first path of each."""
    return {paths[0]: layer for layer, paths in places(model).items() if isinstance(layer, LoraLinear)}


def remove_lora(model: nn.Module) -> nn.Module:
    """Remove every wrapper, so that the base is exactly as it was, still frozen; returns the same model."""
    return replace_layers(model, {layer: layer.base for layer in lora_layers(model).values()})


@torch.no_grad()
def merge_lora(model: nn.Module) -> nn.Module:
    """Replace every wrapper by a plain `nn.Linear` that includes the update, rounded once; returns the same model.

    Each new layer has its own weight, so an embedding that is tied to the base's weight does not change. Raises
    ValueError when an update or a merged weight is not finite; the model is then unchanged.
    """
    merged = {}
    for path, layer in lora_layers(model).items():
        W, update = layer.base.weight, layer.update()
        merged[layer] = plain_linear(layer.base, (W + update).to(W.dtype), layer.base.bias)
        for what, weight in (("A @ B", update), ("W + A @ B", merged[layer].weight)):
            if not weight.isfinite().all():
                raise ValueError(f"{path}: {what} holds NaN or infinity, so nothing was merged: train at a lower rate")
    return replace_layers(model, merged)


@contextmanager
def lora_disabled(model: nn.Module) -> Iterator[nn.Module]:
    """Inside the block the model computes what its base does; afterwards each layer's state is restored."""
    with silenced(lora_layers(model).values()):
        yield model
