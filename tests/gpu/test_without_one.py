"""What a GPU would do, without one: tensors on "meta" have a device and no values, and mix with no other device's.

So a step that passes here reads no value on its way, where a GPU would have to be waited for, and makes no tensor in the
wrong place. torch's own fake GPU goes less far: without CUDA's library most operations end in it.
"""

import pytest
import torch

from llm import loss
from llm.generation import sample
from llm.lora import apply_lora
from llm.loss import IGNORE, tiled_loss
from llm.model import GPT, GPTConfig

TINY = GPTConfig(n_layer=2, n_head=2, n_embd=16, vocab_size=97)


@pytest.fixture(autouse=True)
def gpu(monkeypatch):
    """Every tensor of the test is made where no values are, and the loss takes it for a GPU."""
    monkeypatch.setattr(loss, "_waits", lambda device: device.type == "meta")
    monkeypatch.setattr(loss, "CHUNK_ON_GPU", 7)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: False)  # there is none for "meta"
    with torch.device("meta"):
        yield


def test_whoever_reads_a_value_or_mixes_devices_fails_here(monkeypatch):
    for read in (lambda x: x.sum().item(), lambda x: x[x > 0], lambda x: bool(x.any()), lambda x: x.tolist()):
        with pytest.raises((RuntimeError, NotImplementedError)):
            read(torch.ones(3))
    with pytest.raises(RuntimeError):
        torch.ones(3) + torch.ones(3, device="cpu")
    monkeypatch.setattr(loss, "_waits", lambda device: False)  # as on a processor, where rows that do not count go
    with pytest.raises((RuntimeError, NotImplementedError)):
        tiled_loss(torch.ones(3, 2), torch.ones(5, 2), torch.tensor([1, 2, IGNORE]))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("skip", ["lm_head", ()], ids=["head left out", "head wrapped"])
def test_a_step_reads_no_value_before_it_asks_for_its_loss(skip, checkpointing):
    model = apply_lora(GPT(TINY), r=2, skip=skip).train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    x = torch.zeros(3, 20, dtype=torch.long)
    _, value = model(x, x)
    value.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    assert value.shape == norm.shape == () and value.device.type == norm.device.type == "meta"
    for p in model.parameters():
        assert (p.grad is not None) == p.requires_grad and (p.grad is None or p.grad.shape == p.shape)


@pytest.mark.parametrize("head_trains", [False, True])
def test_the_loss_and_its_gradients_wait_for_no_value(head_trains):
    hidden = torch.randn(20, 16, requires_grad=True)
    weight = torch.randn(97, 16, requires_grad=head_trains)
    value = tiled_loss(hidden, weight, torch.full((20,), IGNORE))
    value.backward()
    assert hidden.grad.shape == hidden.shape and (weight.grad is not None) == head_trains


def test_a_draw_waits_for_no_value():
    assert sample(torch.randn(4, 97), 0.8, 5).device.type == "meta"
