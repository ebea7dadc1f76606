"""Checks of what the learner writes: each prints one line that says what is wrong, and never raises.

A wrong answer is compared with the usual slips, so that the line can name the one that was made.
"""

from collections.abc import Callable
from functools import wraps

import torch
import torch.nn as nn

from llm.lora import lora_layers
from llm.model import GPT, GPTConfig


def _spoken(diagnose: Callable[[Callable], str | None]) -> Callable[[Callable], None]:
    """A check that prints what `diagnose(answer)` says: a sentence, or None when all is well."""

    @wraps(diagnose)
    def check(answer: Callable) -> None:
        try:
            wrong = diagnose(answer)
        except Exception as error:  # the learner's code may raise anything, and the notebook goes on
            wrong = f"it stopped with {type(error).__name__}: {error}"
        print(f"not yet: {wrong}" if wrong else "right!")

    return check


@_spoken
def check_forward(forward: Callable) -> str | None:
    """`forward(x, W, A, B, alpha)` against the formula. x (n, in), W (in, out), A (in, r), B (r, out)."""
    generator = torch.Generator().manual_seed(0)
    x, W, A, B = (torch.randn(shape, generator=generator) for shape in ((5, 6), (6, 4), (6, 2), (2, 4)))
    alpha, r, kept = 3.0, 2, [t.clone() for t in (x, W, A, B)]
    right = x @ W + alpha * (x @ A @ B)
    try:
        y = forward(x, W, A, B, alpha)
    except RuntimeError:  # what torch raises when shapes do not fit
        return "the shapes do not fit. x (n, in) @ A (in, r) is (n, r), and that @ B (r, out) is (n, out), as x @ W is"
    if y is None:
        return "lora_forward returns nothing so far. Put the formula after `return`"
    if not isinstance(y, torch.Tensor):
        return f"lora_forward should return a tensor, not {type(y).__name__}"
    if not all(torch.equal(now, then) for now, then in zip((x, W, A, B), kept)):
        return "an input has changed: `+=` and `*=` write into the caller's tensor; write `a + b` instead"
    if y.shape != right.shape:
        return f"the shape is {tuple(y.shape)}, but {len(x)} rows of x through W give {tuple(right.shape)}"
    slips = {
        "that is the frozen half, x @ W, alone: the update is missing": x @ W,
        "that is the update alone: the base's own answer, x @ W, is missing": alpha * (x @ A @ B),
        "alpha is missing: it multiplies the update": x @ W + x @ A @ B,
        "alpha multiplies everything: it belongs to the update only": alpha * (x @ W + x @ A @ B),
        "that is alpha / r, the paper's convention; here the factor is alpha itself": x @ W + alpha / r * (x @ A @ B),
        "the update is subtracted; it is added": x @ W - alpha * (x @ A @ B),
    }
    if torch.allclose(y, right, atol=1e-4):
        return None
    named = (slip for slip, value in slips.items() if torch.allclose(y, value, atol=1e-4))
    return next(named, "the shape is right, the numbers are not. The formula again: x @ W + alpha * (x @ A @ B)")


@_spoken
def check_apply(apply: Callable) -> str | None:
    """`apply(model, r, alpha)` against what `apply_lora` promises, on a small GPT."""
    generator = torch.Generator().manual_seed(0)
    model, r, alpha = GPT(GPTConfig(vocab_size=97, block_size=16, n_layer=2, n_head=2, n_embd=16)), 2, 16
    idx = torch.randint(97, (2, 6), generator=generator)
    before, head, linears = model(idx), model.lm_head, _linears(model)
    if apply(model, r, alpha) is not model:
        return "give the same model back at the end: `return model`"
    layers = lora_layers(model)
    if not layers:
        return "no layer is a LoraLinear yet: replace each nn.Linear with `model.set_submodule(path, LoraLinear(...))`"
    if model.lm_head is not head:
        return "the output head is wrapped: it would cost more than all the blocks together, so leave `lm_head` out"
    if missed := sorted(linears - {"lm_head"} - set(layers)):
        return f"{len(missed)} linear layers are not wrapped, {missed[0]} for one: named_modules() walks the whole tree"
    if any(layer.r != r or layer.alpha != alpha for layer in layers.values()):
        return "r or alpha does not reach the layers: hand both on to LoraLinear"
    free = [name for name, p in model.named_parameters() if p.requires_grad and name.split(".")[-1] not in ("A", "B")]
    if free:
        return f"{len(free)} tensors of the base still train, {free[0]} for one: freeze the whole model first"
    if not all(f.requires_grad for layer in layers.values() for f in (layer.A, layer.B)):
        return "A and B are frozen: freeze the model *before* you wrap it"
    if not torch.equal(model(idx), before):
        return "before training the wrapped model should answer exactly as the base"
    try:
        apply(model, r, alpha)
    except ValueError:
        untouched = lora_layers(model) == layers and all(p.requires_grad for m in layers.values() for p in (m.A, m.B))
        return None if untouched else "the second call is refused, but it has changed the model by then: look first"
    nested = len(lora_layers(model)) > len(layers)
    what = "wraps the wrapped layers again" if nested else "goes through in silence"
    return f"a second call {what}: raise a ValueError when any module is a LoraLinear already"


def _linears(model: nn.Module) -> set[str]:
    return {path for path, module in model.named_modules() if isinstance(module, nn.Linear)}
