"""The wrapper's promises: a start that changes nothing, merge, remove, disable, and refusals that touch nothing."""

import copy
import math
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
import torch.utils.checkpoint

from llm.__main__ import main
from llm.lora import SCALING, LoraLinear, apply_lora, lora_disabled, lora_layers, merge_lora, remove_lora
from llm.model import GPT, GPTConfig
from llm.quantize import quantize

TINY = GPTConfig(vocab_size=97, block_size=16, n_layer=2, n_head=2, n_embd=16)
IDX = torch.arange(12).view(2, 6)


def base(**changes):
    torch.manual_seed(0)
    return GPT(replace(TINY, **changes)).eval()


def tuned(model=None, r=2, **options):
    """A wrapped model whose update does something, as after training."""
    model = apply_lora(base() if model is None else model, r=r, **options)
    with torch.no_grad():
        for layer in lora_layers(model).values():
            layer.B.normal_(std=0.1)
    return model


def state(model):
    """All that a refused call might have touched: modules, tensors by identity, their values, what trains."""
    tensors = dict(model.named_parameters())
    return (
        list(model.modules()),
        {name: id(t) for name, t in tensors.items()},
        {name: t.requires_grad for name, t in tensors.items()},
        {name: t.nan_to_num(nan=123.0).tolist() for name, t in tensors.items()},
    )


def assert_refused(model, call, match):
    before = state(model)
    with pytest.raises(ValueError, match=match) as caught:
        call(model)
    assert "\n" not in str(caught.value)
    assert state(model) == before


# the layer


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_at_the_start_a_layer_answers_bit_for_bit_as_its_base(bias, dtype):
    linear = nn.Linear(12, 20, bias=bias, dtype=dtype)
    x = torch.randn(3, 5, 12, dtype=dtype)
    layer = LoraLinear(linear, r=4)
    assert torch.equal(layer(x), linear(x)) and layer.A.abs().min() > 0 and not layer.B.any()
    assert layer.A.shape == (12, 4) and layer.B.shape == (4, 20)


def test_a_layer_computes_the_formula():
    layer = LoraLinear(nn.Linear(6, 5), r=2, alpha=3.0)
    nn.init.normal_(layer.B)
    x = torch.randn(7, 6)
    expected = x @ layer.base.weight.T + layer.base.bias + 3.0 * (x @ layer.A @ layer.B)
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(F.linear(x, layer.weight, layer.bias), expected)


def test_the_effective_weight_is_the_bases_own_while_disabled():
    layer = LoraLinear(nn.Linear(6, 5), r=2)
    nn.init.normal_(layer.B)
    assert not torch.equal(layer.weight, layer.base.weight)
    layer.enabled = False
    assert layer.weight is layer.base.weight


def test_A_starts_kaiming_uniform_as_the_chapter_prints_it():
    torch.manual_seed(0)
    mine = LoraLinear(nn.Linear(128, 128), r=8).A
    torch.manual_seed(0)
    nn.Linear(128, 128)
    assert torch.equal(mine, nn.init.kaiming_uniform_(torch.empty(128, 8), a=5**0.5))


@pytest.mark.parametrize(("scaling", "scale"), [("alpha", 12.0), ("alpha/r", 3.0), ("alpha/sqrt(r)", 6.0)])
def test_the_scale_follows_the_named_convention(scaling, scale):
    assert LoraLinear(nn.Linear(8, 8), r=4, alpha=12.0, scaling=scaling).scale == scale
    assert scaling in SCALING


def test_alpha_alone_is_the_scale_unless_another_convention_is_named():
    assert LoraLinear(nn.Linear(8, 8)).scale == 16.0
    assert next(iter(lora_layers(apply_lora(base())).values())).scale == 16.0


@pytest.mark.parametrize("r", [0, -3, 6, 1.5, "2"])
def test_a_layer_that_refuses_its_rank_leaves_the_linear_as_it_was(r):
    linear = nn.Linear(8, 5)
    with pytest.raises((ValueError, TypeError)):
        LoraLinear(linear, r=r)
    assert linear.weight.requires_grad and linear.bias.requires_grad


def test_the_largest_rank_is_the_smaller_side():
    assert LoraLinear(nn.Linear(8, 5), r=5).A.shape == (8, 5)
    with pytest.raises(ValueError, match="8 -> 5 layer: use 1 to 5"):
        LoraLinear(nn.Linear(8, 5), r=6)


