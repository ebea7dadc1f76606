"""The live lab, driven as its page does, in every order: it trains, stops, compares, saves, and nothing wedges it."""

import asyncio
import copy
import gc
import json
import threading
import time
import weakref

import pytest
import torch
from ipywidgets import Widget
from ipywidgets.widgets import widget as registry

from llm import files
from llm.__main__ import main
from llm.adapters import fingerprint, inspect_adapter, load_adapter
from llm.bases import load_base
from llm.course.experiments import EXPERIMENTS, Recipe
from llm.course.tasks import Task, load_task, respond
from llm.course.widgets import lab as labs
from llm.course.widgets import lab_choices as choices
from llm.course.widgets.lab import Lab
from llm.errors import SettingError, TrainingError
from llm.finetune.run import read_report
from llm.finetune.verdict import verdict
from llm.lora import START
from llm.model import GPT, GPTConfig
from llm.paths import RESULTS
from llm.relatives import METHODS
from llm.spectra import snapshot
from llm.training import evaluate

ALIVE = registry._instances if hasattr(registry, "_instances") else Widget.widgets  # ipywidgets 8, and 7
HANG = 20 * 60  # seconds
EARLY = labs.EARLY  # before the fixture takes them away
TINY = GPTConfig(n_layer=1, n_head=2, n_embd=16)


@pytest.fixture
def lab(monkeypatch, tmp_path):
    """A lab over a tiny model and two batches of nonsense: what it does between the clicks is what is tested."""
    torch.manual_seed(0)
    x = torch.randint(0, 50257, (2, 9))
    batch = (x[:, :-1], x[:, 1:])

    def batches(seed):
        while True:
            yield batch

    monkeypatch.setattr(labs, "_task", lambda name: Task(name, batches, [batch]))
    monkeypatch.setattr(labs, "EVERY", 5)
    monkeypatch.setattr(labs, "EARLY", ())
    made = Lab(GPT(TINY), tmp_path / "mine")
    change(made, steps=6, r=2)
    return made


def change(lab, **settings):
    lab.settings = lab.settings | settings


def click(lab, what, **more):
    """What a button of the page sends."""
    if what == "train":
        more = lab.settings | more
    lab._hear(lab, dict(do=what) | more, [])


async def until(condition):
    end = time.monotonic() + HANG
    while not condition():
        assert time.monotonic() < end, "never happened"
        await asyncio.sleep(0.001)


async def trained(lab, **settings):
    click(lab, "train", **settings)
    await until(lambda: lab.trials and not lab.running and lab._job.done())


def says(lab, where="train"):
    return lab.says.get(where, "")


def tokens(lab):
    return lab.voices["of"]


def test_train_trains_only_the_adapter_and_tells_the_page_of_curve_runs_and_answers(lab):
    before = snapshot(lab.base)
    asyncio.run(trained(lab))
    [trial] = lab.trials
    assert trial.ended == "done" and trial.at == [0, 5, 6] and trial.heldout[-1] < trial.heldout[0]
    [row] = lab.runs
    assert row["done"] == row["steps"] == 6 and row["r"] == 2 and row["ended"] == "done" and row["number"] == 1
    assert row["heldout"] == [[at, round(loss, 4)] for at, loss in zip(trial.at, trial.heldout)]
    assert row["training"] == [[i + 1, round(loss, 4)] for i, loss in enumerate(trial.losses)]
    assert set(tokens(lab)) == {"base", "1"}
    assert all(torch.equal(value, before[name]) for name, value in lab.base.state_dict().items())
    json.dumps(lab.get_state()["runs"], allow_nan=False)


def test_the_first_two_steps_are_measured_where_a_hot_rate_shows(lab, monkeypatch):
    monkeypatch.setattr(labs, "EARLY", EARLY)
    asyncio.run(trained(lab))
    assert lab.trials[0].at == [0, 1, 2, 5, 6]


def test_runs_stay_with_their_settings(lab):
    async def two():
        await trained(lab)
        await trained(lab, r=4)

    asyncio.run(two())
    assert [trial.settings.r for trial in lab.trials] == [row["r"] for row in lab.runs] == [2, 4]


