"""The widgets, driven as a hand would: a control moves, and text and picture follow."""

import gc
import threading
import time
import weakref

import pytest
import torch
from ipywidgets import Widget
from ipywidgets.widgets import widget as registry
from matplotlib.figure import Figure

from llm import spectra
from llm.adapters import save_adapter
from llm.course.toy_matrices import noise
from llm.course.widgets import voices as voices_widget
from llm.course.widgets.method_explorer import rate_explorer
from llm.course.widgets.old_explorer import Explorer, slider
from llm.course.widgets.rounding_explorer import rounding_explorer
from llm.course.widgets.spectrum_explorer import delta_explorer
from llm.course.widgets.target_explorer import targets_explorer
from llm.course.widgets.voices import Voices
from llm.lora import apply_lora, lora_layers
from llm.model import GPT, GPTConfig

ALIVE = registry._instances if hasattr(registry, "_instances") else Widget.widgets  # ipywidgets 8, and 7


def test_text_is_escaped():
    controls = {"n": slider("n", 1, 1, 3)}
    explorer = Explorer(controls, lambda n: n, lambda n, figure: figure or Figure(), lambda n: f"{n} < 4")
    assert "1 &lt; 4" in explorer.text.value


def test_the_delta_explorer_follows_layer_and_rank():
    deltas = {"records": {f"transformer.h.{i}.attn.c_attn.weight": noise(24, 16, seed=i) for i in range(2)}}
    explorer = delta_explorer(deltas)
    seen = {explorer.image.value}
    explorer.controls["r"].value = 16
    assert "rank 16 of 16: 100% of the energy" in explorer.text.value
    seen.add(explorer.image.value)
    explorer.controls["layer"].value = explorer.controls["layer"].options[1][1]
    seen.add(explorer.image.value)
    assert len(seen) == 3


def test_a_rank_above_the_layers_size_still_draws():
    explorer = delta_explorer({"records": {"transformer.h.0.attn.c_attn.weight": noise(24, 16)}})
    explorer.controls["r"].value = 64
    assert "100% of the energy" in explorer.text.value


def test_the_rounding_explorer_follows_format_block_and_double_quantisation():
    explorer = rounding_explorer({"one": noise(64, 128), "two": noise(128, 64, seed=1)})
    assert "nf4 in blocks of 64: 4.500 bits a weight" in explorer.text.value
    seen = {explorer.image.value}
    for name, value, says in (
        ("double", True, "absmaxes in 8 bits: 4.127 bits"),
        ("block", 16, "in blocks of 16"),
        ("block", 1024, "in blocks of 1024"),
        ("format", "int4", "int4 in blocks of 1024"),
        ("format", "fp4", "fp4 in blocks of 1024"),
        ("layer", "two", "fp4 in blocks of 1024"),
    ):
        explorer.controls[name].value = value
        assert says in explorer.text.value and explorer.image.value not in seen, name
        seen.add(explorer.image.value)


def test_the_rate_explorer_follows_the_rate_the_task_and_the_button():
    said = dict(seed=0, before=5.0, trainable=1)
    rows = [
        said | dict(task=task, method=method, lr=lr, after=loss)
        for task, by_task in (("shakespeare", 0), ("facts", 1))
        for method, losses in (("lora", {0.01: 4.1, 0.1: 6.0}), ("full", {0.001: 3.9, 0.01: 4.5}))
        for lr, loss in {lr: loss + 0.2 * by_task for lr, loss in losses.items()}.items()
    ]
    between = rows[0] | dict(lr=0.018, after=4.2)
    explorer = rate_explorer([*rows, between, rows[0] | dict(method="ia3", task="facts")])
    assert [rate for _, rate in explorer.controls["rate"].options] == [0.001, 0.01, 0.1]
    assert "rate 0.01 for all, 2 of 2 tried: lowest LoRA with 4.10, highest full fine-tune with 4.50; 0 worse" in (
        explorer.text.value
    ), "a method that has rows of one task alone is left out"
    seen = {explorer.image.value}
    for name, value, says in (
        ("rate", 0.1, "rate 0.1 for all, 1 of 2 tried: lowest LoRA with 6.00, highest LoRA with 6.00; 1 worse"),
        ("rate", 0.001, "lowest full fine-tune with 3.90"),
        ("own", True, "each at its own rate, 2 of 2 tried: lowest full fine-tune with 3.90, highest LoRA with 4.10"),
        ("task", "facts", "lowest full fine-tune with 4.10"),
    ):
        explorer.controls[name].value = value
        assert says in explorer.text.value and explorer.image.value not in seen, name
        seen.add(explorer.image.value)


@pytest.fixture
def targets():
    return targets_explorer({"everything": lambda model: model})


def test_the_targets_explorer_counts_what_apply_lora_does(targets):
    assert "65,536 parameters train, 208.5 times fewer" in targets.text.value and "262,144 bytes" in targets.text.value
    targets.controls["lm_head"].value = True
    assert "468,616 parameters train, 29.2 times fewer" in targets.text.value
    for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"):
        targets.controls[name].value = False
    assert "403,080 parameters train" in targets.text.value
    before = targets.image.value
    targets.controls["lm_head"].value = False
    assert "nothing trains: choose a target" in targets.text.value and targets.image.value != before