# wrapping


def test_wrapping_returns_the_same_model_and_gives_A_and_B_alone_to_training():
    model = base()
    assert apply_lora(model, r=2) is model
    assert {n.rsplit(".", 1)[1] for n, p in model.named_parameters() if p.requires_grad} == {"A", "B"}
    assert sum(p.requires_grad for p in model.parameters()) == 2 * 4 * TINY.n_layer


def test_wrapping_a_frozen_model_still_trains_A_and_B():
    model = apply_lora(base().requires_grad_(False), r=2)
    assert sum(p.requires_grad for p in model.parameters()) == 2 * 4 * TINY.n_layer


@pytest.mark.parametrize("tied", [False, True])
def test_a_wrapped_model_starts_bit_identical_head_and_all(tied):
    model = base(tied_lm_head=tied)
    before = model(IDX)
    assert torch.equal(apply_lora(model, r=2, skip=())(IDX), before)


def test_the_head_is_left_out_unless_asked_for():
    assert "lm_head" not in lora_layers(apply_lora(base(), r=2))
    assert "lm_head" in lora_layers(apply_lora(base(), r=2, skip=()))


@pytest.mark.parametrize(
    ("targets", "found"),
    [
        (["c_attn"], 2),
        (["attn.c_proj"], 2),
        (["c_proj"], 4),
        (["transformer.h.1.mlp.c_fc"], 1),
        (lambda path: path.startswith("transformer.h.0."), 4),
        ("c_attn", 2),
        ((name for name in ["c_attn", "c_fc"]), 4),
    ],
)
def test_targets_are_last_parts_whole_paths_one_name_or_a_function(targets, found):
    model = apply_lora(base(), r=2, targets=targets)
    assert len(lora_layers(model)) == found
    linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
    assert len(linears) == 4 * TINY.n_layer + 1  # wrapped ones keep theirs inside


def test_a_part_of_a_name_is_no_match():
    assert_refused(base(), lambda m: apply_lora(m, r=2, targets=["attn", "proj", "_fc"]), "no nn.Linear matches")


@pytest.mark.parametrize("skip", ["c_attn", ["c_attn"], ["transformer.h.0.attn.c_attn", "h.1.attn.c_attn"]])
def test_skip_is_one_name_or_many(skip):
    layers = lora_layers(apply_lora(base(), r=2, skip=skip))
    assert len(layers) == 3 * TINY.n_layer + 1 and not any(path.endswith("c_attn") for path in layers)


@pytest.mark.parametrize("targets", [["c_attn", "c_porj"], ["c_attn", "lm_head"], ("mlp.c_fc", "attn.c_fc")])
def test_a_target_that_matches_nothing_is_refused_though_others_match(targets):
    model = base()
    with pytest.raises(ValueError, match=f"no nn.Linear matches the target '{targets[1]}'"):
        apply_lora(model, r=2, targets=targets)
    assert not lora_layers(model) and all(p.requires_grad for p in model.parameters())


def test_a_function_of_the_path_decides_alone():
    assert "lm_head" in lora_layers(apply_lora(base(), r=2, targets=lambda path: True))


def test_skip_wins_over_targets():
    layers = lora_layers(apply_lora(base(), r=2, targets=["c_proj"], skip="mlp.c_proj"))
    assert [path.split(".", 3)[3] for path in layers] == ["attn.c_proj", "attn.c_proj"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_a_base_keeps_its_dtype_and_trains_float32_factors_or_finer(dtype):
    model = tuned(base().to(dtype))
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {dtype}
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.promote_types(dtype, torch.float32)}
    assert model(IDX).dtype == dtype and model.transformer.h[0].mlp.c_fc.weight.dtype == dtype
    assert {p.dtype for p in merge_lora(model).parameters()} == {dtype}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_over_a_16_bit_base_a_step_of_training_moves_every_entry_of_A(dtype):
    model = tuned(base().to(dtype))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-4, weight_decay=0.0)
    before = [layer.A.detach().clone() for layer in lora_layers(model).values()]
    F.cross_entropy(model(IDX).float().flatten(0, 1), IDX.roll(-1).flatten()).backward()
    optimizer.step()
    for old, layer in zip(before, lora_layers(model).values()):
        assert layer.A.isfinite().all() and layer.B.isfinite().all()
        assert (layer.A != old)[layer.A.grad != 0].float().mean() > 0.99


