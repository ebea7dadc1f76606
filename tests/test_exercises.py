"""Each check names the usual mistakes, passes the folded solution, invites whoever has not begun, never stops the notebook.

The exercises are found in the notebooks: a cell tagged "exercise", the check in the next, a folded hint and solution.
"""

import ast
import copy
import math
import re
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import nbformat
import numpy as np
import pytest
import torch
import torch.nn as nn

from llm.course import exercises
from llm.lora import LoraLinear, apply_lora

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
FOLD = r"<details><summary>{}</summary>\n\n(.*?)\n\n</details>"


@dataclass(frozen=True)
class Exercise:
    """One exercise as stored: what the learner has, what is folded away, and all the code that comes before and after."""

    notebook: str
    title: str
    before: tuple[str, ...]  # code cells of the exercise that stand before the stub
    given: str  # the notebook's imports and classes so far
    stub: str
    check: str
    after: tuple[str, ...]  # the notebook's later code cells
    hints: tuple[str, ...]
    solutions: tuple[str, ...]

    @property
    def name(self):
        """The name of the check that the cell calls."""
        return re.search(r"^(check_\w+)\(\w+\)$", self.check, re.M).group(1)

    def run(self, answer, capsys):
        """What the check cell prints when `answer` stands in the stub's place."""
        scope = {}
        for source in (self.given, *self.before, answer, self.check):
            exec(source, scope)
        return capsys.readouterr().out


def given(cells):
    nodes = [node for cell in cells if cell.cell_type == "code" for node in ast.parse(cell.source).body]
    return "\n".join(
        ast.unparse(node) for node in nodes if isinstance(node, ast.Import | ast.ImportFrom | ast.ClassDef)
    )


def exercises_of(path):
    cells = nbformat.read(path, as_version=4).cells
    for i, cell in enumerate(cells):
        if "exercise" not in cell.metadata.get("tags", []):
            continue
        begin = max(j for j in range(i) if "## Your turn" in cells[j].source)
        end = next((j for j in range(i + 2, len(cells)) if not cells[j].source.startswith("<details>")), len(cells))
        folds = "\n".join(c.source for c in cells[i + 2 : end])
        yield Exercise(
            notebook=path.stem,
            title=re.search(r"^## Your turn: .*$", cells[begin].source, re.M).group(),
            before=tuple(c.source for c in cells[begin + 1 : i] if c.cell_type == "code"),
            given=given(c for c in cells[:begin] if "google.colab" not in c.source),
            stub=cell.source,
            check=cells[i + 1].source,
            after=tuple(c.source for c in cells[i + 2 :] if c.cell_type == "code"),
            hints=tuple(re.findall(FOLD.format("Hint"), folds, re.S)),
            solutions=tuple(re.findall(FOLD.format("Solution"), folds, re.S)),
        )


EXERCISES = {exercise.name: exercise for path in NOTEBOOKS for exercise in exercises_of(path)}
CHECKS = {
    name: check
    for module in iter_modules(exercises.__path__)
    for name, check in vars(import_module(f"{exercises.__name__}.{module.name}")).items()
    if name.startswith("check_")
}
each = pytest.mark.parametrize("exercise", EXERCISES.values(), ids=EXERCISES.keys())


def printed(capsys, check, answer):
    assert check(answer) is None
    return capsys.readouterr().out


# what the notebooks hold


@pytest.mark.parametrize(
    "path", [p for p in NOTEBOOKS if not p.stem.endswith(("one_page", "real_model"))], ids=lambda p: p.stem
)
def test_a_notebook_has_exercises_and_no_more_than_an_hour_holds(path):
    assert len(list(exercises_of(path))) in (1, 2, 3)


def test_no_module_of_checks_is_named_after_a_notebooks_number():
    assert not any(re.search(r"\d", module.name) for module in iter_modules(exercises.__path__))


def test_every_check_has_its_one_exercise():
    assert EXERCISES.keys() == CHECKS.keys() and len(EXERCISES) == sum(len(list(exercises_of(p))) for p in NOTEBOOKS)


@each
def test_an_exercise_has_minutes_one_hint_and_one_solution(exercise):
    assert re.fullmatch(r"## Your turn: .+ \(\d+ minutes\)", exercise.title)
    assert len(exercise.hints) == len(exercise.solutions) == 1


