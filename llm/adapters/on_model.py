"""An adapter on a model and in a folder: save, load, swap, inspect.

The folder is PEFT's own format (`folder.py`): ours open in PEFT, PEFT's LoRA adapters open here. PEFT is silent on
a wrong base and a wrong alpha and only warns of missing layers; here each is one sentence, the model as it was.
"""

import math
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn as nn

from llm.adapters import ia3
from llm.adapters.fingerprints import check_base, marks_of
from llm.adapters.folder import CONFIG, TENSORS, Adapter, finite, peft_type, read_adapter, write_adapter
from llm.adapters.peft_config import ALL_LINEAR, Targets, suffixes
from llm.errors import AdapterError
from llm.lora import SCALING, LoraLinear, lora_layers, output_heads, places, refuse_misfit, replace_layers
from llm.relatives import METHODS, DoraLinear, Ia3Linear, PissaLinear, method_of


@dataclass(frozen=True)
class AdapterInfo:
    """What an adapter folder holds. alpha is PEFT's: scale = alpha/r, or alpha/sqrt(r) as `scaling` says."""

    r: int  # this, alpha and scale are what most layers have
    alpha: float
    scaling: str
    scale: float
    layers: dict[str, tuple[int, float, float]]  # r, alpha and scale, by module path
    dropout: float  # while training; PEFT has one for all layers
    parameters: int
    bytes: int  # on disk, both files
    fingerprint: str | None  # of the base it was trained on; an adapter made by PEFT names none
    quantized: str | None = None  # how that base was quantised: "nf4", "nf4-double"
    method: str = "lora"  # or "dora", or "ia3", which has neither rank nor scale: they are 0

    @property
    def targets(self) -> tuple[str, ...]:
        """The paths of the layers that it adapts."""
        return tuple(self.layers)

    def __str__(self):
        kinds = Counter(re.sub(r"\b\d+\b", "*", path) for path in self.layers)
        return "\n".join(
            (
                "IA3" if self.method == "ia3" else self._scaled(),
                f"{len(self.layers)} layers: " + ", ".join(f"{n} x {kind}" for kind, n in kinds.items()),
                f"{self.parameters:,} parameters in {self.bytes:,} bytes",
                f"base {self.fingerprint or 'not named'}" + f", quantised to {self.quantized}" * bool(self.quantized),
            )
        )

    def _scaled(self):
        r, alpha, scale = (
            f"{min(found):g}" + f" to {max(found):g}" * (min(found) < max(found))
            for found in zip(*self.layers.values())
        )
        said = "DoRA, " * (self.method == "dora") + f"rank {r}, alpha {alpha}, scale {self.scaling} = {scale}"
        return said + f", dropout {self.dropout:g}" * (self.dropout > 0)


def save_adapter(model: nn.Module, folder: str | Path) -> None:
    """Write what `model`'s LoRA, DoRA or IA3 layers have learned, and nothing of its base, to `folder`; other files stay.

    The layers may differ in rank and scale; of dropouts PEFT knows one, the commonest. A PiSSA is written as the LoRA of
    twice the rank that says the same on the original base. Raises AdapterError when there is nothing to save or no place
    for it, a factor is not finite, or the disk refuses; an adapter that was there is then as it was.
    """
    folder, layers = Path(folder).expanduser(), lora_layers(model)
    if method_of(model) == "ia3":
        return ia3.save(model, folder)
    if not layers:
        if method := METHODS.get(method_of(model)):
            raise AdapterError(f"what {method.name} trains has no place in an adapter's folder: {_WHY[method.merges]}")
        raise AdapterError("this model has no LoRA layers to save: call apply_lora(model) and train it first")
    for path, layer in layers.items():
        own = all(p.isfinite().all() for p in layer.parameters(recurse=False))
        if not (own and math.isfinite(layer.scale)):
            raise AdapterError(f"{path}: A, B or scale is not finite, so nothing was saved: train at a lower rate")
    dora = {path: layer.magnitude for path, layer in layers.items() if isinstance(layer, DoraLinear)}
    if dora and dora.keys() != layers.keys():
        raise AdapterError(
            "some of the layers are DoRA's and some LoRA's, and PEFT has one kind for all: save them apart"
        )
    pairs = {path: x.plain() if isinstance(x, PissaLinear) else (x.A, x.B) for path, x in layers.items()}
    ranks = {path: A.size(1) for path, (A, _) in pairs.items()}
    # PEFT knows two scalings and one for all: what does not fit, such as the chapter's, is put as an alpha over r
    regular = {path for path, layer in layers.items() if _regular(layer) and layer.r == ranks[path]}
    root = all(path in regular and layer.scaling == "alpha/sqrt(r)" for path, layer in layers.items())
    scaling = "alpha/sqrt(r)" if root else "alpha/r"
    kinds = {
        path: (r, x.alpha if x.scaling == scaling and path in regular else x.scale * r)
        for (path, x), r in zip(layers.items(), ranks.values())
    }
    factors = {path: tuple(_stored(t.T) for t in pair) for path, pair in pairs.items()}
    [(dropout, _)] = Counter(layer.dropout for layer in layers.values()).most_common(1)
    lengths = {path: _stored(m) for path, m in dora.items()}
    adapter = Adapter(kinds, scaling, Targets(sorted(layers)), factors, dropout, *marks_of(model), lengths)
    for path in sorted(adapter.targets.among(_linears(_modules(model), layers)) - layers.keys()):
        raise AdapterError(f"PEFT takes {path} for a target too, as its path ends in another's: wrap it as well")
    write_adapter(adapter, folder)