def test_a_merge_over_a_16_bit_base_rounds_once():
    model = tuned(base().bfloat16())
    layer = model.transformer.h[0].mlp.c_fc
    exact = layer.base.weight.float() + layer.scale * (layer.A @ layer.B).T
    assert torch.equal(layer.weight, exact.bfloat16())
    assert torch.equal(merge_lora(model).transformer.h[0].mlp.c_fc.weight, exact.bfloat16())


def test_device_is_kept_by_wrapping_and_by_merging():
    layer = LoraLinear(nn.Linear(4, 4, device="meta"), r=2)
    assert layer.A.device.type == layer.B.device.type == "meta"
    model = merge_lora(tuned())
    assert {p.device.type for p in model.parameters()} == {"cpu"}  # no meta tensor left from building the linears


def test_a_bfloat16_model_runs_and_trains_wrapped():
    model = apply_lora(base().bfloat16(), r=2)
    logits = model(IDX)
    assert logits.dtype == torch.bfloat16
    logits.float().square().mean().backward()
    assert all(layer.B.grad.isfinite().all() and layer.B.grad.any() for layer in lora_layers(model).values())


# refusals


def test_a_wrapped_model_is_refused_and_stays_wrapped_once():
    model = tuned()
    model.transformer.ln_f.requires_grad_(True)
    assert_refused(model, apply_lora, r"already has LoRA layers: call remove_lora\(model\) or merge_lora\(model\)")


@pytest.mark.parametrize("r", [0, -1, 17])
def test_a_rank_no_layer_takes_is_refused_with_the_model_untouched(r):
    assert_refused(base(), lambda m: apply_lora(m, r=r), f"rank r={r} does not fit")


@pytest.mark.parametrize("options", [dict(r=8), dict(r=2, scaling="alpha*r")])
def test_a_rank_that_fits_the_first_layer_only_freezes_nothing(options):
    if options["r"] == 8:
        model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
        assert_refused(model, lambda m: apply_lora(m, **options), "16 -> 4 layer: use 1 to 4")
    else:
        assert_refused(base(), lambda m: apply_lora(m, **options), "choose one of alpha, alpha/r")


@pytest.mark.parametrize("r", [2.0, None, "2"])
def test_a_rank_that_is_no_whole_number_leaves_the_model_untouched(r):
    model = base()
    before = state(model)
    with pytest.raises(TypeError):
        apply_lora(model, r=r)
    assert state(model) == before


def test_a_model_without_linears_is_refused():
    assert_refused(nn.Sequential(nn.LayerNorm(4)), apply_lora, "no nn.Linear .* is made of LayerNorm$")
    assert_refused(nn.Sequential(nn.ReLU()), apply_lora, "is made of nothing that has weights")


@pytest.mark.parametrize("options", [{}, dict(targets=["c_attn"]), dict(targets=lambda path: "attn" in path)])
def test_gpt_2_as_transformers_builds_it_is_refused_with_the_kind_of_its_layers_and_the_way_out(options):
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=97, n_positions=16, n_embd=16, n_layer=1, n_head=2)
    model = transformers.GPT2Model(config)  # without its head, which is a linear layer
    assert_refused(model, lambda m: apply_lora(m, r=2, **options), r"made of Conv1D.*GPT\.from_pretrained")
    model = transformers.GPT2LMHeadModel(config)
    assert_refused(model, lambda m: apply_lora(m, r=2, **options), r"Conv1D.*GPT\.from_pretrained")


@pytest.mark.parametrize(
    ("targets", "said"),
    [(lambda path: False, "chosen"), ("attention", "'attention'"), (["c_fc", "fc1"], "'fc1'"), ([], "chosen")],
)
def test_a_choice_that_finds_nothing_is_told_what_there_is_and_no_function(targets, said):
    with pytest.raises(ValueError) as caught:
        apply_lora(base(), r=2, targets=targets)
    assert said in str(caught.value) and "c_attn, c_fc, c_proj, lm_head" in str(caught.value)
    assert "<" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32])
def test_packed_weights_are_refused_in_a_sentence_with_the_model_untouched(dtype):
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    model[1].weight = nn.Parameter(torch.zeros(128, 1, dtype=dtype), requires_grad=False)
    assert_refused(model, apply_lora, f"Linear layer are packed as {str(dtype)[6:]}, .* load the model in float32")


