"""Checks of what the learner does to a model: wrap it, find what is wrong with a wrapper, choose what trains and counts.

For notebooks 03 and 04; how a check speaks is in `exercises`.
"""

from collections.abc import Callable

import torch
import torch.nn as nn

from llm.exercises import Invitation, compare, spoken
from llm.lora import lora_layers
from llm.loss import IGNORE
from llm.model import GPT, GPTConfig

# 03: the wrapper


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


# 04: what trains, and what counts


@spoken
def check_norms(train_norms: Callable) -> str | None:
    """`train_norms(model)` leaves the LayerNorms trainable and nothing else, whatever was trainable before."""
    for free in (True, False):
        model = GPT(GPTConfig(vocab_size=97, block_size=16, n_layer=2, n_head=2, n_embd=16)).requires_grad_(free)
        if wrong := _normed(train_norms, model, free):
            return wrong


def _normed(train_norms, model, free):
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    back = train_norms(model)
    trains = {name for name, p in model.named_parameters() if p.requires_grad}
    norms = {f"{path}.{leaf}" for path, m in model.named_modules() if isinstance(m, nn.LayerNorm) for leaf in _LEAVES}
    if "requires_grad" in vars(model) or any("requires_grad" in vars(m) for m in model.modules()):
        return "`module.requires_grad = False` only hangs a new attribute on it: call `requires_grad_(False)`"
    if any("requires_grad_" in vars(p) for p in model.parameters()):
        return "`p.requires_grad_ = False` covers up the method: write `p.requires_grad = False`, or call the method"
    if free and len(trains) == len(before):
        return Invitation("every parameter trains as before. Begin by freezing them all")
    if back is not model:
        return "give the same model back at the end: `return model`"
    if not all(torch.equal(p, before[name]) for name, p in model.named_parameters()):
        return "a weight has changed its value: freezing only says what *will* be trained"
    if not trains and not free:
        return "of a model that comes frozen nothing trains: free the norms yourself, whatever was before"
    if not trains:
        return "nothing trains: freeze everything first, and free the norms after that"
    if stray := sorted(trains - norms):
        return f"{len(stray)} tensors that are no norm's still train, {stray[0]} for one"
    if trains == norms:
        return None
    if {name for name in norms if name.endswith("weight")} == trains:
        return "those are the gains alone: a norm has a shift as well, its bias"
    if trains == {name for name in norms if "ln_f" in name}:
        return "that is the final norm alone: each block has two more, ln_1 and ln_2"
    return f"{len(norms - trains)} tensors of norms are still frozen, {min(norms - trains)} for one"


_LEAVES = ("weight", "bias")


@spoken
def check_targets(graded_targets: Callable) -> str | None:
    """`graded_targets(ids, prompt, answer)`: the next token where it is one of the answer's, -100 elsewhere.

    ids (T + 1,): `prompt` tokens, `answer` tokens, then padding. Targets (T,).
    """
    cases = [(torch.randint(1, 900, (n,)), p, a) for n, p, a in ((20, 6, 9), (13, 4, 9), (30, 11, 5), (9, 2, 3))]

    def right(ids, prompt, answer, start=0, stop=0, fill=IGNORE):
        targets = torch.full_like(ids[1:], fill)
        keep = slice(prompt - 1 + start, prompt + answer - 1 + stop)
        targets[keep] = ids[1:][keep]
        return targets

    def but(**changes):
        return lambda ids, prompt, answer: right(ids, prompt, answer, **changes)

    def asked(ids, prompt, answer):
        return torch.where(right(ids, prompt, answer) == IGNORE, ids[1:], IGNORE)

    def to_the_end(start):
        return lambda ids, prompt, answer: right(ids, prompt, answer, start=start, stop=len(ids) - prompt - answer)

    late = "one too late: the prompt's last token already predicts the answer's first, so that target counts"
    return compare(
        graded_targets,
        cases,
        right,
        {
            "nothing is masked: the model would learn to ask as well": lambda ids, prompt, answer: ids[1:],
            "that is the wrong way round: the answer is masked and the prompt counts": asked,
            "everything is masked: no target is left to learn from": lambda ids, prompt, answer: torch.full_like(
                ids[1:], IGNORE
            ),
            "0 is a token like any other (it is `!`): what does not count is -100": but(fill=0),
            "the padding counts: mask what comes after the answer, too": to_the_end(0),
            "the padding counts, and the answer's first token does not: count again from the prompt's end": to_the_end(
                1
            ),
            late: but(start=1),
            "one too late at both ends: targets are one to the left of ids": but(start=1, stop=1),
            "one too early: the prompt's last token counts, and is none of the answer's": but(start=-1),
            "the answer's last token does not count, and with it the model learns to stop": but(stop=-1),
            "one target after the answer counts: that is padding": but(stop=1),
            "the targets are the inputs: a target is the *next* token, ids[1:]": lambda ids, prompt, answer: right(
                ids.roll(1), prompt + 1, answer
            ),
            "there is a target for every id, but the last one has no next token: start from ids[1:]": (
                lambda ids, prompt, answer: torch.cat((ids.new_tensor([IGNORE]), right(ids, prompt, answer)))
            ),
        },
        invite="begin with `ids[1:]`, where each place holds the token that comes next. Which places count?",
        wanted="the targets, a tensor of T numbers",
        otherwise="those are not the targets. Of ids [p, p, a, a, 0] they are [-100, a, a, -100]: p is prompt, a answer",
    )
