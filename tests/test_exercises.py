"""Each check names the usual mistakes, passes the folded solution, and never stops the notebook."""

import json
import re
from pathlib import Path

import pytest
import torch
import torch.nn as nn

from llm import exercises
from llm.lora import LoraLinear, apply_lora

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"


def said(capsys, check, answer):
    assert check(answer) is None
    return capsys.readouterr().out


FORWARD = {
    "nothing so far": lambda x, W, A, B, alpha: None,
    "a tensor, not float": lambda x, W, A, B, alpha: 1.0,
    "update is missing": lambda x, W, A, B, alpha: x @ W,
    "x @ W, is missing": lambda x, W, A, B, alpha: alpha * (x @ A @ B),
    "alpha is missing": lambda x, W, A, B, alpha: x @ W + x @ A @ B,
    "alpha multiplies everything": lambda x, W, A, B, alpha: alpha * (x @ W + x @ A @ B),
    "alpha / r": lambda x, W, A, B, alpha: x @ W + alpha / A.size(1) * (x @ A @ B),
    "subtracted": lambda x, W, A, B, alpha: x @ W - alpha * (x @ A @ B),
    "shapes do not fit": lambda x, W, A, B, alpha: x @ W + alpha * A @ B,
    "the shape is (4,)": lambda x, W, A, B, alpha: (x @ W).sum(0),
    "an input has changed": lambda x, W, A, B, alpha: x.add_(1) @ W,
    "the numbers are not": lambda x, W, A, B, alpha: x @ W + 0.5,
    "KeyError": lambda x, W, A, B, alpha: {}["y"],
    "TypeError": lambda x, W: x @ W,
}


@pytest.mark.parametrize("hint", FORWARD)
def test_a_wrong_forward_pass_is_told_what_is_wrong(hint, capsys):
    out = said(capsys, exercises.check_forward, FORWARD[hint])
    assert out.startswith("not yet: ") and hint in out


def test_merging_first_is_right_too(capsys):
    assert said(capsys, exercises.check_forward, lambda x, W, A, B, alpha: x @ (W + alpha * (A @ B))) == "right!\n"


def loop(model, r, alpha, head=True, refuse=False):
    """The chapter's way over the whole tree, with its faults one by one."""
    if refuse and any(isinstance(m, LoraLinear) for m in model.modules()):
        raise ValueError("wrapped already")
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and (head or path != "lm_head"):
            model.set_submodule(path, LoraLinear(module, r=r, alpha=alpha))
    return model


def frozen_late(model, r, alpha):
    return loop(model, r, alpha, head=False).requires_grad_(False)


def nesting(model, r, alpha):
    return loop(model.requires_grad_(False), r, alpha, head=False)


def silent(model, r, alpha):
    return model if any(isinstance(m, LoraLinear) for m in model.modules()) else apply_lora(model, r, alpha)


def late_refusal(model, r, alpha):
    model.requires_grad_(False)
    return loop(model, r, alpha, head=False, refuse=True)


def noisy(model, r, alpha):
    for layer in apply_lora(model, r, alpha).modules():
        if isinstance(layer, LoraLinear):
            nn.init.normal_(layer.B)
    return model


APPLY = {
    "return model": lambda model, r, alpha: None,
    "no layer is a LoraLinear yet": lambda model, r, alpha: model,
    "the output head is wrapped": loop,
    "linear layers are not wrapped": lambda model, r, alpha: apply_lora(model, r, alpha, targets="c_attn"),
    "r or alpha does not reach": lambda model, r, alpha: apply_lora(model, r, alpha=1),
    "tensors of the base still train": lambda model, r, alpha: loop(model, r, alpha, head=False),
    "freeze the model *before*": frozen_late,
    "exactly as the base": noisy,
    "wraps the wrapped layers again": nesting,
    "goes through in silence": silent,
    "has changed the model by then": late_refusal,
    "ZeroDivisionError": lambda model, r, alpha: 1 / 0,
}


@pytest.mark.parametrize("hint", APPLY)
def test_a_wrong_apply_is_told_what_is_wrong(hint, capsys):
    out = said(capsys, exercises.check_apply, APPLY[hint])
    assert out.startswith("not yet: ") and hint in out


def test_our_own_apply_lora_passes(capsys):
    assert said(capsys, exercises.check_apply, apply_lora) == "right!\n"


def folded(name):
    """The code of each folded solution in a notebook."""
    cells = json.loads((NOTEBOOKS / name).read_text())["cells"]
    text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    return re.findall(r"<summary>Solution</summary>\s*```python\n(.*?)```", text, re.S)


@pytest.mark.parametrize(
    "name, function, check",
    [
        ("01_formula.ipynb", "lora_forward", exercises.check_forward),
        ("03_wrapper.ipynb", "my_apply_lora", exercises.check_apply),
    ],
)
def test_the_folded_solution_passes_in_the_place_of_the_stub(name, function, check, capsys):
    (solution,) = folded(name)
    scope = {"torch": torch, "nn": nn, "LoraLinear": LoraLinear}
    exec(solution, scope)
    assert said(capsys, check, scope[function]) == "right!\n"
