"""What training did in a model: lengths, directions, and the attention that virtual tokens take."""

import pytest
import torch
import torch.nn.functional as F

from llm.course.movements import attention_before_the_text, moved, weights_of
from llm.lora import apply_lora, lora_layers
from llm.model import GPT, GPTConfig
from llm.relatives import METHODS
from llm.spectra import block_matrices

CONFIG = GPTConfig(vocab_size=50, block_size=8, n_layer=2, n_head=2, n_embd=16)


def base():
    torch.manual_seed(0)
    return GPT(CONFIG).eval()


def test_a_longer_row_has_grown_and_a_turned_one_has_turned():
    before = torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 2.0]])
    part = moved(before, torch.tensor([[6.0, 8.0], [0.0, 1.0], [0.0, 1.0]]))
    assert part.grown.tolist() == pytest.approx([5.0, 0.0, 1.0])
    assert part.turned.tolist() == pytest.approx([0.0, 1.0, 0.0], abs=1e-6)


def test_the_correlation_is_one_where_both_go_together():
    before = torch.eye(3)
    assert moved(before, before + torch.tensor([[0, 0.1, 0], [0, 0, 0.4], [0.9, 0, 0]])).correlation > 0.9


def test_weights_are_those_in_effect_and_no_views():
    model = apply_lora(base(), r=2)
    names = block_matrices(base())
    layer = lora_layers(model)[names[0].removesuffix(".weight")]
    layer.B.data.normal_()
    found = weights_of(model, names)
    assert torch.equal(found[names[0]], layer.base.weight + layer.update())
    assert torch.equal(found[names[1]], base().state_dict()[names[1]]) and list(found) == names
    full = base()
    kept = weights_of(full, names)
    full.requires_grad_(True).transformer.h[0].attn.c_attn.weight.data.zero_()
    assert kept[names[0]].any()


@pytest.mark.parametrize("name", ["prefix", "prompt"])
def test_the_share_of_attention_is_that_of_softmax_by_hand(name):
    model = METHODS[name].prepare(base(), r=3)
    idx = torch.randint(50, (4, 6))
    found = attention_before_the_text(model, idx)
    assert found.shape == (2, 2) and ((found > 0) & (found < 1)).all()
    keys, _ = model.prefix(model, 4)[0]
    block = model.transformer.h[0]
    x = model.transformer.wte(idx) + model.transformer.wpe.weight[:6]
    q, k, _ = block.attn.c_attn(block.ln_1(x)).view(4, 6, 3, 2, 8).permute(2, 0, 3, 1, 4)
    total = torch.zeros(2)
    for t in range(6):
        seen = torch.cat((keys, k[:, :, : t + 1]), dim=2)
        weights = F.softmax((q[:, :, t : t + 1] * seen).sum(-1) / 8**0.5, dim=-1)
        total += weights[..., :3].sum(-1).mean(0) / 6
    assert torch.allclose(found[0], total, atol=1e-6)


def test_a_model_without_virtual_tokens_is_refused_and_no_hook_stays():
    with pytest.raises(ValueError, match="no virtual tokens"):
        attention_before_the_text(base(), torch.zeros(1, 4, dtype=torch.long))
    model = METHODS["prefix"].prepare(base(), r=2)
    attention_before_the_text(model, torch.zeros(1, 4, dtype=torch.long))
    assert not [m for m in model.modules() if m._forward_hooks]