@each
def test_the_folded_solution_passes_in_the_place_of_the_stub(exercise, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", exercise.solutions[0], re.S)
    assert exercise.run(code, capsys) == "right!\n"


@each
def test_the_untouched_stub_gets_an_invitation(exercise, capsys):
    out = exercise.run(exercise.stub, capsys)
    assert out.startswith("nothing here yet: ") and out.count("\n") == 1


@each
def test_the_rest_of_the_notebook_does_not_use_what_the_learner_wrote(exercise):
    def names(source, context):
        nodes = list(ast.walk(ast.parse(source)))
        return {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, context)} | {
            n.name for n in nodes if isinstance(n, ast.FunctionDef) and context is ast.Store
        }

    learners = names(exercise.stub, ast.Store)
    assert learners and not learners & set().union(*(names(source, ast.Load) for source in exercise.after))


# typical mistakes: each is told by a sentence of its own


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


def wrappers():
    """The four classes of the exercise."""
    scope, exercise = {}, EXERCISES["check_wrappers"]
    for source in (exercise.given, *exercise.before):
        exec(source, scope)
    return [scope[name] for name in ("One", "Two", "Three", "Four")]


def letters(*chosen):
    return dict(zip(wrappers(), chosen))


def svd(keep):
    return lambda D, r: keep(*torch.linalg.svd(D, full_matrices=False), r)


def energy(s):
    return (s**2).cumsum(0) / (s**2).sum()


def rank(s, share):
    return int((energy(s) < share).sum()) + 1


def in_place(D, r):
    D -= svd(lambda u, s, vh, r: (u[:, r:] * s[r:]) @ vh[r:])(D, r)
    return D


def freeing(chosen):
    """Freeze all, then free the parameters whose names match."""

    def train_norms(model):
        model.requires_grad_(False)
        for name, p in model.named_parameters():
            p.requires_grad_(bool(re.search(chosen, name)))
        return model

    return train_norms


def freezing_others(model):
    for name, p in model.named_parameters():
        if "ln_" not in name:
            p.requires_grad = False
    return model


def attribute(model):
    model.requires_grad = False
    return model


def zeroed(model):
    freeing("ln_")(model)
    model.transformer.ln_f.weight.data.zero_()
    return model


def masked(first, last, fill=-100, shift=True):
    """Targets from place prompt + first up to prompt + answer + last of the ids; the two are places among the targets."""

    def graded_targets(ids, prompt, answer):
        source = ids[1:] if shift else ids[:-1]
        targets = torch.full_like(source, fill)
        keep = slice(prompt + first, len(ids) if last is None else prompt + answer + last)
        targets[keep] = source[keep]
        return targets

    return graded_targets


def other_way_round(ids, prompt, answer):
    targets = ids[1:].clone()
    targets[prompt - 1 : prompt + answer - 1] = -100
    return targets


def budget(numbers=lambda m, n: m + n, kilo=1000, top=True, rounded=math.floor, each=None):
    def largest_rank(shapes, kilobytes, bytes_each):
        r = rounded(kilo * kilobytes / ((each or bytes_each) * sum(numbers(m, n) for m, n in shapes)))
        return min(r, *(min(shape) for shape in shapes)) if top else r

    return largest_rank


def multiplied(frozen=2, thin=3, heads=(2, 3), sides=lambda m, n: m + n):
    def count_step(tokens, shapes, r, head, head_trains):
        each = sum(frozen * m * n + thin * r * sides(m, n) for m, n in shapes)
        return tokens * (each + heads[head_trains] * head[0] * head[1])

    return count_step


DIVISOR = {"alpha": lambda r: 1, "alpha/r": lambda r: r, "alpha/sqrt(r)": lambda r: r**0.5}


def alpha(formula, divisor=DIVISOR):
    return lambda alpha, r, old, new: formula(alpha, divisor[old](r), divisor[new](r))


def peft(key="base_model.model.{}.lora_{}.weight", make=lambda t: t.T, names="AB", extra=None):
    def to_peft(factors):
        pairs = {key.format(p, n): make(t) for p, pair in factors.items() for n, t in zip(names, pair)}
        return pairs | (extra or {})

    return to_peft


def merging(weight, bias=lambda linear: linear.bias):
    def merge(linear, A, B, scale):
        merged = nn.Linear(linear.in_features, linear.out_features, bias=bias(linear) is not None)
        merged.weight = nn.Parameter(weight(linear.weight, A, B, scale))
        if bias(linear) is not None:
            merged.bias = nn.Parameter(bias(linear).clone())
        return merged

    return merge


def merge_in_place(linear, A, B, scale):
    linear.weight += scale * (A @ B).T
    return linear


def merge_and_hand_back_another(linear, A, B, scale):
    merge_in_place(linear, A, B, scale)
    return copy.deepcopy(linear)


def merge_into(start):
    """A merge that adds the update to what start(new, linear) gives, a weight of the new layer."""

    def merge(linear, A, B, scale):
        new = nn.Linear(linear.in_features, linear.out_features)
        weight = start(new, linear)
        weight += scale * (A @ B).T
        return new

    return merge


