"""Find, choose and replace layers in any PyTorch model.

Knows nothing about the layers that it puts in. Needs torch and nothing else.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.nn as nn

# names that torch.compile, activation checkpointing and FSDP insert into module paths
INSIDE = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")
LONE_LAYER = "the model is a single layer and cannot be replaced from within: use nn.Sequential(layer)"
Targets = str | Iterable[str] | Callable[[str], bool] | None


def check_model(model: nn.Module) -> None:
    """Raise ValueError when `model` is a single layer, contains DDP, or has wrapped layers already."""
    if isinstance(bare(model), nn.Linear):
        raise ValueError(LONE_LAYER)
    if any(isinstance(module, nn.parallel.DistributedDataParallel) for module in model.modules()):
        raise ValueError("DistributedDataParallel exchanges no gradients of later weights: wrap the model in it last")
    for path, kind in ((paths[0], type(m).__name__) for m, paths in places(model).items() if wraps_linear(m)):
        raise ValueError(f"{path} is wrapped already, by {kind}: take the adapter off, or load the base again")


def check_fit(layer: nn.Module, r: int, dropout: float, **choices: tuple[str, Iterable[str]]) -> None:
    """Raise ValueError when a rank-r update cannot go beside `layer`; choices: name=(value, allowed values)."""
    fan_in, fan_out, dtype = layer.in_features, layer.out_features, weight_like(layer).dtype
    if not dtype.is_floating_point:
        packed = f"the weights of a {type(layer).__name__} layer are packed as {str(dtype).removeprefix('torch.')}"
        raise ValueError(f"{packed}, which takes no update: load the model in float32, bfloat16 or float16")
    if not 1 <= r <= min(fan_in, fan_out):
        raise ValueError(f"rank r={r} does not fit a {fan_in} -> {fan_out} layer: use 1 to {min(fan_in, fan_out)}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout={dropout} makes no sense: give a share from 0 up to, not including, 1")
    for name, (value, allowed) in choices.items():
        if value not in allowed:
            raise ValueError(f"unknown {name} {value!r}: choose one of {', '.join(allowed)}")


def chosen_linears(model: nn.Module, targets: Targets, skip: Targets) -> dict[nn.Linear, list[str]]:
    """Return the linear layers that `targets` and `skip` of `apply_lora` choose, with their paths.

    Raises ValueError as `check_model` does, and when a target matches nothing. Warns when `left_out` has a warning.
    """

    def listed(names):  # a single name may be a plain string, which as an iterable would be its letters
        return [names] if isinstance(names, str) else list(names)

    def called(name):
        return {x for x, paths in linears.items() if any(f".{path}".endswith(f".{name}") for path in paths)}

    check_model(model)
    linears = {layer: paths for layer, paths in places(model).items() if isinstance(layer, nn.Linear)}
    if callable(targets):
        chosen = {layer for layer, paths in linears.items() if any(map(targets, paths))}
    else:
        heads = output_heads(model) if skip is None else set()
        chosen = linears.keys() - heads.union(*map(called, listed("lm_head" if skip is None else skip)))
    if targets is not None and not callable(targets):
        matches = {name: chosen & called(name) for name in listed(targets)}
        if missing := [name for name, layers in matches.items() if not layers]:
            there = what_there_is(model)
            raise ValueError(f"no nn.Linear matches the target {missing[0]!r}, skipped ones aside: {there}")
        chosen = set().union(*matches.values())
    if not chosen:
        raise ValueError(f"no nn.Linear is chosen: {what_there_is(model)}")
    if sentence := left_out(model)[1]:
        warnings.warn(sentence, stacklevel=3)
    return {layer: paths for layer, paths in linears.items() if layer in chosen}


def output_heads(model: nn.Module) -> set[nn.Module]:
    """Return the layers that turn states into logits: those that the model declares or ties to an embedding."""
    named = {m.get_output_embeddings() for m in model.modules() if hasattr(m, "get_output_embeddings")}
    embeddings = {m.weight for m in model.modules() if isinstance(m, nn.Embedding)}
    linears = {m for m in model.modules() if isinstance(m, nn.Linear)}
    return named | {m for m in linears if not embeddings.isdisjoint(m.parameters(recurse=False))}


def what_there_is(model: nn.Module) -> str:
    """Describe a model for an error message: the names of its linear layers, or else the types of its layers."""
    kinds = {type(m).__name__ for m in model.modules() if next(m.parameters(recurse=False), None) is not None}
    names = {paths[0].rpartition(".")[2] for m, paths in places(model).items() if isinstance(m, nn.Linear)}
    if "Conv1D" in kinds:  # transformers' GPT-2
        return "this model is made of Conv1D layers, not nn.Linear; for GPT-2 take llm.model.GPT.from_pretrained"
    if not names:
        return f"this model is made of {', '.join(sorted(kinds)) or 'nothing that has weights'}"
    return f"this model's linear layers are called {', '.join(sorted(names))}"


def places(model: nn.Module) -> dict[nn.Module, list[str]]:
    """Return every module of `model` with all of its paths, without the names that wrappers insert."""
    paths: dict[nn.Module, list[str]] = {}
    for path, module in bare(model).named_modules(remove_duplicate=False):
        paths.setdefault(module, []).append(".".join(part for part in path.split(".") if part not in INSIDE))
    return paths


def bare(model: nn.Module) -> nn.Module:
    """Return the model inside the wrappers of torch.compile and DistributedDataParallel."""
    while hasattr(model, "_orig_mod") or isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        model = model._orig_mod if hasattr(model, "_orig_mod") else model.module
    return model


def replace_layers(model: nn.Module, new: dict[nn.Module, nn.Module]) -> nn.Module:
    """Put `new[layer]` wherever a layer occurs in `model`; return it. Raises ValueError if `model` is such a layer."""
    if bare(model) in new:
        raise ValueError(LONE_LAYER)
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if (layer := getattr(child, "_orig_mod", child)) in new:
                setattr(parent, name, new[layer])
    return model


def wraps_linear(module: nn.Module) -> bool:
    """Whether a module wraps a linear layer, which is its `base` here and its `base_layer` in PEFT."""
    kept = (getattr(module, name, None) for name in ("base", "base_layer"))
    return hasattr(module, "in_features") and any(isinstance(layer, nn.Linear) for layer in kept)


@contextmanager
def silenced(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Set `enabled` to False in each of `layers` inside the block; restore it afterwards."""
    before = {layer: layer.enabled for layer in layers}
    try:
        for layer in before:
            layer.enabled = False
        yield
    finally:
        for layer, enabled in before.items():
            layer.enabled = enabled


