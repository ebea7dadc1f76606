"""An adapter on a model and in a folder: save, load, swap, inspect.

The folder is PEFT's own format (`adapter_files`): ours open in PEFT, PEFT's LoRA adapters open here. PEFT is silent on
a wrong base, a wrong alpha and missing layers; here each is one sentence, and the model is as it was.
"""

import hashlib
import math
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn as nn

from llm.adapter_files import CONFIG, TENSORS, Adapter, AdapterError, read_adapter, write_adapter
from llm.lora import SCALING, LoraLinear, lora_layers

__all__ = ["AdapterError", "AdapterInfo", "fingerprint", "inspect_adapter", "load_adapter", "save_adapter"]


@dataclass(frozen=True)
class AdapterInfo:
    """What an adapter folder holds. alpha is PEFT's: scale = alpha/r, or alpha/sqrt(r) as `scaling` says."""

    r: int
    alpha: float
    scaling: str
    scale: float
    targets: tuple[str, ...]  # paths of the layers it adapts
    parameters: int
    bytes: int  # on disk, both files
    fingerprint: str | None  # of the base it was trained on; an adapter made by PEFT names none

    def __str__(self):
        kinds = Counter(re.sub(r"\b\d+\b", "*", path) for path in self.targets)
        return "\n".join(
            (
                f"rank {self.r}, alpha {self.alpha:g}, scale {self.scaling} = {self.scale:g}",
                f"{len(self.targets)} layers: " + ", ".join(f"{n} x {kind}" for kind, n in kinds.items()),
                f"{self.parameters:,} parameters in {self.bytes:,} bytes",
                f"base {self.fingerprint or 'not named'}",
            )
        )