def test_a_model_inside_ddp_is_refused_because_its_factors_would_not_be_exchanged(alone_in_a_group):
    model = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(16, 16)))
    assert_refused(model, apply_lora, "wrap the model in it last")


@pytest.mark.parametrize("options", [dict(start="papers"), dict(dropout=1.0), dict(dropout=-0.1), dict(scaling="r")])
def test_an_option_that_makes_no_sense_is_refused_with_the_model_untouched(options):
    assert_refused(base(), lambda m: apply_lora(m, r=2, **options), str(next(iter(options.values()))))


@pytest.mark.parametrize("call", [apply_lora, remove_lora, merge_lora])
def test_a_lone_layer_is_refused_with_the_way_out(call):
    layer = nn.Linear(16, 16) if call is apply_lora else LoraLinear(nn.Linear(16, 16), r=2)
    assert_refused(layer, call, r"a single layer .* use nn\.Sequential\(layer\)")


def test_a_lone_layer_in_a_sequential_goes_all_the_way():
    model = nn.Sequential(nn.Linear(16, 16))
    linear, x = model[0], torch.randn(2, 16)
    before = tuned(model, alpha=4.0)(x)
    assert torch.allclose(merge_lora(model)(x), before, atol=1e-5) and type(model[0]) is nn.Linear
    assert model[0] is not linear


# merging


@pytest.mark.parametrize("scaling", SCALING)
@pytest.mark.parametrize("skip", [(), ("lm_head",)])
def test_merging_gives_plain_linears_and_the_same_answers(scaling, skip):
    model = tuned(alpha=4.0, scaling=scaling, skip=skip)
    wrapped, paths = model(IDX), list(lora_layers(model))
    assert merge_lora(model) is model
    assert (model(IDX) - wrapped).abs().max() < 1e-5
    assert {type(model.get_submodule(path)) for path in paths} == {nn.Linear}


def test_a_merged_model_has_the_bases_names_and_shapes_and_is_frozen():
    shapes = {name: t.shape for name, t in base(bias=True).state_dict().items()}
    model = merge_lora(tuned(base(bias=True)))
    assert {name: t.shape for name, t in model.state_dict().items()} == shapes
    assert not any(p.requires_grad for p in model.parameters())


def test_merging_twice_is_merging_once_and_an_unwrapped_model_is_left_alone():
    model = merge_lora(tuned())
    before = state(model)
    assert state(merge_lora(model)) == before
    plain = base()
    before = state(plain)
    assert state(merge_lora(plain)) == before


def test_merging_keeps_the_mode_and_shares_no_memory_with_the_base():
    model = tuned(base(bias=True))
    layers = lora_layers(model)
    kept = {path: (layer.base.weight.clone(), layer.base.bias.clone()) for path, layer in layers.items()}
    merge_lora(model)
    assert not any(m.training for m in model.modules())
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    for path, layer in layers.items():  # a wrapper that somebody still holds
        assert torch.equal(layer.base.weight, kept[path][0]) and torch.equal(layer.base.bias, kept[path][1])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("factor", ["A", "B"])
def test_merging_a_factor_that_is_not_finite_is_refused_with_every_layer_untouched(factor, value):
    model = tuned()
    last = list(lora_layers(model).values())[-1]
    with torch.no_grad():
        getattr(last, factor)[0, 0] = value
    assert_refused(model, merge_lora, r"h\.1\.mlp\.c_proj: A @ B holds NaN or infinity, so nothing was merged")


def test_merging_an_update_that_overflows_the_dtype_is_refused():
    model = tuned(base().half())
    with torch.no_grad():
        layer = model.transformer.h[0].mlp.c_fc
        layer.A.fill_(200.0), layer.B.fill_(200.0)  # finite in half precision, their product is not
    assert_refused(model, merge_lora, "holds NaN or infinity")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_merging_a_sum_that_overflows_the_dtype_is_refused_though_weight_and_update_are_finite(dtype):
    model = tuned(base().to(dtype))
    largest = torch.finfo(dtype).max
    with torch.no_grad():
        layer = model.transformer.h[1].mlp.c_fc  # not the first: none before it may be merged
        layer.base.weight[0, 0] = 0.9 * largest
        layer.A.zero_(), layer.B.zero_()
        layer.A[0, 0], layer.B[0, 0] = 0.5, largest / layer.scale
    assert_refused(model, merge_lora, r"h\.1\.mlp\.c_fc: W \+ A @ B holds NaN or infinity, so nothing was merged")


