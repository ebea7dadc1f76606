"""Four bits a weight: levels from their formula, bitsandbytes' own codes, a layer that LoRA wraps and that keeps nothing dense."""

import copy
import gc
from dataclasses import replace

import bitsandbytes as bnb
import bitsandbytes.functional as theirs
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from test_adapters import TINY, assert_refused, base, randomise
from test_peft import answer, learn, llama
from transformers import BitsAndBytesConfig, LlamaForCausalLM
from transformers.pytorch_utils import Conv1D

from llm import bases
from llm.adapters import fingerprint, inspect_adapter, load_adapter, save_adapter
from llm.errors import BaseError
from llm.lora import (
    LoraLinear,
    apply_lora,
    chosen_linears,
    lora_disabled,
    lora_layers,
    merge_lora,
    remove_lora,
    replace_layers,
)
from llm.model import GPT
from llm.quantize import (
    FORMATS,
    Linear4bit,
    bits_per_weight,
    dequantize,
    dequantize_blocks,
    dynamic_levels,
    four_bit_layers,
    fp4_levels,
    int4_levels,
    nf4_levels,
    pack,
    quantize,
    quantize_blocks,
    read_scheme,
    scheme_of,
    unpack,
)
from llm.relatives import METHODS, layers_of
from llm.surgery import left_out

# table of the paper's appendix E
PUBLISHED = torch.tensor(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ]
)
SHAPES = [
    (128, 64),
    (512, 128),
    (33, 65),
    (7, 9),
    (5, 3),
]  # with blocks that end in a row's middle, and bytes half full


def linear(out=48, width=64, bias=True, seed=0, scale=0.05):
    torch.manual_seed(seed)
    made = nn.Linear(width, out, bias=bias)
    nn.init.normal_(made.weight, std=scale)
    return made


def bnb_linear(layer, double=False):
    """bitsandbytes' own layer over the weights of `layer`."""
    options = dict(quant_type="nf4", compress_statistics=double)
    made = bnb.nn.Linear4bit(layer.in_features, layer.out_features, layer.bias is not None, torch.float32, **options)
    made.weight = bnb.nn.Params4bit(layer.weight.detach().clone(), requires_grad=False, **options)
    made.bias = layer.bias
    return made.to("cpu")  # which is where it quantizes


# levels


def test_nf4_is_the_published_table():
    assert torch.equal(nf4_levels(), PUBLISHED)
    assert torch.equal(nf4_levels(), theirs.get_4bit_type("nf4", "cpu"))


def test_nf4_has_sixteen_levels_eight_above_zero_and_seven_below_and_both_ends():
    levels = nf4_levels()
    assert len(levels.unique()) == 16 and (levels > 0).sum() == 8 and (levels < 0).sum() == 7
    assert levels[0] == -1 and levels[-1] == 1 and levels[7] == 0


def test_fp4_is_e2m1_and_differs_from_bitsandbytes_own_in_the_level_next_to_zero():
    levels = fp4_levels()
    assert (6 * levels[8:]).tolist() == pytest.approx([0, 0.5, 1, 1.5, 2, 3, 4, 6]) and torch.equal(
        levels, -levels.flip(0)
    )
    own = theirs.get_4bit_type("fp4", "cpu").sort().values
    differs = (levels - own).abs() > 1e-6
    assert differs.nonzero().flatten().tolist() == [6, 9] and own[9] == pytest.approx(0.0052, abs=1e-4)


def test_int4_is_evenly_spaced_with_two_codes_for_zero():
    levels = int4_levels()
    assert len(levels) == 16 and (levels == 0).sum() == 2
    torch.testing.assert_close(levels.unique().diff(), torch.full((14,), 1 / 7))


def test_the_levels_of_absmaxes_are_bitsandbytes_dynamic_map():
    assert torch.equal(dynamic_levels(), theirs.create_dynamic_map())


# blocks


