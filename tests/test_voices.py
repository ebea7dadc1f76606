"""The voices widget as the page drives it: an adapter or a prompt is set, and the answer follows."""

import gc
import threading
import time
import weakref

import pytest
import torch
from ipywidgets import Widget
from ipywidgets.widgets import widget as registry

from llm.adapters import save_adapter
from llm.course.widgets import voices as voices_widget
from llm.course.widgets.voices import Voices
from llm.lora import apply_lora, lora_layers
from llm.model import GPT, GPTConfig

ALIVE = registry._instances if hasattr(registry, "_instances") else Widget.widgets  # ipywidgets 8, and 7
CONFIG = GPTConfig(n_layer=1, n_head=2, n_embd=16)


@pytest.fixture
def voices(tmp_path):
    def base():
        torch.manual_seed(0)
        return GPT(CONFIG)

    for i in (1, 2):
        torch.manual_seed(i)
        model = apply_lora(base(), r=2)
        for layer in lora_layers(model).values():
            layer.B.data.normal_()
        save_adapter(model, tmp_path / str(i))
    return Voices(base(), {"plays": tmp_path / "1", "code": tmp_path / "2"}, "My lord")


def test_each_voice_is_heard_once_and_stays_for_comparison(voices):
    assert [*voices.answer["heard"]] == ["no adapter"] and voices.answer["says"].startswith("no adapter: swapped in")
    base = voices.answer["heard"]["no adapter"]
    voices.adapter = "plays"
    assert [*voices.answer["heard"]] == ["no adapter", "plays"] and len(lora_layers(voices._model)) == 4
    voices.adapter = "code"
    assert len(voices.answer["heard"]) == 3
    voices.adapter = voices.BASE
    assert not lora_layers(voices._model) and voices.answer["says"].endswith("answered before")
    voices.prompt = "My lady"
    assert [*voices.answer["heard"]] == ["no adapter"] and voices.answer["heard"]["no adapter"] != base
    assert voices.answer["prompt"] == "My lady"


def test_an_empty_prompt_and_a_broken_adapter_get_a_sentence_and_the_widget_goes_on(voices):
    voices.prompt = "  "
    assert voices.answer["says"].startswith("The prompt is empty") and not voices.answer["heard"]
    voices.prompt = "My lord"
    (voices._folders["plays"] / "adapter_model.safetensors").write_bytes(b"cut")
    voices.adapter = "plays"
    assert "is damaged" in voices.answer["says"] and "plays" not in voices.answer["heard"]
    voices.adapter = "code"
    assert "swapped in" in voices.answer["says"]


def test_a_cell_that_runs_again_frees_the_voices_before_and_their_model(voices):
    gc.collect()
    before, model = len(ALIVE), weakref.ref(voices._model)
    again = Voices(GPT(CONFIG), voices._folders, "My lord")
    gc.collect()
    assert model() is None and len(ALIVE) == before
    again.close()


def test_voices_on_several_threads_each_answer_with_their_own_adapter(voices, monkeypatch):
    """As JupyterLab's subshells call widgets back."""
    raised = []

    def factors(model):
        return [layer.B.clone() for layer in lora_layers(model).values()]

    def slowly(model, _task, prompt):
        before = factors(model)
        time.sleep(0.02)  # long enough for another thread to swap, if it could
        assert all(torch.equal(t, u) for t, u in zip(before, factors(model), strict=True))
        return prompt

    def ask(name):
        try:
            for _ in range(4):
                voices.adapter = name
                voices._heard.clear()
                voices.hear()
        except Exception as error:
            raised.append(error)

    monkeypatch.setattr(voices_widget, "respond", slowly)
    voices._heard.clear()
    threads = [threading.Thread(target=ask, args=(name,)) for name in voices.names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not raised