def test_every_run_starts_from_the_base(lab):
    async def two():
        await trained(lab)
        await trained(lab)

    asyncio.run(two())
    first, second = lab.trials
    assert first.heldout == second.heldout and first.losses == second.losses


def test_a_run_answers_the_prompt_of_its_own_task_or_the_one_that_was_typed(lab):
    async def two():
        await trained(lab, task="shakespeare")
        assert lab.voices["prompt"] == choices.PROMPTS["shakespeare"]() and set(tokens(lab)) == {"base", "1"}
        click(lab, "train", prompt=" Of mice ")
        await until(lambda: not lab.running and lab._job.done())

    asyncio.run(two())
    assert lab.voices["prompt"] == "Of mice" and set(tokens(lab)) == {"base", "2"}


def test_the_best_step_is_kept_and_is_what_answers_and_is_saved(lab, tmp_path, monkeypatch):
    losses = iter([5.0, 4.0, 6.0, 7.0])  # the base, then the steps 5, 10 and 11
    monkeypatch.setattr(labs, "evaluate", lambda *args: next(losses))
    real, then = labs.train, []

    def watched(model, *args, steps, **options):
        for step in real(model, *args, steps=steps, **options):
            if step.index == 5:
                then.append({n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad})
            if step.index == 4:
                seen = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
                then.append(seen)
            yield step

    monkeypatch.setattr(labs, "train", watched)
    asyncio.run(trained(lab, steps=11))
    [trial] = lab.trials
    assert trial.best == 5 and trial.kept == 4.0 and "kept: step 5 (4.00)" in says(lab)
    assert all(torch.equal(trial.weights[name], value) for name, value in then[0].items())
    assert not all(torch.equal(trial.weights[name], value) for name, value in then[1].items())
    assert tokens(lab)["1"] == dict(step=5, text=respond(trial.prepared(lab.base), "records", lab.voices["prompt"]))
    click(lab, "save", run=1, folder=str(tmp_path / "best"))
    assert "step 5" in says(lab, "save")
    loaded = load_adapter(copy.deepcopy(lab.base), tmp_path / "best")
    assert torch.equal(loaded(torch.tensor([[1, 2]]))[0], trial.prepared(lab.base)(torch.tensor([[1, 2]]))[0])


def test_stop_ends_the_run_after_the_step_it_is_in(lab):
    async def go():
        click(lab, "train", steps=2000)
        await until(lambda: lab.trials and lab.trials[0].seconds)
        click(lab, "stop")
        at = len(lab.trials[0].seconds)
        await until(lambda: lab._job.done())
        return at

    at = asyncio.run(go())
    [trial] = lab.trials
    assert trial.ended == "stopped" and len(trial.seconds) <= at + 1
    assert lab.runs[0]["done"] == len(trial.seconds) < lab.runs[0]["steps"] == 2000


def test_train_twice_is_one_run_and_a_sentence(lab):
    async def go():
        click(lab, "train")
        click(lab, "train")
        assert "under way" in says(lab)
        await until(lambda: lab._job.done())

    asyncio.run(go())
    assert len(lab.trials) == 1


def test_settings_changed_mid_run_count_for_the_next_one(lab):
    async def go():
        click(lab, "train", steps=30)
        await until(lambda: lab.trials and lab.trials[0].seconds)
        change(lab, r=8)
        await until(lambda: lab._job.done())

    asyncio.run(go())
    assert lab.trials[0].settings.r == 2 and {
        w.shape[1] for n, w in lab.trials[0].weights.items() if n[-2:] == ".A"
    } == {2}


def test_reset_mid_run_forgets_the_run_and_train_works_again(lab):
    async def go():
        click(lab, "train", steps=2000)
        await until(lambda: lab.trials and lab.trials[0].seconds)
        click(lab, "remove")
        await until(lambda: lab._job.done())
        assert not lab.trials and not lab.runs and set(tokens(lab)) <= {"base"} and "ready" in says(lab)
        await trained(lab, steps=3)

    asyncio.run(go())
    [trial] = lab.trials
    assert trial.ended == "done" and set(tokens(lab)) == {"base", str(trial.number)}