def test_an_update_that_only_the_dtype_is_too_small_for_merges_where_the_sum_fits():
    model = nn.Sequential(nn.Linear(2, 2, bias=False).half())
    with torch.no_grad():
        model[0].weight.fill_(-60_000)
        layer = apply_lora(model, r=1, alpha=1.0)[0]
        layer.A.fill_(1.0), layer.B.fill_(70_000.0)
    assert merge_lora(model)[0].weight.unique().tolist() == [10_000]


# removing


def test_removing_restores_the_same_modules_tensors_and_answers():
    model = base(bias=True)
    modules, tensors, before = list(model.modules()), {n: id(p) for n, p in model.named_parameters()}, model(IDX)
    tuned(model)
    assert not torch.equal(model(IDX), before)
    assert remove_lora(model) is model
    assert list(model.modules()) == modules and {n: id(p) for n, p in model.named_parameters()} == tensors
    assert torch.equal(model(IDX), before) and not any(p.requires_grad for p in model.parameters())


def test_removing_after_training_restores_the_base_bit_for_bit():
    model = base()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    apply_lora(model, r=2)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    for _ in range(3):
        model(IDX, IDX + 1)[1].backward()
        optimizer.step()
    after = remove_lora(model).state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)


def test_wrap_and_remove_can_go_on_for_ever_and_removing_from_a_plain_model_changes_nothing():
    model = base()
    before = model(IDX)
    for _ in range(3):
        remove_lora(tuned(remove_lora(model)))
    assert torch.equal(model(IDX), before)


# disabling


def test_disabled_the_model_is_its_base_bit_for_bit_and_afterwards_itself():
    model = base()
    plain = model(IDX)
    changed = tuned(model)(IDX)
    with lora_disabled(model) as inside:
        assert inside is model and torch.equal(model(IDX), plain)
    assert torch.equal(model(IDX), changed) and not torch.equal(changed, plain)


def test_disabled_restores_what_it_found_layer_by_layer_nested_and_through_exceptions():
    model = tuned()
    layers = list(lora_layers(model).values())
    layers[0].enabled = layers[3].enabled = False
    found = [layer.enabled for layer in layers]
    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error), lora_disabled(model):
            with pytest.raises(error), lora_disabled(model):
                raise error
            assert not any(layer.enabled for layer in layers)  # the inner one found them off, and left them off
            raise error
        assert [layer.enabled for layer in layers] == found


def test_disabled_on_a_plain_model_does_nothing():
    model = base()
    before = state(model)
    with lora_disabled(model):
        assert state(model) == before


def test_disabled_the_loss_does_not_count_a_wrapped_head_either():
    model = base()
    _, plain = model(IDX, IDX + 1)
    tuned(model, skip=())
    with lora_disabled(model):
        torch.testing.assert_close(model(IDX, IDX + 1)[1], plain, rtol=1e-6, atol=0)
    assert not torch.allclose(model(IDX, IDX + 1)[1], plain, rtol=1e-4)


# tied heads


@pytest.mark.parametrize("finish", [merge_lora, remove_lora])
def test_a_tied_heads_embedding_is_never_touched(finish):
    model = base(tied_lm_head=True)
    shared, values = model.transformer.wte.weight, model.transformer.wte.weight.clone()
    tuned(model, alpha=4.0, skip=())
    assert model.lm_head.base.weight is shared
    before = model(IDX)
    finish(model)
    assert model.transformer.wte.weight is shared and torch.equal(shared, values)
    if finish is merge_lora:  # untied by the merge: the head carries the update, the embedding does not
        assert model.lm_head.weight is not shared and (model(IDX) - before).abs().max() < 1e-5
    else:
        assert model.lm_head.weight is shared


def test_a_tied_head_left_out_stays_tied_after_merging():
    model = merge_lora(tuned(base(tied_lm_head=True)))
    assert model.lm_head.weight is model.transformer.wte.weight


# the chapter's numbers


def test_the_chapter_12_model_trains_65_536_of_13_665_280_at_rank_8_and_with_its_head_468_616():
    def count(model):
        return sum(p.numel() for p in model.parameters() if p.requires_grad)

    assert count(GPT()) == 13_665_280
    assert count(apply_lora(GPT(), r=8)) == 65_536
    assert count(apply_lora(GPT(), r=8, skip=())) == 468_616