_WHY = {  # of what no folder takes, by whether it merges
    True: "it is a part of the base, so merge(model) and save that as a base",
    False: "PEFT gives virtual tokens positions and here they have none, so keep its parameters with torch.save",
}


def _stored(tensor):
    return tensor.detach().to(_fine(tensor)).contiguous().cpu()


def _regular(layer):
    """Whether a layer's scale is what its scaling makes of alpha, and was not set by hand."""
    return SCALING[layer.scaling](layer.alpha, layer.r) == layer.scale


def load_adapter(model: nn.Module, folder: str | Path) -> nn.Module:
    """Put the adapter in `folder` on `model`: wrap the layers it names or, where just these are wrapped, swap factors.

    Returns the same model, frozen but for the adapter; no random number is drawn. Raises AdapterError when the adapter is
    damaged, is not LoRA, DoRA or IA3, belongs to another base, or the model carries layers of another shape or kind; the
    model is then as it was.
    """
    folder, now = Path(folder).expanduser(), METHODS.get(method_of(model))
    kind = Ia3Linear if peft_type(folder) == "IA3" else LoraLinear
    if now and not issubclass(now.layer or nn.Module, kind):
        raise AdapterError(f"the model is prepared for {now.name}: call remove(model) first, or load the base again")
    if kind is Ia3Linear:
        return ia3.load(model, folder)
    adapter = read_adapter(folder)
    modules = _modules(model)
    layers = {path: m for path, m in modules.items() if isinstance(m, LoraLinear)}
    linears = _linears(modules, layers)
    parameters = list(model.parameters())
    if not any(_near(path, linears) for path in adapter.factors):  # else the path is what is to be put right
        check_base(model, folder, adapter.fingerprint, adapter.halved, adapter.quantized)
    _check_fit(adapter, modules, linears, output_heads(model), folder)
    if layers and {path: layer.r for path, layer in layers.items()} != {p: r for p, (r, _) in adapter.layers.items()}:
        raise AdapterError("the model carries LoRA layers of another rank or place: call remove_lora(model) first")
    kind = DoraLinear if adapter.lengths else LoraLinear
    if any(type(layer) is not kind for layer in layers.values()):
        raise AdapterError(
            f"the model carries layers of {method_of(model)}, not the adapter's: call remove_lora(model) first"
        )
    factors = {}
    for path, pair in adapter.factors.items():
        pair = (*pair, adapter.lengths[path]) if adapter.lengths else pair
        like = layers[path].A if layers else linears[path].weight
        dtype = like.dtype if layers else _fine(like)
        factors[path] = [t.to(like.device, dtype) for t in pair]
        if not all(t.dtype == dtype or finite(new) for t, new in zip(pair, factors[path])):
            raise AdapterError(f"{path}: the factors are too large for {dtype}: load the model in float32")
    for p in parameters:
        p.requires_grad_(False)
    wrapped = {}
    for path, own in factors.items():
        layer = layers[path] if layers else _wrapped(linears[path], kind, *own)
        # straight into the object: nn.Module's own way in takes ten times as long
        settings = dict(alpha=adapter.layers[path][1], scaling=adapter.scaling, dropout=adapter.dropout)
        vars(layer).update(settings, scale=adapter.scale(path))
        for p, new in zip(layer.parameters(recurse=False), own):
            p.data.t().copy_(new)  # this way round it takes half the time
            p.requires_grad_(True).grad = None  # a gradient would be that of the factors before
        if not layers:
            wrapped[linears[path]] = layer
    return replace_layers(model, wrapped)


