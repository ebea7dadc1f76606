"""Checks of notebook 06: a file under PEFT's keys, and a merged layer."""

import copy
from collections.abc import Callable

import torch
import torch.nn as nn

from llm.adapters.folder import KEY
from llm.course.exercises.speak import CHANGED, Invitation, close, compare, numbers, spoken


@spoken
def check_peft(to_peft: Callable) -> str | None:
    """`to_peft(factors)`, factors {module path: (A, B)}, against the keys and tensors of a PEFT adapter file."""
    paths = {"transformer.h.0.attn.c_attn": (6, 9, 2), "transformer.h.1.mlp.c_proj": (7, 7, 7), "encoder": (5, 3, 1)}
    factors = {path: (torch.randn(i, r), torch.randn(r, o)) for path, (i, o, r) in paths.items()}
    kept = copy.deepcopy(factors)
    found = to_peft(factors)
    if found is None or isinstance(found, dict) and not found:
        return Invitation("two tensors for each path. What is the key of the first, and which shape has it?")
    if not isinstance(found, dict):
        return f"it should return a dict of tensors by key, not {type(found).__name__}"
    if factors.keys() != kept.keys() or not all(torch.equal(t, u) for p in kept for t, u in zip(factors[p], kept[p])):
        return CHANGED
    pairs = {KEY.format(path, name): t.T for path, pair in kept.items() for name, t in zip("AB", pair)}
    return _keys(set(found), set(pairs)) or _tensors(found, pairs)


def _keys(own, right):
    if own == right:
        return None
    renamed = {
        "the prefix is missing: every key begins with base_model.model.": lambda k: k.removeprefix("base_model.model."),
        "the prefix has two parts: base_model.model.": lambda k: k.replace("base_model.model.", "base_model."),
        "the end is missing: PEFT's A and B are layers, and a layer's tensor is its .weight": lambda k: k.removesuffix(
            ".weight"
        ),
        "that is the key inside PEFT's model; in the file the adapter's name, default, is left out": lambda k: (
            k.replace(".weight", ".default.weight")
        ),
        "the letters are capitals: lora_A and lora_B": lambda k: k.replace("lora_A", "lora_a").replace("B", "b"),
        "the factors are called lora_A and lora_B": lambda k: k.replace("lora_", ""),
    }
    for slip, rename in renamed.items():
        if own == {rename(k) for k in right}:
            return slip
    if own > right:
        return f"{min(own - right, key=str)!r} has no place in the file: it holds the factors and nothing of the base"
    if own < right:
        missing = min(right - own)
        return f"{len(right - own)} keys are missing, {missing!r} for one: two for each path"
    return f"the key {min(own - right, key=str)!r} is wrong: {min(right - own)!r} is wanted"


def _tensors(found, pairs):
    slips = {
        "A and B are swapped: lora_A is made from A, (r, in), and lora_B from B, (out, r)": lambda k: pairs[
            k.replace("lora_A", "lora_?").replace("lora_B", "lora_A").replace("lora_?", "lora_B")
        ],
        "A and B are swapped, each as it is: PEFT's lora_A (r, in) is the transpose of A": lambda k: (
            pairs[k.replace("lora_A", "lora_?").replace("lora_B", "lora_A").replace("lora_?", "lora_B")].T
        ),
        "nothing is transposed: PEFT has lora_A as (r, in) and lora_B as (out, r)": lambda k: pairs[k].T,
        "lora_B is not transposed: PEFT has it as (out, r)": lambda k: pairs[k].T if "lora_B" in k else pairs[k],
        "lora_A is not transposed: PEFT has it as (r, in)": lambda k: pairs[k].T if "lora_A" in k else pairs[k],
        "the shapes fit, but `reshape` mixes up the numbers: a transpose, `.T`, is wanted": lambda k: pairs[
            k
        ].T.reshape(pairs[k].shape),
    }
    if all(close(found[k], t) for k, t in pairs.items()):
        return None
    for slip, tensor in slips.items():
        if all(close(found[k], tensor(k)) for k in pairs):
            return slip
    k = next(k for k, t in pairs.items() if not close(found[k], t))
    if numbers(found[k]) is None:
        return f"{k} holds no tensor but {type(found[k]).__name__}"
    if (own := tuple(numbers(found[k]).shape)) != (goal := tuple(pairs[k].shape)):
        return f"{k} has the shape {own}, and {goal} is wanted"
    return f"the numbers of {k} are not those of its factor: nothing is scaled, for PEFT scales by alpha itself"