def test_one_run_is_removed_and_the_others_keep_their_numbers(lab):
    async def three():
        for r in (1, 2, 4):
            await trained(lab, r=r)
        click(lab, "remove", run=2)
        await trained(lab)

    asyncio.run(three())
    assert [row["number"] for row in lab.runs] == [1, 3, 4] and set(tokens(lab)) == {"base", "1", "3", "4"}


def test_idle_buttons_answer_with_a_sentence(lab):
    click(lab, "stop"), click(lab, "save", run=None, folder="x")
    assert "nothing is training" in says(lab) and "no adapter yet" in says(lab, "save")
    click(lab, "remove")
    assert "ready" in says(lab)
    click(lab, "ask", prompt=" ", task="shakespeare")
    assert "prompt is empty" in says(lab, "ask")
    click(lab, "ask", prompt="word " * 200, task="shakespeare")
    assert set(tokens(lab)) == {"base"} and "no run has an adapter" in says(lab, "ask")


def test_save_and_ask_act_on_the_chosen_run(lab, tmp_path):
    async def two():
        await trained(lab, r=2)
        await trained(lab, r=4)

    asyncio.run(two())
    click(lab, "ask", run=1, prompt="another", task="records")
    assert lab.voices["prompt"] == "another" and set(tokens(lab)) == {"base", "1"}
    for run, r in ((1, 2), (2, 4)):
        click(lab, "save", run=run, folder=str(tmp_path / f"run{run}"))
        info = inspect_adapter(tmp_path / f"run{run}")
        assert (
            info.r == r and f"saved run {run}, " in says(lab, "save") and f"{info.bytes:,} bytes" in says(lab, "save")
        )


def test_a_save_never_takes_the_place_of_another_runs_adapter(lab, tmp_path):
    folder = str(tmp_path / "mine")

    async def two():
        await trained(lab, r=2)
        await trained(lab, r=4)

    asyncio.run(two())
    click(lab, "save", run=1, folder=folder)
    assert "is taken" not in says(lab, "save")
    click(lab, "save", run=2, folder=folder)
    assert says(lab, "save").startswith(f"{folder} is taken: saved run 2")
    click(lab, "save", run=1, folder=folder)  # once more, into its own
    assert [inspect_adapter(tmp_path / name).r for name in ("mine", "mine-2")] == [2, 4]
    assert not (tmp_path / "mine-3").exists()


def test_a_save_that_cannot_be_is_a_sentence(lab, tmp_path):
    asyncio.run(trained(lab))
    (tmp_path / "file").write_text("")
    click(lab, "save", run=1, folder=str(tmp_path / "file"))
    assert "nothing was lost" in says(lab, "save")
    click(lab, "save", run=1, folder=" ")
    assert "name a folder" in says(lab, "save")


def test_the_line_beside_save_answers_as_the_lab_does(tmp_path, capsys):
    lab = Lab(folder=tmp_path / "mine", task="records")
    asyncio.run(trained(lab, steps=2))
    click(lab, "save", run=1, folder=str(tmp_path / "mine"))
    assert read_report(tmp_path / "mine")["completes"]
    words = labs.shlex.split(lab.says["line"])
    assert words[:4] == ["python", "-m", "llm", "generate"] and main(words[3:]) == 0
    answer = capsys.readouterr().out.strip()
    assert answer and answer.startswith(tokens(lab)["1"]["text"].strip()[:40])


def test_a_run_that_is_worse_than_the_base_is_said_beside_ask_and_save(lab, monkeypatch, tmp_path):
    losses = iter([5.0, 6.0, 7.0])
    monkeypatch.setattr(labs, "evaluate", lambda *args: next(losses))
    asyncio.run(trained(lab))
    click(lab, "ask", run=1, prompt="x", task="records")
    click(lab, "save", run=1, folder=str(tmp_path / "worse"))
    for where in ("ask", "save"):
        assert "run 1 is worse than the base, with 6.00 against 5.00" in says(lab, where)


