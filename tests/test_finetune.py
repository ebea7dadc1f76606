"""A run is a generator of steps that saves as it goes; stopped anywhere, it goes on bit for bit, or says why not."""

import hashlib
import json
import pickle
import re
import zipfile
from dataclasses import asdict, replace
from itertools import count
from pathlib import Path
from shutil import copytree

import pytest
import torch
import torch.nn as nn
from safetensors.torch import load_file

from llm import bases, files, loss
from llm.adapters import fingerprint, inspect_adapter, load_adapter, save_adapter
from llm.adapters.folder import TENSORS
from llm.course.tasks import ARMS
from llm.errors import AdapterError, RunError, SettingError, TrainingError, WriteError
from llm.finetune import run as runs
from llm.finetune import settings as settings_of_a_run
from llm.finetune.resume import resume
from llm.finetune.run import RESUME, begin, read_report, together
from llm.finetune.settings import METHODS as SAVED
from llm.finetune.settings import Settings
from llm.finetune.target_words import targets_of
from llm.finetune.torchrun import Group
from llm.lora import lora_layers
from llm.relatives import METHODS, method_of
from llm.text.examples import JOIN
from llm.training import Step, evaluate

TEXT = "The cat sat on the mat, and the dog sat on the log. " * 40


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return str(path)


@pytest.fixture
def settings(text, dropping):
    return Settings(text, dropping, rank=2, alpha=4.0, steps=6, rows=3, block=8, seed=5, lr=1e-3, precision="float32")


def adapter(folder):
    return load_file(folder / TENSORS)


def same(one, other):
    one, other = adapter(one), adapter(other)
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def go(run, until=None, every=50):
    """The losses of the steps up to step `until`, at which the run is asked to stop."""
    return [step.loss for step in run.steps(every, lambda: run.done == until)]


# what a run does


def test_a_run_yields_its_steps_and_leaves_an_adapter_that_loads_and_no_more_than_that(settings, tmp_path):
    run = begin(settings, tmp_path / "out")
    assert [step.index for step in run.steps()] == list(range(6)) and run.done == 6
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == finetune_files()
    base = bases.load(settings.base)
    load_adapter(base.model, tmp_path / "out")
    assert evaluate(base.model, run.data.heldout, loss=base.loss) == run.best[1]
    assert inspect_adapter(tmp_path / "out").r == 2 and inspect_adapter(tmp_path / "out").scale == 2.0


def finetune_files():
    return ["adapter_config.json", TENSORS, "log.jsonl", "run.json"]


def test_only_the_adapter_trains(settings, tmp_path):
    run = begin(settings, tmp_path / "out")
    before = fingerprint(run.base.model)
    factors = {path: (x.A.clone(), x.B.clone()) for path, x in lora_layers(run.base.model).items()}
    trainable, all_of_them = run.counts()
    assert trainable == sum(a.numel() + b.numel() for a, b in factors.values()) < all_of_them
    go(run)
    assert fingerprint(run.base.model) == before == inspect_adapter(tmp_path / "out").fingerprint
    assert not any(torch.equal(x.B, factors[path][1]) for path, x in lora_layers(run.base.model).items())


@pytest.mark.parametrize("steps", [1, 2, 6, 19])
def test_a_short_run_reaches_its_rate(settings, tmp_path, steps):
    rates = [step.lr for step in begin(replace(settings, steps=steps), tmp_path / "out").steps()]
    assert max(rates) == pytest.approx(1e-3)


def test_a_run_learns_its_text(text, tiny, tmp_path):
    run = begin(Settings(text, tiny, rank=8, alpha=64.0, steps=60, rows=8, block=16, lr=0.03), tmp_path / "out")
    before = run.heldout()
    go(run)
    assert run.heldout() < before - 0.1  # a random head and an embedding that stay as they are allow little more


def test_the_same_settings_give_the_same_adapter_and_another_seed_another(settings, tmp_path):
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        torch.manual_seed(hash(name) % 100)  # what happened before does not matter
        go(begin(replace(settings, seed=seed), tmp_path / name))
    assert same(tmp_path / "a", tmp_path / "b") and not same(tmp_path / "a", tmp_path / "c")


def test_the_report_says_what_the_adapter_was_made_with(settings, tmp_path):
    run = begin(settings, tmp_path / "out")
    go(run)
    made_with = asdict(settings) | dict(data="text.txt", lr=1e-3, done=6, completes=False, join=JOIN)
    made_with |= dict(counts=dict(training=67, heldout=7, skipped=0), curve=[[*point] for point in run.curve])
    made_with |= dict(
        best=dict(step=run.best[0], heldout=run.best[1]), digest=hashlib.sha256(TEXT.encode()).hexdigest()
    )
    assert read_report(tmp_path / "out") == made_with
    for spoilt in ("", "[]", '{"base": 7}', "[" * 100_000):
        (tmp_path / "out" / "run.json").write_text(spoilt)
        assert read_report(tmp_path / "out") == {}
    assert read_report(None) == {} == read_report(tmp_path / "nowhere")


