"""LoRA for any PyTorch model: freeze W, learn A and B (Hu et al. 2021, arXiv 2106.09685).

    y = x @ W.T + bias + scale * (x @ A @ B)        A: (in, r)   B: (r, out), zero at the start

Needs torch and nothing else: copy this one file into any project.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.nn as nn
import torch.nn.functional as F

SCALING: dict[str, Callable[[float, int], float]] = {
    "alpha": lambda alpha, r: alpha,  # the chapter: the update grows with r
    "alpha/r": lambda alpha, r: alpha / r,  # the paper, section 4.1
    "alpha/sqrt(r)": lambda alpha, r: alpha / math.sqrt(r),  # rsLoRA, Kalajdzievski 2023
}
# which side of A, stored as (in, r), torch counts as its fan-in: its spread is 1 / sqrt(3 fan-in)
START = {
    "chapter": "fan_in",  # the second side, r
    "paper": "fan_out",  # the first, in: the paper's code stores A as (r, in)
}


# names that wrappers put into the paths of what they hold: torch.compile, activation checkpointing, FSDP
INSIDE = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")


class LoraLinear(nn.Module):
    """A frozen `nn.Linear` plus a trainable low-rank update.

    x (..., in) -> (..., out). B starts at zero, so the first output is the base's own. A starts Kaiming-uniform: `start`
    says over which fan-in, the chapter's or the paper's. dropout: the share of the update's inputs that is left out while
    training. Over a 16-bit base A and B are float32: most steps are too small to move a 16-bit number.
    Raises ValueError for a rank, scaling, start or dropout that makes no sense, and for weights that are packed.
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
        refuse_misfit(base, r, scaling, start, dropout)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.r, self.alpha, self.scaling, self.start, self.dropout = r, alpha, scaling, start, dropout
        self.scale = SCALING[scaling](alpha, r)
        self.enabled = True
        like = dict(dtype=torch.promote_types(base.weight.dtype, torch.float32), device=base.weight.device)
        self.A = nn.Parameter(torch.empty(self.in_features, r, **like))
        self.B = nn.Parameter(torch.zeros(r, self.out_features, **like))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5), mode=START[start])
        self.base = base.requires_grad_(False)  # last: whatever fails above leaves the base as it was
        self.train(base.training)

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
        said = f"r={self.r}, alpha={self.alpha:g}, scaling={self.scaling!r}, scale={self.scale:g}"
        return said + (f", dropout={self.dropout:g}" if self.dropout else "")


def refuse_misfit(base: nn.Linear, r: int, scaling: str, start: str, dropout: float) -> None:
    """Raise ValueError unless a rank-r update fits `base`, whose weights are numbers, and the other options are known."""
    if not base.weight.is_floating_point():
        raise ValueError(
            f"the weights of a {type(base).__name__} layer are packed as {str(base.weight.dtype).removeprefix('torch.')}, "
            "which LoRA cannot add to: load the model in float32, bfloat16 or float16"
        )
    limit = min(base.in_features, base.out_features)
    if not 1 <= r <= limit:
        raise ValueError(f"rank r={r} does not fit a {base.in_features} -> {base.out_features} layer: use 1 to {limit}")
    if scaling not in SCALING:
        raise ValueError(f"unknown scaling {scaling!r}: choose one of {', '.join(SCALING)}")
    if start not in START:
        raise ValueError(f"unknown start {start!r}: choose one of {', '.join(START)}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout={dropout} makes no sense: give a share from 0 up to, not including, 1")


def apply_lora(
    model: nn.Module,
    r: int = 8,
    alpha: float = 16.0,
    scaling: str = "alpha",
    targets: str | Iterable[str] | Callable[[str], bool] | None = None,
    skip: str | Iterable[str] | None = None,
    start: str = "chapter",
    dropout: float = 0.0,
    kind: type[LoraLinear] = LoraLinear,
) -> nn.Module:
    """Freeze `model`, then replace its linear layers by `LoraLinear`; returns the same model.

    targets: which linears, as module paths or their last parts ("c_attn", "mlp.c_fc"), or a function of the path;
    None means every linear that `skip` does not name. skip: None is the output head; a function decides alone.
    A layer that stands in several places is wrapped once, and stands wrapped in all of them.
    kind: the class of the wrappers, for one of your own. Raises ValueError when the model is wrapped already, when a target matches nothing, or when r does not fit a layer;
    the model is then as it was.
    """
    if any(isinstance(m, nn.parallel.DistributedDataParallel) for m in model.modules()):
        raise ValueError("DistributedDataParallel would not exchange the gradients of A and B: apply LoRA before it")
    if any(isinstance(m, LoraLinear) for m in model.modules()):
        raise ValueError("this model already has LoRA layers: call remove_lora(model) or merge_lora(model) first")
    refuse_lone_layer(model)
    linears = chosen_linears(model, targets, skip)
    for layer in linears:
        refuse_misfit(layer, r, scaling, start, dropout)  # all of them before the first is frozen
    wrapped = {layer: kind(layer, r, alpha, scaling, start, dropout) for layer in linears}
    model.requires_grad_(False)
    for layer in wrapped.values():
        layer.A.requires_grad_(True)
        layer.B.requires_grad_(True)
    return replace_layers(model, wrapped)


