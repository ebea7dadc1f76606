"""Save the adapter on a model, load or swap one, and inspect one in a folder.

The folder has PEFT's own format (`folder.py`): ours open in PEFT, and PEFT's LoRA adapters open here. PEFT silently
accepts a wrong base or alpha and only warns of missing layers; here each is an error and changes nothing.
"""

import math
from collections import Counter
from pathlib import Path

import torch
import torch.nn as nn

from llm.adapters.fingerprints import check_base, marks_of
from llm.adapters.folder import CONFIG, AdapterInfo, finite, read_adapter, write_adapter
from llm.adapters.foreign import shown
from llm.adapters.peft_config import among, suffixes
from llm.errors import AdapterError
from llm.lora import SCALING, LoraLinear
from llm.paths import user_path
from llm.relatives import METHODS, DoraLinear, Ia3Linear, LoraFaLinear, PissaLinear, layers_of, method_of
from llm.surgery import places, replace_layers, weight_like

KINDS = {"dora": DoraLinear, "ia3": Ia3Linear, "lora-fa": LoraFaLinear, "lora": LoraLinear}  # last: others subclass it


def save_adapter(model: nn.Module, folder: str | Path, base: str | None = None) -> None:
    """Save what `model`'s LoRA, DoRA or IA3 layers have learned to `folder`, without the base; other files there stay.

    base: the name by which others find the base, a language model; PEFT's AutoPeftModelForCausalLM loads it by this
    name. Layers may differ in rank and scale; PEFT has one dropout, so the most common is saved. PiSSA is saved as the
    LoRA of twice the rank that is equivalent on the original base. Raises AdapterError when there is nothing to save or
    a factor is not finite, and WriteError when the disk refuses; an adapter that was there is then unchanged.
    """
    layers = layers_of(model)
    if not layers:
        if method := METHODS.get(method_of(model)):
            raise AdapterError(f"what {method.name} trains has no place in an adapter's folder: {_WHY[method.merges]}")
        raise AdapterError("this model has no LoRA layers to save: call apply_lora(model) and train it first")
    for path, layer in layers.items():
        numbers = all(p.isfinite().all() for p in layer.parameters(recurse=False))
        if not (numbers and math.isfinite(getattr(layer, "scale", 1.0))):
            raise AdapterError(
                f"{path}: a factor or its scale is not finite, so nothing was saved: train at a lower rate"
            )
    method, *others = {next(name for name, kind in KINDS.items() if isinstance(x, kind)) for x in layers.values()}
    if others:
        names = ", ".join(sorted([method, *others]))
        raise AdapterError(f"the layers are of several kinds ({names}), and PEFT has one: save them apart")
    factors = {path: _factors(layer) for path, layer in layers.items()}
    settings = _settings(layers, {path: parts[0].size(0) for path, parts in factors.items()}, method)
    write_adapter(user_path(folder), method, factors, marks_of(model), base, **settings)


_WHY = {  # why other methods have no adapter folder, by whether they merge
    True: "it is a part of the base, so merge(model) and save that as a base",
    False: "PEFT gives virtual tokens positions and here they have none, so keep its parameters with torch.save",
}


def _factors(layer):
    """Return a layer's parts in PEFT's shapes: A (r, in) and B (out, r), with DoRA's magnitudes (out,); or IA3's
    factors, (out, 1) or (1, in), padded with ones."""
    if isinstance(layer, Ia3Linear):
        parts = [layer.factors()[:, None] if layer.side == "out" else layer.factors()[None]]
    else:
        A, B = layer.plain() if isinstance(layer, PissaLinear) else (layer.A, layer.B)
        parts = [A.T, B.T] + ([layer.magnitude] if isinstance(layer, DoraLinear) else [])
    return [t.detach().to(torch.promote_types(t.dtype, torch.float32)).contiguous().cpu() for t in parts]