def test_the_loss_counts_a_wrapped_head_and_trains_it():
    model = tuned(skip=())
    loss = model(IDX, IDX + 1)[1]
    expected = F.cross_entropy(model(IDX).flatten(0, 1), (IDX + 1).flatten())
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=0)
    loss.backward()
    assert model.lm_head.A.grad.abs().sum() > 0


# as an nn.Linear, wherever one may stand


def test_a_wrapper_has_what_a_linear_has():
    linear = nn.Linear(12, 20)
    layer = LoraLinear(linear, r=2)
    assert (layer.in_features, layer.out_features) == (12, 20)
    assert layer.bias is linear.bias and layer.weight.shape == linear.weight.shape


@pytest.mark.parametrize("training", [True, False])
def test_a_wrapper_is_in_the_mode_of_its_base_and_takes_it_along(training):
    layer = LoraLinear(nn.Linear(4, 4).train(training), r=2)
    assert layer.training is training and layer.base.training is training
    assert layer.train(not training).base.training is not training
    model = apply_lora(base().train(training), r=2)
    assert {m.training for m in model.modules()} == {training}


def test_the_papers_start_is_the_chapters_draw_over_the_other_fan_in():
    for wide, r in ((64, 4), (128, 8), (48, 1)):
        torch.manual_seed(0)
        chapter = LoraLinear(nn.Linear(wide, 16), r=r)
        torch.manual_seed(0)
        paper = LoraLinear(nn.Linear(wide, 16), r=r, start="paper")
        assert torch.allclose(paper.A, chapter.A * (r / wide) ** 0.5, rtol=1e-6, atol=0)
        theirs = nn.init.kaiming_uniform_(torch.empty(r, wide), a=math.sqrt(5))  # A as the paper's code stores it
        assert paper.A.abs().max() <= theirs.new_tensor(wide**-0.5) and theirs.abs().max() <= wide**-0.5
        assert paper.A.abs().max().item() == pytest.approx(wide**-0.5, rel=0.15)


def test_dropout_thins_the_update_alone_and_in_training_alone():
    torch.manual_seed(0)
    model = tuned(nn.Sequential(nn.Linear(64, 16)), dropout=0.5, alpha=1.0)
    layer, x = model[0], torch.randn(4096, 64)
    still = model.eval()(x)
    assert torch.equal(still, model(x))
    model.train()
    torch.manual_seed(1)
    kept = F.dropout(x, 0.5)
    torch.manual_seed(1)
    assert torch.equal(model(x), layer.base(x) + layer.scale * (kept @ layer.A @ layer.B))
    assert not torch.allclose(model(x), still) and torch.allclose(model(x).mean(0), still.mean(0), atol=0.05)
    with lora_disabled(model):
        assert torch.equal(model(x), layer.base(x))


def test_no_dropout_draws_nothing():
    layer = LoraLinear(nn.Linear(4, 4), r=2)
    before = torch.random.get_rng_state()
    layer(torch.ones(1, 4))
    assert torch.equal(torch.random.get_rng_state(), before)


class Twice(nn.Module):
    """One linear layer at three places, two of them under one parent."""

    def __init__(self):
        super().__init__()
        self.up = self.again = nn.Linear(8, 8)
        self.list = nn.ModuleList([self.up, nn.Linear(8, 8)])

    def forward(self, x):
        return self.list[1](self.list[0](self.again(self.up(x))))


@pytest.mark.parametrize("targets", [None, "up", "again", ["list.0"]])
def test_a_layer_that_stands_in_several_places_is_wrapped_at_all_of_them_as_one(targets):
    model, x = Twice(), torch.randn(2, 8)
    linear, plain = model.up, model(x)
    tuned(model, targets=targets)
    assert model.up is model.again is model.list[0] and type(model.up) is LoraLinear and model.up.base is linear
    assert list(lora_layers(model)) == (["up", "list.1"] if targets is None else ["up"])
    wrapped = model(x)
    with lora_disabled(model):
        assert torch.equal(model(x), plain)
    merged = merge_lora(copy.deepcopy(model))
    assert merged.up is merged.again is merged.list[0] and type(merged.up) is nn.Linear
    assert torch.allclose(merged(x), wrapped, atol=1e-5)
    assert remove_lora(model).again is linear is model.list[0] and torch.equal(model(x), plain)