@spoken
def check_merge(merge: Callable) -> str | None:
    """`merge(linear, A, B, scale)` returns a plain nn.Linear that carries the update; `linear` stays as it was."""
    misfit = "the shapes do not fit: a linear's weight is (out, in), and A @ B is (in, out)"
    layers, SAME = [], object()

    def weight(W, bias, A, B, scale):
        layer = nn.Linear(W.size(1), W.size(0), bias=bias is not None)
        layer.weight = nn.Parameter(W, requires_grad=False)  # W itself: a write into it is seen
        if bias is not None:
            layer.bias = nn.Parameter(bias, requires_grad=False)
        layers.append(merge(layer, A, B, scale))
        if layers[-1] is layer:
            return SAME
        return layers[-1].weight if type(layers[-1]) is nn.Linear else layers[-1]

    shapes = ((6, 4, 2, True, 3.0), (5, 5, 3, False, 0.5), (4, 7, 2, True, 2.0))
    cases = [
        (torch.randn(o, i), torch.randn(o) if bias else None, torch.randn(i, r), torch.randn(r, o), scale)
        for i, o, r, bias, scale in shapes
    ]
    try:
        first = weight(*copy.deepcopy(cases[0]))
    except RuntimeError as error:
        if "leaf" in str(error):
            return "`+=` on a weight that trains: put it under `with torch.no_grad():`, or write to `.weight.data`"
        return misfit if type(error) is RuntimeError else f"it stopped with {type(error).__name__}: {error}"
    if first is SAME:
        return "that is the given layer, changed: make a new one, for an embedding may share the old one's weight"
    if first is not None and layers[0] is first:
        kind = type(first).__name__
        return f"it should return a plain nn.Linear, not {kind}: its weight is W + scale * (A @ B).T"
    wrong = compare(
        weight,
        cases,
        lambda W, bias, A, B, scale: W + scale * (A @ B).T,
        {
            "the scale is missing: the wrapper multiplies the update by it": lambda W, bias, A, B, scale: W + (A @ B).T,
            "the update is missing: that is the base's weight": lambda W, bias, A, B, scale: W,
            "the base is missing: that is the update alone": lambda W, bias, A, B, scale: scale * (A @ B).T,
            "the update is subtracted; it is added": lambda W, bias, A, B, scale: W - scale * (A @ B).T,
            "the scale is divided by r, but it is the finished factor": lambda W, bias, A, B, scale: (
                W + scale / A.size(1) * (A @ B).T
            ),
            "the scale multiplies W as well: it belongs to the update": lambda W, bias, A, B, scale: (
                scale * (W + (A @ B).T)
            ),
            "`reshape` and `view` mix up the numbers: a transpose, `.T`, is wanted": lambda W, bias, A, B, scale: (
                W + scale * (A @ B).reshape(W.shape)
            ),
            "the weight is transposed: a linear keeps it as (out, in)": lambda W, bias, A, B, scale: (
                W.T + scale * A @ B
            ),
        },
        invite="make a new nn.Linear of the same size. Which weight gives the wrapper's answers?",
        wanted="a plain nn.Linear",
        otherwise="the weight is not W + scale * (A @ B).T: has the new layer got the base's weight to begin with?",
        misfit=misfit,
    )
    if wrong:
        return wrong
    for layer, (_, bias, *_) in zip(layers[1:], cases):
        if bias is not None and (layer.bias is None or not close(layer.bias, bias)):
            return "the bias is not the base's: the new layer needs a copy of it, where there is one"
        if bias is None and layer.bias is not None and layer.bias.any():
            return "the base has no bias, and the new layer a random one: bias=linear.bias is not None"
    return None
