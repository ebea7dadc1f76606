"""The live lab, clicked in every order: it trains, stops, compares, saves, and nothing wedges it."""

import asyncio
import gc
import html
import threading
import time
import weakref

import pytest
import torch
from ipywidgets import Widget
from ipywidgets.widgets import widget as registry

from llm.adapters import inspect_adapter
from llm.course.tasks import Task
from llm.course.widgets import lab as labs
from llm.course.widgets.lab import Lab
from llm.errors import SettingError, TrainingError
from llm.finetune.verdict import verdict
from llm.lora import START, lora_layers
from llm.model import GPT, GPTConfig
from llm.relatives import METHODS
from llm.spectra import snapshot

ALIVE = registry._instances if hasattr(registry, "_instances") else Widget.widgets  # ipywidgets 8, and 7
HANG = 20 * 60  # seconds


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
    model = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16))
    made = Lab(model, tmp_path / "mine")
    made.controls["steps"].value = 6
    made.controls["r"].value = 2
    return made


def click(lab, name):
    lab.buttons[name].click()


async def until(condition):
    end = time.monotonic() + HANG
    while not condition():
        assert time.monotonic() < end, "never happened"
        await asyncio.sleep(0.001)


async def trained(lab):
    click(lab, "Train")
    await until(lambda: lab.trials and not lab.running and lab._job.done())


def test_train_trains_only_the_adapter_and_shows_curve_table_and_answers(lab):
    before, picture = snapshot(lab.model), lab.image.value
    asyncio.run(trained(lab))
    [trial] = lab.trials
    assert trial.ended == "done" and trial.at == [0, 5, 6] and trial.heldout[-1] < trial.heldout[0]
    assert lab.bar.value == lab.bar.max == 6 and lab.image.value != picture
    assert ">done</td>" in lab.table.value and "with the adapter" in lab.answers.value
    assert all(
        torch.equal(layer.base.weight, before[f"{path}.weight"]) for path, layer in lora_layers(lab.model).items()
    )


def test_runs_stay_on_the_plot_with_their_settings(lab):
    async def two():
        await trained(lab)
        lab.controls["r"].value = 4
        await trained(lab)

    asyncio.run(two())
    assert [trial.settings.r for trial in lab.trials] == [2, 4] and lab.table.value.count(">done</td>") == 2


def test_every_run_starts_from_the_base(lab):
    async def two():
        await trained(lab)
        await trained(lab)

    asyncio.run(two())
    first, second = lab.trials
    assert first.heldout == second.heldout


def test_stop_ends_the_run_after_the_step_it_is_in(lab):
    async def go():
        lab.controls["steps"].value = 2000
        click(lab, "Train")
        await until(lambda: lab.trials and lab.trials[0].seconds)
        click(lab, "Stop")
        at = len(lab.trials[0].seconds)
        await until(lambda: lab._job.done())
        return at

    at = asyncio.run(go())
    assert lab.trials[0].ended == "stopped" and len(lab.trials[0].seconds) <= at + 1


def test_train_twice_is_one_run_and_a_sentence(lab):
    async def go():
        click(lab, "Train")
        click(lab, "Train")
        assert "under way" in lab.status.value
        await until(lambda: lab._job.done())

    asyncio.run(go())
    assert len(lab.trials) == 1


def test_settings_changed_mid_run_count_for_the_next_one(lab):
    async def go():
        lab.controls["steps"].value = 30
        click(lab, "Train")
        await until(lambda: lab.trials and lab.trials[0].seconds)
        lab.controls["r"].value = 8
        await until(lambda: lab._job.done())

    asyncio.run(go())
    assert lab.trials[0].settings.r == 2 and {layer.r for layer in lora_layers(lab.model).values()} == {2}


