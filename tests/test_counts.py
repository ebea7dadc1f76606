"""The numbers that the course is about, and the promises of the wrapper that they rest on."""

import pytest
import torch
import torch.nn as nn

from llm.lora import LoraLinear, apply_lora, lora_disabled, merge_lora, remove_lora
from llm.model import GPT, GPTConfig

TINY = GPTConfig(vocab_size=97, block_size=16, n_layer=2, n_head=2, n_embd=16)


def count(model, trainable=False):
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable)


def tiny(r=2, train=True, **options):
    torch.manual_seed(0)
    model = apply_lora(GPT(TINY), r=r, **options)
    if train:
        with torch.no_grad():
            for m in model.modules():
                if isinstance(m, LoraLinear):
                    m.B.normal_(std=0.1)
    return model


IDX = torch.arange(12).view(2, 6)


def test_the_chapter_12_model_has_13_665_280_parameters():
    assert count(GPT()) == 13_665_280


def test_rank_8_on_every_block_linear_trains_65_536():
    assert count(apply_lora(GPT(), r=8), trainable=True) == 65_536


def test_the_head_would_bring_it_to_468_616():
    assert count(apply_lora(GPT(), r=8, skip=()), trainable=True) == 468_616


def test_before_training_the_wrapped_model_answers_bit_for_bit_as_the_base():
    torch.manual_seed(0)
    base = GPT(TINY)
    before = base(IDX)
    assert torch.equal(apply_lora(base, r=2)(IDX), before)


def test_a_wrapped_model_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match="remove_lora"):
        apply_lora(tiny())


@pytest.mark.parametrize("r", [0, -1, 17])
def test_a_rank_that_does_not_fit_is_refused_and_nothing_is_wrapped(r):
    model = GPT(TINY)
    with pytest.raises(ValueError, match="rank"):
        apply_lora(model, r=r)
    assert not any(isinstance(m, LoraLinear) for m in model.modules())
    assert count(model, trainable=True) == count(model)


def test_merging_gives_plain_linears_with_the_same_answers_and_twice_is_once():
    model = tiny()
    before = model(IDX)
    merged = merge_lora(merge_lora(model))
    assert not any(isinstance(m, LoraLinear) for m in merged.modules())
    assert (merged(IDX) - before).abs().max() < 1e-5


def test_merging_refuses_nan_and_leaves_the_model_wrapped():
    model = tiny()
    model.transformer.h[1].mlp.c_fc.B.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        merge_lora(model)
    assert isinstance(model.transformer.h[0].attn.c_attn, LoraLinear)


def test_merging_a_wrapped_tied_head_leaves_the_embedding_alone():
    torch.manual_seed(0)
    model = apply_lora(GPT(GPTConfig(**{**vars(TINY), "tied_lm_head": True})), r=2, skip=())
    before = model.transformer.wte.weight.clone()
    nn.init.normal_(model.lm_head.B)
    merge_lora(model)
    assert torch.equal(model.transformer.wte.weight, before)
    assert not torch.equal(model.lm_head.weight, before)


def test_removing_gives_the_base_back_exactly():
    torch.manual_seed(0)
    base = GPT(TINY)
    modules, before = list(base.modules()), base(IDX)
    apply_lora(base, r=2)
    nn.init.normal_(base.transformer.h[0].attn.c_attn.B)
    assert not torch.equal(base(IDX), before)
    remove_lora(base)
    assert torch.equal(base(IDX), before) and list(base.modules()) == modules


def test_disabled_restores_the_state_it_found_nested_and_after_an_error():
    model = tiny()
    first = model.transformer.h[0].attn.c_attn
    first.enabled = False
    with pytest.raises(RuntimeError, match="inside"), lora_disabled(model):
        with lora_disabled(model):
            pass
        assert not any(m.enabled for m in model.modules() if isinstance(m, LoraLinear))
        raise RuntimeError("inside")
    assert [m.enabled for m in model.modules() if isinstance(m, LoraLinear)] == [False] + [True] * 7


def test_the_loss_counts_a_wrapped_head():
    model = tiny(skip=())
    targets = IDX + 1
    _, loss = model(IDX, targets)
    expected = nn.functional.cross_entropy(model(IDX).flatten(0, 1), targets.flatten())
    assert torch.isclose(loss, expected, atol=1e-5)
    loss.backward()
    assert model.lm_head.A.grad.abs().sum() > 0