def test_a_rank_that_does_not_fit_gets_a_sentence_and_the_lab_goes_on(lab):
    async def go():
        await trained(lab, r=64)
        assert lab.trials[0].ended == "failed" and "does not fit" in says(lab)
        await trained(lab, r=2)

    asyncio.run(go())
    assert lab.trials[1].ended == "done"


def raising(error):
    """A training loop that ends with `error` before its first step."""

    def train(*args, **kwargs):
        raise error
        yield

    return train


def test_a_rate_too_hot_ends_in_a_sentence(lab, monkeypatch):
    monkeypatch.setattr(labs, "train", raising(TrainingError("the loss is nan at step 3: lower the learning rate")))
    asyncio.run(trained(lab))
    assert lab.trials[0].ended == "failed" and "lower the learning rate" in says(lab)


def test_a_loss_that_is_no_number_reaches_the_page_as_none(lab, monkeypatch):
    losses = iter([5.0, float("inf"), float("nan")])
    monkeypatch.setattr(labs, "evaluate", lambda *args: next(losses))
    asyncio.run(trained(lab))
    assert lab.runs[0]["heldout"] == [[0, 5.0], [5, None], [6, None]]
    json.dumps(lab.get_state()["runs"], allow_nan=False)


def test_an_interrupt_leaves_the_best_step_and_the_lab_usable(lab, monkeypatch):
    real = labs.train

    def interrupted(*args, **kwargs):
        for step in real(*args, **kwargs):
            if step.index == 5:
                raise KeyboardInterrupt
            yield step

    monkeypatch.setattr(labs, "train", interrupted)
    asyncio.run(trained(lab))
    assert lab.trials[0].ended == "interrupted" and len(lab.trials[0].seconds) == lab.trials[0].best == 5
    assert "interrupted; kept: step 5" in says(lab)
    monkeypatch.setattr(labs, "train", real)
    asyncio.run(trained(lab))
    assert lab.trials[1].ended == "done"


def test_running_the_cell_again_stops_the_lab_before(lab, tmp_path):
    async def go():
        click(lab, "train", steps=2000)
        await until(lambda: lab.trials and lab.trials[0].seconds)
        Lab(GPT(TINY), tmp_path / "other")
        await until(lambda: lab._job.done())

    asyncio.run(go())
    assert lab.trials[0].ended == "stopped"


def test_clicks_that_come_on_another_thread_spoil_nothing(lab, tmp_path):
    """JupyterLab may call back on a thread of its own (a kernel subshell) while a step is under way."""
    stop, raised = threading.Event(), []

    def elsewhere():
        try:
            while not stop.is_set():
                lab.answer(), lab.save(folder=str(tmp_path / "mine"))
        except Exception as error:
            raised.append(error)

    async def both():
        click(lab, "train", steps=30)
        await until(lambda: lab.trials and lab.trials[-1].seconds)
        thread = threading.Thread(target=elsewhere)
        thread.start()
        await until(lambda: not lab.running and lab._job.done())
        stop.set()
        await asyncio.to_thread(thread.join)

    asyncio.run(both())
    assert not raised and lab.trials[-1].ended == "done" and len(lab.trials[-1].seconds) == 30
    alone = lab.trials[-1].heldout
    asyncio.run(trained(lab, steps=30))
    assert lab.trials[-1].heldout == alone, "an answer has changed what trains"


def test_a_run_that_a_cell_awaits_while_another_is_under_way_is_a_sentence(lab):
    async def go():
        click(lab, "train")
        await lab.run()
        assert "under way" in says(lab)
        await until(lambda: lab._job.done())

    asyncio.run(go())
    assert [trial.ended for trial in lab.trials] == ["done"]


def test_train_and_stop_in_one_turn_of_the_loop_is_a_run_that_is_stopped(lab):
    async def go():
        click(lab, "train")
        click(lab, "stop")
        await until(lambda: lab._job.done())

    asyncio.run(go())
    assert [trial.ended for trial in lab.trials] == ["stopped"] and not lab.trials[0].seconds
    assert "stopped before the first step" in says(lab)