def weight_of_copy(new, linear):
    new.load_state_dict(linear.state_dict(), strict=False)
    return new.weight.data


def rounding(scale=lambda w: w.abs().max(), back=lambda w, s, level: s * level):
    """A block by hand, with its faults one by one: the scale and the way back."""

    def round_block(w, levels):
        s = scale(w)
        return back(w, s, levels[(w[:, None] / s - levels).abs().argmin(1)])

    return round_block


def scheme(scale=lambda s, block: s / block, nested=lambda block, n: 32 / (block * n), end=lambda x, block: x):
    return lambda c, b, s, n: end(c + scale(s, b) + (nested(b, n) if n else 0), b)


def which(same=lambda a, b: torch.allclose(a, b, atol=1e-3), names=("dequantized", "original", "neither")):
    def which_base(merged, over_four_bits, over_original):
        if same(merged, over_four_bits):
            return names[0]
        return names[1] if same(merged, over_original) else names[2]

    return which_base


def nearer(merged, over_four_bits, over_original):
    one, other = ((merged - y).norm() for y in (over_four_bits, over_original))
    return "dequantized" if one < other else "original"


def dora(direction=lambda W, AB, s: W + s * AB, length=None, m=lambda m: m):
    """x (m V / length), its parts to be put wrong one by one."""
    length = length or (lambda V, W: V.norm(dim=0))

    def dora_forward(x, W, A, B, lengths, scale):
        V = direction(W, A @ B, scale)
        return x @ (m(lengths) * V / length(V, W))

    return dora_forward


def at_ends(ends=(min, max)):
    return lambda table: [n for n, row in table.items() if min(row, key=row.get) in [end(row) for end in ends]]


def plainly(table):
    table["LoRA"].clear()
    return []


def marked(header=False, end=True, behind=False, roles=("assistant",), last=False, broken=True):
    """The answer to the exercise on tokens, with its faults one by one."""

    def graded(tokens):
        found, role, open_header, in_answer = [], None, False, False
        for i, token in enumerate(tokens):
            if token == "<|im_start|>":
                role, open_header, in_answer = tokens[i + 1], True, True
            mine = role in roles and (not last or "<|im_start|>" not in tokens[i + 1 :])
            if token == "<|im_end|>":
                found.append(mine and end and in_answer)
                in_answer = False
            elif open_header or not in_answer:
                found.append(mine and (header if open_header else behind))
            else:
                in_answer = in_answer and (broken or token != "\n")
                found.append(mine and in_answer)
            open_header = open_header and token != "\n"
        return found

    return graded


def stops_at(late=0, strict=True, rising=False, pick=lambda best, last: (best, last)):
    """The answer to the exercise on stopping, with its faults one by one."""

    def stop(losses, patience):
        best = last = 0
        for i, loss in enumerate(losses):
            than = losses[i - 1] if rising and i else losses[best]
            last = i
            if i == 0 or loss < than or not strict and loss == than:
                best, since = i, i
            elif i - since >= patience + late:
                break
        return pick(best, last)

    return stop


