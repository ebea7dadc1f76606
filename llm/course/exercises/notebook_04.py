"""Checks of notebook 04: what trains, and which tokens count."""

from collections.abc import Callable

import torch
import torch.nn as nn

from llm.course.exercises.speak import Invitation, compare, spoken
from llm.loss import IGNORE
from llm.model import GPT, GPTConfig


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