def test_reset_mid_run_leaves_the_base_and_an_empty_plot_and_train_works_again(lab):
    before = snapshot(lab.model)

    async def go():
        lab.controls["steps"].value = 2000
        click(lab, "Train")
        await until(lambda: lab.trials and lab.trials[0].seconds)
        click(lab, "Reset")
        await until(lambda: lab._job.done())
        assert not lab.trials and not lora_layers(lab.model) and not lab.table.value
        lab.controls["steps"].value = 3
        await trained(lab)

    asyncio.run(go())
    assert len(lab.trials) == 1 and lab.trials[0].ended == "done"
    labs.remove(lab.model)
    assert all(torch.equal(value, before[name]) for name, value in lab.model.state_dict().items())


def test_idle_buttons_answer_with_a_sentence(lab):
    for name, sentence in {"Stop": "nothing is training", "Save": "no LoRA layers", "Reset": "ready"}.items():
        click(lab, name)
        assert sentence in lab.status.value
    lab.prompt.value = ""
    lab.controls["task"].value = "shakespeare"
    lab.prompt.value = ""
    click(lab, "Answer")
    assert "prompt is empty" in lab.status.value
    lab.prompt.value = "word " * 200
    click(lab, "Answer")
    assert "base" in lab.answers.value


def test_save_writes_an_adapter_and_says_how_large(lab, tmp_path):
    asyncio.run(trained(lab))
    click(lab, "Save")
    info = inspect_adapter(tmp_path / "mine")
    assert info.r == 2 and f"{info.bytes:,} bytes" in lab.status.value
    (tmp_path / "file").write_text("")
    lab.folder.value = str(tmp_path / "file")
    click(lab, "Save")
    assert "nothing was lost" in lab.status.value
    lab.folder.value = " "
    click(lab, "Save")
    assert "name a folder" in lab.status.value


def test_a_rank_that_does_not_fit_gets_a_sentence_and_the_lab_goes_on(lab):
    async def go():
        lab.controls["r"].value = 64
        await trained(lab)
        assert lab.trials[0].ended == "failed" and "does not fit" in lab.status.value
        lab.controls["r"].value = 2
        await trained(lab)

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
    assert lab.trials[0].ended == "failed" and "lower the learning rate" in lab.status.value


def test_an_interrupt_leaves_the_last_whole_step_and_the_lab_usable(lab, monkeypatch):
    real = labs.train

    def interrupted(*args, **kwargs):
        for step in real(*args, **kwargs):
            if step.index == 3:
                raise KeyboardInterrupt
            yield step

    monkeypatch.setattr(labs, "train", interrupted)
    asyncio.run(trained(lab))
    assert lab.trials[0].ended == "interrupted" and len(lab.trials[0].seconds) == 3
    monkeypatch.setattr(labs, "train", real)
    asyncio.run(trained(lab))
    assert lab.trials[1].ended == "done"


def test_running_the_cell_again_stops_the_lab_before(lab, tmp_path):
    async def go():
        lab.controls["steps"].value = 2000
        click(lab, "Train")
        await until(lambda: lab.trials and lab.trials[0].seconds)
        Lab(GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16)), tmp_path / "other")
        await until(lambda: lab._job.done())

    asyncio.run(go())
    assert lab.trials[0].ended == "stopped"


def test_the_prompt_follows_the_task_unless_the_learner_typed_one(lab):
    lab.controls["task"].value = "shakespeare"
    assert lab.prompt.value == labs.PROMPTS["shakespeare"]()
    lab.prompt.value = "Of mice"
    lab.controls["task"].value = "records"
    assert lab.prompt.value == "Of mice"


def test_answers_are_escaped(lab):
    lab.controls["task"].value = "shakespeare"
    lab.model.generate = lambda ids, *args, **kwargs: torch.cat((ids, torch.tensor([[27, 65, 29]])), dim=1)  # "<b>"
    click(lab, "Answer")
    assert "&lt;b&gt;" in lab.answers.value