WRONG = {
    "check_forward": {
        "a tensor, not set": lambda x, W, A, B, alpha: {1.0},
        "the shape is ()": lambda x, W, A, B, alpha: 1.0,
        "update is missing": lambda x, W, A, B, alpha: x @ W,
        "x @ W, is missing": lambda x, W, A, B, alpha: alpha * (x @ A @ B),
        "alpha is missing": lambda x, W, A, B, alpha: x @ W + x @ A @ B,
        "alpha multiplies everything": lambda x, W, A, B, alpha: alpha * (x @ W + x @ A @ B),
        "alpha / r": lambda x, W, A, B, alpha: x @ W + alpha / A.size(1) * (x @ A @ B),
        "shapes do not fit": lambda x, W, A, B, alpha: x @ W + alpha * A @ B,
        "the shape is (4,)": lambda x, W, A, B, alpha: (x @ W).sum(0),
        "an input has changed": lambda x, W, A, B, alpha: x.add_(1) @ W,
        "but the numbers are not": lambda x, W, A, B, alpha: x @ W + 0.5,
        "None for some inputs": lambda x, W, A, B, alpha: x @ W if len(x) == 5 else None,
        "NotImplementedError": lambda x, W, A, B, alpha: (_ for _ in ()).throw(NotImplementedError),
        "KeyError": lambda x, W, A, B, alpha: {}["y"],
        "TypeError": lambda x, W: x @ W,
    },
    "check_count": {
        "of W, and W is frozen": lambda shapes, r: sum(m * n for m, n in shapes),
        "A alone, and B": lambda shapes, r: sum(m * r for m, n in shapes),
        "2 * rows * r": lambda shapes, r: sum(2 * m * r for m, n in shapes),
        "r is missing": lambda shapes, r: sum(m + n for m, n in shapes),
        "the first matrix alone": lambda shapes, r: next(r * (m + n) for m, n in shapes),
        "the last matrix alone": lambda shapes, r: [r * (m + n) for m, n in shapes][-1],
        "one whole number, not tuple": lambda shapes, r: (r, r),
        "not the count": lambda shapes, r: sum(r * (m + n) for m, n in shapes) + 1,
        "an input has changed": lambda shapes, r: r * sum(shapes.pop()),
    },
    "check_rank": {
        "sum of s": lambda s, share: rank(s.sqrt(), share),
        "one too few": lambda s, share: int((energy(s) < share).sum()),
        "one too many": lambda s, share: rank(s, share) + 1,
        ">= instead of >": lambda s, share: int((energy(s) <= share).sum()) + 1,
        "for s = [2, 1, 1, 1, 1]": lambda s, share: 3,
        "an input has changed": lambda s, share: int((s.square_().cumsum(0) / s.sum() < share).sum()) + 1,
    },
    "check_truncate": {
        "singular values are missing": svd(lambda u, s, vh, r: u[:, :r] @ vh[:r]),
        "V is transposed already": lambda D, r: (lambda u, s, vh: (u[:, :r] * s[:r]) @ vh[:, :r].T)(
            *torch.linalg.svd(D, full_matrices=True)
        ),
        "what is left over": svd(lambda u, s, vh, r: (u[:, r:] * s[r:]) @ vh[r:]),
        "rank r - 1": svd(lambda u, s, vh, r: (u[:, : r - 1] * s[: r - 1]) @ vh[: r - 1]),
        "not tuple": svd(lambda u, s, vh, r: (u[:, :r] * s[:r], vh[:r])),
        "shapes do not fit": svd(lambda u, s, vh, r: (u[:r] * s) @ vh[:r]),
        "the shape is": svd(lambda u, s, vh, r: s[:r]),
        "the numbers are not": lambda D, r: D / 2,
        "an input has changed": in_place,
    },
    "check_apply": {
        "return model": lambda model, r, alpha: None,
        "the output head is wrapped": lambda model, r, alpha: loop(model.requires_grad_(False), r, alpha),
        "linear layers are not wrapped": lambda model, r, alpha: apply_lora(model, r, alpha, targets="c_attn"),
        "r or alpha does not reach": lambda model, r, alpha: apply_lora(model, r),  # alpha stays 16
        "tensors of the base still train": lambda model, r, alpha: loop(model, r, alpha, head=False),
        "freeze the model *before*": frozen_late,
        "exactly as the base": noisy,
        "a second call goes through": silent,
        "only after it has changed the model": late_refusal,
        "ZeroDivisionError": lambda model, r, alpha: 1 / 0,
    },
    "check_wrappers": {
        "One is not a": letters("a", "e", "a", "d"),
        "One is not b": letters("b", "e", "a", "d"),
        "Two is not c": letters("c", "c", "a", "d"),
        "Three is not d": letters("c", "e", "d", "d"),
        "Four is not e": letters("c", "e", "a", "e"),
        "Two is not f": letters("c", "f", None, None),
        "Three and Four are still open": letters("c", "e", None, None),
        "Four is still open": letters("c", "e", "a", None),
        "'g' for One": letters("g", "e", "a", "d"),
        "keep the four classes": {"One": "c"},
        "no fault any more": dict(zip([LoraLinear, *wrappers()[1:]], "ceda")),
    },
    "check_norms": {
        "nothing trains": freezing_others,
        "only the gains train": freeing(r"ln_.*weight"),
        "are still frozen, transformer.ln_f.bias for one": freeing("ln_[12]"),
        "outside the norms still train, transformer.h.0.mlp.c_fc.bias": freeing(r"ln_|c_fc\.bias"),
        "only adds an attribute": attribute,
        "changed its value": zeroed,
        "return model": lambda model: freeing("ln_")(model) and None,
        "AttributeError": lambda model: model.norms,
    },
    "check_targets": {
        "nothing is masked": lambda ids, prompt, answer: ids[1:],
        "wrong way around": other_way_round,
        "what does not count is -100": masked(-1, -1, fill=0),
        "the padding counts. Mask": masked(-1, None),
        "one position too late. The prompt's last": masked(0, -1),
        "one position too early": masked(-2, -1),
        "teaches the model to stop": masked(-1, -2),
        "the targets are the inputs": masked(0, 0, shift=False),
        "not the targets": lambda ids, prompt, answer: ids[1:] + 1,
        "an input has changed": lambda ids, prompt, answer: ids[1:].clamp_(max=-100),
        "T numbers, not tuple": lambda ids, prompt, answer: (ids[1:], prompt),
    },
    "check_alpha": {
        "the same alpha gives": lambda alpha, r, old, new: alpha,
        "that is the scale;": alpha(lambda a, old, new: a / old),
        "wrong way around": alpha(lambda a, old, new: a * old / new),
        "left out the square root": alpha(lambda a, old, new: a / old * new, DIVISOR | {"alpha/sqrt(r)": lambda r: r}),
        "the scales differ": lambda alpha, r, old, new: alpha + 1,
        "one number, not str": lambda alpha, r, old, new: new,
    },
    "check_rank_for_budget": {
        "cannot exceed the smallest side of a matrix\n": budget(top=False),
        "a whole number, so round down": budget(rounded=float),
        "rounded up": budget(rounded=math.ceil),
        "left out B": budget(lambda m, n: m),
        "W's own numbers": budget(lambda m, n: m * n),
        "not 1,024": budget(kilo=1024),
        "budget is in kilobytes": budget(kilo=1),
        "one byte for each number": budget(each=1),
        "one 100 x 150 matrix": lambda *case: 7,
    },
    "check_count_step": {
        "every token passes": lambda tokens, *rest: multiplied()(1, *rest),
        "A and B are missing": multiplied(thin=0),
        "not one\n": multiplied(thin=1),
        "three products, not two": multiplied(thin=2),
        "B is missing": multiplied(sides=lambda m, n: m),
        "two products, not three": multiplied(frozen=3),
        "two products, not one": multiplied(frozen=1),
        "the head is missing": multiplied(heads=(0, 0)),
        "a head that trains takes three": multiplied(heads=(2, 2)),
        "a frozen head takes two": multiplied(heads=(3, 3)),
        "takes 260 multiplications": lambda *case: 7,
        "one whole number, not str": lambda *case: "7",
    },
    "check_peft": {
        "A and B are swapped. Make lora_A": peft(names="BA"),
        "nothing is transposed": peft(make=lambda t: t),
        "the prefix is missing": peft("{}.lora_{}.weight"),
        "the end is missing": peft("base_model.model.{}.lora_{}"),
        "nothing of the base": peft(extra={"base_model.model.encoder.weight": torch.zeros(3, 5)}),
        "keys are missing": peft(names="A"),
        "is wrong. Use 'base_model": peft("model.{}.lora_{}.weight"),
        "Don't scale them": peft(make=lambda t: 2 * t.T),
        "`reshape` mixes up": peft(make=lambda t: t.reshape(t.shape[::-1])),
        "a tensor for each key, not str": peft(make=str),
        "the shape is ()": peft(make=lambda t: t.T[:1, :1]),
        "a dict of tensors by key, not list": lambda factors: list(factors),
    },
    "check_merge": {
        "scale is missing": merging(lambda W, A, B, scale: W + (A @ B).T),
        "update is missing": merging(lambda W, A, B, scale: W.clone()),
        "base is missing": merging(lambda W, A, B, scale: scale * (A @ B).T),
        "`reshape` and `view`": merging(lambda W, A, B, scale: W + scale * (A @ B).view(W.shape)),
        "shapes do not fit": merging(lambda W, A, B, scale: W + scale * A @ B),
        "bias is not the base's": merging(lambda W, A, B, scale: W + scale * (A @ B).T, lambda linear: None),
        "a random one": merge_into(weight_of_copy),
        "given layer, changed": merge_in_place,
        "an input has changed": merge_and_hand_back_another,
        "a weight that trains": merge_into(lambda new, linear: new.weight),
        "Does the new layer start": merge_into(lambda new, linear: new.weight.data),
        "a plain nn.Linear, not LoraLinear": lambda linear, A, B, scale: LoraLinear(linear, r=A.size(1)),
        "a plain nn.Linear, not Tensor": lambda linear, A, B, scale: linear.weight + scale * (A @ B).T,
    },
    "check_block": {
        "these are levels, not weights": rounding(back=lambda w, s, level: level),
        "so divide the weights by the block's absmax": rounding(scale=lambda w: 1),
        "the largest absolute value may be negative": rounding(lambda w: w.max()),
        "holds all distances at once": lambda w, levels: (w - levels).abs(),
        "an input has changed": lambda w, levels: rounding()(w.div_(2), levels),
        "a tensor (n,), not set": lambda w, levels: {1.0},
    },
    "check_bits": {
        "one scale serves a whole block": scheme(scale=lambda s, b: s, nested=lambda b, n: 32 / n),
        "the second float32 is missing": scheme(nested=lambda b, n: 0),
        "these are bytes": scheme(end=lambda x, b: x / 8),
        "288 bits": lambda *case: 7,
    },
    "check_which": {
        "you call all of them neither": which(torch.equal),
        "you call none of them neither": nearer,
        "swapped": which(names=("original", "dequantized", "neither")),
        "too wide": which(lambda a, b: torch.allclose(a, b, atol=4.0)),
        "\"neither\", not 'four bits'": which(names=("four bits", "original", "neither")),
    },
    "check_dora": {
        "that is LoRA's weight": lambda x, W, A, B, m, scale: x @ (W + scale * A @ B),
        "m is missing": dora(m=lambda m: 1),
        "V is not divided": dora(length=lambda V, W: 1),
        "the scale is missing": dora(lambda W, AB, s: W + AB),
        "lengths of the rows": dora(length=lambda V, W: V.norm(dim=1, keepdim=True)),
        "shapes do not fit": dora(length=lambda V, W: V.norm(dim=1)),
        "the result is not": dora(m=lambda m: m + 1),
        "an input has changed": lambda x, W, A, B, m, scale: dora()(x, W.add_(1), A, B, m, scale),
        "a tensor, not tuple": lambda x, W, A, B, m, scale: (x, W),
    },
    "check_plain": {
        "A0 B0 is added": lambda A, B, A0, B0: (torch.cat((A, A0), 1), torch.cat((B, B0))),
        "the signs are reversed": lambda A, B, A0, B0: (torch.cat((-A, A0), 1), torch.cat((B, B0))),
        "those are A and B alone": lambda A, B, A0, B0: (A, B),
        "subtracting the factors": lambda A, B, A0, B0: (A - A0, B - B0),
        "stacked along the wrong side": lambda A, B, A0, B0: (torch.cat((A, A0)), torch.cat((B, -B0), 1)),
        "the shapes are": lambda A, B, A0, B0: (torch.cat((A, A0), 1).T, torch.cat((B, -B0))),
        "is not A B - A0 B0": lambda A, B, A0, B0: (2 * torch.cat((A, A0), 1), torch.cat((B, -B0))),
        "two matrices, the A and B of the plain adapter, not Tensor": lambda A, B, A0, B0: A @ B - A0 @ B0,
        "an input has changed": lambda A, B, A0, B0: (torch.cat((A, A0), 1), torch.cat((B, B0.neg_()))),
    },
    "check_unfair": {
        "check only the largest rate": at_ends([max]),
        "check only the smallest rate": at_ends([min]),
        "treated fairly; their": lambda table: [name for name in table if name not in at_ends()(table)],
        "None for some tables": lambda table: at_ends()(table) or None,
        "it returns one name": lambda table: next(iter(at_ends()(table)), "none"),
        "names of methods, spelled as": lambda table: [row for row in table.values()],
        "whose best rate is the smallest or the largest": lambda table: list(table)[1:2],
        "an input has changed": plainly,
    },
    "check_graded": {
        "every token counts": lambda tokens: [True] * len(tokens),
        "the user's turns count": marked(roles=("system", "user", "assistant", "tool")),
        "the header of an answer": marked(header=True),
        "the end token does not count": marked(end=False),
        "the line break behind": marked(behind=True),
        "only the last answer": marked(last=True),
        "may have a line break": marked(broken=False),
        "not the tokens of the answers": lambda tokens: [token == "user" for token in tokens],
        "list of True and False": lambda tokens: "yes",
        "marks for": lambda tokens: [True],
        "an input has changed": lambda tokens: [marked()(tokens), tokens.reverse()][0],
    },
    "check_stop": {
        "it never stops": lambda losses, patience: (losses.index(min(losses)), len(losses) - 1),
        "too early": stops_at(late=-1),
        "too late": stops_at(late=1),
        "nobody has seen it": lambda losses, patience: (losses.index(min(losses)), stops_at()(losses, patience)[1]),
        "keeps the last step": stops_at(pick=lambda best, last: (last, last)),
        "below the one before it": stops_at(rising=True),
        "equals the best": stops_at(strict=False),
        "wrong way around": stops_at(pick=lambda best, last: (last, best)),
        "not the places": lambda losses, patience: (0, 0),
        "two whole numbers": lambda losses, patience: losses[0],
        "an input has changed": lambda losses, patience: [stops_at()(losses, patience), losses.sort()][0],
    },
}
CASES = [(name, hint) for name, wrong in WRONG.items() for hint in wrong]


