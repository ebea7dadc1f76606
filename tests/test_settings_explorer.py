"""What the settings explorer is given, and what it says of the recorded runs; tests/browser moves it."""

from statistics import median

import pytest
from torch import nn

from llm.course.widgets.settings_explorer import WIDTH, settings_explorer
from llm.files import read_csv
from llm.lora import LoraLinear
from llm.paths import RESULTS

ROWS = read_csv(RESULTS / "alphas.csv")
FULL = [
    dict(ROWS[0], method="full", lr=lr, seed=s, after=x + s) for lr, x in ((1e-3, 4.5), (3e-3, 4.0)) for s in (0, 1, 2)
]


def test_each_curve_has_the_runs_of_its_settings():
    data = settings_explorer(ROWS + FULL).data
    assert len(data["curves"]) == 12 and data["base"] == ROWS[0]["before"] and data["full"] == 5.0
    seen = 0
    for curve in data["curves"]:
        here = [row for row in ROWS if all(row[key] == curve[key] for key in ("start", "scaling", "r"))]
        assert [point[0] for point in curve["points"]] == sorted({row["lr"] for row in here})
        for lr, *losses in curve["points"]:
            found = [row["after"] for row in here if row["lr"] == lr]
            assert losses == [median(found), min(found), max(found)]
            seen += len(found)
    assert seen == len(ROWS)


def test_scale_and_spread_are_those_of_a_layer_made_so():
    for curve in settings_explorer(ROWS).data["curves"]:
        layer = LoraLinear(nn.Linear(WIDTH, WIDTH), curve["r"], 16.0, curve["scaling"], start=curve["start"])
        assert layer.scale == curve["scale"]
        assert layer.A.std().item() == pytest.approx(curve["spread"], rel=0.1)


def test_the_first_steps_size_brings_the_best_rates_together_and_leaves_the_rank():
    """What the explorer says, held to the recorded runs."""
    curves = settings_explorer(ROWS).data["curves"]
    best = {id(curve): min(curve["points"], key=lambda point: point[1]) for curve in curves}
    rates = [best[id(curve)][0] for curve in curves]
    steps = [best[id(c)][0] * c["scale"] * c["r"] * c["spread"] for c in curves]
    assert max(rates) / min(rates) > 50 > 10 > max(steps) / min(steps)
    few, many = ([best[id(curve)][1] for curve in curves if curve["r"] == r] for r in (4, 64))
    assert max(many) < min(few)