def test_a_stop_that_nothing_heard_does_not_stop_the_next_run(lab):
    async def go():
        click(lab, "stop")
        await trained(lab)

    asyncio.run(go())
    assert lab.trials[0].ended == "done"


@pytest.mark.parametrize("first", [0, 1])
def test_reset_and_train_in_one_turn_is_a_fresh_run_from_the_base(lab, first):
    async def go():
        click(lab, "train", steps=2000)
        await until(lambda: len(lab.trials[0].seconds) >= first)
        click(lab, "remove")
        await trained(lab, steps=6)

    asyncio.run(go())
    reset = list(lab.trials)
    asyncio.run(trained(lab))
    assert [trial.ended for trial in lab.trials] == ["done", "done"] and reset[0].heldout == lab.trials[1].heldout


def test_a_defect_shows_its_traceback_and_the_lab_goes_on(lab, monkeypatch, caplog):
    real = labs.train

    monkeypatch.setattr(labs, "train", raising(RuntimeError("out of paper")))
    asyncio.run(trained(lab))
    assert lab.trials[0].ended == "failed" and "RuntimeError: out of paper" in says(lab)
    assert "Traceback" in caplog.text and "out of paper" in caplog.text
    with pytest.raises(RuntimeError, match="out of paper"):
        asyncio.run(lab.run())
    monkeypatch.setattr(labs, "train", real)
    asyncio.run(trained(lab))
    assert lab.trials[-1].ended == "done"


def test_an_interrupt_in_a_measurement_leaves_the_lab_usable(lab, monkeypatch):
    real = labs.evaluate

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(labs, "evaluate", interrupted)
    asyncio.run(trained(lab))
    assert lab.trials[0].ended == "interrupted" and not lab.trials[0].at
    monkeypatch.setattr(labs, "evaluate", real)
    asyncio.run(trained(lab))
    assert lab.trials[1].ended == "done"


def test_a_value_error_that_is_not_ours_is_a_defect(lab, monkeypatch):
    def broken(*args, **kwargs):
        raise ValueError("internals")

    monkeypatch.setattr(labs, "evaluate", broken)
    with pytest.raises(ValueError, match="internals"):
        asyncio.run(lab.run())


def test_a_task_that_there_is_not_is_refused_in_a_sentence():
    with pytest.raises(SettingError, match='no task called "verse": choose records or shakespeare'):
        Lab(GPT(TINY), task="verse")


@pytest.mark.parametrize("training", [False, True])
def test_running_the_cell_again_frees_the_lab_before_with_its_model_and_widgets(lab, training):
    def another():
        return Lab(GPT(TINY))

    async def go():
        lab.close()
        gc.collect()
        before, old, out = len(ALIVE), another(), []
        job = None
        if training:
            click(old, "train", steps=2000)
            await until(lambda: old.trials[0].seconds)
            job = old._job
        model, widget = weakref.ref(old.base), weakref.ref(old)
        out.append(old)  # as IPython's `Out` does
        old = None
        one = len(ALIVE) - before
        new = another()
        if job:
            await until(job.done)
            del job
        gc.collect()
        assert model() is None and len(ALIVE) - before == one
        out.clear()
        gc.collect()
        assert widget() is None
        new.close()
        gc.collect()
        assert len(ALIVE) == before

    asyncio.run(go())


def test_a_lab_that_gave_way_says_so(lab):
    asyncio.run(trained(lab))
    Lab(GPT(TINY))
    for act in (lab.answer, lab.save, lab.remove, lambda: asyncio.run(lab.run())):
        with pytest.raises(SettingError, match="a newer lab has taken the place of this one"):
            act()
    assert lab.trials[0].ended == "done"  # what it measured can still be read


def test_a_run_ends_with_what_its_curve_means_and_what_to_try_next(lab):
    async def go():
        for lr, steps in ((1e-4, 12), (1e-1, 12), (1e-1, 6)):
            await trained(lab, lr=lr, steps=steps)
            said.append(says(lab))

    said = []
    asyncio.run(go())
    cold, found, short = said
    assert "done after 12 steps: the held-out loss hardly moved" in cold and "try three to ten times the rate" in cold
    meant = verdict(list(zip(lab.trials[1].at, lab.trials[1].heldout)), lab.trials[1].losses)
    assert f"done after 12 steps: {meant.sentence}; {meant.try_next}" in found
    assert "too few steps to judge" in short
    assert [row["meant"] for row in lab.runs] == ["too cold", meant.kind, ""]


