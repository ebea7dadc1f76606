"""Checks of fine-tuning: what trains, and which tokens count."""

import copy
from collections.abc import Callable
from functools import partial

import torch
import torch.nn as nn

from llm.course.exercises.speak import Comparison, Invitation, spoken
from llm.loss import IGNORE
from llm.model import GPT, GPTConfig


@spoken
def check_norms(train_norms: Callable) -> str | None:
    """`train_norms(model)` leaves the LayerNorms trainable and nothing else, whatever was trainable before."""
    for free in (True, False):
        model = GPT(GPTConfig(vocab_size=97, block_size=16, n_layer=2, n_head=2, n_embd=16)).requires_grad_(free)
        parameters, before = dict(model.named_parameters()), copy.deepcopy(model.state_dict())
        norms = {name for name in parameters if isinstance(model.get_submodule(name.rpartition(".")[0]), nn.LayerNorm)}
        result = train_norms(model)
        trains = {name for name, p in model.named_parameters() if p.requires_grad}
        if any("requires_grad" in vars(module) for module in model.modules()):
            return "`module.requires_grad = False` only adds an attribute to the module. Call `requires_grad_(False)`"
        if free and trains == set(parameters):
            return Invitation("every parameter trains as before. Begin by freezing them all")
        if result is not model:
            return "return the same model at the end: `return model`"
        if not all(torch.equal(p, before[name]) for name, p in model.named_parameters()):
            return "a weight has changed its value. Freezing must leave every value as it is"
        if not trains:
            return "nothing trains. Freeze everything first, and then unfreeze the norms, whatever was trainable before"
        if stray := sorted(trains - norms):
            return f"{len(stray)} tensors outside the norms still train, {stray[0]} for one"
        if trains == {name for name in norms if name.endswith("weight")}:
            return "only the gains train. A norm also has a shift, its bias"
        if frozen := sorted(norms - trains):
            return f"{len(frozen)} tensors of norms are still frozen, {frozen[0]} for one"


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

    def prompt_graded(ids, prompt, answer):
        return torch.where(right(ids, prompt, answer) == IGNORE, ids[1:], IGNORE)

    def of_inputs(ids, prompt, answer):
        return right(ids.roll(1), prompt + 1, answer)

    slips = {
        "nothing is masked, so the model would learn to ask as well": lambda ids, prompt, answer: ids[1:],
        "that is the wrong way around. The answer is masked, and the prompt counts": prompt_graded,
        "0 is a token like any other (it is `!`). The mark for what does not count is -100": partial(right, fill=0),
        "the padding counts. Mask what comes after the answer, too": partial(right, stop=99),
        "one position too late. The prompt's last token already predicts the answer's first": partial(right, start=1),
        "one position too early. The prompt's last token counts, but it is not part of the answer": partial(
            right, start=-1
        ),
        "the answer's last token does not count, but it teaches the model to stop": partial(right, stop=-1),
        "the targets are the inputs. A target is the *next* token, ids[1:]": of_inputs,
    }
    return Comparison(
        invite="begin with `ids[1:]`, where each position holds the token that comes next. Which positions count?",
        wanted="the targets, a tensor of T numbers",
        otherwise="those are not the targets. For ids [p, p, a, a, 0] (p prompt, a answer) they are [-100, a, a, -100]",
    ).diagnose(graded_targets, cases, right, slips)