def test_a_block_that_is_used_twice_keeps_one_set_of_factors():
    block = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    model = apply_lora(nn.Sequential(block, block), r=2)
    assert list(lora_layers(model)) == ["0.0"] and type(model[1][0]) is LoraLinear
    assert sum(p.requires_grad for p in model.parameters()) == 2


def test_a_skipped_place_skips_the_layer():
    assert list(lora_layers(apply_lora(Twice(), r=2, skip="again"))) == ["list.1"]


def test_a_deep_copy_is_a_model_of_its_own():
    model = tuned()
    other, before = copy.deepcopy(model), model(IDX)
    assert torch.equal(other(IDX), before)
    with torch.no_grad():
        for layer in lora_layers(other).values():
            layer.A.zero_()
    assert torch.equal(model(IDX), before) and not torch.equal(other(IDX), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_gives_the_dtype_it_gives_a_linear_and_float32_gradients(dtype):
    model, x = tuned(nn.Sequential(nn.Linear(16, 16)).to(dtype)), torch.randn(4, 16, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x)
        assert y.dtype == model[0].base(x).dtype == torch.bfloat16
    y.float().square().mean().backward()
    assert model[0].A.grad.dtype == torch.float32 and model[0].A.grad.any() and model[0].B.grad.any()


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradient_checkpointing_gives_the_same_gradients(use_reentrant, dropout):
    torch.manual_seed(0)
    model = tuned(nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 16)), dropout=dropout).train()
    x = torch.randn(4, 16, requires_grad=True)

    def gradients(run):
        model.zero_grad()
        torch.manual_seed(1)
        run(x).square().mean().backward()
        return [p.grad.clone() for p in model.parameters() if p.requires_grad]

    plain = gradients(model)
    again = gradients(lambda x: torch.utils.checkpoint.checkpoint(model, x, use_reentrant=use_reentrant))
    assert all(g.any() for g in plain) and all(map(torch.equal, plain, again))


# what others put around a model, and their names for its head


@pytest.fixture
def alone_in_a_group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_a_compiled_model_is_wrapped_and_named_as_if_it_were_not():
    model = base()
    plain = list(lora_layers(apply_lora(base(), r=2)))
    compiled = torch.compile(model, backend="eager")
    before = compiled(IDX)
    tuned(compiled)
    assert list(lora_layers(compiled)) == list(lora_layers(model)) == plain
    assert torch.allclose(compiled(IDX), model(IDX)) and not torch.allclose(compiled(IDX), before)
    assert lora_layers(remove_lora(compiled)) == {} and torch.equal(compiled(IDX), before)


@pytest.mark.parametrize("targets", [None, ["transformer.h.0.mlp.c_fc"], ["transformer.h.1.mlp.c_fc"]])
def test_parts_that_are_compiled_keep_their_paths(targets):
    model = base()
    model.transformer.h[0] = torch.compile(model.transformer.h[0], backend="eager")
    model.transformer.h[1].mlp.c_fc = torch.compile(model.transformer.h[1].mlp.c_fc, backend="eager")
    wanted = lora_layers(tuned(base(), targets=targets))
    assert list(lora_layers(tuned(model, targets=targets))) == list(wanted)
    changed, plain = model(IDX), base()(IDX)
    assert not torch.allclose(changed, plain)
    assert torch.allclose(merge_lora(model)(IDX), changed, atol=1e-5) and lora_layers(model) == {}


def test_around_a_wrapped_model_ddp_and_data_parallel_add_nothing_to_its_names(alone_in_a_group):
    model = tuned()
    names = list(lora_layers(model))
    for around in (nn.parallel.DistributedDataParallel, nn.DataParallel, torch.compile):
        assert list(lora_layers(around(model))) == names
    assert list(lora_layers(torch.compile(nn.parallel.DistributedDataParallel(model)))) == names
    own = nn.ModuleDict({"module": nn.Sequential(nn.Linear(8, 8))})  # a part that is only called so
    assert list(lora_layers(apply_lora(own, r=2))) == ["module.0"]


@pytest.mark.parametrize("name", ["head", "embed_out", "output_projection", "lm_head"])
def test_a_head_is_what_the_model_says_is_its_head(name):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.fc = nn.Embedding(8, 8), nn.Linear(8, 8)
            setattr(self, name, nn.Linear(8, 8))

        def get_output_embeddings(self):
            return getattr(self, name)

    assert list(lora_layers(apply_lora(Model(), r=2))) == ["fc"]
    assert list(lora_layers(apply_lora(nn.Sequential(Model()), r=2))) == ["0.fc"]
    assert sorted(lora_layers(apply_lora(Model(), r=2, skip=()))) == sorted(["fc", name])
    assert_refused(Model(), lambda m: apply_lora(m, r=2, targets=[name]), f"{name!r}, skipped ones aside")
    assert list(lora_layers(apply_lora(Model(), r=2, targets=[name], skip=()))) == [name]


