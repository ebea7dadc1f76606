"""The wrapper's promises: a start that changes nothing, merge, remove, disable, and refusals that touch nothing."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

import llm.lora
from llm.lora import SCALING, LoraLinear, apply_lora, lora_disabled, lora_layers, merge_lora, remove_lora
from llm.model import GPT, GPTConfig

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


def test_the_file_stands_alone(tmp_path):
    (tmp_path / "copied.py").write_text(Path(llm.lora.__file__).read_text(encoding="utf-8"), encoding="utf-8")
    script = "import sys, copied; sys.exit(any(m == 'llm' or m.startswith('llm.') for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", script], cwd=tmp_path).returncode == 0


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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtype_is_kept_by_wrapping_and_by_merging(dtype):
    model = tuned(base().to(dtype))
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert {p.dtype for p in merge_lora(model).parameters()} == {dtype}


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
    assert model.transformer.h[0].attn.c_attn.B.grad.dtype == torch.bfloat16


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
    assert_refused(nn.Sequential(nn.LayerNorm(4)), apply_lora, "no nn.Linear matches")


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
        assert torch.equal(model(IDX, IDX + 1)[1], plain)
    assert not torch.equal(model(IDX, IDX + 1)[1], plain)


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