def fingerprint(model: nn.Module) -> str:
    """16 hex digits that tell one base from another; the same with and without LoRA layers.

    Every parameter counts by name, shape and about a thousand evenly spread values: training or merging moves nearly
    all of them, and to read all 13.7 M would cost more than a swap. Values are rounded to bfloat16, so that weights
    shipped in fp16 have one fingerprint in fp16, fp32 and bf16.
    """
    layers, digest, samples = lora_layers(model), hashlib.sha256(), []
    for name, p in sorted(_base_parameters(model, layers), key=lambda pair: pair[0]):
        digest.update(f"{name}{tuple(p.shape)}".encode())
        # an odd stride: an even one would meet the same few columns of a matrix again and again
        samples.append(p.detach().reshape(-1)[:: (p.numel() // 1024) | 1].to(torch.bfloat16))
    if samples:
        digest.update(torch.cat(samples).view(torch.int16).cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _base_parameters(model, layers):
    """(name, parameter) as the unwrapped model has them."""
    for name, p in model.named_parameters(remove_duplicate=False):
        owner, _, leaf = name.rpartition(".")
        outer = owner.removesuffix(".base")
        if outer in layers and owner != outer:
            yield f"{outer}.{leaf}", p
        elif owner not in layers:  # else it is A or B
            yield name, p


def save_adapter(model: nn.Module, folder: str | Path) -> None:
    """Write the factors of `model`'s LoRA layers, and nothing of its base, to `folder`; other files there stay.

    Raises AdapterError when there is nothing to save, a factor is not finite, the layers differ in rank or scale, or
    the disk refuses; an adapter that was there is then as it was.
    """
    layers = lora_layers(model)
    if not layers:
        raise AdapterError("this model has no LoRA layers to save: call apply_lora(model) and train it first")
    for path, layer in layers.items():
        if not (layer.A.isfinite().all() and layer.B.isfinite().all() and math.isfinite(layer.scale)):
            raise AdapterError(f"{path}: A, B or scale is not finite, so nothing was saved: train at a lower rate")
    kinds = {(layer.r, layer.alpha, layer.scaling, layer.scale) for layer in layers.values()}
    if len(kinds) > 1:
        raise AdapterError(
            "the LoRA layers differ in rank or scale, which is not saved here: give all of them the same"
        )
    [(r, alpha, scaling, scale)] = kinds
    if scaling not in ("alpha/r", "alpha/sqrt(r)") or SCALING[scaling](alpha, r) != scale:
        scaling, alpha = "alpha/r", scale * r  # the chapter's scale, or one set by hand, in PEFT's terms
    factors = {
        path: tuple(t.detach().T.contiguous().cpu() for t in (layer.A, layer.B)) for path, layer in layers.items()
    }
    adapter = Adapter(r, alpha, scaling, sorted(layers), factors, fingerprint(model))
    for path in _linears(model).keys() - layers.keys():
        if adapter.names(path):
            raise AdapterError(f"PEFT takes {path} for a target too, as its path ends in another's: wrap it as well")
    write_adapter(adapter, Path(folder))


def load_adapter(model: nn.Module, folder: str | Path) -> nn.Module:
    """Put the adapter in `folder` on `model`: wrap the layers it names or, where just these are wrapped, swap factors.

    Returns the same model, frozen but for A and B. Raises AdapterError when the adapter is damaged, is not plain LoRA,
    belongs to another base, or the model carries LoRA layers of another shape; the model is then as it was.
    """
    adapter = read_adapter(Path(folder))
    _check_fit(adapter, model, folder)
    layers, linears, factors = lora_layers(model), _linears(model), {}
    if layers and {path: layer.r for path, layer in layers.items()} != dict.fromkeys(adapter.factors, adapter.r):
        raise AdapterError("the model carries LoRA layers of another rank or place: call remove_lora(model) first")
    for path, pair in adapter.factors.items():
        like = layers[path].A if layers else linears[path].weight
        factors[path] = [t.T.to(like) for t in pair]
        if not all(t.isfinite().all() for t in factors[path]):
            raise AdapterError(f"{path}: the factors are too large for {like.dtype}: load the model in float32")
    model.requires_grad_(False)
    for path, (A, B) in factors.items():
        layer = layers[path] if layers else LoraLinear(linears[path], adapter.r)
        layer.alpha, layer.scaling, layer.scale = adapter.alpha, adapter.scaling, adapter.scale
        for own, new in ((layer.A, A), (layer.B, B)):
            own.data.copy_(new)
            own.requires_grad_(True).grad = None  # a gradient would be that of the factors before
        if not layers:
            model.set_submodule(path, layer)
    return model


def inspect_adapter(folder: str | Path) -> AdapterInfo:
    """What the adapter in `folder` holds, with no model needed. Raises AdapterError when `load_adapter` would."""
    adapter = read_adapter(Path(folder))
    return AdapterInfo(
        r=adapter.r,
        alpha=adapter.alpha,
        scaling=adapter.scaling,
        scale=adapter.scale,
        targets=tuple(adapter.factors),
        parameters=sum(t.numel() for pair in adapter.factors.values() for t in pair),
        bytes=sum(path.stat().st_size for name in (CONFIG, TENSORS) if (path := Path(folder) / name).exists()),
        fingerprint=adapter.fingerprint,
    )


def _linears(model):
    """The linear layers by module path, those under a wrapper at the wrapper's path."""
    wrapped = lora_layers(model)
    plain = {path: m for path, m in model.named_modules() if isinstance(m, nn.Linear)}
    return {path: m for path, m in plain.items() if path.removesuffix(".base") not in wrapped} | {
        path: layer.base for path, layer in wrapped.items()
    }


def _check_fit(adapter, model, folder):
    own = fingerprint(model)
    if adapter.fingerprint not in (None, own):
        raise AdapterError(
            f"{folder} was trained on another base (fingerprint {adapter.fingerprint[:16]!r}, this model has {own}): "
            "load the base that it was trained on (a merged or fully fine-tuned model is another base)"
        )
    linears, modules = _linears(model), dict(model.named_modules())
    for path, (A, B) in adapter.factors.items():
        if path not in linears:
            what = "is not a linear layer" if path in modules else "does not exist"
            raise AdapterError(
                f"{folder} adapts {path[:120]!r}, which {what} in this model: load the base it was trained on"
            )
        if not adapter.names(path):
            raise AdapterError(
                f"{folder} has factors for {path}, which target_modules in {CONFIG} does not name: save it again"
            )
        out, width = linears[path].weight.shape
        if (A.size(1), B.size(0)) != (width, out):
            raise AdapterError(
                f"{folder}: {path} maps {A.size(1)} to {B.size(0)}, the model's {width} to {out}: "
                "load the base it was trained on"
            )
        if adapter.r > min(width, out):
            raise AdapterError(
                f"{folder}: rank {adapter.r} is more than {path} has ({min(width, out)}): train a smaller one"
            )
    for path in linears:
        if adapter.names(path) and path not in adapter.factors:
            raise AdapterError(
                f"{folder} lacks the factors of {path}, which target_modules names: copy or save it again"
            )
    for name in adapter.targets if isinstance(adapter.targets, list) else ():
        if not any(path == name or path.endswith("." + name) for path in linears):
            raise AdapterError(
                f"{folder} targets {name[:120]!r}, which is no linear layer of this model: load its own base"
            )