def test_a_layer_that_is_tied_to_an_embedding_is_a_head_whatever_its_name():
    model = nn.ModuleDict(dict(embed=nn.Embedding(8, 8), fc=nn.Linear(8, 8), unembed=nn.Linear(8, 8)))
    model["unembed"].weight = model["embed"].weight
    assert list(lora_layers(apply_lora(model, r=2))) == ["fc"]


@pytest.mark.parametrize("kind", ["BioGpt", "GPTNeoX", "OPT", "Rwkv", "Llama"])
def test_outside_the_blocks_of_a_transformers_model_nothing_is_wrapped(kind):
    transformers = pytest.importorskip("transformers")
    size = dict(vocab_size=97, hidden_size=32, num_hidden_layers=2, intermediate_size=48)
    heads = {} if kind == "Rwkv" else dict(num_attention_heads=2)
    config = getattr(transformers, f"{kind}Config")(**size, **heads)
    model = getattr(transformers, f"{kind}ForCausalLM")(config)
    paths = list(lora_layers(apply_lora(model, r=2)))
    assert paths and all("layers." in path or "blocks." in path for path in paths)


class FrozenA(LoraLinear):
    """Somebody's own kind, which trains B alone."""

    def __init__(self, *args):
        super().__init__(*args)
        self.A.requires_grad_(False)


def test_what_a_kind_of_layer_freezes_stays_frozen():
    model = apply_lora(base(), r=2, kind=FrozenA)
    assert {n.rpartition(".")[2] for n, p in model.named_parameters() if p.requires_grad} == {"B"}


def test_a_model_with_another_adapters_layers_is_refused_and_one_with_a_linear_called_base_is_not():
    class Wrapper(nn.Module):
        def __init__(self, linear):
            super().__init__()
            self.base_layer, self.in_features = linear, linear.in_features

    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.base, self.top = nn.Linear(4, 4), nn.Linear(4, 4)

    with pytest.raises(ValueError, match="^0 is wrapped already, by Wrapper: take the adapter off"):
        apply_lora(nn.Sequential(Wrapper(nn.Linear(4, 4)), nn.Linear(4, 4)), r=2)
    assert lora_layers(apply_lora(Classifier(), r=2)).keys() == {"base", "top"}


def test_the_copy_of_lora_works_in_a_folder_that_has_nothing_of_the_course(tmp_path):
    assert main(["copy-lora", "--out", str(tmp_path / "lora.py")]) == 0
    script = """
import sys, torch, torch.nn as nn
import lora
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 8), nn.Embedding(8, 8), nn.Linear(8, 4))
x = torch.randn(3, 8)
before = model[2](model[0](x))
lora.apply_lora(model, r=2, targets=["0", "2"])
model[0].B.data.fill_(1.0)
after = model[2](model[0](x))
with lora.lora_disabled(model):
    assert torch.equal(model[2](model[0](x)), before)
lora.merge_lora(model)
assert torch.allclose(model[2](model[0](x)), after, atol=1e-4) and not torch.allclose(after, before)
assert not any(name == "llm" or name.startswith("llm.") for name in sys.modules)
"""
    (tmp_path / "use.py").write_text(script)
    without = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "use.py"], cwd=tmp_path, env=without, capture_output=True, text=True)
    assert not done.returncode, done.stderr


def test_a_copy_replaces_no_file_that_is_there(tmp_path, capsys):
    (tmp_path / "lora.py").write_text("mine")
    assert main(["copy-lora", "--out", str(tmp_path / "lora.py")]) == 1
    assert "is there already" in capsys.readouterr().err and (tmp_path / "lora.py").read_text() == "mine"


@pytest.mark.parametrize("act", [apply_lora, quantize], ids=["apply_lora", "quantize"])
def test_weights_that_no_linear_layer_holds_are_warned_of(act):
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model.experts = nn.Parameter(torch.zeros(4, 8, 8))
    with pytest.warns(UserWarning, match="64% of the weights are in no linear layer and stay as they are, experts"):
        act(model)