@pytest.mark.parametrize("name", FORMATS)
def test_every_value_gets_the_nearest_level_of_its_block(name):
    levels, block = FORMATS[name](), 10
    values = torch.randn(57, generator=torch.Generator().manual_seed(1))
    codes, absmax = quantize_blocks(values, levels, block)
    assert codes.shape == (57,) and absmax.shape == (6,)
    back = dequantize_blocks(codes, absmax, levels, block)
    for start in range(0, 57, block):
        piece = values[start : start + block]
        assert absmax[start // block] == piece.abs().max()
        choices = (levels * piece.abs().max() - piece[:, None]).abs().amin(1)
        torch.testing.assert_close((back[start : start + block] - piece).abs(), choices)


@pytest.mark.parametrize("name", FORMATS)
def test_zero_stays_zero_and_the_largest_of_a_block_stays_itself(name):
    values = torch.tensor([0.0, 0.3, -0.7, 0.0, 0.1, 0.0, 0.0, 0.0])
    back = dequantize_blocks(*quantize_blocks(values, FORMATS[name](), 4), FORMATS[name](), 4)
    assert back[[0, 3, 5, 6, 7]].eq(0).all() and back[2] == values[2] and back[4] == values[4]


def test_a_block_of_zeros_is_zeros():
    back = dequantize_blocks(*quantize_blocks(torch.zeros(9), nf4_levels(), 4), nf4_levels(), 4)
    assert torch.equal(back, torch.zeros(9))


@pytest.mark.parametrize("n", [1, 6, 7])
def test_two_codes_to_a_byte_and_back(n):
    codes = torch.arange(n, dtype=torch.int32) * 2
    packed = pack(codes, zero=7)
    assert packed.dtype == torch.uint8 and len(packed) == (n + 1) // 2
    assert unpack(packed).tolist() == codes.tolist() + [7] * (n % 2)


# bits


def test_bits_are_the_papers():
    assert bits_per_weight() == 4.5 and bits_per_weight(double=True) == pytest.approx(4.127, abs=5e-4)
    assert bits_per_weight(32) == 5 and bits_per_weight(256) == 4.125


@pytest.mark.parametrize("double", [False, True])
def test_the_bytes_of_a_layer_are_those_bits(double):
    layer = Linear4bit(linear(512, 512, bias=False), double=double)
    stored = sum(t.nbytes for t in layer.state_dict().values())
    assert 8 * stored / 512**2 == pytest.approx(bits_per_weight(double=double), abs=2e-4)  # and one mean


# parity with bitsandbytes


@pytest.mark.parametrize("scale", [1.0, 1e-3])
@pytest.mark.parametrize("shape", SHAPES)
def test_codes_and_absmaxes_are_bitsandbytes_and_so_are_the_weights(shape, scale):
    layer = linear(*shape, scale=scale)
    codes, state = theirs.quantize_4bit(layer.weight.detach(), quant_type="nf4")
    ours = Linear4bit(layer)
    assert torch.equal(ours.codes, codes.flatten())
    torch.testing.assert_close(ours.absmax, state.absmax, rtol=1e-6, atol=0)
    torch.testing.assert_close(ours.weight, theirs.dequantize_4bit(codes, state), rtol=1e-6, atol=0)


def test_doubly_quantized_scales_are_bitsandbytes_but_where_two_levels_are_equally_near():
    """bitsandbytes' processor kernel finds the nearest of 256 through a table: near a border it may take the other one."""
    layer = linear(512, 512)
    codes, state = theirs.quantize_4bit(layer.weight.detach(), quant_type="nf4", compress_statistics=True)
    ours = Linear4bit(layer, double=True)
    assert torch.equal(ours.codes, codes.flatten())
    torch.testing.assert_close(ours.nested_offset, state.offset)
    torch.testing.assert_close(ours.nested_absmax, state.state2.absmax, rtol=1e-4, atol=0)
    away = (ours.absmax.int() - state.absmax.int()).abs()
    assert away.max() <= 1 and (away > 0).float().mean() < 0.01
    torch.testing.assert_close(ours.weight, theirs.dequantize_4bit(codes, state), rtol=0, atol=2e-3)


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_outputs_and_gradients_are_those_of_bitsandbytes_layer(bias, double):
    layer = linear(bias=bias)
    ours, other = Linear4bit(layer, double=double), bnb_linear(layer, double)
    x = torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(2))
    found = []
    for one in (ours, other):
        entry = x.clone().requires_grad_()  # and so bitsandbytes does not take its bfloat16 kernel
        y = one(entry)
        (y**2).sum().backward()
        found.append((y.detach(), entry.grad))
    for mine, goal in zip(*found):
        torch.testing.assert_close(mine, goal, rtol=1e-4, atol=1e-4)