def test_targets_are_parts_of_a_block_or_names_in_gpt2_and_llama_alike():
    gpt2 = [f"transformer.h.0.{name}" for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")]
    llama = [
        f"model.layers.0.{name}" for name in ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")
    ]
    for paths in (gpt2, llama):
        assert [path for path in paths if targets_of("attention")(path)] == paths[:2]
        assert [path for path in paths if targets_of("mlp")(path)] == paths[2:]
    assert targets_of("all") is None and targets_of("c_attn, mlp.c_fc") == ["c_attn", "mlp.c_fc"]
    assert not targets_of("attention")("lm_head") and not targets_of("mlp")("lm_head")


@pytest.mark.parametrize(
    "kind", ["GPTNeoX", "OPT", "Bloom", "Falcon", "GPTJ", "GPTNeo", "Phi", "Qwen2", "BioGpt", "XGLM"]
)
def test_in_other_families_too_a_block_is_attention_and_mlp(kind):
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{kind}Config")()
    with torch.device("meta"):
        model = getattr(transformers, f"{kind}ForCausalLM")(config)
    linears = [name for name, m in model.named_modules() if isinstance(m, nn.Linear) and re.search(r"\.\d+\.", name)]
    found = [[targets_of(word)(path) for word in ("attention", "mlp")] for path in linears]
    assert all(sum(one) == 1 for one in found) and found
    assert {path.split(".")[-1] for path, (attention, _) in zip(linears, found) if not attention} <= {
        *("dense_h_to_4h", "dense_4h_to_h", "fc1", "fc2", "fc_in", "fc_out", "c_fc", "c_proj"),
        *("gate_proj", "up_proj", "down_proj"),
    }


@pytest.mark.parametrize(("said", "count"), [("attention", 2), ("mlp", 2), ("all", 4), ("c_attn", 1)])
def test_a_run_wraps_its_targets(settings, tmp_path, said, count):
    run = begin(replace(settings, targets=said), tmp_path / "out")
    assert len(lora_layers(run.base.model)) == count


def test_the_rate_is_the_courses_for_its_own_model_and_lower_for_another_and_a_resumed_run_keeps_it(
    text, tiny, tmp_path
):
    assert begin(Settings(text, "course"), tmp_path / "a").settings.lr == ARMS["lora"].lr == 1e-2
    run = begin(Settings(text, tiny, block=8), tmp_path / "b")
    go(run, until=1)
    assert run.settings.lr == 1e-3 == resume(tmp_path / "b").settings.lr == run.optimizer.param_groups[0]["peak_lr"]
    assert begin(Settings(text, tiny, lr=0.3, block=8), tmp_path / "c").settings.lr == 0.3


@pytest.mark.parametrize(("method", "lr"), [("dora", 1e-3), ("lora+", 1e-3 / 16), ("ia3", 1e-2)])
def test_a_method_whose_numbers_start_elsewhere_has_a_rate_of_its_own(text, tiny, tmp_path, method, lr):
    run = begin(Settings(text, tiny, block=8, method=method), tmp_path / "out")
    assert run.settings.lr == pytest.approx(lr)
    assert max(group["peak_lr"] for group in run.optimizer.param_groups) == pytest.approx(max(lr, 1e-3))
    assert begin(Settings(text, tiny, lr=0.3, block=8, method=method), tmp_path / "c").settings.lr == 0.3


# going on


def test_six_steps_are_three_and_three_more_bit_for_bit_with_dropout(settings, tmp_path):
    whole = go(begin(settings, tmp_path / "whole"))
    first = go(begin(settings, tmp_path / "halves"), until=3)
    torch.manual_seed(99)  # another process begins with other random numbers
    rest = go(resume(tmp_path / "halves"))
    assert len(first) == len(rest) == 3 and first + rest == whole
    assert same(tmp_path / "whole", tmp_path / "halves")
    assert not (tmp_path / "halves" / RESUME).exists()


def by(settings, method):
    """The same run by another method: IA3 has no rank and no strength, and little to train."""
    return replace(settings, method=method, **dict(rank=8, alpha=8.0) if method == "ia3" else {})


@pytest.mark.parametrize("method", SAVED)
def test_each_method_goes_on_bit_for_bit_and_its_adapter_says_what_the_run_said(settings, tmp_path, method):
    run = begin(by(settings, method), tmp_path / "whole")
    assert method_of(run.base.model) == method
    go(run)
    go(begin(by(settings, method), tmp_path / "halves"), until=3)
    torch.manual_seed(99)
    again = resume(tmp_path / "halves")
    assert again.settings == by(settings, method) and method_of(again.base.model) == method
    go(again)
    assert same(tmp_path / "whole", tmp_path / "halves")
    assert read_report(tmp_path / "whole")["method"] == method
    base = load_adapter(bases.load(settings.base).model, tmp_path / "whole")
    assert evaluate(base, run.data.heldout) == pytest.approx(run.best[1], abs=1e-5)


def test_the_command_line_knows_the_methods_whose_adapters_can_be_kept():
    assert list(SAVED) == [name for name, method in METHODS.items() if method.saves]


def test_loraplus_has_two_rates_and_resumes_with_them(settings, tmp_path):
    go(begin(by(settings, "lora+"), tmp_path / "out"), until=2)
    rates = {group["peak_lr"] for group in resume(tmp_path / "out").optimizer.param_groups}
    assert rates == {1e-3, 16e-3}


@pytest.mark.parametrize("rows", ["jsonl", "records"])
def test_rows_go_on_bit_for_bit_too(settings, tmp_path, rows):
    if rows == "jsonl":
        lines = [json.dumps({"prompt": f"{i}", "completion": "so " * (1 + i % 7)}) for i in range(25)]
        (tmp_path / "rows.jsonl").write_text("\n".join(lines))
        rows = str(tmp_path / "rows.jsonl")
    settings = replace(settings, data=rows, block=None, steps=4)
    whole = go(begin(settings, tmp_path / "whole"))
    first = go(begin(settings, tmp_path / "halves"), until=1)
    assert first + go(resume(tmp_path / "halves")) == whole and same(tmp_path / "whole", tmp_path / "halves")


def test_a_run_whose_numbers_were_given_without_a_point_goes_on(settings, tmp_path):
    go(begin(replace(settings, alpha=8, lr=1, dropout=0, steps=2), tmp_path / "a"), until=1)
    assert resume(tmp_path / "a").done == 1


def test_bfloat16_goes_on_bit_for_bit_too(settings, tmp_path):
    settings = replace(settings, dtype="bfloat16")
    go(begin(settings, tmp_path / "whole"))
    go(begin(settings, tmp_path / "halves"), until=2)
    go(resume(tmp_path / "halves"))
    assert same(tmp_path / "whole", tmp_path / "halves")
    assert {t.dtype for t in adapter(tmp_path / "whole").values()} == {torch.float32}


def test_a_run_may_be_stopped_again_and_again(settings, tmp_path):
    go(begin(settings, tmp_path / "whole"))
    go(begin(settings, tmp_path / "parts"), until=1)
    for until in (2, 4, 6):
        assert go(resume(tmp_path / "parts"), until)
    assert same(tmp_path / "whole", tmp_path / "parts")


def test_a_checkpoint_is_made_at_once_then_every_so_many_steps_and_at_the_stop(settings, tmp_path, monkeypatch):
    saved, save = [], runs.Run.save
    monkeypatch.setattr(runs.Run, "save", lambda self: saved.append(self.done) or save(self))
    go(begin(settings, tmp_path / "out"), until=5, every=2)
    assert saved == [0, 2, 4, 5]


def dies(work, at):
    """`work`, but its call number `at` is the end of the process."""
    calls = count(1)

    def die(*args):
        if next(calls) == at:
            raise SystemExit
        return work(*args)

    return die


# the step from which a run goes on that is killed at its second checkpoint, that of step 4, or just before
KILLS = {"before the checkpoint": 2, "between the two files": 2, "between the adapter's two files": 2}


@pytest.mark.parametrize("when", KILLS)
def test_a_kill_at_any_time_leaves_the_last_checkpoint_whole(settings, tmp_path, monkeypatch, when):
    go(begin(settings, tmp_path / "whole"))
    run = begin(settings, tmp_path / "killed")
    with monkeypatch.context() as patched, pytest.raises(SystemExit):
        for step in run.steps(every=2):
            if step.index == 2 and when == "before the checkpoint":
                raise SystemExit
            if step.index == 2 and when == "between the two files":
                patched.setattr(runs, "save_adapter", dies(runs.save_adapter, 1))
            if step.index == 2 and when == "between the adapter's two files":
                patched.setattr(files.os, "replace", dies(files.os.replace, 3))
    inspect_adapter(tmp_path / "killed")
    run = resume(tmp_path / "killed")
    assert run.done == KILLS[when]
    go(run)
    assert same(tmp_path / "whole", tmp_path / "killed")


def test_a_run_killed_between_its_last_step_and_its_end_only_has_to_end(settings, tmp_path):
    run = begin(settings, tmp_path / "out")
    for step in run.steps():
        if step.index == 5:
            break
    before = (tmp_path / "out" / TENSORS).read_bytes()
    run = resume(tmp_path / "out")
    assert run.done == 6 and go(run) == [] and not (tmp_path / "out" / RESUME).exists()
    assert (tmp_path / "out" / TENSORS).read_bytes() == before


def test_a_loss_that_is_not_finite_ends_the_run_and_the_last_checkpoint_can_be_gone_on_with(settings, tmp_path):
    run = begin(settings, tmp_path / "out")
    with pytest.raises(TrainingError, match="^the loss is nan at step 2: lower the learning rate"):
        for step in run.steps(every=1):
            if step.index == 1:
                run.base.model.transformer.ln_f.weight.data[0] = float("nan")
    assert resume(tmp_path / "out").done == 2


def no_step(*_, **__):
    yield pytest.fail("a step was taken")


def test_a_disk_that_takes_nothing_is_found_before_the_first_step(settings, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    run = begin(settings, tmp_path / "out")
    monkeypatch.setattr(torch, "save", full)
    monkeypatch.setattr(runs, "train", no_step)
    with pytest.raises(OSError, match="No space left on device.*nothing was lost"):
        go(run)
    assert not (tmp_path / "out" / TENSORS).exists()


# what goes wrong


def assert_refused(call, *parts, error=RunError):
    with pytest.raises(error) as caught:
        call()
    said = str(caught.value)
    assert all(part in said for part in parts) and "\n" not in said and len(said) < 500, said


@pytest.fixture
def stopped(settings, tmp_path):
    go(begin(settings, tmp_path / "out"), until=2)
    return tmp_path / "out"


OTHERS = dict(
    rank=3,
    alpha=1.0,
    scaling="alpha",
    targets="mlp",
    steps=7,
    lr=0.5,
    rows=4,
    block=9,
    seed=6,
    dtype="bfloat16",
    start="paper",
    dropout=0.5,
    skip_long=True,
    precision="bfloat16",
    accumulate=2,
    checkpointing=True,
    quantize="nf4",
    method="dora",
    epochs=2.0,
    measure=3,
    patience=2,
    map="prompt=question",
    train_on="all",
    template="plain",
)


@pytest.mark.parametrize("name", OTHERS)
def test_to_go_on_with_another_setting_is_one_sentence_that_names_it_and_changes_nothing(stopped, settings, name):
    before = {path.name: path.read_bytes() for path in stopped.iterdir()}
    began = getattr(settings, name)
    assert_refused(
        lambda: resume(stopped, {name: OTHERS[name]}),
        f"--{name.replace('_', '-')} {OTHERS[name]} is not what the run in {stopped} began with ({began}): leave it out to go on",
    )
    assert {path.name: path.read_bytes() for path in stopped.iterdir()} == before


def test_every_setting_is_held_to_what_it_was():
    assert OTHERS.keys() | {"data", "base"} == asdict(Settings("")).keys()


def test_a_run_keeps_its_curve_through_a_stop(settings, tmp_path):
    whole, halves = (begin(replace(settings, measure=2), tmp_path / name) for name in ("whole", "halves"))
    go(whole), go(halves, until=3)
    again = resume(tmp_path / "halves")
    assert again.heldout() == whole.curve[1][1]  # what was measured last: a measurement more would be another run
    assert again.curve == whole.curve[:2] and len(again.losses) == 3
    go(again)
    assert again.curve == whole.curve and again.losses == whole.losses and len(again.curve) == 4


# the best step


def measuring(monkeypatch, *losses):
    """Let the held-out losses of what runs next be these."""
    losses = iter(losses)
    monkeypatch.setattr(runs, "evaluate", lambda *_, **__: next(losses))


def as_it_was(settings, folder, step):
    """The adapter after `step` steps of the same run: where nothing is measured yet the folder holds the last one."""
    go(begin(replace(settings, measure=settings.steps), folder), until=step)
    return folder


TURNS = 5.0, 4.0, 4.5, 3.0, 3.5, 3.0, 6.0  # the base's, then of each step: the third is the best one


def test_the_adapter_is_that_of_the_best_step_in_the_folder_and_in_the_model_and_the_report_names_it(
    settings, tmp_path, monkeypatch
):
    reference = as_it_was(settings, tmp_path / "reference", 3)
    measuring(monkeypatch, *TURNS)
    run = begin(replace(settings, measure=1), tmp_path / "out")
    losses = go(run)
    assert run.curve == [*enumerate(TURNS)] and len(losses) == 6
    assert same(tmp_path / "out", reference) and run.best == (3, 3.0)
    assert [read_report(tmp_path / "out")[key] for key in ("done", "best")] == [6, dict(step=3, heldout=3.0)]
    save_adapter(run.base.model, tmp_path / "again")
    assert same(tmp_path / "again", reference)


@pytest.mark.parametrize("method", SAVED)
def test_of_a_stopped_run_the_folder_has_the_best_step_so_far_and_the_run_goes_on_from_its_last_one(
    settings, tmp_path, monkeypatch, method
):
    settings = replace(by(settings, method), measure=1)
    measuring(monkeypatch, *TURNS)
    whole = begin(settings, tmp_path / "whole")
    losses = go(whole)
    measuring(monkeypatch, *TURNS)
    first = go(begin(settings, tmp_path / "halves"), until=5, every=1)  # a checkpoint does not disturb what goes on
    assert same(tmp_path / "halves", tmp_path / "whole")
    measuring(monkeypatch, *TURNS[6:])
    again = resume(tmp_path / "halves")
    assert again.best == (3, 3.0) and first + go(again) == losses
    assert same(tmp_path / "halves", tmp_path / "whole") and again.curve == whole.curve


def test_a_run_that_ends_better_than_it_stopped_keeps_what_came_later(settings, tmp_path, monkeypatch):
    go(begin(replace(settings, measure=6), tmp_path / "last"))
    measuring(monkeypatch, *TURNS[:-1], 2.0)
    go(begin(replace(settings, measure=1), tmp_path / "out"), until=4)
    go(run := resume(tmp_path / "out"))
    assert run.best == (6, 2.0) and same(tmp_path / "out", tmp_path / "last")


def test_an_overfitted_run_keeps_the_turn(tmp_path, tiny):
    (tmp_path / "text.txt").write_text("a b " * 200 + "c d e " * 14)  # what is held out is another text
    out = tmp_path / "out"
    run = begin(Settings(str(tmp_path / "text.txt"), tiny, steps=40, rows=4, block=8, lr=0.05, measure=2), out)
    go(run)
    assert run.best[1] < run.curve[-1][1] - 0.05
    base = load_adapter(bases.load(tiny).model, out)
    assert evaluate(base, run.data.heldout) == pytest.approx(run.best[1], abs=1e-5)


@pytest.mark.parametrize("until", [None, 2, 4])
def test_patience_ends_a_run_after_as_many_measurements_without_a_new_best(settings, tmp_path, monkeypatch, until):
    reference = as_it_was(settings, tmp_path / "reference", 2)
    measuring(monkeypatch, 5.0, 4.0, 3.0, 3.5, 3.0)
    run = begin(replace(settings, measure=1, patience=2), tmp_path / "out")
    if until:
        for step in run.steps(stop=lambda: run.done == until and until == 2):
            if step.index == 3:  # a process that is killed when all is done
                break
        run = resume(tmp_path / "out")
    go(run)
    assert run.done == 4 and run.finished and not (tmp_path / "out" / RESUME).exists()
    assert same(tmp_path / "out", reference)
    assert read_report(tmp_path / "out")["done"] == 4 and go(run) == []


def test_with_patience_to_spare_a_run_takes_all_its_steps(settings, tmp_path, monkeypatch):
    measuring(monkeypatch, 5.0, 7.0, 6.9, 7.0, 6.8, 7.0, 7.0)
    go(run := begin(replace(settings, measure=1, patience=3), tmp_path / "out"))
    assert run.done == 6 and run.best == (4, 6.8)  # worse than the base, and the best there is


@pytest.mark.parametrize(
    ("steps", "measure", "at"),
    [
        (1000, None, [0, 20, 50, *range(100, 1001, 100)]),
        (12, None, [0, 5, 10, 12]),
        (1, None, [0, 1]),
        (10, 4, [0, 4, 8, 10]),
        (3, 9, [0, 3]),
    ],
)
def test_the_heldout_loss_is_measured_twelve_times_a_run_or_every_so_many_steps_and_at_the_end(
    settings, tmp_path, monkeypatch, steps, measure, at
):
    def no_work(*_, steps, start, **__):
        yield from (Step(i, 1.0, 1e-3, 0.1, 24) for i in range(start, steps))

    monkeypatch.setattr(runs, "train", no_work)
    monkeypatch.setattr(runs, "evaluate", lambda *_, **__: 1.0)
    go(run := begin(replace(settings, steps=steps, measure=measure), tmp_path / "out"), every=5000)
    assert [step for step, _ in run.curve] == at


def test_the_log_has_a_line_a_step_and_none_that_is_behind_the_checkpoint_gone_on_from(settings, tmp_path):
    def rows():
        return [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]

    run = begin(replace(settings, measure=2), tmp_path / "out")
    for step in run.steps(every=3):
        assert rows()[-1]["step"] == step.index + 1  # at once
        if step.index == 4:
            break
    with (tmp_path / "out" / "log.jsonl").open("a") as log:
        log.write('{"step": 6, "lo')
    run = resume(tmp_path / "out")
    next(steps := run.steps())
    assert [row["step"] for row in rows()] == [0, 1, 2, 3, 4]
    list(steps)
    assert rows() == run.log and [row["step"] for row in rows()] == [0, 1, 2, 3, 4, 5, 6]
    assert [(row["step"], row["heldout"]) for row in rows() if "heldout" in row] == run.curve and len(run.curve) == 4
    assert [row["loss"] for row in rows()[1:]] == run.losses and {"lr", "seconds", "tokens"} < rows()[1].keys()


# how long


@pytest.mark.parametrize(
    ("epochs", "rows", "steps"), [(1.0, 3, 8), (2.0, 3, 15), (0.5, 3, 4), (0.01, 3, 1), (1, 50, 1)]
)
def test_epochs_are_as_many_rows_as_the_data_have(settings, tmp_path, epochs, rows, steps):
    lines = [json.dumps({"prompt": f"{i}", "completion": "so"}) for i in range(25)]  # of which two are held out
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    data = replace(settings, data=str(tmp_path / "rows.jsonl"), block=None, rows=rows)
    run = begin(replace(data, steps=None, epochs=epochs), tmp_path / "out")
    assert run.settings.steps == steps and run.data.size == 23


def test_an_epoch_of_a_text_is_all_its_windows_and_a_resumed_run_knows_its_steps(settings, tmp_path):
    settings = replace(settings, steps=None, epochs=0.25)
    run = begin(settings, tmp_path / "out")
    assert run.settings.steps == round(0.25 * 67 / 3) == 6 and run.data.size == 67
    go(run, until=2)
    again = resume(tmp_path / "out", dict(epochs=0.25))
    assert again.settings == run.settings
    assert_refused(lambda: resume(tmp_path / "out", dict(epochs=1.0)), "--epochs 1.0 is not what the run in")
    go(again)
    assert again.done == 6 and read_report(tmp_path / "out")["epochs"] == 0.25


def test_epochs_and_steps_together_or_of_data_without_end_are_one_sentence(settings, tmp_path):
    twice = replace(settings, epochs=2.0)
    assert_refused(lambda: begin(twice, tmp_path / "a"), "--steps 6 and --epochs 2 are the same", error=SettingError)
    endless = replace(settings, data="records", block=None, steps=None, epochs=2.0)
    assert_refused(lambda: begin(endless, tmp_path / "a"), "no last row: give --steps", error=SettingError)
    assert begin(replace(settings, steps=None), tmp_path / "a").settings.steps == 100


# what the data are read with


def test_a_map_names_the_fields_of_the_rows(settings, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(dict(question=f"{i}?", answer=f"{i}!")) for i in range(5)))
    run = begin(
        replace(settings, data=str(path), block=None, map="prompt = question,completion=answer"), tmp_path / "out"
    )
    assert run.data.size == 4 and run.data.completes


def test_a_chat_is_trained_on_in_the_template_of_the_run_which_its_report_and_a_resumed_run_keep(settings, tmp_path):
    turns = [dict(role=role, content="a") for role in ("user", "assistant") * 2]
    path, template, out = tmp_path / "chat.jsonl", tmp_path / "mine.jinja", tmp_path / "out"
    path.write_text("\n".join(json.dumps(dict(messages=turns + [turns[i % 2]] * i)) for i in range(2)))
    template.write_text("{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}")
    settings = replace(settings, data=str(path), block=None, template=str(template))
    graded = [
        sum((y != loss.IGNORE).sum().item() for _, y in begin(replace(settings, train_on=what), out).data.heldout)
        for what in ("last", "answers", "all")
    ]
    assert graded == sorted({*graded})
    go(begin(replace(settings, train_on="last"), out), until=2)
    report = read_report(out)
    assert (report["chat"], report["template"], report["train_on"]) == (True, template.read_text(), "last")
    assert resume(out, dict(template=str(template), train_on="last")).done == 2
    template.unlink()
    assert resume(out).settings.template == report["template"]
    assert_refused(lambda: resume(out, dict(template="plain")), "--template plain is not what the run in")


def test_a_base_in_four_bits_has_as_many_parameters_as_before_and_keeps_them(settings, tmp_path):
    run, plain = begin(replace(settings, quantize="nf4"), tmp_path / "out"), begin(settings, tmp_path / "plain")
    assert run.counts() == plain.counts()
    before = fingerprint(run.base.model)
    go(run)
    assert fingerprint(run.base.model) == before == inspect_adapter(tmp_path / "out").fingerprint
    assert inspect_adapter(tmp_path / "out").quantized == "nf4"


def test_start_and_dropout_reach_the_layers_and_the_folder(settings, tmp_path):
    run = begin(replace(settings, start="paper", dropout=0.25), tmp_path / "out")
    assert {(x.start, x.dropout) for x in lora_layers(run.base.model).values()} == {("paper", 0.25)}
    go(run)
    assert inspect_adapter(tmp_path / "out").dropout == 0.25


def test_to_go_on_with_the_same_settings_given_again_is_fine(stopped, settings):
    assert resume(stopped, asdict(settings)).done == 2


def test_another_text_or_base_is_refused_and_one_that_only_moved_is_not(stopped, settings, tmp_path, stranger):
    moved = tmp_path / "moved.txt"
    moved.write_text(TEXT)
    assert resume(stopped, {"data": str(moved)}).settings.data == str(moved)
    moved.write_text(TEXT + "more")
    assert_refused(lambda: resume(stopped, {"data": str(moved)}), f"the text {moved} is not the one that the run in")
    assert_refused(lambda: resume(stopped, {"base": stranger}), f"the base {stranger} is not the one that the run in")
    (tmp_path / "text.txt").write_text(TEXT[:-1])
    assert_refused(lambda: resume(stopped), f"the text {settings.data} is not the one that the run in")


@pytest.fixture
def speaking(tiny, tmp_path):
    """A folder of the tiny base with a tokenizer of its own, in which an `a` and a `b` have ids of their own."""
    pytest.importorskip("transformers")
    folder = Path(copytree(tiny, tmp_path / "speaking"))
    vocabulary = {letter: i for i, letter in enumerate("abcdefghijklmnopqrstuvwxyzTT ,.")} | {"<end>": 40}
    model = dict(type="WordLevel", vocab=vocabulary, unk_token="<end>")
    split = dict(type="Split", pattern=dict(String=""), behavior="Isolated", invert=False)
    tokenizer = dict(version="1.0", model=model, pre_tokenizer=split, decoder=dict(type="Fuse"), added_tokens=[])
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = dict(tokenizer_class="PreTrainedTokenizerFast", eos_token="<end>", unk_token="<end>")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def test_a_run_is_not_gone_on_with_over_another_tokenizer(settings, tmp_path, speaking):
    go(begin(replace(settings, base=str(speaking)), tmp_path / "spoken"), until=2)
    assert resume(tmp_path / "spoken").done == 2
    tokenizer = json.loads((speaking / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] |= dict(a=1, b=0)
    (speaking / "tokenizer.json").write_text(json.dumps(tokenizer))
    before = contents(tmp_path / "spoken")
    assert_refused(
        lambda: resume(tmp_path / "spoken"),
        f"the tokenizer of {speaking} is not the one that the run in",
        "--out",
    )
    assert contents(tmp_path / "spoken") == before


def test_a_run_goes_on_where_the_tokenizer_encodes_as_before(settings, tmp_path, speaking):
    """Its files may have been written anew, with another chat template for one."""
    go(begin(replace(settings, base=str(speaking)), tmp_path / "spoken"), until=2)
    for name, more in (("tokenizer.json", {}), ("tokenizer_config.json", dict(chat_template="{{ messages }}"))):
        content = json.loads((speaking / name).read_text()) | more
        (speaking / name).write_text(json.dumps(content, indent=1))
    assert resume(tmp_path / "spoken").done == 2


def test_a_folder_in_use_is_refused_and_stays_as_it_was(stopped, settings, tmp_path):
    before = {path.name: path.read_bytes() for path in stopped.iterdir()}
    assert_refused(lambda: begin(settings, stopped), "holds a run that was stopped: add --resume to go on, or choose")
    assert {path.name: path.read_bytes() for path in stopped.iterdir()} == before
    go(resume(stopped))
    assert_refused(lambda: begin(settings, stopped), "holds an adapter already: choose another --out")
    with pytest.raises(WriteError, match="^could not write .*text.txt.*: nothing was lost"):
        go(begin(settings, tmp_path / "text.txt"))


def test_nothing_to_go_on_with_is_one_sentence(stopped, tmp_path):
    nothing = f"there is nothing to resume in {tmp_path / 'no'}, as no run was started there: leave --resume out"
    assert_refused(lambda: resume(tmp_path / "no"), nothing)
    go(resume(stopped))
    assert_refused(
        lambda: resume(stopped), f"the run in {stopped} has finished, after step 6: start a new one with more"
    )


def spoil(path, how):
    if how == "cut short":
        path.write_bytes(path.read_bytes()[:-100])
    elif how == "a bit turned":
        factor = next(iter(torch.load(path, weights_only=True)["factors"].values()))[0].numpy().tobytes()
        turned = bytes([factor[0] ^ 1]) + factor[1:]
        path.write_bytes(path.read_bytes().replace(factor, turned))
    elif how == "a pickle":
        path.write_bytes(pickle.dumps(print, protocol=2))
    elif how == "another zip":
        with zipfile.ZipFile(path, "w") as made:
            made.writestr("a", "b")
    else:
        state = torch.load(path, weights_only=True)
        key, _, rest = how.partition(": ")
        first = next(iter(state["factors"]))
        changes = {
            "no optimizer": lambda: state.pop("optimizer"),
            "a layer less": lambda: state["factors"].pop(first),
            "other shapes": lambda: state["factors"].update({first: [torch.zeros(1), torch.zeros(1)]}),
            "no state": lambda: state["optimizer"].update(param_groups=[]),
            "a list": lambda: state.update(settings=[]),
            "a number that is a text": lambda: state["settings"].update(rank="8"),
            "a setting of another version": lambda: state["settings"].update(colour="red"),
            "before the beginning": lambda: state.update(step=-1),
            "of the time before there was a log": lambda: state.pop("log"),
        }
        changes[how]()
        torch.save(state, path)


SPOILT = ["cut short", "a bit turned", "a pickle", "another zip", "no optimizer", "a layer less"]
WRONG = [
    "other shapes",
    "no state",
    "a list",
    "a number that is a text",
    "a setting of another version",
    "before the beginning",
    "of the time before there was a log",
]


@pytest.mark.parametrize("how", [*SPOILT, *WRONG])
def test_a_damaged_checkpoint_is_one_sentence_and_the_adapter_stays(stopped, how, capfd):
    before = (stopped / TENSORS).read_bytes()
    spoil(stopped / RESUME, how)
    assert_refused(lambda: resume(stopped), f"{stopped / RESUME} is damaged", "for a new run choose another --out")
    assert (stopped / TENSORS).read_bytes() == before and not capfd.readouterr().out


def test_a_checkpoint_of_the_time_before_a_setting_goes_on_with_its_default(stopped, settings):
    state = torch.load(stopped / RESUME, weights_only=True)
    for name in ("measure", "patience", "epochs", "map", "train_on", "template"):
        del state["settings"][name]
    torch.save(state, stopped / RESUME)
    assert resume(stopped).settings == settings


NONSENSE = [
    ("rank", 2.5, "--rank 2.5 makes no sense: give a whole number from 1 up"),
    ("seed", -1, "--seed -1 makes no sense: give a whole number from 0 up"),
    ("alpha", float("nan"), "--alpha nan makes no sense: give a number from 0 up"),
    ("rank", 17, "rank r=17 does not fit a 16 -> 48 layer: use 1 to 16"),
    ("block", 65, "--block 65 does not fit this base"),
    ("dtype", "int8", "there is no --dtype int8 here: choose one of float32, bfloat16"),
    ("dtype", "float16", "there is no --dtype float16 here: choose one of float32, bfloat16"),
    ("precision", "int8", "there is no --precision int8 here: choose one of auto, float32, bfloat16"),
    ("method", "prefix", "there is no --method prefix here: choose one of lora, rslora, lora+"),
    ("method", "ia3", "--rank 2 means nothing to --method ia3: leave it out"),
    ("measure", 0, "--measure 0 makes no sense: give a whole number from 1 up"),
    ("patience", 0, "--patience 0 makes no sense: give a whole number from 1 up"),
    ("train_on", "first", "there is no --train-on first here: choose one of answers, last, all"),
    ("map", "question", "--map question= names no field: give pairs, as in prompt=question,completion=answer"),
    ("scaling", "beta", "unknown scaling 'beta'"),
    ("targets", "q_proj", "no nn.Linear matches the target 'q_proj'"),
    ("targets", "", "no nn.Linear matches the target ''"),
    ("targets", ",", "no nn.Linear matches the target ''"),
]


@pytest.mark.parametrize(("name", "value", "says"), NONSENSE)
def test_a_setting_that_makes_no_sense_is_one_sentence_and_nothing_is_written(settings, tmp_path, name, value, says):
    assert_refused(lambda: begin(replace(settings, **{name: value}), tmp_path / "out"), says, error=ValueError)
    assert not (tmp_path / "out").exists()


def test_rslora_with_another_scaling_is_one_sentence(settings, tmp_path):
    said = replace(settings, method="rslora", scaling="alpha")
    assert_refused(
        lambda: begin(said, tmp_path / "out"), "--method rslora is --scaling alpha/sqrt(r)", error=SettingError
    )


# one run at a time in a folder


def contents(folder):
    """The files that a learner sees in `folder`, with what is in them."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


def test_a_second_run_into_the_folder_of_a_run_at_work_is_refused_and_the_first_one_loses_nothing(settings, tmp_path):
    out, link = tmp_path / "out", tmp_path / "link"
    link.symlink_to(out)
    go(begin(settings, tmp_path / "alone"))

    def refused(make, out):
        with pytest.raises(RunError, match="^a run is at work in .*choose another --out"), together(make, out):
            pass

    with together(lambda: begin(settings, out), out) as run:
        for where in (out, link, tmp_path / "alone" / ".." / "out"):  # before the first step
            refused(lambda where=where: begin(settings, where), where)
        for step in run.steps(every=2):
            if step.index == 2:
                before = contents(out)
                refused(lambda: begin(replace(settings, seed=6), out), out)
                refused(lambda: resume(out), out)
                assert contents(out) == before
    assert same(tmp_path / "alone", out)
    assert sorted(path.name for path in out.iterdir()) == finetune_files()


def test_a_folder_is_free_again_however_its_run_ended(settings, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(SettingError, match="no nn.Linear"):
        with together(lambda: begin(replace(settings, targets="none"), out), out):
            pass
    assert not out.exists()
    with together(lambda: begin(settings, out), out) as run:
        steps = run.steps()
        next(steps)
    with pytest.raises(KeyboardInterrupt), together(lambda: resume(out), out) as run:
        for _ in run.steps(stop=lambda: (_ for _ in ()).throw(KeyboardInterrupt)):
            pass
    with together(lambda: resume(out), out) as run:
        go(run)
    assert_refused(lambda: resume(out), "has finished")


class Pair(Group):
    """Two processes, of which the second says what it likes."""

    def gather(self, value):
        return [value, ("there is no file rows.jsonl: bring it", None)]


def test_what_a_killed_run_was_writing_goes_when_it_is_gone_on_with(stopped):
    (stopped / f"{files.UNFINISHED}x").mkdir()
    (stopped / f"{files.UNFINISHED}x" / RESUME).write_bytes(b"half")
    go(resume(stopped))
    assert sorted(path.name for path in stopped.iterdir()) == finetune_files()


def test_a_run_that_another_process_cannot_begin_leaves_the_folder_free(settings, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(RunError, match="^process 1: there is no file") as caught:
        with together(lambda: begin(settings, out), out, Pair(0, 2)):
            pass
    with together(lambda: begin(settings, out), out) as run:
        assert caught and run.done == 0  # though a traceback still holds the first run


class Echo(Group):
    """Several processes that all have what this one has."""

    def gather(self, value):
        return [value] * self.size


def test_of_several_processes_the_first_one_claims_the_folder_for_all(settings, tmp_path):
    out, groups = tmp_path / "out", [Echo(0, 2), Echo(1, 2)]
    with together(lambda: begin(settings, out, group=groups[0]), out, groups[0]) as first:
        with together(lambda: begin(settings, out, group=groups[1]), out, groups[1]) as second:
            assert first.done == second.done == 0


def test_an_adapter_that_cannot_be_saved_leaves_the_checkpoint_before_it(settings, tmp_path):
    run = begin(settings, tmp_path / "out")
    next(iter(lora_layers(run.base.model).values())).B.data[0, 0] = float("inf")
    with pytest.raises(TrainingError, match="holds NaN or infinity"):
        go(run)
    assert not (tmp_path / "out").exists()
    run = begin(replace(settings, measure=6), tmp_path / "out")
    with pytest.raises(AdapterError, match="not finite"):
        for step in run.steps(every=2):
            if step.index == 3:
                before = contents(tmp_path / "out")
                next(iter(lora_layers(run.base.model).values())).B.data[0, 0] = float("inf")
                run.save()
    assert contents(tmp_path / "out") == before and resume(tmp_path / "out").done == 4


# what a run is called: bases and texts by name and by place


def test_a_run_is_gone_on_with_from_any_folder(settings, tmp_path, tiny, monkeypatch):
    copytree(tiny, tmp_path / "here" / "base")
    (tmp_path / "here" / "text.txt").write_text(TEXT)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    go(begin(replace(settings, base="base", data="text.txt"), Path("../out")), until=2)
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert resume(tmp_path / "out").done == 2
    assert resume(Path("../out"), dict(base="../here/base", data="../here/text.txt")).done == 2


def test_the_report_names_the_base_so_that_it_is_found_from_anywhere_and_no_folder_of_this_machine(
    settings, tmp_path, tiny, monkeypatch
):
    copytree(tiny, tmp_path / "here" / "base")
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    for base in ("base", "./base/", str(tmp_path / "here" / "base")):
        out = tmp_path / "link" / str(len(base))
        go(begin(replace(settings, base=base), out), until=1)
        kept = (out / "run.json").read_text()
        assert str(tmp_path) not in kept and json.loads(kept)["data"] == "text.txt"
        with monkeypatch.context() as patched:
            patched.chdir("/")
            assert Path(read_report(out)["base"]).samefile(tmp_path / "here" / "base")
    (tmp_path / "here").rename(tmp_path / "moved")  # with an adapter that moves along it is found too
    go(begin(replace(settings, base=str(tmp_path / "moved" / "base")), tmp_path / "moved" / "out"), until=1)
    (tmp_path / "moved").rename(tmp_path / "again")
    assert read_report(tmp_path / "again" / "out")["base"] == str(tmp_path / "again" / "base")


def test_a_folder_that_has_the_name_of_a_base_comes_back_as_a_folder_and_a_name_as_a_name(
    text, tmp_path, tiny, monkeypatch
):
    copytree(tiny, tmp_path / "course")
    monkeypatch.chdir(tmp_path)
    options = dict(steps=2, rows=2, block=8, rank=2)
    go(begin(Settings(text, "./course", **options), Path(".")), until=1)  # beside it: the way there is its name
    assert read_report(Path("."))["base"] == str(tmp_path / "course")
    assert resume(Path(".")).base.model.config.n_embd == 16
    (tmp_path / "x").mkdir()
    monkeypatch.chdir(tmp_path / "x")
    go(begin(Settings(text, "course", **options), Path("named")), until=1)
    assert read_report(Path("named"))["base"] == "course" == resume(Path("named")).settings.base


@pytest.mark.parametrize(
    "other", [dict(accumulate=2), dict(checkpointing=True), dict(accumulate=3, checkpointing=True)]
)
def test_what_spares_memory_makes_the_same_adapter(settings, tiny, tmp_path, other):
    go(begin(replace(settings, base=tiny), tmp_path / "plain"))
    go(begin(replace(settings, base=tiny, **other), tmp_path / "spared"))
    one, two = adapter(tmp_path / "plain"), adapter(tmp_path / "spared")
    assert one.keys() == two.keys()
    for key in one:
        torch.testing.assert_close(two[key], one[key], rtol=0, atol=1e-4)


def test_the_command_line_knows_the_precisions_that_the_loss_has():
    assert settings_of_a_run.PRECISIONS == loss.PRECISIONS
