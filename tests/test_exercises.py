"""Each check names the usual mistakes, passes the folded solution, and never stops the notebook."""

import json
import re
from pathlib import Path

import pytest
import torch

from llm import exercises

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


def folded(name):
    """The code of each folded solution in a notebook."""
    cells = json.loads((NOTEBOOKS / name).read_text())["cells"]
    text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    return re.findall(r"<summary>Solution</summary>\s*```python\n(.*?)```", text, re.S)


@pytest.mark.parametrize("name, function, check", [("01_formula.ipynb", "lora_forward", exercises.check_forward)])
def test_the_folded_solution_passes_in_the_place_of_the_stub(name, function, check, capsys):
    (solution,) = folded(name)
    scope = {"torch": torch}
    exec(solution, scope)
    assert said(capsys, check, scope[function]) == "right!\n"