def test_every_check_is_fed_four_typical_mistakes_or_more():
    assert WRONG.keys() == CHECKS.keys() and all(len(wrong) >= 4 for wrong in WRONG.values())


@pytest.mark.parametrize("name, hint", CASES)
def test_a_wrong_answer_is_told_what_is_wrong(name, hint, capsys):
    out = printed(capsys, CHECKS[name], WRONG[name][hint])
    assert out.startswith("not yet: ") and hint.casefold() in out.casefold() and out.count("\n") == 1


@pytest.mark.parametrize("name", WRONG)
def test_each_mistake_has_a_sentence_of_its_own(name, capsys):
    told = [printed(capsys, CHECKS[name], answer) for answer in WRONG[name].values()]
    assert len(set(told)) == len(told)


# right answers in other words


def my_norms(model):
    for path, module in model.named_modules():
        for p in module.parameters(recurse=False):
            p.requires_grad = path.split(".")[-1] in ("ln_1", "ln_2", "ln_f")
    return model


def counted(s, share):
    total, so_far = sum(float(v) ** 2 for v in s), 0.0
    for i, v in enumerate(s, start=1):
        so_far += float(v) ** 2
        if so_far >= share * total:
            return i


def climbing(shapes, kilobytes, bytes_each):
    r = 0
    while r < min(map(min, shapes)) and bytes_each * (r + 1) * sum(m + n for m, n in shapes) <= kilobytes * 1000:
        r += 1
    return r