def test_another_way_is_called_for_real_and_the_controls_that_it_ignores_are_off(targets):
    targets.controls["way"].value = "everything"
    assert "13,665,280 parameters train, 1.0 times" in targets.text.value
    assert all(c.disabled for name, c in targets.controls.items() if name != "way")
    targets.controls["way"].value = targets.controls["way"].options[0]
    assert not any(c.disabled for c in targets.controls.values()) and "65,536" in targets.text.value


@pytest.mark.parametrize("r", [1, 64])
def test_the_targets_explorer_draws_at_both_ends_of_the_rank(targets, r):
    targets.controls["r"].value = r
    assert f"{8192 * r:,} parameters train" in targets.text.value


@pytest.fixture
def voices(tmp_path):
    config = GPTConfig(n_layer=1, n_head=2, n_embd=16)

    def base():
        torch.manual_seed(0)
        return GPT(config)

    for i in (1, 2):
        torch.manual_seed(i)
        model = apply_lora(base(), r=2)
        for layer in lora_layers(model).values():
            layer.B.data.normal_()
        save_adapter(model, tmp_path / str(i))
    return Voices(base(), {"plays": tmp_path / "1", "<b>code</b>": tmp_path / "2"}, "My lord")


def test_each_voice_is_heard_once_and_stays_for_comparison(voices):
    assert voices.answers.value.count("<pre>") == 1 and "no adapter" in voices.text.value
    base = voices.answers.value
    voices.choice.value = "plays"
    assert voices.answers.value.count("<pre>") == 2 and len(lora_layers(voices._model)) == 4
    voices.choice.value = "<b>code</b>"
    assert voices.answers.value.count("<pre>") == 3 and "<b><b>" not in voices.answers.value
    voices.choice.value = voices.BASE
    assert not lora_layers(voices._model)
    voices.prompt.value = "My lady"
    assert voices.answers.value.count("<pre>") == 1 and voices.answers.value != base


def test_an_empty_prompt_and_a_broken_adapter_get_a_sentence_and_the_explorer_goes_on(voices):
    voices.prompt.value = "  "
    assert "the prompt is empty" in voices.text.value and not voices.answers.value
    voices.prompt.value = "My lord"
    (voices._folders["plays"] / "adapter_model.safetensors").write_bytes(b"cut")
    voices.choice.value = "plays"
    assert "is damaged" in voices.text.value
    voices.choice.value = "<b>code</b>"
    assert "swapped in" in voices.text.value


def test_a_cell_that_runs_again_frees_the_voices_before_and_their_model(voices):
    gc.collect()
    before, model = len(ALIVE), weakref.ref(voices._model)
    again = Voices(GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16)), voices._folders, "My lord")
    gc.collect()
    assert model() is None and len(ALIVE) == before
    again.close()


def test_a_cell_that_runs_again_frees_the_explorer_before_and_its_updates(monkeypatch):
    made = []
    decompose = spectra.decompose
    monkeypatch.setattr(spectra, "decompose", lambda w: made.append(decompose(w)) or made[-1])
    deltas = {"records": {"transformer.h.0.attn.c_attn.weight": noise(24, 16)}}
    out = [delta_explorer(deltas)]  # as IPython's `Out` does
    before, held = len(ALIVE), weakref.ref(made.pop().u)
    out.append(delta_explorer(deltas))
    gc.collect()
    assert held() is None and len(ALIVE) == before


def test_no_key_waits_for_a_decomposition(monkeypatch):
    deltas = {task: {f"transformer.h.{i}.attn.c_attn.weight": noise(24, 16) for i in range(2)} for task in ("a", "b")}
    explorer = delta_explorer(deltas)
    monkeypatch.setattr(spectra, "decompose", None)
    explorer.controls["task"].value = "b"
    explorer.controls["layer"].value = explorer.controls["layer"].options[1][1]


def test_a_key_waits_for_no_other_thread_and_no_garbage_and_leaves_both_as_they_were():
    def state():
        return torch.get_num_threads(), gc.isenabled()

    before, seen = state(), []

    def numbers(n):
        seen.append(state())
        if n == 3:
            raise ValueError(n)

    controls = {"n": slider("n", 1, 1, 3)}
    Explorer(controls, numbers, lambda _, figure: figure or Figure(), str)
    with pytest.raises(ValueError):
        controls["n"].value = 3
    assert seen == [(1, False)] * 2 and state() == before


def together(*acts, times=12):
    """Each act in a thread of its own, as JupyterLab's subshells call widgets back; what any of them raised."""
    raised = []

    def repeat(act):
        try:
            for i in range(times):
                act(i)
        except Exception as error:
            raised.append(error)

    threads = [threading.Thread(target=repeat, args=(act,)) for act in acts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


def test_voices_on_several_threads_each_answer_with_their_own_adapter(voices, monkeypatch):
    def factors(model):
        return [layer.B.clone() for layer in lora_layers(model).values()]

    def slowly(model, _task, prompt):
        before = factors(model)
        time.sleep(0.02)  # long enough for another thread to swap, if it could
        assert all(torch.equal(t, u) for t, u in zip(before, factors(model), strict=True))
        return prompt

    monkeypatch.setattr(voices_widget, "respond", slowly)
    voices._heard.clear()

    def ask(name):
        return lambda i: (setattr(voices.choice, "value", name), voices._heard.clear(), voices.answer())

    assert not together(*map(ask, voices.choice.options), times=4)