def inspect_adapter(folder: str | Path) -> AdapterInfo:
    """What the adapter in `folder` holds, with no model needed. Raises AdapterError when `load_adapter` would."""
    folder = Path(folder).expanduser()
    if peft_type(folder) == "IA3":
        adapter = ia3.read(folder)
        layers, tensors = dict.fromkeys(adapter.vectors, (0, 0.0, 0.0)), list(adapter.vectors.values())
        said = dict(method="ia3", scaling="", dropout=0.0)
    else:
        adapter = read_adapter(folder)
        layers = {path: (r, alpha, adapter.scale(path)) for path, (r, alpha) in adapter.layers.items()}
        tensors = [t for own in (*adapter.factors.values(), adapter.lengths.values()) for t in own]
        said = dict(method="dora" if adapter.lengths else "lora", scaling=adapter.scaling, dropout=adapter.dropout)
    [((r, alpha, scale), _)] = Counter(layers.values()).most_common(1)
    return AdapterInfo(
        r=r,
        alpha=alpha,
        scale=scale,
        layers=layers,
        parameters=sum(t.numel() for t in tensors),
        bytes=sum(path.stat().st_size for name in (CONFIG, TENSORS) if (path := folder / name).exists()),
        fingerprint=adapter.fingerprint,
        quantized=adapter.quantized,
        **said,
    )


def _fine(like):
    """float32, or the dtype of `like` where that is finer: 16 bits are too few to train in, and to keep."""
    return torch.promote_types(like.dtype, torch.float32)


def _wrapped(linear, kind, A, B, *more):
    """`linear` in a wrapper with room for A (r, in), B (out, r) and what else `kind` has: nothing is drawn at random, as
    the start would be."""
    shape = nn.Linear(linear.in_features, linear.out_features, device="meta", dtype=linear.weight.dtype)
    layer = kind(shape, A.size(0))
    for (name, _), t in zip(list(layer.named_parameters(recurse=False)), (A, B, *more)):
        setattr(layer, name, nn.Parameter(torch.empty_like(t.t(), memory_format=torch.contiguous_format)))
    layer.base = linear
    return layer.train(linear.training)


def _modules(model):
    """The modules by the path at which each stands first, without the names that wrappers put into it."""
    return {paths[0]: module for module, paths in places(model).items()}


def _linears(modules, layers):
    """The linear layers by module path, those under a wrapper at the wrapper's path."""
    plain = {path: m for path, m in modules.items() if isinstance(m, nn.Linear)}
    return {path: m for path, m in plain.items() if path.removesuffix(".base") not in layers} | {
        path: layer.base for path, layer in layers.items()
    }


def _near(path, linears):
    """Of a path that the model does not have: its own paths that lack only the beginning, or have more of it."""
    if path in linears:
        return []
    return sorted(p for p in linears if f".{p}".endswith(f".{path}") or f".{path}".endswith(f".{p}"))


def _check_fit(adapter, modules, linears, heads, folder):
    """Raise AdapterError unless the adapter is one for a model with these modules."""
    for path, (A, B) in adapter.factors.items():
        if path not in linears:
            what = f"is not a linear layer but {type(modules[path]).__name__}" if path in modules else "does not exist"
            near = _near(path, linears)
            there = f" (it has {near[0]!r})" if near else ""
            raise AdapterError(
                f"{folder} adapts {path[:120]!r}, which {what} in this model{there}: load the base it was trained on"
            )
        out, width = linears[path].out_features, linears[path].in_features
        if (A.size(1), B.size(0)) != (width, out):
            raise AdapterError(
                f"{folder}: {path} maps {A.size(1)} to {B.size(0)}, the model's {width} to {out}: "
                "load the base it was trained on"
            )
        if A.size(0) > min(width, out):
            raise AdapterError(
                f"{folder}: rank {A.size(0)} is more than {path} has ({min(width, out)}): train a smaller one"
            )
        try:
            refuse_misfit(linears[path], A.size(0), adapter.scaling, "chapter", adapter.dropout)
        except ValueError as error:  # `lora.py` knows none of our errors
            raise AdapterError(f"{folder} does not fit {path}: {error}") from None
    names, there = adapter.targets.names, set(linears)
    if isinstance(names, str) and names.lower() == ALL_LINEAR:  # of a model that is not its own PEFT takes the head too
        heads = {path for path, layer in linears.items() if layer in heads or path.split(".")[-1] == "lm_head"}
        there -= heads - adapter.factors.keys()
    named = adapter.targets.among(there)
    for path in sorted(adapter.factors.keys() - named):
        raise AdapterError(
            f"{folder} has factors for {path}, which target_modules in {CONFIG} does not name: save it again"
        )
    for path in sorted(named - adapter.factors.keys()):
        raise AdapterError(f"{folder} lacks the factors of {path}, which target_modules names: copy or save it again")
    unknown = set(names) - linears.keys() if isinstance(names, list) else set()
    if unknown:
        for name in sorted(unknown - {name for path in linears for name in suffixes(path)}):
            raise AdapterError(
                f"{folder} targets {name[:120]!r}, which is no linear layer of this model: load its own base"
            )