def as_list(ids, prompt, answer):
    follows = enumerate(ids.tolist()[1:], start=1)
    return [token if prompt <= i < prompt + answer else -100 for i, token in follows]


def merged_by_copy(linear, A, B, scale):
    merged = copy.deepcopy(linear).requires_grad_(True)
    with torch.no_grad():
        merged.weight.add_(B.T @ A.T, alpha=scale)
    return merged


def letters_in_capitals():
    return dict(zip(wrappers(), ("C", " e", "A", "d")))


RIGHT = {
    "check_forward": [
        lambda x, W, A, B, alpha: x @ (W + alpha * (A @ B)),
        lambda x, W, A, B, alpha: x.double() @ W.double() + alpha * (x.double() @ A.double() @ B.double()),
        lambda x, W, A, B, alpha: x.numpy() @ W.numpy() + alpha * (x.numpy() @ A.numpy() @ B.numpy()),
        lambda x, W, A, B, alpha: torch.addmm(x @ W, x @ A, B, alpha=alpha),
    ],
    "check_count": [
        lambda shapes, r: sum(torch.zeros(m, r).numel() + torch.zeros(r, n).numel() for m, n in shapes),
        lambda shapes, r: r * np.sum(shapes),
        lambda shapes, r: float(r * torch.tensor(shapes).sum()),
    ],
    "check_rank": [
        counted,
        lambda s, share: np.searchsorted(np.cumsum(s.numpy() ** 2), share * np.sum(s.numpy() ** 2)) + 1,
        lambda s, share: (energy(s) >= share).nonzero()[0] + 1,
    ],
    "check_truncate": [
        svd(lambda u, s, vh, r: u[:, :r] @ torch.diag(s[:r]) @ vh[:r]),
        svd(lambda u, s, vh, r: sum(s[i] * torch.outer(u[:, i], vh[i]) for i in range(r))),
        lambda D, r: (lambda u, s, v: (u[:, :r] * s[:r]) @ v[:, :r].T)(*torch.svd(D.double())),
        lambda D, r: (lambda u, s, vh: u[:, :r] * s[:r] @ vh[:r])(*np.linalg.svd(D.numpy(), full_matrices=False)),
    ],
    "check_apply": [apply_lora],
    "check_wrappers": [letters_in_capitals],
    "check_norms": [my_norms, freeing("ln_")],
    "check_targets": [
        as_list,
        lambda *case: np.array(as_list(*case)),
        lambda *case: torch.tensor(as_list(*case)).int(),
    ],
    "check_alpha": [
        lambda alpha, r, old, new: (
            alpha
            * r ** {"alpha": 0, "alpha/sqrt(r)": 0.5, "alpha/r": 1}[new]
            / math.pow(r, {"alpha": 0, "alpha/sqrt(r)": 0.5, "alpha/r": 1}[old])
        ),
        lambda alpha, r, old, new: np.float64(alpha) / DIVISOR[old](r) * DIVISOR[new](r),
    ],
    "check_rank_for_budget": [climbing, budget(rounded=np.floor)],
    "check_count_step": [
        multiplied(),
        lambda tokens, shapes, r, head, trains: (
            sum(tokens * (m * n + m * n + 3 * m * r + 3 * r * n) for m, n in shapes)
            + tokens * np.prod(head) * (2 + trains)
        ),
    ],
    "check_peft": [
        peft(make=lambda t: t.double().T),
        peft(make=lambda t: t.numpy().T),
        lambda factors: dict(reversed(peft(make=lambda t: t.T.contiguous().requires_grad_())(factors).items())),
    ],
    "check_block": [
        rounding(),
        lambda w, levels: torch.stack([min(levels * w.abs().max(), key=lambda v, x=x: abs(v - x)) for x in w]),
        lambda w, levels: rounding()(w.double(), levels.double()).numpy(),
    ],
    "check_bits": [scheme(), lambda c, b, s, n: (b * c + s + (32 / n if n else 0)) / b],
    "check_which": [which(), which(lambda a, b: (a - b).norm() < 1e-3 * b.norm())],
    "check_merge": [merged_by_copy, merging(lambda W, A, B, scale: (W.T + scale * A @ B).T)],
    "check_dora": [
        dora(),
        lambda x, W, A, B, m, scale: (x @ W + scale * (x @ A) @ B) * m / (W + scale * A @ B).norm(dim=0),
        lambda x, W, A, B, m, scale: m.numpy() * (x @ torch.nn.functional.normalize(W + scale * A @ B, dim=0)).numpy(),
        lambda x, W, A, B, m, scale: x @ (m * (V := W + scale * A @ B) / V.square().sum(0).sqrt().detach()),
    ],
    "check_plain": [
        lambda A, B, A0, B0: (torch.cat((A0, A), 1), torch.cat((-B0, B))),
        lambda A, B, A0, B0: [torch.hstack((A, -A0)).double(), torch.vstack((B, B0)).double()],
        lambda A, B, A0, B0: (np.hstack((A.numpy(), A0.numpy())), np.vstack((B.numpy(), -B0.numpy()))),
    ],
    "check_unfair": [
        at_ends(),
        lambda table: set(at_ends()(table)),
        lambda table: tuple(reversed(at_ends()(table))),
        lambda table: [
            n for n, row in table.items() if [*dict(sorted(row.items())).values()].index(min(row.values())) in (0, 4)
        ],
    ],
    "check_graded": [
        marked(),
        lambda tokens: tuple(int(mark) for mark in marked()(tokens)),
    ],
    "check_stop": [
        stops_at(),
        lambda losses, patience: [*stops_at()(losses, patience)],
    ],
}