# the layer


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("name", FORMATS)
def test_it_computes_what_a_dense_layer_with_its_weights_does_gradients_too(name, double):
    layer = Linear4bit(linear(), name, 32, double)
    x = torch.randn(2, 7, 64, requires_grad=True)
    y, goal = layer(x), F.linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(y, goal)
    torch.testing.assert_close(*(torch.autograd.grad(out.pow(2).sum(), x)[0] for out in (y, goal)))


def test_it_is_a_linear_and_says_how_it_is_quantized():
    layer = Linear4bit(linear(bias=False), block=32, double=True)
    assert isinstance(layer, nn.Linear) and (layer.in_features, layer.out_features) == (64, 48)
    assert str(layer) == "Linear4bit(in_features=64, out_features=48, bias=False, nf4-32-double)"
    assert (layer.scheme, Linear4bit(linear()).scheme) == ("nf4-32-double", "nf4")


def test_nothing_of_it_trains_but_a_bias_and_nothing_dense_is_in_its_state_dict():
    layer = Linear4bit(linear())
    assert [name for name, _ in layer.named_parameters()] == ["bias"]
    assert {name: t.numel() for name, t in layer.state_dict().items()} == {
        "bias": 48,
        "codes": 48 * 64 // 2,
        "absmax": 48,
    }


@pytest.mark.parametrize("double", [False, True])
def test_a_state_dict_brings_the_weights_back(double):
    layer, other = Linear4bit(linear(seed=0), double=double), Linear4bit(linear(seed=1), double=double)
    assert not torch.equal(other.weight, layer.weight)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.weight, layer.weight)


def dense(n):
    """By type(), because isinstance() asks what a weak proxy stands for, and that may be gone (matplotlib keeps some)."""
    gc.collect()
    tensors = [t for t in gc.get_objects() if issubclass(type(t), torch.Tensor)]
    return [t for t in tensors if t.is_floating_point() and t.numel() >= n]


def test_nothing_dense_is_kept_between_a_forward_its_backward_and_the_next():
    layer = Linear4bit(linear(256, 256, bias=False))
    x = torch.randn(1, 256, requires_grad=True)
    before, saved = len(dense(256 * 256)), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        y = layer(x)
    assert len(dense(256 * 256)) == before and not any(n >= 256 * 256 for n in saved)
    y.sum().backward()
    assert len(dense(256 * 256)) == before