def test_clicks_that_come_on_another_thread_wait_for_the_step_and_spoil_nothing(lab, tmp_path):
    """JupyterLab may call back on a thread of its own (a kernel subshell) while a step is under way."""
    lab.controls["steps"].value = 30
    stop, raised = threading.Event(), []

    def elsewhere():
        try:
            while not stop.is_set():
                lab.answer(), lab.save()
        except Exception as error:
            raised.append(error)

    async def both():
        click(lab, "Train")
        await until(lambda: lab.trials and lab.trials[-1].seconds)
        thread = threading.Thread(target=elsewhere)
        thread.start()
        await until(lambda: not lab.running and lab._job.done())
        stop.set()
        await asyncio.to_thread(thread.join)

    asyncio.run(both())
    assert not raised and lab.trials[-1].ended == "done" and len(lab.trials[-1].seconds) == 30
    alone = lab.trials[-1].heldout
    asyncio.run(trained(lab))
    assert lab.trials[-1].heldout == alone, "a step that an answer ran into would have trained on the bare base"


def test_a_run_that_a_cell_awaits_while_another_is_under_way_is_a_sentence(lab):
    async def go():
        click(lab, "Train")
        await lab.run()
        assert "under way" in lab.status.value
        await until(lambda: lab._job.done())

    asyncio.run(go())
    assert [trial.ended for trial in lab.trials] == ["done"]


def test_train_and_stop_in_one_turn_of_the_loop_is_a_run_that_is_stopped(lab):
    async def go():
        click(lab, "Train")
        click(lab, "Stop")
        await until(lambda: lab._job.done())

    asyncio.run(go())
    assert [trial.ended for trial in lab.trials] == ["stopped"] and not lab.trials[0].seconds
    assert "stopped before the first step" in lab.status.value


def test_a_stop_that_nothing_heard_does_not_stop_the_next_run(lab):
    async def go():
        click(lab, "Stop")
        await trained(lab)

    asyncio.run(go())
    assert lab.trials[0].ended == "done"


@pytest.mark.parametrize("first", [0, 1])
def test_reset_and_train_in_one_turn_is_a_fresh_run_from_the_base(lab, first):
    async def go():
        lab.controls["steps"].value = 2000
        click(lab, "Train")
        await until(lambda: len(lab.trials[0].seconds) >= first)
        click(lab, "Reset")
        lab.controls["steps"].value = 6
        await trained(lab)

    asyncio.run(go())
    reset = lab.trials
    asyncio.run(trained(lab))
    assert [trial.ended for trial in reset] == ["done", "done"] and reset[0].heldout == reset[1].heldout


def test_a_defect_shows_its_traceback_and_the_lab_goes_on(lab, monkeypatch, caplog):
    real = labs.train

    monkeypatch.setattr(labs, "train", raising(RuntimeError("out of paper")))
    asyncio.run(trained(lab))
    assert lab.trials[0].ended == "failed" and "RuntimeError: out of paper" in lab.status.value
    assert "Traceback" in caplog.text and "out of paper" in caplog.text
    with pytest.raises(RuntimeError, match="out of paper"):
        asyncio.run(lab.run())
    monkeypatch.setattr(labs, "train", real)
    asyncio.run(trained(lab))
    assert lab.trials[-1].ended == "done"


def test_an_interrupt_in_a_measurement_leaves_the_plot_and_the_lab_usable(lab, monkeypatch):
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
        Lab(GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16)), task="verse")


@pytest.mark.parametrize("training", [False, True])
def test_running_the_cell_again_frees_the_lab_before_with_its_model_and_widgets(lab, training):
    def parts():
        return len(ALIVE)

    def another():
        return Lab(GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16)))

    async def go():
        lab.close()
        gc.collect()
        before, old, out = parts(), another(), []
        old.controls["steps"].value = 2000
        job = None
        if training:
            click(old, "Train")
            await until(lambda: old.trials[0].seconds)
            job = old._job
        model, widget = weakref.ref(old.model), weakref.ref(old)
        out.append(old)  # as IPython's `Out` does
        old = None
        one = parts() - before
        new = another()
        if job:
            await until(job.done)
            del job
        gc.collect()
        assert model() is None and parts() - before == one
        out.clear()
        gc.collect()
        assert widget() is None
        new.close()
        gc.collect()
        assert parts() == before

    asyncio.run(go())


