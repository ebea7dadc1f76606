"""Where updates point: what is compared with what, and that chance looks like chance."""

import json

import pytest
import torch

from llm.course import subspaces
from llm.course.experiments import SEEDS
from llm.spectra import amplification

W = torch.randn(30, 20, generator=torch.Generator().manual_seed(5))


def made(r, seed, shared):
    """A (20, r) and its update, whose first direction all share while the rest is each run's own."""
    g = torch.Generator().manual_seed(100 * r + seed)
    A = torch.cat((9 * shared, torch.randn(20, r - 1, generator=g) / 4), dim=1)
    return A, torch.randn(30, r, generator=g) @ A.T


@pytest.fixture
def factors():
    shared = torch.randn(20, 1, generator=torch.Generator().manual_seed(1))
    return {(r, s): {"h.0": made(r, s, shared)} for r in (4, 8, 64) for s in SEEDS}


def test_the_shared_direction_is_found_in_each_pair_and_not_in_noise(factors):
    rows = subspaces.compare(factors, {"h.0": W})["overlaps"]
    assert [row["pair"] for row in rows] == ["r = 8 and r = 64", "two seeds of r = 64", "chance"] * len(SEEDS)
    for row in rows:
        assert row["1"] < 0.5 if row["pair"] == "chance" else row["1"] > 0.95


def test_every_matrix_rank_and_seed_is_amplified_by_what_spectra_says(factors):
    rows = subspaces.compare(factors, {"h.0": W})["amplified"]
    assert [(row["r"], row["seed"]) for row in rows] == list(factors)
    for row in rows:
        update = factors[row["r"], row["seed"]]["h.0"][1]
        assert row["factor"] == pytest.approx(amplification(W, update, row["r"]), abs=1e-3)


def test_it_is_recorded_once_after_all_runs(factors, tmp_path, monkeypatch):
    monkeypatch.setattr(subspaces, "_factors", lambda run, device: factors[run.r, run.seed])
    base = torch.nn.ModuleDict({"h": torch.nn.ModuleList([torch.nn.Linear(20, 30)])})
    monkeypatch.setattr(subspaces, "load_base", lambda: base)
    said = []
    for row in subspaces.record(tmp_path):
        said.append((row["r"], row["seed"]))
        assert not (tmp_path / "subspaces.json").exists()
    assert said == [(r, s) for r in (4, 8, 64) for s in SEEDS]
    found = json.loads((tmp_path / "subspaces.json").read_text(encoding="utf-8"))
    assert found == subspaces.compare(factors, {"h.0": base["h"][0].weight})
    assert list(subspaces.record(tmp_path)) == []
