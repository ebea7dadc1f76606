"""Checks of checkpoints: a file under PEFT's keys, and a merged layer."""

import copy
from collections.abc import Callable

import torch
import torch.nn as nn

from llm.adapters.folder import KEY
from llm.course.exercises.speak import Comparison, Invitation, close, spoken


@spoken
def check_peft(to_peft: Callable) -> str | None:
    """`to_peft(factors)`, factors {module path: (A, B)}, against the keys and tensors of a PEFT adapter file."""
    paths = {"transformer.h.0.attn.c_attn": (6, 9, 2), "transformer.h.1.mlp.c_proj": (7, 7, 7), "encoder": (5, 3, 1)}
    factors = {path: (torch.randn(i, r), torch.randn(r, o)) for path, (i, o, r) in paths.items()}
    right = {KEY.format(path, name): t.T for path, pair in factors.items() for name, t in zip("AB", pair)}
    swapped = {KEY.format(path, name): t.T for path, pair in factors.items() for name, t in zip("BA", pair)}
    file = to_peft(copy.deepcopy(factors))
    if file is None or file == {}:
        return Invitation("two tensors for each path. What is the key of the first, and what is its shape?")
    if not isinstance(file, dict):
        return f"it should return a dict of tensors by key, not {type(file).__name__}"
    if wrong := _wrong_keys(set(file), set(right)):
        return wrong
    slips = {
        "A and B are swapped. Make lora_A (r, in) from A, and lora_B (out, r) from B": swapped.get,
        "nothing is transposed. PEFT stores lora_A as (r, in) and lora_B as (out, r)": lambda key: right[key].T,
        "`reshape` mixes up the numbers. Use a transpose, `.T`": lambda k: right[k].T.reshape(right[k].shape),
    }
    return Comparison(
        invite="each key has None for its tensor. Which of the factors belongs there, and in which shape?",
        wanted="a tensor for each key",
        otherwise="the numbers are not those of the factors. Don't scale them, because PEFT multiplies by the scale itself",
    ).diagnose(file.get, [(key,) for key in right], right.get, slips)


def _wrong_keys(keys, right):
    slips = {
        "the prefix is missing. Every key begins with base_model.model.": ("base_model.model.", ""),
        "the end is missing. PEFT's A and B are layers, and a layer's tensor is its .weight": (".weight", ""),
    }
    for slip, (part, instead) in slips.items():
        if keys == {key.replace(part, instead) for key in right}:
            return slip
    surplus, missing = sorted(keys - right, key=str), sorted(right - keys)
    if surplus and missing:
        return f"the key {surplus[0]!r} is wrong. Use {missing[0]!r}"
    if surplus:
        return f"{surplus[0]!r} has no place in the file, which holds the factors and nothing of the base"
    if missing:
        return f"{len(missing)} keys are missing, such as {missing[0]!r}. Each path needs two"


@spoken
def check_merge(merge: Callable) -> str | None:
    """`merge(linear, A, B, scale)` returns a plain nn.Linear that carries the update; `linear` stays as it was."""
    cases = []
    for i, o, r, bias, scale in ((6, 4, 2, True, 3.0), (5, 5, 3, False, 0.5), (4, 7, 2, True, 2.0)):
        linear = nn.Linear(i, o, bias=bias).requires_grad_(False)
        cases.append((linear, torch.randn(i, r), torch.randn(r, o), scale))

    def right(linear, A, B, scale):
        return linear.weight + scale * (A @ B).T

    def reshaped(linear, A, B, scale):
        return linear.weight + scale * (A @ B).reshape(linear.weight.shape)

    slips = {
        "the scale is missing. The wrapper multiplies the update by it": lambda W, A, B, scale: right(W, A, B, 1),
        "the update is missing. This is the base's weight": lambda linear, A, B, scale: linear.weight,
        "the base is missing. This is the update alone": lambda linear, A, B, scale: scale * (A @ B).T,
        "`reshape` and `view` mix up the numbers. Use a transpose, `.T`": reshaped,
    }
    wrong = Comparison(
        invite="make a new nn.Linear of the same size. Which weight gives the wrapper's answers?",
        otherwise="the weight is not W + scale * (A @ B).T. Does the new layer start with the base's weight?",
        misfit="the shapes do not fit. A linear's weight is (out, in), and A @ B is (in, out)",
        unfit=_no_new_linear,
        read=lambda layer: layer.weight,
    ).diagnose(merge, cases, right, slips)
    if wrong:
        return wrong
    for linear, *update in cases:
        bias = merge(linear, *update).bias
        if linear.bias is not None and (bias is None or not close(bias, linear.bias)):
            return "the bias is not the base's. If the base has a bias, the new layer needs a copy of it"
        if linear.bias is None and bias is not None and bias.any():
            return "the base has no bias, but the new layer has a random one. Pass bias=linear.bias is not None"


def _no_new_linear(layer, linear, *update):
    if layer is linear:
        return "this is the given layer, changed. Make a new one, because an embedding may share the old one's weight"
    if type(layer) is not nn.Linear:
        return f"it should return a plain nn.Linear, not {type(layer).__name__}. Its weight is W + scale * (A @ B).T"