def chosen_linears(model, targets, skip) -> dict[nn.Linear, list[str]]:
    """The linear layers that `targets` and `skip` of `apply_lora` choose, with their paths. Raises ValueError for none."""

    def listed(names):  # one name may stand alone: as an iterable it would be its letters, and match nothing
        return (names,) if isinstance(names, str) else tuple(names)

    def ends(paths, names):
        return any(path == n or path.endswith("." + n) for path in paths for n in names)

    linears = {layer: paths for layer, paths in places(model).items() if isinstance(layer, nn.Linear)}
    named = () if targets is None or callable(targets) else listed(targets)
    if callable(targets):
        chosen = {layer: paths for layer, paths in linears.items() if any(map(targets, paths))}
    else:
        heads, skipped = (output_heads(model), ("lm_head",)) if skip is None else ([], listed(skip))
        chosen = {x: paths for x, paths in linears.items() if x not in heads and not ends(paths, skipped)}
        if targets is not None:
            chosen = {x: paths for x, paths in chosen.items() if ends(paths, named)}
    for name in named:
        if not any(ends(paths, (name,)) for paths in chosen.values()):
            raise ValueError(f"no nn.Linear matches the target {name!r}, skipped ones aside: {what_there_is(model)}")
    if not chosen:
        raise ValueError(f"no nn.Linear is chosen: {what_there_is(model)}")
    return chosen


def output_heads(model: nn.Module) -> list[nn.Module]:
    """The layers that turn states into logits: those the model names as such, and those tied to an embedding."""
    said = [m.get_output_embeddings() for m in model.modules() if hasattr(m, "get_output_embeddings")]
    embeddings = {m.weight for m in model.modules() if isinstance(m, nn.Embedding)}
    return said + [m for m in model.modules() if isinstance(m, nn.Linear) and m.weight in embeddings]


def what_there_is(model: nn.Module) -> str:
    """For a sentence: the names of a model's linear layers or, where there are none, the kinds of its layers."""
    kinds = {type(m).__name__ for m in model.modules() if next(m.parameters(recurse=False), None) is not None}
    if "Conv1D" in kinds:  # transformers' GPT-2
        own = getattr(getattr(model, "config", None), "model_type", "gpt2") == "gpt2"
        instead = "; llm.model.GPT.from_pretrained has the same weights as" if own else ", which are not"
        return f"this model is made of Conv1D layers{instead} nn.Linear"
    if names := {path.rpartition(".")[2] for m, (path, *_) in places(model).items() if isinstance(m, nn.Linear)}:
        return f"this model's linear layers are called {', '.join(sorted(names))}"
    return f"this model is made of {', '.join(sorted(kinds)) or 'nothing that has weights'}"


def places(model: nn.Module) -> dict[nn.Module, list[str]]:
    """Every module of `model` with the paths it stands at: one that is shared has several.

    Without the names that torch.compile, DistributedDataParallel and other wrappers put into them.
    """
    found: dict[nn.Module, list[str]] = {}
    for path, module in bare(model).named_modules(remove_duplicate=False):
        found.setdefault(module, []).append(".".join(part for part in path.split(".") if part not in INSIDE))
    return found


def bare(model: nn.Module) -> nn.Module:
    """The model inside the wrappers of torch.compile and DistributedDataParallel."""
    while hasattr(model, "_orig_mod") or isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        model = model._orig_mod if hasattr(model, "_orig_mod") else model.module
    return model


def replace_layers(model: nn.Module, new: dict[nn.Module, nn.Module]) -> nn.Module:
    """Put `new[layer]` wherever a layer stands in `model`; returns the same model."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if (layer := getattr(child, "_orig_mod", child)) in new:
                setattr(parent, name, new[layer])
    return model


def refuse_lone_layer(model: nn.Module) -> None:
    """Raise ValueError when the model is itself a linear layer: nobody above holds it."""
    if isinstance(bare(model), nn.Linear | LoraLinear):
        raise ValueError("the model is a single layer and cannot be replaced from within: use nn.Sequential(layer)")


def lora_layers(model: nn.Module) -> dict[str, LoraLinear]:
    """The wrapped layers of `model`, by the path at which each stands first."""
    return {paths[0]: m for m, paths in places(model).items() if isinstance(m, LoraLinear)}


def remove_lora(model: nn.Module) -> nn.Module:
    """Take every wrapper off: the base exactly as it was, still frozen; returns the same model."""
    refuse_lone_layer(model)
    return replace_layers(model, {layer: layer.base for layer in lora_layers(model).values()})


@torch.no_grad()
def merge_lora(model: nn.Module) -> nn.Module:
    """Replace every wrapper by a plain `nn.Linear` that carries the update; returns the same model.

    Each merged layer gets a weight of its own, so an embedding that is tied to the base's stays what it was.
    Merging an unwrapped model changes nothing.
    Raises ValueError when an update is not finite; the model is then as it was.
    """
    refuse_lone_layer(model)
    layers = lora_layers(model)
    for path, layer in layers.items():
        if not layer.update().to(layer.base.weight.dtype).isfinite().all():
            raise ValueError(f"{path}: A @ B holds NaN or infinity, so nothing was merged: train at a lower rate")
    return replace_layers(model, {layer: merged_linear(layer) for layer in layers.values()})


def merged_linear(layer: LoraLinear) -> nn.Linear:
    """A plain linear with a weight of its own: W + scale * (A @ B).T, rounded once to W's dtype."""
    base = layer.base
    linear = nn.Linear(base.in_features, base.out_features, bias=base.bias is not None, device="meta")
    linear.weight = nn.Parameter((base.weight + layer.update()).to(base.weight.dtype), requires_grad=False)
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