def test_as_start_is_a_setting_too(lab):
    async def go():
        for start in START:
            await trained(lab, start=start)

    asyncio.run(go())
    assert [trial.settings.start for trial in lab.trials] == list(START)
    assert lab.trials[0].heldout[1:] != lab.trials[1].heldout[1:]


@pytest.mark.parametrize("method", choices.LIVE)
def test_each_method_trains_answers_saves_or_says_why_not_and_leaves_the_base(lab, tmp_path, method):
    before = snapshot(lab.base)
    asyncio.run(trained(lab, method=method, lr=1e-1))
    [trial] = lab.trials
    assert trial.ended == "done" and trial.settings.method == method and trial.kept < trial.heldout[0]
    again = evaluate(trial.prepared(lab.base), labs._task("records").heldout)
    assert again == pytest.approx(trial.kept, abs=1e-6) and set(tokens(lab)) == {"base", "1"}
    click(lab, "save", run=1, folder=str(tmp_path / "mine"))
    if METHODS[method].saves:
        assert inspect_adapter(tmp_path / "mine").method == (method if method in ("dora", "ia3", "lora-fa") else "lora")
    else:
        assert "has no place in an adapter" in says(lab, "save")
    assert all(torch.equal(t, before[name]) for name, t in lab.base.state_dict().items())


def test_methods_follow_one_another_each_from_the_base(lab):
    async def go():
        for method in (*choices.LIVE, *choices.LIVE):
            await trained(lab, method=method)

    asyncio.run(go())
    n = len(choices.LIVE)
    for one, other in zip(lab.trials[:n], lab.trials[n:]):
        assert one.ended == other.ended == "done" and one.heldout == other.heldout
        assert one.heldout[0] == lab.trials[0].heldout[0]


@pytest.mark.parametrize("method", choices.LIVE)
def test_what_a_setting_costs_is_counted_exactly_before_it_trains(lab, method):
    for targets in choices.CONTROLS["targets"]:
        for r in (1, 8):
            model = labs.Trial(1, Recipe(method=method, targets=targets, r=r)).prepared(lab.base)
            fixed, each = lab.setup["costs"][method][targets]
            assert fixed + each * r == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_the_page_learns_how_long_a_run_takes_before_it_starts(lab):
    async def go():
        click(lab, "estimate", **lab.settings)
        await until(lambda: lab._job.done())

    asyncio.run(go())
    pace = lab.pace["records"]
    assert pace["step"] > 0 < pace["measure"] and not lab.trials
    assert pace["base"] == evaluate(lab.base, labs._task("records").heldout)
    job = lab._job
    asyncio.run(go())
    assert lab._job is job, "it is measured once"


def test_every_ready_setting_is_one_that_the_controls_have(lab):
    for ready in lab.setup["ready"]:
        settings = choices.BEGIN | ready["change"]
        assert set(settings) == set(choices.BEGIN) and ready["look"]
        assert all(settings[name] in values for name, values in choices.CONTROLS.items())


def test_the_line_of_full_fine_tuning_was_measured_on_the_labs_own_text_base_and_batches():
    recorded = [row for row in files.read_csv(RESULTS / "ranks.csv") if row["method"] == "full"]
    base = load_base()
    for task in choices.PROMPTS:
        rows = [row for row in recorded if row["task"] == task]
        assert choices.full_ends(base)[task] == dict(loss=sorted(row["after"] for row in rows)[1], steps=100)
        assert all(row["base"] == fingerprint(base) and row["rows"] == 0 for row in rows)
        assert rows[0]["before"] == pytest.approx(evaluate(base, labs._task(task).heldout), abs=2e-3)
    assert choices.full_ends(GPT(TINY)) == {}, "another base has no line"
    assert any(run.method == "full" for run in EXPERIMENTS["ranks"]) and load_task is labs.load_task