def left_out(model: nn.Module) -> tuple[float, str]:
    """Return the share of the weights outside linear layers, and a warning if it is above 1%, else an empty string.

    Embeddings, norms and biases do not count; Conv1D, convolutions and 3-D parameters of experts do.
    """
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Embedding) or wraps_linear(m)]
    usual = {p for m in layers for p in m.parameters(recurse=False)}
    others = {name: p.numel() for name, p in model.named_parameters() if p.ndim > 1 and p not in usual}
    packed = sum(m.in_features * m.out_features for m in layers if isinstance(m, nn.Linear) and hasattr(m, "like"))
    share = sum(others.values()) / max(1, packed + sum(p.numel() for p in model.parameters()))
    largest = max(others, key=others.get, default="")
    sentence = f"{share:.0%} of the weights are in no linear layer and stay as they are, {largest} among them"
    return share, sentence if share > 0.01 else ""


def weight_like(layer: nn.Module) -> torch.Tensor:
    """Return a tensor with the dtype and device of `layer.weight`, without dequantizing a 4-bit layer."""
    return layer.like if hasattr(layer, "like") else layer.weight


def plain_linear(like: nn.Module, weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    """Return a frozen linear layer with the size and mode of `like`, this weight and a copy of this bias."""
    linear = nn.Linear(like.in_features, like.out_features, bias=False, device="meta")
    linear.weight = nn.Parameter(weight.detach(), requires_grad=False)
    linear.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)
    return linear.train(like.training)