def _settings(layers, ranks, method):
    """Return the scaling of all layers, the rank and alpha of each, and the most common dropout. PEFT allows one of two
    scalings; any other scale, such as the chapter's or one set by hand, is written as an alpha over r."""
    if method == "ia3":
        return dict(layers=dict.fromkeys(layers, (0, 0.0)), scaling="", dropout=0.0)
    for scaling in ("alpha/sqrt(r)", "alpha/r"):  # alpha/r also when neither fits all layers
        alphas = {p: x.alpha for p, x in layers.items() if SCALING[scaling](x.alpha, ranks[p]) == x.scale}
        if len(alphas) == len(layers) and all(x.scaling == scaling for x in layers.values()):
            break
    kinds = {path: (ranks[path], alphas.get(path, x.scale * ranks[path])) for path, x in layers.items()}
    if wrong := [path for path, (_, alpha) in kinds.items() if not math.isfinite(alpha)]:
        raise AdapterError(f"{wrong[0]}: its scale is too large to be written as an alpha, so nothing was saved")
    [(dropout, _)] = Counter(layer.dropout for layer in layers.values()).most_common(1)
    return dict(layers=kinds, scaling=scaling, dropout=dropout)


def load_adapter(model: nn.Module, folder: str | Path) -> nn.Module:
    """Put the adapter in `folder` on `model`: wrap the layers it names or, if exactly these are wrapped, swap factors.

    Returns the same model, frozen except for the adapter; factors that were frozen before a swap stay frozen. No random
    number is drawn. Raises AdapterError when the adapter is damaged, is not LoRA, DoRA or IA3, or belongs to another
    base, or when the model has layers of another shape or kind; the model is then unchanged.
    """
    folder = user_path(folder)
    info, factors, targets, marks = read_adapter(folder)
    layers = layers_of(model)
    linears = _check_fit(model, layers, folder, info, factors, targets, marks)
    _check_layers(model, layers, info)
    # LoRA's layers are reused, so an optimizer keeps their factors; IA3's may start at another output
    kept = {} if info.method == "ia3" else layers
    factors = {path: _converted(parts, linears[path], kept.get(path), path) for path, parts in factors.items()}
    new = {layer: layer.base for path, layer in layers.items() if path not in factors}
    trains = {p: p.requires_grad for layer in layers.values() for p in layer.parameters(recurse=False)}
    for p in model.parameters():
        p.requires_grad_(trains.get(p, False))
    for path, parts in factors.items():
        layer, old = kept.get(path), layers.get(path)
        if layer is None:
            layer = new[old or linears[path]] = _wrapped(linears[path], info, path, parts)
        _, alpha, scale = info.layers[path]
        if info.method != "ia3":  # avoids nn.Module.__setattr__, which takes ten times as long
            vars(layer).update(alpha=alpha, scaling=info.scaling, dropout=info.dropout, scale=scale)
        elif old:
            layer.l.requires_grad_(old.l.requires_grad)
        for p, t in zip(layer.parameters(recurse=False), parts):
            values = p.data.t()
            values.copy_(t.view_as(values))  # in this direction the copy takes half the time
            p.grad = None  # it belongs to the old factors
    return replace_layers(model, new)


def _modules(model, layers):
    """Return the base's modules, keyed by the first path of each, without the names that wrappers insert."""
    modules = {paths[0]: module for module, paths in places(model).items()}
    plain = {path: module for path, module in modules.items() if path.removesuffix(".base") not in layers}
    return plain | {path: layer.base for path, layer in layers.items()}