def test_another_dtype_is_that_of_the_products_and_the_scales_stay_exact():
    layer = Linear4bit(linear(), double=True)
    exact = layer.scales().clone()
    half = copy.deepcopy(layer).to(torch.bfloat16)
    assert half.weight.dtype == half(torch.randn(2, 64, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert torch.equal(half.scales(), exact) and half.nested_absmax.dtype == torch.float32
    torch.testing.assert_close(half.weight.float(), layer.weight, rtol=4e-3, atol=0)
    assert torch.equal(half.float().weight, layer.weight)


def test_under_autocast_it_gives_what_a_dense_layer_gives():
    layer, x = Linear4bit(linear()), torch.randn(4, 64, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y, goal = layer(x), F.linear(x, layer.weight, layer.bias)
    assert y.dtype == goal.dtype == torch.bfloat16
    torch.testing.assert_close(y, goal, rtol=2e-2, atol=2e-2)
    y.float().sum().backward()
    assert x.grad.dtype == torch.float32


def test_weights_in_sixteen_bits_are_quantized_from_what_they_are():
    layer = linear().to(torch.bfloat16)
    made = Linear4bit(layer)
    assert made.weight.dtype == torch.bfloat16
    assert torch.equal(made.codes, Linear4bit(layer.float()).codes)


@pytest.mark.parametrize(
    ("options", "word"), [(dict(format="nf5"), "choose one of nf4"), (dict(block=0), "in blocks of 0 weights")]
)
def test_what_makes_no_sense_is_said(options, word):
    with pytest.raises(ValueError, match=word):
        Linear4bit(linear(), **options)


def test_packed_and_broken_weights_are_refused():
    with pytest.raises(ValueError, match="packed already"):
        Linear4bit(Linear4bit(linear()))
    broken = linear()
    broken.weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN or infinity"):
        Linear4bit(broken)


# a whole model


def test_a_model_is_quantized_in_place_but_for_its_head_and_its_embeddings():
    model, kept = base(), base()
    assert quantize(model) is model and scheme_of(model) == "nf4" and scheme_of(kept) is None
    assert (
        all(path.startswith("transformer.h.") for path in four_bit_layers(model)) and len(four_bit_layers(model)) == 8
    )
    assert type(model.lm_head) is nn.Linear and type(model.transformer.wte) is nn.Embedding
    assert torch.equal(model.lm_head.weight, kept.lm_head.weight)


def test_targets_and_skip_choose_as_they_do_for_lora():
    assert len(four_bit_layers(quantize(base(), targets="mlp.c_fc"))) == 2
    assert "lm_head" in four_bit_layers(quantize(base(), skip=()))
    with pytest.raises(ValueError, match="no nn.Linear matches"):
        quantize(base(), targets="c_nothing")


def test_a_model_that_cannot_be_quantized_stays_as_it_was():
    model = base()
    model.transformer.h[1].mlp.c_proj.weight.data[0, 0] = float("inf")
    with pytest.raises(ValueError, match="infinity"):
        quantize(model)
    assert not four_bit_layers(model)
    with pytest.raises(ValueError, match="packed already"):
        quantize(quantize(base()))


def test_a_model_that_is_wrapped_is_refused_by_the_first_of_its_layers_ours_or_pefts():
    around = "c_attn is wrapped already, by LoraLinear: take the adapter off"
    with pytest.raises(ValueError, match=around):
        quantize(apply_lora(base(), r=2))
    with pytest.raises(ValueError, match=around):
        quantize(apply_lora(base(), r=2), targets="mlp.c_fc.base")  # also when that one would not be quantized
    theirs = get_peft_model(llama(), LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="q_proj is wrapped already, by Linear: take the adapter off"):
        quantize(theirs)
    assert not four_bit_layers(theirs)


@pytest.mark.parametrize("double", [False, True])
def test_lora_goes_over_it_trains_and_comes_off(double):
    model = quantize(base(), double=double)
    codes = {path: layer.codes.clone() for path, layer in four_bit_layers(model).items()}
    before = answer(model)
    apply_lora(model, r=2)
    assert torch.equal(answer(model), before) and len(lora_layers(model)) == 8
    learn(model, steps=3)
    after = answer(model)
    assert not torch.equal(after, before)
    with lora_disabled(model):
        assert torch.equal(answer(model), before)
    assert torch.equal(answer(remove_lora(model)), before)
    assert all(torch.equal(layer.codes, codes[path]) for path, layer in four_bit_layers(model).items())


def test_lora_learns_the_same_over_it_as_over_a_dense_model_of_its_weights():
    quantized, dense_model = quantize(base()), base()
    for path, layer in four_bit_layers(quantized).items():
        dense_model.get_submodule(path).weight.data.copy_(layer.weight)
    found = []
    for model in (quantized, dense_model):
        torch.manual_seed(3)
        learn(apply_lora(model, r=2), steps=3)
        found.append([p.detach() for layer in lora_layers(model).values() for p in (layer.A, layer.B)])
    for mine, goal in zip(*found):
        torch.testing.assert_close(mine, goal, rtol=1e-3, atol=1e-4)


def test_a_merge_gives_plain_layers_of_dequantized_weights_and_update():
    model = apply_lora(quantize(base()), r=2)
    randomise(model, 0)
    wanted = answer(model)
    goal = {path: layer.base.weight + layer.update() for path, layer in lora_layers(model).items()}
    merge_lora(model)
    torch.testing.assert_close(answer(model), wanted, rtol=1e-4, atol=1e-4)
    assert not four_bit_layers(model)
    for path, weight in goal.items():
        assert type(model.get_submodule(path)) is nn.Linear and torch.equal(model.get_submodule(path).weight, weight)


def test_rounded_again_is_what_peft_does_when_it_merges_into_a_bitsandbytes_layer():
    ours = quantize(nn.Sequential(linear(bias=False)))
    theirs = nn.Sequential(bnb_linear(linear(bias=False)))
    theirs.is_loaded_in_4bit = True  # by which PEFT knows it
    theirs = get_peft_model(theirs, LoraConfig(r=2, lora_alpha=2, target_modules=["0"]))
    apply_lora(ours, r=2, alpha=2, scaling="alpha/r")
    randomise(ours, 0)
    with torch.no_grad():
        there = theirs.base_model.model[0]
        there.lora_A["default"].weight.copy_(ours[0].A.T), there.lora_B["default"].weight.copy_(ours[0].B.T)
    with pytest.warns(UserWarning, match="rounding errors"):
        merged = theirs.merge_and_unload()[0]
    assert isinstance(merged, bnb.nn.Linear4bit)
    before, again = ours[0].base.codes.clone(), quantize(merge_lora(ours))[0]
    assert torch.equal(again.codes, merged.weight.flatten()) and not torch.equal(again.codes, before)
    torch.testing.assert_close(again.absmax, merged.weight.quant_state.absmax, rtol=1e-6, atol=0)


# adapters over it


def test_a_fingerprint_knows_a_quantized_base_from_its_original_and_one_scheme_from_another():
    schemes = [dict(), dict(block=32), dict(double=True), dict(format="int4"), dict(format="fp4")]
    marks = [fingerprint(base())] + [fingerprint(quantize(base(), **scheme)) for scheme in schemes]
    assert len(set(marks)) == len(marks)
    assert fingerprint(quantize(base(seed=1))) not in marks
    model = quantize(base())
    assert fingerprint(apply_lora(model, r=2)) == fingerprint(remove_lora(model)) == marks[1]


def test_one_quantized_base_has_one_fingerprint_in_float32_and_in_bfloat16():
    assert fingerprint(quantize(base().to(torch.bfloat16))) == fingerprint(quantize(base()))
    assert fingerprint(quantize(base()).to(torch.bfloat16)) == fingerprint(quantize(base()))


def test_an_adapter_comes_back_over_the_same_base_quantized_alike(tmp_path):
    model = apply_lora(quantize(base()), r=2)
    randomise(model, 0)
    save_adapter(model, tmp_path)
    torch.testing.assert_close(answer(load_adapter(quantize(base()), tmp_path)), answer(model))


def test_an_adapter_knows_how_its_base_was_quantized_and_is_refused_over_another(tmp_path):
    for name, scheme in {"plain": None, "nf4": {}, "double": dict(double=True)}.items():
        model = base() if scheme is None else quantize(base(), **scheme)
        randomise(apply_lora(model, r=2), 0)
        save_adapter(model, tmp_path / name)
    assert [inspect_adapter(tmp_path / n).quantized for n in ("plain", "nf4", "double")] == [None, "nf4", "nf4-double"]
    assert str(inspect_adapter(tmp_path / "nf4")).endswith(", quantized to nf4")
    assert_refused(tmp_path / "nf4", "that one was quantized to nf4, this model is not quantized", base())
    assert_refused(tmp_path / "plain", "that one was not quantized, this model is quantized to nf4", quantize(base()))
    assert_refused(tmp_path / "double", "quantized to nf4-double, this model is quantized to nf4:", quantize(base()))
    assert_refused(tmp_path / "nf4", "another base .fingerprint", quantize(base(seed=1)))


@pytest.mark.parametrize("scheme", ["nf4", "nf4-double", "int4-32", "fp4-128-double"])
def test_a_scheme_is_read_as_it_is_written(scheme, tiny):
    assert scheme_of(quantize(base(), **read_scheme(scheme))) == scheme
    loaded = bases.load(tiny, torch.bfloat16, scheme=scheme).model
    assert scheme_of(loaded) == scheme and fingerprint(loaded) == fingerprint(bases.load(tiny, scheme=scheme).model)


@pytest.mark.parametrize("word", ["nf5", "nf4-x", "nf4-32-64", "double", "int4+nf4", ""])
def test_a_word_that_is_no_scheme_is_said(word):
    with pytest.raises(ValueError, match="there is no scheme"):
        read_scheme(word)


def test_a_dequantized_model_is_dense_and_answers_the_same_and_one_in_four_bits_is_not_saved(tmp_path):
    model = quantize(base(), targets="mlp.c_fc")
    before = answer(model)
    with pytest.raises(BaseError, match="layers in four bits"):
        bases.save(model, tmp_path / "b")
    assert dequantize(model) is model and not four_bit_layers(model)
    torch.testing.assert_close(answer(model), before)
    bases.save(model, tmp_path / "b")
    assert scheme_of(dequantize(model)) is None


def tiny_llama(folder, **changes):
    """A folder with a llama of random weights, its sides multiples of 64 as bitsandbytes' processor kernels want."""
    model = llama(hidden_size=64, intermediate_size=128, num_attention_heads=4, **changes)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("double", [False, True])
def test_an_adapter_that_is_trained_here_gives_the_same_logits_in_peft_over_bitsandbytes_nf4(tmp_path, double):
    model = quantize(tiny_llama(tmp_path / "base"), double=double)
    plain = answer(model)
    torch.manual_seed(0)
    learn(apply_lora(model, r=4, alpha=8, scaling="alpha/r"))
    save_adapter(model, tmp_path / "adapter")
    options = dict(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=double)
    four = BitsAndBytesConfig(**options, bnb_4bit_compute_dtype=torch.float32)
    there = LlamaForCausalLM.from_pretrained(tmp_path / "base", quantization_config=four, dtype=torch.float32)
    assert isinstance(there.model.layers[0].mlp.up_proj, bnb.nn.Linear4bit)
    there = PeftModel.from_pretrained(there, tmp_path / "adapter")
    there.train()  # else bitsandbytes multiplies in bfloat16 on some processors; there is no dropout
    moved, off = (answer(model) - plain).abs().max(), (answer(there) - answer(model)).abs().max()
    assert off < 1e-3 < 0.1 < moved, (off, moved)


def test_lora_linear_stands_over_a_four_bit_layer_unchanged():
    layer = LoraLinear(Linear4bit(linear(bias=False)), r=2)
    nn.init.normal_(layer.B)
    x = torch.randn(3, 64)
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight), rtol=1e-4, atol=1e-5)


class Counting(Linear4bit):
    """A four-bit layer that counts how often its weights are worked out."""

    times = 0

    @property
    def weight(self):
        Counting.times += 1
        return super().weight


@pytest.mark.parametrize("name", ["lora", "rslora", "lora+", "lora-fa", "ia3"])
def test_to_wrap_four_bit_layers_their_weights_are_never_worked_out(name):
    model = base()
    replace_layers(model, {layer: Counting(layer) for layer in chosen_linears(model, None, None)})
    Counting.times = 0
    METHODS[name].prepare(model, r=2)
    assert not Counting.times and len(layers_of(model)) > 1


def test_a_merge_works_the_weights_of_a_four_bit_layer_out_once():
    model = nn.Sequential(Counting(nn.Linear(64, 64)))
    apply_lora(model, r=2)
    Counting.times = 0
    merge_lora(model)
    assert Counting.times == 1


def test_dequantizing_to_a_dtype_that_is_too_small_is_refused_with_the_model_untouched():
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    with torch.no_grad():
        model[1].weight.fill_(100_000.0)
    quantize(model).half()
    layers = list(model)
    with pytest.raises(ValueError, match=r"^1 would hold infinity in torch.float16: call model.float\(\) first$"):
        dequantize(model)
    assert list(model) == layers
    assert dequantize(model.float())[1].weight.isfinite().all()


# what is no linear layer


class Experts(nn.Module):
    """A mixture as transformers 5 has it: the experts are one 3-D parameter."""

    def __init__(self, experts=8):
        super().__init__()
        self.embed, self.norm = nn.Embedding(100, 16), nn.LayerNorm(16)
        self.gate, self.up = nn.Linear(16, 16, bias=False), nn.Parameter(torch.ones(experts, 16, 16))


def test_the_share_of_the_weights_in_no_linear_layer_is_that_of_the_experts_before_and_after():
    all_of_it = 100 * 16 + 2 * 16 + 16 * 16 + 8 * 16 * 16
    model = Experts()
    share, sentence = left_out(model)
    assert share == pytest.approx(2048 / all_of_it)
    assert (
        sentence.startswith("52% of the weights are in no linear layer and stay as they are, up among them")
        and "\n" not in sentence
    )
    with pytest.warns(UserWarning, match="^52% of the weights are in no linear layer"):
        quantize(model)
    assert left_out(model) == (share, sentence)
    with pytest.warns(UserWarning, match="^52% of the weights are in no linear layer"):
        METHODS["lora"].prepare(model, r=1)


@pytest.mark.parametrize("other", [nn.Conv1d(16, 16, 3), Conv1D(16, 16)], ids=["Conv1d", "Conv1D"])
def test_convolutions_and_conv1d_are_in_no_linear_layer(other):
    model = nn.Sequential(nn.Linear(16, 16), other)
    assert left_out(model)[0] == pytest.approx(other.weight.numel() / sum(p.numel() for p in model.parameters()))


@pytest.mark.parametrize("tied", [False, True])
def test_of_a_gpt_nothing_is_left_out_and_nothing_is_said(tied, recwarn):
    model = GPT(replace(TINY, tied_lm_head=tied))
    METHODS["lora"].prepare(quantize(model), r=2)
    assert left_out(model) == (0.0, "") and not [w for w in recwarn if w.category is UserWarning]
