"""What a step costs is measured without changing the model, and every byte is counted once."""

import pytest
import torch
import torch.nn as nn

from llm.course import figures
from llm.course.step_costs import layer_seconds, multiply_adds, step_bytes, step_seconds
from llm.lora import LoraLinear, apply_lora
from llm.model import GPT, GPTConfig

TINY = GPTConfig(vocab_size=97, block_size=64, n_layer=2, n_head=2, n_embd=16)
BATCH = torch.zeros(4, 16, dtype=torch.long), torch.ones(4, 16, dtype=torch.long)


@pytest.mark.parametrize("wrap", [False, True])
def test_a_step_is_taken_apart_and_the_model_stays_what_it_was(wrap):
    model = apply_lora(GPT(TINY), r=2) if wrap else GPT(TINY)
    before = {name: p.clone() for name, p in model.named_parameters()}
    parts = step_seconds(model, BATCH, times=2)
    assert list(parts) == ["head and loss", "blocks", "optimizer"] and min(parts.values()) > 0
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_the_parts_of_a_step_make_its_gradients():
    """Else it would be another step that is timed."""
    parts, whole = apply_lora(GPT(TINY), r=2), apply_lora(GPT(TINY), r=2)
    whole.load_state_dict(parts.state_dict())
    step_seconds(parts, BATCH, "float32", times=1)
    whole(*BATCH)[1].backward()
    for one, other in zip(parts.parameters(), whole.parameters()):
        assert (one.grad is None) == (other.grad is None)
        assert one.grad is None or torch.allclose(one.grad, other.grad, atol=1e-6)


def test_a_layer_has_three_products_each_timed_alone():
    assert list(layer_seconds(8, 16, times=2)) == ["forward", "back to its input", "back to its weight"]
    assert min(layer_seconds(8, 16, times=2).values()) > 0


def test_a_layer_costs_three_products_a_frozen_one_two_and_lora_six_thin_ones_more():
    tokens, d, r = 5, 16, 2
    x = torch.randn(tokens, d, requires_grad=True)
    linear = nn.Linear(d, d, bias=False)
    assert multiply_adds(lambda x: linear(x).sum(), x) == 3 * tokens * d * d
    linear.requires_grad_(False)
    assert multiply_adds(lambda x: linear(x).sum(), x) == 2 * tokens * d * d
    layer = LoraLinear(linear, r)
    assert multiply_adds(lambda x: layer(x).sum(), x) == tokens * (2 * d * d + 6 * d * r)


def test_the_products_of_a_whole_step_are_counted_the_head_with_its_loss_too():
    model, (tokens, d) = GPT(TINY), (BATCH[0].numel(), TINY.n_embd)
    weights = sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear))
    assert weights > TINY.vocab_size * d
    assert multiply_adds(lambda *batch: model(*batch)[1], *BATCH) == 3 * tokens * weights


def test_weights_gradients_and_moments_are_counted_by_what_trains():
    full, lora = step_bytes(GPT(TINY), 4), step_bytes(apply_lora(GPT(TINY), r=2), 4)
    whole = sum(p.nbytes for p in GPT(TINY).parameters())
    few = lora["weights"] - whole
    assert full["weights"] == full["gradients"] == full["Adam"] / 2 == whole
    assert lora["gradients"] == lora["Adam"] / 2 == few > 0


def test_activations_grow_with_the_rows_and_are_fewer_where_they_are_worked_out_again():
    model = GPT(TINY).train()
    few, many = (step_bytes(model, rows)["activations"] for rows in (2, 8))
    assert 3.9 < many / few < 4.1
    model.gradient_checkpointing_enable()
    assert step_bytes(model, 8)["activations"] < many / 4


def test_what_is_kept_twice_is_counted_once_and_weights_are_no_activations():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.lm_head, self.w = nn.Linear(1, 1), nn.Parameter(torch.ones(5))

        def hidden(self, idx):
            x = idx.float() * self.w[0]
            return x * x * x, None  # keeps x and x * x, x more than once

    assert step_bytes(Twice(), rows=3, block=7)["activations"] == 3 * 3 * 7 * 4


def test_bars_of_parts_end_where_their_sum_is():
    figure = figures.stacked({"one": {"a": 1.0, "b": 2.5}, "two": {"a": 4.0, "b": 0.0}}, "seconds")
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == ["3.5", "4"]
    right = [max(bar.get_x() + bar.get_width() for bar in group) for group in zip(*axes.containers)]
    assert right == [3.5, 4.0] and axes.get_xlabel() == "seconds"


def test_every_measure_has_a_panel_with_its_label_and_the_same_bars():
    figure = figures.side_by_side(
        {"activations (MB)": {"one": 34.2, "two": 8.5}, "step (s)": {"one": 0.25, "two": 0.5}}
    )
    left, right = figure.axes
    assert [left.get_xlabel(), right.get_xlabel()] == ["activations (MB)", "step (s)"]
    assert left.patches[0].get_facecolor() != right.patches[0].get_facecolor()  # memory has a colour, and time another
    assert [bar.get_width() for bar in left.patches] == [34.2, 8.5]
    assert [text.get_text() for text in right.texts] == ["0.25", "0.5"]
    assert left.get_ylim()[0] > left.get_ylim()[1] and left.get_ylim() == right.get_ylim()  # the first one on top
