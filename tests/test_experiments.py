"""Recorded experiments: a stopped one goes on where it was, and what is recorded is what the code would run."""

import json
import math
import multiprocessing.dummy
from dataclasses import asdict, replace
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import fmean, median
from types import SimpleNamespace

import pytest
import torch

from llm import files
from llm.__main__ import main
from llm.adapters import fingerprint
from llm.bases import load_base
from llm.course import experiments, figures
from llm.course.experiments import EXPERIMENTS, Recipe, begin, measure, missing
from llm.course.tasks import ARMS, Task
from llm.lora import apply_lora, lora_layers
from llm.model import GPT, GPTConfig
from llm.paths import RESULTS
from llm.quantize import four_bit_layers, quantize, read_scheme
from llm.relatives import METHODS
from llm.spectra import block_matrices, rank_for
from llm.text.batches import batches, heldout_batches
from llm.training import own_loss

TOLERANCE = 0.002  # nats: other processors round otherwise
RUNS = [Recipe(seed=s, r=r, alpha=r) for r in (1, 2) for s in (0, 1)] + [Recipe(method="norm", lr=3e-2)]


@pytest.fixture
def counted(monkeypatch):
    """An experiment of five runs that cost nothing; the list of those that were done."""
    done = []
    monkeypatch.setitem(EXPERIMENTS, "toy", RUNS)
    monkeypatch.setattr(
        experiments, "measure", lambda run, device: done.append(run) or dict(after=0.5 + run.seed, parses="", n=7)
    )
    return done


def test_an_experiment_does_every_run_once_and_records_a_row_each(counted, tmp_path):
    rows = list(experiments.record("toy", tmp_path))
    assert counted == RUNS and files.read_csv(tmp_path / "toy.csv") == rows
    assert [{key: row[key] for key in asdict(Recipe())} for row in rows] == [asdict(run) for run in RUNS]
    assert rows[1]["after"] == 1.5 and rows[0]["parses"] == ""


def test_a_row_is_on_disk_before_the_next_run_begins(counted, tmp_path):
    for n, _ in enumerate(experiments.record("toy", tmp_path), start=1):
        assert len(files.read_csv(tmp_path / "toy.csv")) == n == len(counted)


def test_in_several_processes_every_run_is_done_once_and_recorded_in_the_plans_order(counted, tmp_path, monkeypatch):
    threads = torch.get_num_threads()
    threads_for_processes = SimpleNamespace(get_context=lambda kind: multiprocessing.dummy)
    monkeypatch.setattr(experiments, "multiprocessing", threads_for_processes)
    try:
        rows = list(experiments.record("toy", tmp_path, processes=3))
    finally:
        torch.set_num_threads(threads)
    assert len(rows) == len(counted) == len(RUNS)
    recorded = files.read_csv(tmp_path / "toy.csv")
    assert [{key: row[key] for key in asdict(Recipe())} for row in recorded] == [asdict(run) for run in RUNS]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError("killed")])
def test_a_stopped_experiment_goes_on_where_it_was(counted, tmp_path, monkeypatch, stop):
    measured = experiments.measure

    def stopped(run, device):
        if len(counted) == 3:
            raise stop
        return measured(run, device)

    monkeypatch.setattr(experiments, "measure", stopped)
    with pytest.raises(stop if isinstance(stop, type) else type(stop)):
        list(experiments.record("toy", tmp_path))
    monkeypatch.setattr(experiments, "measure", measured)
    assert [row["seed"] for row in experiments.record("toy", tmp_path)] == [1, 0]
    assert counted == RUNS and len(files.read_csv(tmp_path / "toy.csv")) == len(RUNS)


def test_a_finished_experiment_does_nothing_and_leaves_its_table_alone(counted, tmp_path):
    list(experiments.record("toy", tmp_path))
    before = (tmp_path / "toy.csv").read_bytes()
    assert list(experiments.record("toy", tmp_path)) == [] and len(counted) == len(RUNS)
    assert (tmp_path / "toy.csv").read_bytes() == before


def test_a_run_that_differs_in_one_thing_is_another_run(counted, tmp_path, monkeypatch):
    list(experiments.record("toy", tmp_path))
    monkeypatch.setitem(EXPERIMENTS, "toy", [*RUNS, Recipe(seed=0, r=1, alpha=1, lr=0.5)])
    assert [row["lr"] for row in experiments.record("toy", tmp_path)] == [0.5]


def test_a_plan_that_grew_in_its_middle_is_recorded_in_its_order(counted, tmp_path, monkeypatch):
    list(experiments.record("toy", tmp_path))
    grown = [RUNS[0], Recipe(seed=0, r=1, alpha=1, lr=0.5), *RUNS[1:]]
    monkeypatch.setitem(EXPERIMENTS, "toy", grown)
    assert [row["lr"] for row in experiments.record("toy", tmp_path)] == [0.5]
    rows = files.read_csv(tmp_path / "toy.csv")
    assert [{key: row[key] for key in asdict(Recipe())} for row in rows] == [asdict(run) for run in grown]