@pytest.mark.parametrize("name, i", [(name, i) for name, answers in RIGHT.items() for i in range(len(answers))])
def test_a_right_answer_in_other_words_is_right(name, i, capsys):
    answer = RIGHT[name][i]
    answer = answer() if name == "check_wrappers" else answer
    assert printed(capsys, CHECKS[name], answer) == "right!\n"


def test_every_check_has_a_right_answer_in_other_words():
    assert RIGHT.keys() == CHECKS.keys()


def test_a_repaired_wrapper_is_noticed_and_a_fault_of_the_learners_own_is_measured(capsys):
    class Hot(LoraLinear):
        def __init__(self, base, r=8, alpha=16.0):
            super().__init__(base, r, alpha, scaling="alpha/r")

    class Started(LoraLinear):
        def __init__(self, base, r=8, alpha=16.0):
            super().__init__(base, r, alpha)
            nn.init.ones_(self.B)

    one, two, _, _ = wrappers()
    assert printed(capsys, CHECKS["check_wrappers"], {one: "c", two: "e", Hot: "f", Started: "b"}) == "right!\n"


# a check never gets in the way


def stops(*args, **kwargs):
    raise RuntimeError("first line\nsecond line")


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize("answer", [stops, lambda: None, None, 3, "text", type("Odd", (), {"__call__": stops})()])
def test_a_check_survives_whatever_it_is_given(name, answer, capsys):
    out = printed(capsys, CHECKS[name], answer)
    assert out.startswith("not yet: ") and out.count("\n") == 1


@pytest.mark.parametrize("stop", [SystemExit, KeyboardInterrupt])
def test_to_stop_the_kernel_is_still_possible(stop):
    def answer(*args):
        raise stop

    with pytest.raises(stop):
        CHECKS["check_count"](answer)


@each
def test_a_check_leaves_the_notebooks_random_numbers_alone(exercise, capsys):
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    exercise.run(exercise.stub, capsys)
    assert torch.equal(torch.rand(3), wanted)


@pytest.mark.parametrize("name", ["check_forward", "check_rank", "check_truncate", "check_targets"])
def test_a_check_asks_the_same_when_it_is_run_again(name):
    asked = []

    def answer(tensor, *_):
        asked.append(tensor.clone())

    for seed in (1, 2):
        torch.manual_seed(seed)
        CHECKS[name](answer)
    half = len(asked) // 2
    assert half >= 2 and all(torch.equal(first, again) for first, again in zip(asked[:half], asked[half:]))
