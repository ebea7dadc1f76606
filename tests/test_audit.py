"""The audit: what is counted is what the model's own parameters say."""

import torch
import torch.nn as nn

from llm.course.audit import audit_model
from llm.lora import apply_lora
from llm.model import GPT, GPTConfig

SMALL = GPTConfig(vocab_size=97, block_size=16, n_layer=2, n_head=2, n_embd=16)


def test_the_rows_add_up_to_the_model_before_and_after_wrapping():
    for model in (GPT(SMALL), apply_lora(GPT(SMALL), r=2)):
        rows, parameters = audit_model(model), list(model.parameters())
        assert sum(row.parameters for row in rows) == sum(p.numel() for p in parameters)
        assert sum(row.trained for row in rows) == sum(p.numel() for p in parameters if p.requires_grad)


def test_blocks_are_counted_together_and_only_the_target_trains():
    rows = {row.kind: row for row in audit_model(apply_lora(GPT(SMALL), r=2, targets="c_attn"))}
    assert rows["attn.c_attn"].trained == 2 * 2 * (16 + 48) and not rows["attn.c_attn"].of_base
    assert [kind for kind, row in rows.items() if row.trained] == ["attn.c_attn"]
    assert list(rows) == "wte wpe ln_1 attn.c_attn attn.c_proj ln_2 mlp.c_fc mlp.c_proj ln_f lm_head".split()


def test_a_wrapped_layer_that_also_trains_its_base_shows_both():
    model = apply_lora(nn.Sequential(nn.Linear(4, 4, bias=False)), r=1)
    model[0].base.requires_grad_(True)
    [row] = audit_model(model)
    assert (row.parameters, row.trained, row.of_base) == (16 + 8, 16 + 8, 16)


def test_a_fully_trained_model_trains_what_is_the_bases():
    assert all(row.of_base == row.trained == row.parameters for row in audit_model(GPT(SMALL)))


def test_a_tied_head_counts_once():
    tied = GPT(GPTConfig(**vars(SMALL) | {"tied_lm_head": True}))
    assert sum(row.parameters for row in audit_model(tied)) == sum(p.numel() for p in tied.parameters())
    assert torch.equal(tied.lm_head.weight, tied.transformer.wte.weight)
