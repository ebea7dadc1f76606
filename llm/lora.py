"""LoRA for any PyTorch model: freeze W, learn A and B (Hu et al. 2021, arXiv 2106.09685).

    y = x @ W.T + bias + scale * (x @ A @ B)        A: (in, r)   B: (r, out), zero at the start

Needs torch and nothing else: copy this one file into any project.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.nn as nn

SCALING: dict[str, Callable[[float, int], float]] = {
    "alpha": lambda alpha, r: alpha,  # the chapter: the update grows with r
    "alpha/r": lambda alpha, r: alpha / r,  # the paper, section 4.1
    "alpha/sqrt(r)": lambda alpha, r: alpha / math.sqrt(r),  # rsLoRA, Kalajdzievski 2023
}


class LoraLinear(nn.Module):
    """A frozen `nn.Linear` plus a trainable low-rank update.

    x (..., in) -> (..., out). B starts at zero, so the first output is the base's own. A starts Kaiming-uniform over
    (in, r), as the chapter has it: a spread of 1 / sqrt(3r), where the paper's code has 1 / sqrt(3 in).
    Raises ValueError unless 1 <= r <= min(in, out).
    """

    def __init__(self, base: nn.Linear, r: int = 8, alpha: float = 16.0, scaling: str = "alpha"):
        super().__init__()
        refuse_misfit(base, r, scaling)
        self.r, self.alpha, self.scaling = r, alpha, scaling
        self.scale = SCALING[scaling](alpha, r)
        self.enabled = True
        like = dict(dtype=base.weight.dtype, device=base.weight.device)
        self.A = nn.Parameter(torch.empty(base.in_features, r, **like))
        self.B = nn.Parameter(torch.zeros(r, base.out_features, **like))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        self.base = base.requires_grad_(False)  # last: whatever fails above leaves the base as it was

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.enabled:
            return self.base(x)
        return self.base(x) + self.scale * (x @ self.A @ self.B)  # (..., in) @ (in, r) @ (r, out)

    @property
    def weight(self) -> torch.Tensor:
        """The effective weight (out, in): W + scale * (A @ B).T, or W alone while disabled."""
        if not self.enabled:
            return self.base.weight
        return self.base.weight + self.scale * (self.A @ self.B).T

    @property
    def bias(self) -> torch.Tensor | None:
        return self.base.bias

    def extra_repr(self) -> str:
        return f"r={self.r}, alpha={self.alpha:g}, scaling={self.scaling!r}, scale={self.scale:g}"


def refuse_misfit(base: nn.Linear, r: int, scaling: str) -> None:
    """Raise ValueError unless a rank-r update fits `base` and `scaling` is one of `SCALING`."""
    limit = min(base.in_features, base.out_features)
    if not 1 <= r <= limit:
        raise ValueError(f"rank r={r} does not fit a {base.in_features} -> {base.out_features} layer: use 1 to {limit}")
    if scaling not in SCALING:
        raise ValueError(f"unknown scaling {scaling!r}: choose one of {', '.join(SCALING)}")


def apply_lora(
    model: nn.Module,
    r: int = 8,
    alpha: float = 16.0,
    scaling: str = "alpha",
    targets: str | Iterable[str] | Callable[[str], bool] | None = None,
    skip: str | Iterable[str] = ("lm_head",),
) -> nn.Module:
    """Freeze `model`, then replace its linear layers by `LoraLinear`; returns the same model.

    targets: which linears, as module paths or their last parts ("c_attn", "mlp.c_fc"), or a function of the path;
    None means every linear that `skip` does not name. skip: the output head, by default; a function decides alone.
    Raises ValueError when the model is wrapped already, when a target matches nothing, or when r does not fit a layer;
    the model is then as it was.
    """
    if any(isinstance(m, LoraLinear) for m in model.modules()):
        raise ValueError("this model already has LoRA layers: call remove_lora(model) or merge_lora(model) first")
    linears = chosen_linears(model, targets, skip)
    for layer in linears.values():
        refuse_misfit(layer, r, scaling)  # all of them before the first is frozen
    wrapped = {path: LoraLinear(m, r, alpha, scaling) for path, m in linears.items()}
    model.requires_grad_(False)
    for path, layer in wrapped.items():
        layer.A.requires_grad_(True)
        layer.B.requires_grad_(True)
        model.set_submodule(path, layer)
    return model


def chosen_linears(model, targets, skip) -> dict[str, nn.Linear]:
    """The linear layers that `targets` and `skip` of `apply_lora` choose, by module path. Raises ValueError for none."""

    def listed(names):  # one name may stand alone: as an iterable it would be its letters, and match nothing
        return (names,) if isinstance(names, str) else tuple(names)

    def ends(path, names):
        return any(path == n or path.endswith("." + n) for n in names)

    named, skipped = () if targets is None or callable(targets) else listed(targets), listed(skip)
    wanted = targets if callable(targets) else lambda p: (targets is None or ends(p, named)) and not ends(p, skipped)
    linears = refuse_lone_layer(
        {path: m for path, m in model.named_modules() if isinstance(m, nn.Linear) and wanted(path)}
    )
    if not linears:
        raise ValueError(f"no nn.Linear matches targets={targets!r}, skip={skip!r}")
    if idle := [name for name in named if not any(ends(path, (name,)) for path in linears)]:
        raise ValueError(f"no nn.Linear matches the target {idle[0]!r} with skip={skip!r}")
    return linears


def refuse_lone_layer(layers: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """`layers` as they are; raises ValueError when the model itself is among them."""
    if "" in layers:  # its own path: nobody above holds it
        raise ValueError("the model is a single layer and cannot be replaced from within: use nn.Sequential(layer)")
    return layers


def lora_layers(model: nn.Module) -> dict[str, LoraLinear]:
    """The wrapped layers of `model`, by module path."""
    return {path: m for path, m in model.named_modules() if isinstance(m, LoraLinear)}


def remove_lora(model: nn.Module) -> nn.Module:
    """Take every wrapper off: the base exactly as it was, still frozen; returns the same model."""
    for path, layer in refuse_lone_layer(lora_layers(model)).items():
        model.set_submodule(path, layer.base)
    return model


@torch.no_grad()
def merge_lora(model: nn.Module) -> nn.Module:
    """Replace every wrapper by a plain `nn.Linear` that carries the update; returns the same model.

    Each merged layer gets a weight of its own, so an embedding that is tied to the base's stays what it was.
    Merging an unwrapped model changes nothing.
    Raises ValueError when an update is not finite; the model is then as it was.
    """
    layers = refuse_lone_layer(lora_layers(model))
    for path, layer in layers.items():
        if not (layer.scale * (layer.A @ layer.B)).isfinite().all():
            raise ValueError(f"{path}: A @ B holds NaN or infinity, so nothing was merged: train at a lower rate")
    for path, layer in layers.items():
        model.set_submodule(path, merged_linear(layer))
    return model


def merged_linear(layer: LoraLinear) -> nn.Linear:
    """A plain linear with a weight of its own: W + scale * (A @ B).T."""
    base, update = layer.base, layer.scale * (layer.A @ layer.B).T
    linear = nn.Linear(base.in_features, base.out_features, bias=base.bias is not None, device="meta")
    linear.weight = nn.Parameter(base.weight + update, requires_grad=False)
    if base.bias is not None:
        linear.bias = nn.Parameter(base.bias.clone(), requires_grad=False)
    return linear.train(base.training)


@contextmanager
def lora_disabled(model: nn.Module) -> Iterator[nn.Module]:
    """Inside the block the model answers as its base; afterwards each layer is as it was found."""
    before = {layer: layer.enabled for layer in lora_layers(model).values()}
    try:
        for layer in before:
            layer.enabled = False
        yield model
    finally:
        for layer, enabled in before.items():
            layer.enabled = enabled