def test_an_unknown_experiment_is_one_sentence_with_the_names_there_are(tmp_path, capsys, counted):
    with pytest.raises(
        ValueError, match="^there is no experiment called 'rank': choose one of rates, ranks, "
    ) as caught:
        next(experiments.record("rank", tmp_path))
    assert main(["experiments", "toy", "rank"]) == 1 and not counted
    assert capsys.readouterr().err == f"error: {caught.value}\n"


def test_what_is_missing_is_what_no_row_describes(counted, tmp_path):
    assert missing("toy", tmp_path) == RUNS
    next(experiments.record("toy", tmp_path))
    assert missing("toy", tmp_path) == RUNS[1:]


def test_the_command_records_with_a_bar_that_counts_the_runs(counted, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(experiments, "record", partial(experiments.record, results=tmp_path))
    for name in ("by_rank", "compared"):
        monkeypatch.setattr(figures, name, lambda *args, **options: SimpleNamespace(savefig=lambda *to, **how: None))
    assert main(["experiments", "toy", "--processes", "1"]) == 0 and counted == RUNS
    said = capsys.readouterr()
    assert said.out.count("toy  task records") == len(RUNS) and "5/5" in said.err


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_what_is_recorded_is_complete_and_is_what_the_code_would_run(name):
    rows = files.read_csv(RESULTS / f"{name}.csv")
    assert [{key: row[key] for key in asdict(Recipe())} for row in rows] == [asdict(run) for run in EXPERIMENTS[name]]


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.csv")), ids=lambda path: path.name)
def test_every_table_in_the_folder_is_of_runs_as_the_notebooks_take_them_to_be(path):
    rows = files.read_csv(path)
    assert rows and all(asdict(Recipe()).keys() | {"base", "device"} <= row.keys() for row in rows)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_row_says_on_which_base_it_ran_and_it_is_the_one_that_ships(name):
    own = {row["base"] for row in files.read_csv(RESULTS / f"{name}.csv") if row["model"] == "course"}
    assert own <= {fingerprint(load_base())}


# `python tests/test_experiments.py` keeps them anew, after a change that is meant to change them
KEPT = Path(__file__).with_name("first_steps.json")
FIRST_STEPS = json.loads(KEPT.read_text(encoding="utf-8"))


def first_losses(run, steps=8):
    """The training losses of a run's first steps; in float32, which every processor multiplies."""
    _, begun = begin(replace(run, precision="float32"))
    return [step.loss for step in islice(begun, steps)]


def test_of_each_experiment_the_first_steps_of_a_run_are_kept():
    runs = {name: {tuple(asdict(run).values()) for run in plan} for name, plan in EXPERIMENTS.items()}
    assert FIRST_STEPS.keys() == runs.keys()
    assert all(tuple(kept["run"].values()) in runs[name] for name, kept in FIRST_STEPS.items())


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_run_of_each_experiment_begins_as_it_did_when_it_was_kept(name):
    kept = FIRST_STEPS[name]
    assert first_losses(Recipe(**kept["run"])) == pytest.approx(kept["losses"], abs=TOLERANCE)


@pytest.mark.parametrize("change", [dict(lr=1.1), dict(alpha=1.1), dict(r=2), dict(seed=1)], ids=str)
def test_the_first_steps_tell_another_rate_scale_rank_or_seed_apart(change):
    kept = FIRST_STEPS["frozen_a"]
    run = Recipe(**kept["run"])
    [(key, by)] = change.items()
    other = first_losses(replace(run, **{key: run.seed + 1 if key == "seed" else getattr(run, key) * by}))
    assert max(abs(a - b) for a, b in zip(other, kept["losses"])) > 2 * TOLERANCE


def test_a_recorded_run_done_again_ends_where_its_row_does():
    """The shortest one: ten steps, measured as its row was."""
    run = min(EXPERIMENTS["steps"], key=lambda run: run.steps * (run.rows or 32))
    rows = [
        row for row in files.read_csv(RESULTS / "steps.csv") if (row["task"], row["steps"]) == (run.task, run.steps)
    ]
    [recorded] = [row for row in rows if row["seed"] == run.seed]
    again, ends = measure(run), [row["after"] for row in rows]
    assert abs(again["after"] - recorded["after"]) < 0.005 < (max(ends) - min(ends)) / 10
    assert (again["base"], again["trainable"]) == (recorded["base"], recorded["trainable"])
    for key in ("before", "speeches_before", "speeches_after"):
        assert again[key] == pytest.approx(recorded[key], abs=0.005)


def of_rates(task, method, measure):
    """{rate: the measure, the median of its seeds} at the rank of the arms."""
    steps = {"records": 30, "shakespeare": 100}[task]
    where = dict(task=task, method=method, r=8, steps=steps)
    rows = [row for row in files.read_csv(RESULTS / "rates.csv") if where.items() <= row.items()]
    return {lr: median(values) for lr, values in figures.grouped(rows, "lr", measure).items()}


@pytest.mark.parametrize("task", ["records", "shakespeare"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_an_arms_rate_is_near_the_best_of_its_recorded_rates(task, method):
    found = of_rates(task, method, "after")
    assert len(found) >= 3 and found[ARMS[method].lr] < min(found.values()) + 0.1


@pytest.mark.parametrize("place, task", [(0, "shakespeare"), (1, "facts")])
@pytest.mark.parametrize("method", METHODS)
def test_every_methods_best_rate_lies_within_those_tried_and_has_three_seeds(method, place, task):
    rows = [row for row in files.read_csv(RESULTS / "relatives.csv") if (row["task"], row["method"]) == (task, method)]
    tried = {row["lr"]: row["after"] for row in rows if row["seed"] == 0}
    best = min(tried, key=tried.__getitem__)
    assert len(tried) >= 5 and min(tried) < best < max(tried)
    assert best == experiments.RATES[method][place][0] and len([row for row in rows if row["lr"] == best]) == 3


@pytest.mark.parametrize("method", ARMS)
def test_an_arms_rate_costs_the_model_less_of_its_english_than_the_next_hotter_one(method):
    found = of_rates("records", method, "speeches_after")
    assert found[ARMS[method].lr] + 0.5 < min(loss for lr, loss in found.items() if lr > ARMS[method].lr)


@pytest.fixture
def toy(monkeypatch):
    """One run's worth of model and text at a toy's size; what was asked of the task's loader."""
    asked = []
    tiny = GPTConfig(vocab_size=97, block_size=16, n_layer=2, n_head=2, n_embd=16)
    tokens = torch.arange(500) % 97

    def base():
        torch.manual_seed(18)
        return GPT(tiny).eval()

    held = heldout_batches(tokens, 4, 16, 2)
    task = Task("records", lambda seed: batches(tokens, 4, 16, seed=seed), held)

    def load(name, scheme=None):
        model = quantize(base(), **read_scheme(scheme)) if scheme else base()
        return SimpleNamespace(model=model, tokenizer=None, loss=own_loss)

    monkeypatch.setattr(experiments.bases, "load", load)
    monkeypatch.setattr(experiments, "load_task", lambda name, **sizes: asked.append(sizes) or task)
    monkeypatch.setattr(experiments, "speeches", lambda tokenizer: held)
    monkeypatch.setattr(experiments, "answers", lambda model, records, tokenizer: [records[0].answer] * len(records))
    caches = experiments._base, experiments._task
    for cache in caches:
        cache.cache_clear()
    yield asked
    for cache in caches:
        cache.cache_clear()


@pytest.mark.parametrize("method", ARMS)
def test_a_run_measures_what_it_trained_before_and_after(toy, method):
    row = measure(Recipe(method=method, r=2, alpha=2.0, steps=30, lr=ARMS[method].lr * 10))
    trainable = {"full": sum(p.numel() for p in experiments.bases.load("course").model.parameters()), "norm": 32}
    assert row["trainable"] == trainable.get(method, 2 * 2 * (16 + 48 + 32 + 80 + 80))
    assert row["before"] == row["speeches_before"] == pytest.approx(math.log(97), abs=0.2)
    assert row["after"] == row["speeches_after"] < row["before"]
    assert row["parses"] == 1.0 and row["right"] == 0.01 and row["seconds_a_step"] > 0


def test_a_run_repeats_by_its_seed(toy):
    def numbers(run):
        return {key: value for key, value in measure(run).items() if key != "seconds_a_step"}

    run = Recipe(r=2, steps=5, lr=3e-2)
    assert numbers(run) == numbers(run) != numbers(Recipe(r=2, steps=5, lr=3e-2, seed=1))


def test_a_run_records_the_training_losses_on_its_way(toy):
    run = Recipe(r=2, alpha=2.0, steps=50, lr=3e-2)
    losses = [step.loss for step in experiments.trained(run)[1]]
    recorded = [float(loss) for loss in measure(run)["losses"].split()]
    assert recorded == pytest.approx([fmean(losses[i : i + 3]) for i in range(0, 50, 3)], abs=1e-4)


def test_a_rate_too_hot_is_a_result_and_not_the_end_of_the_experiment(toy):
    row = measure(Recipe(r=2, steps=12, lr=1e30))
    assert math.isnan(row["after"]) or row["after"] > row["before"]


def test_results_of_plays_have_no_share_of_answers(toy):
    row = measure(Recipe("shakespeare", r=2, steps=2))
    assert row["parses"] == row["right"] == ""


def test_with_a_frozen_a_only_b_trains_and_its_a_is_still_the_drawn_one(toy):
    run = Recipe(method="lora-fa", r=2, alpha=2.0, steps=3, lr=1e-1)
    free, frozen = (experiments.trained(replace(run, method=method))[0] for method in ("lora", "lora-fa"))
    assert measure(run)["trainable"] == sum(layer.B.numel() for layer in lora_layers(frozen).values())
    torch.manual_seed(run.seed)
    drawn = lora_layers(apply_lora(experiments.bases.load("course").model, 2, 2.0, "alpha/r"))
    for path, layer in lora_layers(frozen).items():
        assert torch.equal(layer.A, drawn[path].A) and layer.B.any()
    assert any(not torch.equal(layer.A, drawn[path].A) for path, layer in lora_layers(free).items())


def test_a_run_says_how_many_rows_and_examples_it_trains_on_and_is_measured_by_the_tasks_own(toy):
    measure(Recipe(r=2, steps=1, rows=3, examples=7))
    assert toy == [dict(tokenizer=None, rows=rows, examples=7) for rows in (3, None)]


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_run_measures_the_rank_that_holds_90_percent_of_its_updates(toy, method):
    run = Recipe(method=method, r=2, alpha=2.0, steps=3, lr=1e-3)
    found, model, base = measure(run)["rank90"], experiments.trained(run)[0], experiments.bases.load("course").model
    if method == "lora":
        updates = [layer.update() for layer in lora_layers(model).values()]
    else:
        now, was = model.state_dict(), base.state_dict()
        updates = [now[name] - was[name] for name in block_matrices(base)]
    ranks = [rank_for(torch.linalg.svdvals(update.detach().double())) for update in updates]
    assert found == median(ranks) and (method == "full" or found <= 2)
    assert measure(replace(run, method="norm"))["rank90"] == ""


def test_a_run_trains_at_the_rates_that_its_method_makes_of_one(toy):
    models = [experiments.trained(Recipe(method=m, r=2, steps=1, lr=1e-3))[0] for m in ("lora", "lora+")]
    plain, plus = (next(iter(lora_layers(model).values())).B.abs().max().item() for model in models)
    assert plus == pytest.approx(16 * plain, rel=0.01)  # B was zero, and Adam's first step is as long as the rate


QLORA = Recipe(r=2, alpha=2.0, steps=20, lr=3e-2, quantize="nf4")


def test_over_four_bits_a_run_begins_and_ends_where_these_are(toy):
    whole, four = measure(replace(QLORA, quantize="")), measure(QLORA)
    assert four["before"] != whole["before"] and four["speeches_before"] == four["before"]
    assert four["after"] < four["before"] and four["after"] == pytest.approx(whole["after"], abs=0.1)
    assert four["base"] == whole["base"] and four["trainable"] == whole["trainable"]


def test_an_adapter_is_merged_into_what_it_saw_or_into_what_was_before_or_is_rounded_again(toy):
    found = {merge: measure(replace(QLORA, merge=merge)) for merge in ("", *experiments.MERGES)}
    same = [{key: row[key] for key in ("before", "trainable", "rank90")} for row in found.values()]
    assert same[1:] == same[:-1]
    assert found["dequantized"]["after"] == pytest.approx(found[""]["after"], abs=1e-3)
    assert len({row["after"] for row in found.values()}) >= 3


@pytest.mark.parametrize("merge", experiments.MERGES)
def test_a_merged_model_wears_no_adapter_and_is_in_four_bits_only_where_it_was_rounded_again(toy, merge):
    run = replace(QLORA, merge=merge)
    model, base = experiments.trained(run)[0], experiments.bases.load("course").model
    updates = {path: layer.update().detach() for path, layer in lora_layers(model).items()}
    merged = experiments._merged(run, model)
    assert not lora_layers(merged) and len(four_bit_layers(merged)) == (len(updates) if merge == "again" else 0)
    for path, update in updates.items():
        off = (merged.get_submodule(path).weight - update - base.get_submodule(path).weight).abs().max()
        assert (off < 1e-6) == (merge == "original")


if __name__ == "__main__":
    for kept in FIRST_STEPS.values():
        kept["losses"] = [round(loss, 4) for loss in first_losses(Recipe(**kept["run"]))]
    rows = [f" {json.dumps(name)}: {json.dumps(kept)}" for name, kept in FIRST_STEPS.items()]
    KEPT.write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8")
