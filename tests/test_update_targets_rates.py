"""What the explorers of updates, targets, and rates send to the page: the package's own numbers."""

import base64
import json
from itertools import combinations

import numpy as np
import pytest
import torch

from llm import spectra
from llm.course import comparison
from llm.course.audit import audit_model
from llm.course.figures.palette import task_name
from llm.course.toy_matrices import noise
from llm.course.widgets.method_explorer import TASKS, rate_explorer
from llm.course.widgets.spectrum_explorer import MOST, SHOWN, delta_explorer
from llm.course.widgets.target_explorer import targets_explorer
from llm.files import read_csv
from llm.lora import apply_lora
from llm.model import GPT, GPTConfig
from llm.paths import RESULTS


def unpacked(sent):
    [kind] = sent.keys() & {"int8", "int16"}
    values = np.frombuffer(base64.b64decode(sent[kind]), kind).reshape(sent["shape"])
    return torch.tensor(values * sent["scale"])


def kilobytes(explorer):
    return len(json.dumps(explorer.data)) / 1000


@pytest.mark.parametrize("shape", [(384, 128), (128, 512), (24, 16)])
def test_an_update_sends_its_singular_values_and_the_corner_of_its_best_part(shape):
    update = noise(*shape, seed=3) * 1e-3
    explorer = delta_explorer({"records": {"transformer.h.0.attn.c_attn.weight": update}})
    assert explorer.data["layers"] == ["h.0.attn.c_attn"]
    [sent] = explorer.data["tasks"]["records"]
    assert sent["shape"] == list(shape)
    u, s, v = unpacked(sent["u"]), unpacked(sent["s"]), unpacked(sent["v"])
    assert (s - spectra.singular_values(update)).abs().max() < 2e-5 * s[0]
    corner = update[:SHOWN, :SHOWN]
    assert (unpacked(sent["update"]) - corner).abs().max() <= corner.abs().max() / 250
    for r in (1, 8, min(MOST, *shape)):
        best, shown = spectra.decompose(update).best(r)[:SHOWN, :SHOWN], (u[:, :r] * s[:r]) @ v[:r]
        assert (shown - best).norm() < 0.05 * best.norm()


def test_two_tasks_of_sixteen_layers_stay_small_and_a_layer_that_did_not_move_is_drawn_as_zeros():
    names = spectra.block_matrices(GPT(GPTConfig()))
    shapes = {name: p.shape for name, p in GPT(GPTConfig()).state_dict().items() if name in names}
    deltas = {task: {name: noise(*shape, seed=1) for name, shape in shapes.items()} for task in ("a", "b")}
    assert kilobytes(delta_explorer(deltas)) < 130
    [still] = delta_explorer({"a": {"h": torch.zeros(24, 16)}}).data["tasks"]["a"]
    assert not unpacked(still["s"]).any() and not unpacked(still["update"]).any()


def everything(model):
    return model.requires_grad_(True)


@pytest.fixture(scope="module")
def targets():
    return targets_explorer({"everything": everything})


def test_the_targets_explorer_counts_what_apply_lora_does_for_every_set_of_targets(targets):
    kinds, linears = targets.data["kinds"], targets.data["linears"]
    assert targets.data["chosen"] == [kind for kind in linears if kind != "lm_head"] and len(linears) == 5
    for chosen in (set(some) for n in range(1, 6) for some in combinations(linears, n)):
        for r in (1, 8, 64):
            with torch.device("meta"):
                found = audit_model(apply_lora(GPT(GPTConfig()), r=r, targets=list(chosen), skip=()))
            for sent, row in zip(kinds, found, strict=True):
                layer = linears.get(sent["kind"], {"layers": 0, "in": 0, "out": 0})
                more = (
                    (sent["kind"] in chosen) * layer["layers"] * r * (layer["in"] + layer["out"])
                )  # as targets.js has it
                assert (row.kind, row.parameters, row.trained) == (sent["kind"], sent["parameters"] + more, more)


def test_another_way_is_called_for_real_on_a_model_without_numbers(targets):
    seen = []
    explorer = targets_explorer({"mine": lambda model: seen.append(model) or everything(model)})
    assert all(p.is_meta for p in seen[0].parameters())
    assert sum(row["of_base"] for row in explorer.data["ways"]["mine"]) == 13_665_280
    assert kilobytes(explorer) < 10


def test_the_rate_explorer_sends_each_methods_losses_by_rate():
    rows = read_csv(RESULTS / "relatives.csv")
    explorer = rate_explorer(rows)
    assert kilobytes(explorer) < 20 and len(explorer.data["methods"]) == 12
    for task in TASKS:
        sent = explorer.data["tasks"][task_name(task)]
        assert sent["curves"].keys() == explorer.data["methods"].keys()
        for rate in explorer.data["rates"]:
            found = comparison.order(rows, task, rate)
            assert found.base == sent["base"]
            assert found.now == {
                name: dict(curve)[rate] for name, curve in sent["curves"].items() if rate in dict(curve)
            }


def test_a_method_that_has_rows_of_one_task_alone_is_left_out_and_so_is_a_rate_between():
    said = dict(seed=0, before=5.0, trainable=1)
    rows = [
        said | dict(task=task, method=method, lr=lr, after=4.0)
        for task in TASKS
        for method in ("lora", "full")
        for lr in (0.01, 0.1)
    ]
    rows += [rows[0] | dict(lr=0.018), rows[0] | dict(method="ia3", task="facts")]
    data = rate_explorer(rows).data
    assert [*data["methods"]] == ["lora", "full"] and data["rates"] == [0.01, 0.1]
    assert json.dumps(data)
