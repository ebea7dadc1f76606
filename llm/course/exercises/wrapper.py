"""Checks of the wrapper: wrap a model, and find what is wrong with a wrapper."""

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
        idx, head = torch.randint(97, (2, 6)), model.lm_head
        before, linears = model(idx), {path for path, m in model.named_modules() if isinstance(m, nn.Linear)}
        if apply(model, r, alpha) is not model:
            return "return the same model at the end: `return model`"
        layers = lora_layers(model)
        factors = [factor for layer in layers.values() for factor in (layer.A, layer.B)]
        free = [name for name, p in model.named_parameters() if p.requires_grad and name[-2:] not in (".A", ".B")]
        if model.lm_head is not head and free and not _refuses(apply, model, r, alpha):
            return Invitation("all three faults of the chapter are still there. Begin by freezing the whole model")
        if model.lm_head is not head:
            return "the output head is wrapped, and it costs more than all the blocks together. Leave `lm_head` out"
        if missed := sorted(linears - {"lm_head"} - set(layers)):
            return f"{len(missed)} linear layers are not wrapped, {missed[0]} for one. `named_modules()` goes to every depth"
        if any(layer.r != r or layer.alpha != alpha for layer in layers.values()):
            return "r or alpha does not reach the layers. Pass both of them to LoraLinear"
        if free:
            return f"{len(free)} tensors of the base still train, {free[0]} for one. Freeze the whole model first"
        if not all(factor.requires_grad for factor in factors):
            return "A and B are frozen. Freeze the model *before* you wrap it"
        if not torch.equal(model(idx), before):
            return "before training, the wrapped model must answer exactly as the base does"
        if not _refuses(apply, model, r, alpha):
            return "a second call goes through. Raise a ValueError if any module is a LoraLinear already"
        if lora_layers(model) != layers or not all(factor.requires_grad for factor in factors):
            return "the second call is refused only after it has changed the model. Look before you change anything"


def _refuses(apply, model, r, alpha):
    try:
        apply(model, r, alpha)
    except ValueError:
        return True
    return False


# what a wrapper without the fault shows
SOUND = {
    "a": "none of its base's parameters requires a gradient",
    "b": "before any training, layer(x) equals base(x)",
    "c": "after a backward pass, a factor has a gradient, so it can move",
    "d": "both A and B are among its parameters",
    "e": "the gradient that it passes to x is correct",
    "f": "with A and B filled in, the update is alpha times x @ A @ B",
}


@spoken
def check_wrappers(diagnosis: dict) -> str | None:
    """A letter for each of four wrapper classes, against the faults that are measured on them."""
    if not isinstance(diagnosis, dict) or len(diagnosis) != 4 or not all(isinstance(c, type) for c in diagnosis):
        return "keep the four classes and write a letter after each: {One: 'a', ...}"
    letters = {wrapper: str(letter).strip().lower() for wrapper, letter in diagnosis.items() if letter is not None}
    if not letters:
        return Invitation("make a layer of each class, and look at its parameters, its first output, and its gradients")
    for wrapper, letter in letters.items():
        if letter not in SOUND:
            return f"{letter!r} for {wrapper.__name__}: choose one letter from a to f"
        if not (faults := _faults(wrapper)):
            return f"{wrapper.__name__} has no fault any more: run its cell again"
        if letter not in faults:
            return f"{wrapper.__name__} is not {letter}: {SOUND[letter]}"
    if missing := [wrapper.__name__ for wrapper in diagnosis if wrapper not in letters]:
        return f"right so far; {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} still open"


def _faults(wrapper):
    base, x, alpha, r = nn.Linear(6, 5), torch.randn(7, 6, requires_grad=True), 3.0, 2
    layer = wrapper(base, r=r, alpha=alpha)
    output = layer(x)
    output.square().sum().backward()
    base_trains = any(p.requires_grad for p in base.parameters())
    starts_as_base = torch.equal(output, base(x))
    moves = any(factor.grad is not None and factor.grad.any() for factor in (layer.A, layer.B))
    listed = {"A", "B"} <= {name for name, _ in layer.named_parameters()}
    layer.A.data.normal_()
    layer.B.data.normal_()
    output, goal, weights = layer(x), base(x) + alpha * (x @ layer.A @ layer.B), torch.randn(7, 5)
    scaled = torch.allclose(output, goal, atol=1e-4)
    gradients = [torch.autograd.grad(y, x, weights, retain_graph=True)[0] for y in (output, goal)]
    # with another scale the gradient differs for that alone
    passes_down = not scaled or torch.allclose(*gradients, atol=1e-4)
    faults = zip("abcdef", (base_trains, not starts_as_base, not moves, not listed, not passes_down, not scaled))
    return {letter for letter, present in faults if present}
