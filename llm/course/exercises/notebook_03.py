"""Checks of notebook 03: wrap a model, and find what is wrong with a wrapper."""

from collections.abc import Callable

import torch
import torch.nn as nn

from llm.course.exercises.speak import Invitation, spoken
from llm.lora import lora_layers
from llm.model import GPT, GPTConfig


@spoken
def check_apply(apply: Callable) -> str | None:
    """`apply(model, r, alpha)` against what `apply_lora` promises, on two small GPTs."""
    for n_layer, r, alpha in ((2, 2, 4), (1, 3, 24)):  # neither is a default of LoraLinear
        model = GPT(GPTConfig(vocab_size=97, block_size=16, n_layer=n_layer, n_head=2, n_embd=16))
        if wrong := _applied(apply, model, r, alpha):
            return wrong


def _applied(apply, model, r, alpha):
    idx = torch.randint(97, (2, 6))
    before, head = model(idx), model.lm_head
    linears = {path for path, module in model.named_modules() if isinstance(module, nn.Linear)}
    if apply(model, r, alpha) is not model:
        return "give the same model back at the end: `return model`"
    layers = lora_layers(model)
    if not layers:
        return "no layer is a LoraLinear yet: replace each nn.Linear with `model.set_submodule(path, LoraLinear(...))`"
    free = [name for name, p in model.named_parameters() if p.requires_grad and name.split(".")[-1] not in ("A", "B")]
    if model.lm_head is not head:
        if free and not _refuses(apply, model, r, alpha):
            return Invitation("the chapter's three faults are all there. Begin with one: who freezes the whole model?")
        return "the output head is wrapped: it would cost more than all the blocks together, so leave `lm_head` out"
    if missed := sorted(linears - {"lm_head"} - set(layers)):
        return f"{len(missed)} linear layers are not wrapped, {missed[0]} for one: named_modules() walks the whole tree"
    if any(layer.r != r or layer.alpha != alpha for layer in layers.values()):
        return "r or alpha does not reach the layers: hand both on to LoraLinear"
    if free:
        return f"{len(free)} tensors of the base still train, {free[0]} for one: freeze the whole model first"
    if not all(f.requires_grad for layer in layers.values() for f in (layer.A, layer.B)):
        return "A and B are frozen: freeze the model *before* you wrap it"
    if not torch.equal(model(idx), before):
        return "before training the wrapped model should answer exactly as the base"
    if _refuses(apply, model, r, alpha):
        untouched = lora_layers(model) == layers and all(p.requires_grad for m in layers.values() for p in (m.A, m.B))
        return None if untouched else "the second call is refused, but it has changed the model by then: look first"
    nested = len(lora_layers(model)) > len(layers)
    what = "wraps the wrapped layers again" if nested else "goes through in silence"
    return f"a second call {what}: raise a ValueError when any module is a LoraLinear already"


def _refuses(apply, model, r, alpha):
    try:
        apply(model, r, alpha)
    except ValueError:
        return True
    return False


NOT = {  # what is seen in a wrapper that has not the fault
    "a": "none of its base's parameters asks for a gradient",
    "b": "before any training layer(x) equals base(x)",
    "c": "after a backward pass a factor has a gradient, so it moves",
    "d": "both A and B are among its parameters",
    "e": "the gradient that it hands down to x is the right one",
    "f": "with A and B filled in, the update is alpha times x @ A @ B",
}


@spoken
def check_wrappers(diagnosis: dict) -> str | None:
    """A letter for each of four wrapper classes, against the faults that are measured on them."""
    if not isinstance(diagnosis, dict) or len(diagnosis) != 4 or not all(isinstance(c, type) for c in diagnosis):
        return "keep the four classes and write a letter after each: {One: 'a', ...}"
    if all(letter is None for letter in diagnosis.values()):
        return Invitation("make a layer of each class and look: its parameters, its first output, its gradients")
    letters = {wrapper: str(letter).strip().lower() for wrapper, letter in diagnosis.items() if letter is not None}
    for wrapper, letter in letters.items():
        if letter not in NOT:
            return f"{letter!r} for {wrapper.__name__}: choose one letter from a to f"
        if not (seen := _faults(wrapper)):
            return f"{wrapper.__name__} has no fault any more: run its cell again"
        if letter not in seen:
            return f"{wrapper.__name__} is not {letter}: {NOT[letter]}"
    if missing := [wrapper.__name__ for wrapper in diagnosis if wrapper not in letters]:
        return f"right so far; {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} still open"
    return None


def _faults(wrapper):
    base, x, alpha, r = nn.Linear(6, 5), torch.randn(7, 6, requires_grad=True), 3.0, 2
    layer = wrapper(base, r=r, alpha=alpha)
    first = layer(x)
    first.square().sum().backward()
    params = {name: p for name, p in layer.named_parameters() if not name.startswith("base.")}
    seen = {"a"} if any(p.requires_grad for p in base.parameters()) else set()
    seen |= set() if torch.equal(first, base(x)) else {"b"}
    seen |= set() if any(f.grad is not None and f.grad.any() for f in (layer.A, layer.B)) else {"c"}
    seen |= set() if {"A", "B"} <= params.keys() else {"d"}
    layer.A.data.normal_(), layer.B.data.normal_()
    update, g = x @ layer.A @ layer.B, torch.randn(7, 5)
    goal = base(x) + alpha * update
    gradients = [torch.autograd.grad(y, x, g, retain_graph=True)[0] for y in (layer(x), goal)]
    f = not torch.allclose(layer(x), goal, atol=1e-4)
    if not f and not torch.allclose(*gradients, atol=1e-4):  # with another scale the gradient differs for that alone
        seen.add("e")
    return seen | {"f"} if f else seen
