"""An adapter on a model and in a folder: save, load, swap, inspect.

The folder is PEFT's own format (`folder.py`): ours open in PEFT, PEFT's LoRA adapters open here. PEFT is silent on
a wrong base and a wrong alpha and only warns of missing layers; here each is one sentence, the model as it was.
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

KINDS = {"dora": DoraLinear, "ia3": Ia3Linear, "lora-fa": LoraFaLinear, "lora": LoraLinear}  # the general one last


def save_adapter(model: nn.Module, folder: str | Path, base: str | None = None) -> None:
    """Write what `model`'s LoRA, DoRA or IA3 layers have learned, and nothing of its base, to `folder`; other files stay.

    base: a name by which others find the base, a language model: PEFT's AutoPeftModelForCausalLM loads it by that. The
    layers may differ in rank and scale; of dropouts PEFT knows one, the commonest. A PiSSA is written as the LoRA of twice
    the rank that says the same on the original base. Raises AdapterError when there is nothing to save or a factor is not
    finite, and WriteError when the disk refuses; an adapter that was there is then as it was.
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


_WHY = {  # of what no folder takes, by whether it merges
    True: "it is a part of the base, so merge(model) and save that as a base",
    False: "PEFT gives virtual tokens positions and here they have none, so keep its parameters with torch.save",
}


def _factors(layer):
    """What a layer has learned, as PEFT shapes it: A (r, in) and B (out, r), DoRA's lengths (out,); IA3's with a 1 where
    the layer has none, (out, 1) or (1, in)."""
    if isinstance(layer, Ia3Linear):
        parts = [layer.factors()[:, None] if layer.side == "out" else layer.factors()[None]]
    else:
        A, B = layer.plain() if isinstance(layer, PissaLinear) else (layer.A, layer.B)
        parts = [A.T, B.T] + ([layer.magnitude] if isinstance(layer, DoraLinear) else [])
    return [t.detach().to(torch.promote_types(t.dtype, torch.float32)).contiguous().cpu() for t in parts]


def _settings(layers, ranks, method):
    """The scaling of all layers, the rank and alpha of each, and the commonest dropout. PEFT knows two scalings, and one
    for all: what does not fit, such as the chapter's or a scale that was set by hand, is put as an alpha over r."""
    if method == "ia3":
        return dict(layers=dict.fromkeys(layers, (0, 0.0)), scaling="", dropout=0.0)
    for scaling in ("alpha/sqrt(r)", "alpha/r"):  # the second also where neither is that of all layers
        alphas = {p: x.alpha for p, x in layers.items() if SCALING[scaling](x.alpha, ranks[p]) == x.scale}
        if len(alphas) == len(layers) and all(x.scaling == scaling for x in layers.values()):
            break
    kinds = {path: (ranks[path], alphas.get(path, x.scale * ranks[path])) for path, x in layers.items()}
    if wrong := [path for path, (_, alpha) in kinds.items() if not math.isfinite(alpha)]:
        raise AdapterError(f"{wrong[0]}: its scale is too large to be written as an alpha, so nothing was saved")
    [(dropout, _)] = Counter(layer.dropout for layer in layers.values()).most_common(1)
    return dict(layers=kinds, scaling=scaling, dropout=dropout)


def load_adapter(model: nn.Module, folder: str | Path) -> nn.Module:
    """Put the adapter in `folder` on `model`: wrap the layers it names or, where just these are wrapped, swap factors.

    Returns the same model, frozen but for the adapter, of which what was frozen before a swap stays so; no random number
    is drawn. Raises AdapterError when the adapter is damaged, is not LoRA, DoRA or IA3, belongs to another base, or the
    model carries layers of another shape or kind; the model is then as it was.
    """
    folder = user_path(folder)
    info, factors, targets, marks = read_adapter(folder)
    layers = layers_of(model)
    linears = _check_fit(model, layers, folder, info, factors, targets, marks)
    _check_layers(model, layers, info)
    # LoRA's layers stay where they are, and an optimizer keeps their factors; IA3's may begin at another output
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
        if info.method != "ia3":  # straight into the object: nn.Module's own way in takes ten times as long
            vars(layer).update(alpha=alpha, scaling=info.scaling, dropout=info.dropout, scale=scale)
        elif old:
            layer.l.requires_grad_(old.l.requires_grad)
        for p, t in zip(layer.parameters(recurse=False), parts):
            values = p.data.t()
            values.copy_(t.view_as(values))  # this way round it takes half the time
            p.grad = None  # it would be that of the factors before
    return replace_layers(model, new)


def _modules(model, layers):
    """The base's modules by the path at which each stands first, without the names that wrappers put into it."""
    modules = {paths[0]: module for module, paths in places(model).items()}
    plain = {path: module for path, module in modules.items() if path.removesuffix(".base") not in layers}
    return plain | {path: layer.base for path, layer in layers.items()}


def _check_fit(model, layers, folder, info, factors, targets, marks):
    """The linear layers by path. Raises AdapterError unless the adapter is one for this model."""
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
        except ValueError as error:  # `lora.py` knows none of our errors
            raise AdapterError(f"{folder} does not fit {path}: {error}") from None
    # PEFT wraps embeddings and convolutions as well: whatever has weights of its own
    weighted = {path for path, m in modules.items() if next(m.parameters(recurse=False), None) is not None}
    named = factors.keys()
    if targets is not None:
        chosen, excluded = (among(names, weighted | linears.keys()) for names in targets)
        # an adapter saved here names whole paths, and one of these may be the end of another path
        named = {path for path in chosen - excluded if path in factors or not factors.keys() & set(suffixes(path))}
    for path in sorted(named ^ factors.keys()):
        has, name = ("lacks the", "names") if path in named else ("has", "does not name")
        raise AdapterError(
            f"{folder} {has} factors of {path}, which target_modules in {CONFIG} {name}: copy or save it again"
        )
    return linears


def _check_layers(model, layers, info):
    """Raise AdapterError where layers that are wrapped already cannot take the adapter's factors."""
    twins = ("lora", "lora-fa")  # have the same two factors
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
    """The parts on their layer's device; 16 bits are too few to train in, unless somebody has cast the layer to them."""
    like = weight_like(linear) if layer is None else layer.A
    dtype = torch.promote_types(like.dtype, torch.float32) if layer is None else like.dtype
    parts = [t.to(like.device, dtype) for t in parts]
    if not all(map(finite, parts)):
        raise AdapterError(f"{path}: the factors are too large for {dtype}: load the model in float32")
    return parts


def _wrapped(linear, info, path, parts):
    """`linear` in a wrapper with room for an adapter's parts: nothing is drawn at random, as the start would be."""
    like, r = weight_like(linear), info.layers[path][0]
    shape = nn.Linear(linear.in_features, linear.out_features, device="meta", dtype=like.dtype)
    layer = KINDS[info.method](shape, r) if r else Ia3Linear(shape, "out" if parts[0].size(1) == 1 else "in")
    layer.base = None
    layer.to_empty(device=like.device).base = linear
    return layer.train(linear.training)


def inspect_adapter(folder: str | Path) -> AdapterInfo:
    """What the adapter in `folder` holds, with no model needed. Raises AdapterError where its files are damaged."""
    return read_adapter(user_path(folder))[0]