def _check_fit(model, layers, folder, info, factors, targets, marks):
    """Return the linear layers by path. Raises AdapterError unless the adapter fits this model."""
    modules = _modules(model, layers)
    linears = {path: module for path, module in modules.items() if isinstance(module, nn.Linear)}
    cure = "load the base it was trained on" + (f", {shown(info.base)}" if info.base else "")
    if strange := [path for path in factors if path not in linears]:
        path = strange[0]
        what = f"is not a linear layer but {type(modules[path]).__name__}" if path in modules else "does not exist"
        near = [p for p in linears if f".{p}".endswith(f".{path}") or f".{path}".endswith(f".{p}")]
        hint = f" (it has {near[0]!r})" if near else ""
        raise AdapterError(f"{folder} adapts {path[:120]!r}, which {what} in this model{hint}: {cure}")
    check_base(model, folder, marks, info.base)
    for path, parts in factors.items():
        shapes, width, out = [tuple(t.shape) for t in parts], linears[path].in_features, linears[path].out_features
        r = info.layers[path][0]
        if shapes not in ([(out, 1)], [(1, width)], [(r, width), (out, r)], [(r, width), (out, r), (out,)]):
            raise AdapterError(
                f"{folder}: {path} has factors of shapes {shapes}, and maps {width} to {out} here: {cure}"
            )
        try:
            if r:
                LoraLinear.check(linears[path], r, 1.0, info.scaling, "chapter", info.dropout)
        except ValueError as error:  # `lora.py` does not know AdapterError
            raise AdapterError(f"{folder} does not fit {path}: {error}") from None
    # PEFT also wraps embeddings and convolutions: every module with weights of its own
    weighted = {path for path, m in modules.items() if next(m.parameters(recurse=False), None) is not None}
    named = factors.keys()
    if targets is not None:
        chosen, excluded = (among(names, weighted | linears.keys()) for names in targets)
        # an adapter saved here lists full paths, one of which may be the end of another path
        named = {path for path in chosen - excluded if path in factors or not factors.keys() & set(suffixes(path))}
    for path in sorted(named ^ factors.keys()):
        has, name = ("lacks the", "names") if path in named else ("has", "does not name")
        raise AdapterError(
            f"{folder} {has} factors of {path}, which target_modules in {CONFIG} {name}: copy or save it again"
        )
    return linears


def _check_layers(model, layers, info):
    """Raise AdapterError when the model's wrapped layers cannot take the adapter's factors."""
    twins = ("lora", "lora-fa")  # they have the same two factors
    kinds = {KINDS[method] for method in (twins if info.method in twins else (info.method,))}
    ranks = {path: getattr(layer, "r", 0) for path, layer in layers.items()}
    same = info.method == "ia3" or ranks == {path: r for path, (r, *_) in info.layers.items()}
    name = method_of(model)
    if name and not (layers and same and {type(layer) for layer in layers.values()} <= kinds):
        raise AdapterError(
            f"the model is prepared for {name}, in layers of another kind, rank or place than the adapter's: call "
            "remove(model) of llm.relatives first, or load the base again"
        )


def _converted(parts, linear, layer, path):
    """Move the parts to their layer's device; a new layer gets at least float32, because 16 bits train badly."""
    like = weight_like(linear) if layer is None else layer.A
    dtype = torch.promote_types(like.dtype, torch.float32) if layer is None else like.dtype
    parts = [t.to(like.device, dtype) for t in parts]
    if not all(map(finite, parts)):
        raise AdapterError(f"{path}: the factors are too large for {dtype}: load the model in float32")
    return parts


def _wrapped(linear, info, path, parts):
    """Wrap `linear` in an uninitialized layer that fits an adapter's parts: nothing is drawn at random."""
    like, r = weight_like(linear), info.layers[path][0]
    shape = nn.Linear(linear.in_features, linear.out_features, device="meta", dtype=like.dtype)
    layer = KINDS[info.method](shape, r) if r else Ia3Linear(shape, "out" if parts[0].size(1) == 1 else "in")
    layer.base = None
    layer.to_empty(device=like.device).base = linear
    return layer.train(linear.training)


def inspect_adapter(folder: str | Path) -> AdapterInfo:
    """Return what the adapter in `folder` holds, without a model. Raises AdapterError when its files are damaged."""
    return read_adapter(user_path(folder))[0]