def test_a_lab_that_gave_way_says_so(lab, tmp_path):
    asyncio.run(trained(lab))
    Lab(GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16)))
    for act in (lab.answer, lab.save, lab.reset, lambda: asyncio.run(lab.run())):
        with pytest.raises(SettingError, match="a newer lab has taken the place of this one"):
            act()
    assert lab.trials[0].ended == "done"  # what it measured can still be read


def test_a_run_ends_with_what_its_curve_means_and_what_to_try_next(lab):
    async def go():
        for lr, steps in ((1e-4, 12), (1e-1, 12), (1e-1, 6)):
            lab.controls["lr"].value, lab.controls["steps"].value = lr, steps
            await trained(lab)
            said.append(lab.status.value)

    said = []
    asyncio.run(go())
    cold, found, short = said
    assert "done after 12 steps: the held-out loss hardly moved" in cold and "try three to ten times the rate" in cold
    meant = verdict(list(zip(lab.trials[1].at, lab.trials[1].heldout)), lab.trials[1].losses)
    assert html.escape(f"done after 12 steps: {meant.sentence}; {meant.try_next}") in found
    assert "too few steps to judge" in short
    assert "too cold" in lab.table.value and meant.kind in lab.table.value


def test_as_start_is_a_setting_too(lab):
    async def go():
        for start in START:
            lab.controls["start"].value = start
            await trained(lab)

    asyncio.run(go())
    assert [trial.settings.start for trial in lab.trials] == list(START)
    assert lab.trials[0].heldout[1:] != lab.trials[1].heldout[1:]
    assert all(f">{start}</td>" in lab.table.value for start in START)


@pytest.mark.parametrize("method", labs.LIVE)
def test_each_method_trains_answers_saves_or_says_why_not_and_leaves_the_base(lab, tmp_path, method):
    before = snapshot(lab.model)

    async def go():
        lab.controls["method"].value, lab.controls["lr"].value = method, 1e-1
        await trained(lab)

    asyncio.run(go())
    [trial] = lab.trials
    assert trial.ended == "done" and trial.settings.method == method and f">{method}</td>" in lab.table.value
    assert trial.heldout[-1] < trial.heldout[0] and "with the adapter" in lab.answers.value
    click(lab, "Save")
    if METHODS[method].saves:
        assert inspect_adapter(tmp_path / "mine").method == (method if method in ("dora", "ia3", "lora-fa") else "lora")
    else:
        assert "has no place in an adapter" in lab.status.value
    click(lab, "Reset")
    assert all(torch.equal(t, before[name]) for name, t in lab.model.state_dict().items())


def test_methods_follow_one_another_each_from_the_base(lab):
    async def go():
        for method in (*labs.LIVE, *labs.LIVE):
            lab.controls["method"].value = method
            await trained(lab)

    asyncio.run(go())
    n = len(labs.LIVE)
    for one, other in zip(lab.trials[:n], lab.trials[n:]):
        assert one.ended == other.ended == "done" and one.heldout == other.heldout
        assert one.heldout[0] == pytest.approx(lab.trials[0].heldout[0], abs=1e-5)


def test_a_control_that_a_method_does_not_heed_is_switched_off(lab):
    choices = ("r", "alpha", "scaling", "start", "targets")
    for method, off in {
        "ia3": choices,
        "rslora": ("scaling",),
        "pissa": ("start",),
        "bitfit": choices,
        "dora": (),
    }.items():
        lab.controls["method"].value = method
        assert {name for name in lab.controls if lab.controls[name].disabled} == set(off), method
