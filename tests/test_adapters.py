"""Adapters on disk: parity with PEFT both ways, every damage refused in one sentence, no save half done."""

import copy
import errno
import json
import math
import os
import pickle
import re
import shutil
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn as nn
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import load, save_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from llm.adapters import fingerprint, inspect_adapter, load_adapter, save_adapter
from llm.adapters.folder import CONFIG, STAGED, TENSORS
from llm.errors import AdapterError, WriteError
from llm.lora import apply_lora, lora_disabled, lora_layers, merge_lora, remove_lora
from llm.model import GPT, GPTConfig
from llm.relatives import METHODS, method_of

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft", "ignore::FutureWarning:transformers")

TINY = GPTConfig(vocab_size=97, block_size=16, n_layer=2, n_head=2, n_embd=16)
IDX = torch.arange(12).view(2, 6)
FIRST = "transformer.h.0.attn.c_attn"
KEY_A, KEY_B = (f"base_model.model.{FIRST}.lora_{name}.weight" for name in "AB")


def base(seed=0, config=TINY):
    """A base whose weights fit fp16 exactly, as those that ship do."""
    torch.manual_seed(seed)
    return GPT(config).half().float().eval()


def tuned(seed=0, r=3, model=None, **options):
    """A base with an adapter that does something, as after training."""
    model = apply_lora(base() if model is None else model, r=r, **options)
    randomise(model, seed)
    return model


def randomise(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in lora_layers(model).values():
            layer.A.normal_(std=0.3, generator=generator)
            layer.B.normal_(std=0.3, generator=generator)


def state(model):
    """All of a model that a refused adapter might have touched."""
    weights = {name: t.clone() for name, t in model.state_dict().items()}
    grads = [p.requires_grad for p in model.parameters()]
    scales = [(x.r, x.alpha, x.scaling, x.scale, x.enabled) for x in lora_layers(model).values()]
    return weights, grads, scales, list(model.modules())


def assert_refused(folder, match, *models):
    """One sentence that says `match`, and the model bit for bit as it was, wrapped or not."""
    for model in models or (base(), tuned(seed=9)):
        weights, *rest = state(model)
        with pytest.raises(AdapterError) as caught:
            load_adapter(model, folder)
        said = str(caught.value).replace(str(folder), "FOLDER")  # a test's own name is no match
        assert re.search(match, said), said
        assert "\n" not in said and len(said) < 500 and ": " in said, said
        after, *rest_after = state(model)
        assert rest_after == rest and after.keys() == weights.keys()
        assert all(torch.equal(after[name], weights[name]) for name in weights)


def peft_made(folder, seed=0, model=None, **options):
    """PEFT's own adapter in `folder`, and what PEFT answers with it."""
    model = get_peft_model(base() if model is None else model, LoraConfig(**options)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_" in name:
                p.normal_(std=0.3, generator=generator)
        answer = model(IDX)
    model.save_pretrained(folder)
    return answer


@pytest.fixture
def folder(tmp_path):
    """An adapter that says no more than PEFT's do, so that each check has to stand alone."""
    folder = tmp_path / "adapter"
    save_adapter(tuned(), folder)
    save_file(load((folder / TENSORS).read_bytes()), folder / TENSORS, {"format": "pt"})
    return folder


def edit_config(folder, **changes):
    config = json.loads((folder / CONFIG).read_text()) | changes
    (folder / CONFIG).write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


def edit_tensors(folder, change):
    tensors = load((folder / TENSORS).read_bytes())
    change(tensors)
    save_file(tensors, folder / TENSORS)


# both ways with PEFT


@pytest.mark.parametrize("scaling", ["alpha", "alpha/r", "alpha/sqrt(r)"])
@pytest.mark.parametrize("targets", [None, ["c_attn"], ["mlp.c_proj", "transformer.h.1.attn.c_proj"]])
def test_ours_opens_in_peft_with_the_same_logits(tmp_path, scaling, targets):
    model = tuned(scaling=scaling, alpha=2.0, targets=targets)
    save_adapter(model, tmp_path / "a")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # PEFT only warns when keys are missing
        theirs = PeftModel.from_pretrained(base(), tmp_path / "a").eval()
    assert (theirs(IDX) - model(IDX)).abs().max() < 1e-5
    assert (base()(IDX) - model(IDX)).abs().max() > 1e-2


def test_ours_opens_in_peft_when_it_names_more_layers_than_peft_likes_to_list(tmp_path):
    deep = GPTConfig(**{**vars(TINY), "n_layer": 7})
    model = tuned(model=base(config=deep), targets=lambda path: path.startswith("transformer.h.") and "h.3" not in path)
    assert len(lora_layers(model)) == 24
    save_adapter(model, tmp_path / "a")
    theirs = PeftModel.from_pretrained(base(config=deep), tmp_path / "a").eval()
    assert (theirs(IDX) - model(IDX)).abs().max() < 1e-5


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize(
    "targets", [["c_attn"], ["attn.c_proj", "c_fc", "lm_head"], r".*\.(c_attn|c_fc)", r"transformer\.h\.\d+\.mlp\.c_.*"]
)
def test_an_adapter_made_by_peft_loads_here_with_the_same_logits(tmp_path, rslora, targets):
    answer = peft_made(tmp_path / "p", r=3, lora_alpha=5, use_rslora=rslora, target_modules=targets, lora_dropout=0.1)
    model = load_adapter(base(), tmp_path / "p")
    assert (model(IDX) - answer).abs().max() < 1e-5
    assert (base()(IDX) - answer).abs().max() > 1e-2
    assert inspect_adapter(tmp_path / "p").fingerprint is None


def test_adapters_pass_between_our_gpt_and_transformers_gpt2_by_name(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPTConfig(**{**vars(TINY), "bias": True, "tied_lm_head": True})
    ours = base(config=config)

    def theirs():
        sizes = {k: getattr(TINY, k) for k in ("vocab_size", "n_layer", "n_head", "n_embd")}
        model = GPT2LMHeadModel(GPT2Config(n_positions=TINY.block_size, bos_token_id=0, eos_token_id=0, **sizes))
        linear = ("c_attn.weight", "c_proj.weight", "c_fc.weight")  # theirs are Conv1D: transposed
        weights = {k: v.T if k.endswith(linear) else v for k, v in base(config=config).state_dict().items()}
        model.load_state_dict(weights)
        return model.eval()

    save_adapter(tuned(model=ours), tmp_path / "ours")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fan_in_fan_out, which PEFT sets right by itself
        peft = PeftModel.from_pretrained(theirs(), tmp_path / "ours").eval()
    assert (peft(IDX).logits - ours(IDX)).abs().max() < 1e-5
    peft = get_peft_model(
        theirs(), LoraConfig(r=2, lora_alpha=3, target_modules=["c_attn", "mlp.c_proj"], fan_in_fan_out=True)
    ).eval()
    for name, p in peft.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.3)
    peft.save_pretrained(tmp_path / "theirs")
    assert (load_adapter(base(config=config), tmp_path / "theirs")(IDX) - peft(IDX).logits).abs().max() < 1e-5


# what is saved, what comes back


@pytest.mark.parametrize("scaling", ["alpha", "alpha/r", "alpha/sqrt(r)"])
@pytest.mark.parametrize("r", [1, 3, 8])
def test_what_was_saved_under_one_seed_answers_the_same_under_another(tmp_path, scaling, r):
    model = tuned(scaling=scaling, alpha=1.7, r=r)
    save_adapter(model, tmp_path / "a")
    fresh = base()
    torch.manual_seed(12345)
    loaded = load_adapter(fresh, tmp_path / "a")
    assert loaded is fresh
    torch.testing.assert_close(loaded(IDX), model(IDX), rtol=0, atol=1e-6)
    for path, layer in lora_layers(loaded).items():
        own = lora_layers(model)[path]
        assert torch.equal(layer.A, own.A) and torch.equal(layer.B, own.B) and layer.scale == pytest.approx(own.scale)


def test_a_scale_set_by_hand_is_the_scale_that_is_saved(tmp_path):
    model = tuned(scaling="alpha/r")
    for layer in lora_layers(model).values():
        layer.scale = 0.3
    save_adapter(model, tmp_path / "a")
    assert load_adapter(base(), tmp_path / "a").transformer.h[0].attn.c_attn.scale == pytest.approx(0.3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_over_a_half_precision_base_factors_go_out_and_back_in_float32_bit_for_bit(tmp_path, dtype):
    model = tuned(model=base().to(dtype))
    save_adapter(model, tmp_path / "a")
    assert {t.dtype for t in load((tmp_path / "a" / TENSORS).read_bytes()).values()} == {torch.float32}
    loaded = load_adapter(base().to(dtype), tmp_path / "a")
    assert {p.dtype for p in loaded.parameters()} == {dtype, torch.float32} and torch.equal(loaded(IDX), model(IDX))
    wide = load_adapter(base(), tmp_path / "a")  # the same base in float32
    assert torch.equal(wide.transformer.h[1].mlp.c_fc.A, model.transformer.h[1].mlp.c_fc.A)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_factors_that_somebody_has_cast_to_half_precision_are_kept_in_float32(tmp_path, dtype):
    model = tuned().to(dtype)
    save_adapter(model, tmp_path / "a")
    assert {t.dtype for t in load((tmp_path / "a" / TENSORS).read_bytes()).values()} == {torch.float32}
    cast = load_adapter(tuned(seed=4).to(dtype), tmp_path / "a")
    assert {p.dtype for p in cast.parameters()} == {dtype} and torch.equal(cast(IDX), model(IDX))


def test_the_folder_holds_two_files_and_no_base_weight(tmp_path):
    model = tuned()
    save_adapter(model, tmp_path / "a")
    tensors = load((tmp_path / "a" / TENSORS).read_bytes())
    assert sorted(os.listdir(tmp_path / "a")) == [CONFIG, TENSORS]
    assert {k.rsplit(".", 2)[1] for k in tensors} == {"lora_A", "lora_B"} and len(tensors) == 2 * 8
    assert sum(t.numel() for t in tensors.values()) == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_a_loaded_adapter_trains_and_nothing_else_does(tmp_path):
    save_adapter(tuned(), tmp_path / "a")
    for model in (base(), tuned(seed=4)):
        model.transformer.wte.weight.requires_grad_(True)
        load_adapter(model, tmp_path / "a")
        trainable = {name for name, p in model.named_parameters() if p.requires_grad}
        assert trainable == {f"{path}.{name}" for path in lora_layers(model) for name in "AB"}
        _, loss = model(IDX, IDX + 1)
        loss.backward()
        assert all(layer.A.grad.any() and layer.B.grad.any() for layer in lora_layers(model).values())


def test_an_adapter_on_a_tied_head_leaves_the_embedding_alone(tmp_path):
    tied = GPTConfig(**{**vars(TINY), "tied_lm_head": True})
    model = tuned(model=base(config=tied), targets=["lm_head"], skip=())
    save_adapter(model, tmp_path / "a")
    loaded = load_adapter(base(config=tied), tmp_path / "a")
    assert torch.equal(loaded.transformer.wte.weight, base(config=tied).transformer.wte.weight)
    assert loaded.lm_head.base.weight is loaded.transformer.wte.weight and torch.equal(loaded(IDX), model(IDX))


def test_three_adapters_swap_in_a_loop_and_each_answers_as_it_was_trained(tmp_path):
    answers = {}
    for seed, scaling in enumerate(("alpha", "alpha/r", "alpha/sqrt(r)")):
        model = tuned(seed, scaling=scaling, alpha=2.0)
        save_adapter(model, tmp_path / str(seed))
        answers[seed] = model(IDX)
    model = load_adapter(base(), tmp_path / "0")
    parameters = list(model.parameters())
    for seed in (1, 2, 0, 2, 1, 0):
        next(iter(lora_layers(model).values())).A.grad = torch.ones(16, 3)
        load_adapter(model, tmp_path / str(seed))
        torch.testing.assert_close(model(IDX), answers[seed], rtol=0, atol=1e-6)
        assert all(p.grad is None for p in model.parameters()), "a gradient of the adapter before was left"
    assert all(a is b for a, b in zip(model.parameters(), parameters)), "an optimizer would have lost its parameters"
    with lora_disabled(model):
        assert torch.equal(model(IDX), base()(IDX))
    assert torch.equal(remove_lora(model)(IDX), base()(IDX))


class Touched(TorchDispatchMode):
    """The most numbers that one operation read or wrote inside the block; to look at them in another way is none."""

    most = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        found = operation(*args, **(kwargs or {}))
        if not any(r.alias_info and not r.alias_info.is_write for r in operation._schema.returns):
            tensors = [t for t in tree_leaves((args, kwargs, found)) if isinstance(t, torch.Tensor)]
            self.most = max([self.most, *(t.numel() for t in tensors)])
        return found


def test_a_swap_on_the_13_7_m_model_reads_next_to_nothing_of_the_base(tmp_path):
    model = apply_lora(GPT(), r=8)
    save_adapter(model, tmp_path / "a")
    with Touched() as swap:
        load_adapter(model, tmp_path / "a")
    with Touched() as whole:
        all(p.isfinite().all() for p in model.parameters())
    assert 0 < swap.most < 13_665_280 / 100 and whole.most == 50257 * 128


@pytest.mark.parametrize("other", [dict(r=2), dict(targets=["c_attn"])])
def test_a_model_with_lora_layers_of_another_shape_is_refused_with_the_way_out(tmp_path, other):
    save_adapter(tuned(), tmp_path / "a")
    assert_refused(tmp_path / "a", r"prepared for lora, .*call remove\(model\)", tuned(**other))


def test_inspect_tells_rank_scale_layers_size_and_base(tmp_path):
    model = tuned(r=3, alpha=6, scaling="alpha/r")
    save_adapter(model, tmp_path / "a")
    info = inspect_adapter(tmp_path / "a")
    assert (info.r, info.alpha, info.scaling, info.scale) == (3, 6, "alpha/r", 2)
    assert info.targets == tuple(sorted(lora_layers(model)))
    assert info.parameters == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert info.bytes == sum(path.stat().st_size for path in (tmp_path / "a").iterdir())
    assert info.fingerprint == fingerprint(base())
    said = str(info)
    for part in ("rank 3", "alpha 6", "= 2", "2 x transformer.h.*.mlp.c_fc", f"{info.parameters:,}", info.fingerprint):
        assert part in said


# the base's fingerprint


def test_the_fingerprint_is_the_base_s_wrapped_or_not_and_in_every_dtype():
    mark = fingerprint(base())
    model = tuned(skip=())
    assert fingerprint(model) == mark == fingerprint(remove_lora(model))
    assert fingerprint(base().half()) == mark == fingerprint(base().bfloat16())


def test_a_tied_head_and_an_equal_one_of_its_own_are_the_same_base():
    tied = base(config=GPTConfig(**{**vars(TINY), "tied_lm_head": True}))
    apart = base()
    apart.load_state_dict(tied.state_dict())
    assert fingerprint(apart) == fingerprint(tied) == fingerprint(apply_lora(tied, r=2, skip=()))


def test_any_weight_that_moves_as_training_moves_it_gives_another_fingerprint():
    mark = fingerprint(base())
    assert fingerprint(base(seed=1)) != mark
    for name, _ in base().named_parameters():
        model = base()
        with torch.no_grad():
            p = model.get_parameter(name)
            p.add_(1e-3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
        assert fingerprint(model) != mark, name
    assert fingerprint(merge_lora(tuned(alpha=0.1))) != mark


def test_an_adapter_for_another_base_is_refused(tmp_path):
    save_adapter(tuned(), tmp_path / "a")
    assert_refused(tmp_path / "a", "another base", base(seed=1))
    assert_refused(tmp_path / "a", "another base", merge_lora(tuned()))
    assert_refused(tmp_path / "a", "another base", tuned(model=base(seed=1)))


def _merge_tracked(p):
    with torch.no_grad():
        p += 1e-2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0))


def _merge_one_value(p):
    with torch.no_grad():
        p.view(-1)[:: (p.numel() // 1024) | 1][7] += 1.0  # one that the fingerprint reads, and that alone


def _merge_untracked(p):
    p.data += 1e-2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0))


def _write_through_numpy(p):
    p.detach().numpy()[...] *= 1.02


def _assign_data(p):
    p.data = p.data * 1.02


MOVES = [_merge_tracked, _merge_one_value, _merge_untracked, _write_through_numpy, _assign_data]


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("name", ["transformer.h.1.mlp.c_fc.base.weight", "transformer.wte.weight"])
def test_a_base_that_has_moved_since_the_last_swap_is_another_base(tmp_path, move, name):
    save_adapter(tuned(), tmp_path / "a")
    model = load_adapter(base(), tmp_path / "a")
    load_adapter(model, tmp_path / "a")
    p = model.get_parameter(name)
    before = p.detach().clone()
    move(p)
    assert_refused(tmp_path / "a", "another base", model)
    p.data = before
    load_adapter(model, tmp_path / "a")  # and it is the same one again


def test_a_base_whose_weights_were_loaded_or_replaced_since_the_last_swap_is_another_base(tmp_path):
    save_adapter(tuned(), tmp_path / "a")
    for change in (
        lambda model: model.load_state_dict({k: v * 1.02 for k, v in model.state_dict().items()}),
        lambda model: setattr(model.transformer.ln_f, "weight", torch.nn.Parameter(torch.full((16,), 1.02))),
        lambda model: setattr(model.transformer.h[0].attn.c_attn.base, "bias", torch.nn.Parameter(torch.ones(48))),
    ):
        model = load_adapter(base(), tmp_path / "a")
        load_adapter(model, tmp_path / "a")
        change(model)
        assert_refused(tmp_path / "a", "another base", model)


def test_a_model_made_in_inference_mode_is_told_from_another_too(tmp_path):
    save_adapter(tuned(), tmp_path / "a")
    with torch.inference_mode():
        model = base()
        load_adapter(model, tmp_path / "a")
        torch.testing.assert_close(model(IDX), tuned()(IDX))
        model.transformer.wte.weight.mul_(1.02)
        with pytest.raises(AdapterError, match="another base"):
            load_adapter(model, tmp_path / "a")


# damage: each in one sentence, nothing touched


CONFIGS = {
    "no alpha": (dict(lora_alpha=...), "no lora_alpha"),
    "alpha null": (dict(lora_alpha=None), "lora_alpha=None"),
    "alpha NaN": (dict(lora_alpha=float("nan")), "lora_alpha=nan"),
    "alpha infinite": (dict(lora_alpha=float("-inf")), "lora_alpha=-inf"),
    "alpha a text": (dict(lora_alpha="16"), "lora_alpha='16'"),
    "alpha true": (dict(lora_alpha=True), "lora_alpha=True"),
    "alpha beyond floats": (dict(lora_alpha=10**400), "lora_alpha="),
    "r zero": (dict(r=0), "says r=0"),
    "r negative": (dict(r=-3), "says r=-3"),
    "r a text": (dict(r="three"), "says r=three"),
    "r true": (dict(r=True), "says r=True"),
    "r huge": (dict(r=10**30), "says r=1"),
    "r another": (dict(r=4), "says r=4"),
    "rslora a text": (dict(use_rslora="no"), "use_rslora"),
    "targets empty": (dict(target_modules=[]), "which target_modules .* does not name"),
    "targets with an empty name": (dict(target_modules=["", "c_attn"]), "which target_modules .* does not name"),
    "a target too many": (dict(target_modules=["c_attn", "c_proj", "c_fc", "lm_head"]), "lacks the factors of lm_head"),
    "a target too few": (dict(target_modules=["c_attn", "c_proj"]), "mlp.c_fc, which .* not name"),
    "an embedding": (dict(target_modules=["c_attn", "c_proj", "c_fc", "wte"]), "lacks the factors of transformer.wte"),
    "another method": (dict(peft_type="LOHA"), "peft_type='LOHA'"),
    "no method": (dict(peft_type=...), "no peft_type"),
    "a method of another type": (dict(peft_type=["LORA"]), "peft_type"),
    "DoRA": (dict(use_dora=True), "lora_magnitude_vector of shapes .*, \\[\\]\\]"),
    "biases": (dict(bias="all"), "bias='all'"),
    "whole modules": (dict(modules_to_save=["lm_head"]), "modules_to_save"),
    "an alpha that is NaN": (dict(alpha_pattern={"c_attn": float("nan")}), "alpha_pattern"),
    "an alpha that is a text": (dict(alpha_pattern={"c_attn": "3"}), "alpha_pattern"),
    "alphas that are one number": (dict(alpha_pattern=3), "alpha_pattern=3"),
    "an alpha for a pattern": (
        dict(alpha_pattern={".*c_attn": 3}),
        "alpha_pattern.*no regular expression of a file is run",
    ),
    "a pattern of ranks that the tensors do not have": (dict(r=64, rank_pattern={"zzz": 2}), "says r=64"),
    "an alpha that no scale can be": (dict(lora_alpha=1e200), "too large for float32"),
    "PiSSA": (dict(init_lora_weights="pissa"), "pissa"),
    "an option of tomorrow": (dict(use_whatever={"a": 1}), "use_whatever"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_config_that_is_wrong_or_not_plain_lora_is_refused(folder, case):
    changes, match = CONFIGS[case]
    load_adapter(base(), folder)
    edit_config(folder, **changes)
    assert_refused(folder, match)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "3",
        b"\xff\xfe\x00",
        "[" * 100_000,
        '{"r": ' * 900 + "1" + "}" * 900,
        '{"r": ' + "9" * 9999,
    ]
    + [json.dumps({"peft_type": "LORA", "\n\x1b[2J": 1}), '{"peft_type": "LORA", "\\ud800": "\\ud800"}'],
    ids=range(11),
)
def test_a_config_that_is_no_json_object_or_a_hostile_one_is_refused(folder, text):
    (folder / CONFIG).write_bytes(text if isinstance(text, bytes) else text.encode())
    assert_refused(folder, CONFIG)


def _move(new):
    def change(tensors):
        for name in "AB":
            tensors[f"base_model.model.{new}.lora_{name}.weight"] = tensors.pop(
                f"base_model.model.{FIRST}.lora_{name}.weight"
            )

    return change


def _fill(value):
    return lambda t: t[KEY_B].__setitem__((0, 0), value)


CONTENTS = {
    "a B is missing": (lambda t: t.pop(KEY_B), r"lora_A, lora_B of shapes \[\[3, 16\], \[\]\]"),
    "a layer is missing": (lambda t: (t.pop(KEY_A), t.pop(KEY_B)), f"lacks the factors of {FIRST}"),
    "nothing in it": (lambda t: t.clear(), "holds 0 tensors"),
    "an embedding of the base": (
        lambda t: t.update({"base_model.model.transformer.wte.weight": torch.zeros(97, 16)}),
        "wte.weight' .F32, .97, 16.., which is no factor of one lora adapter: .*merge it there",
    ),
    "a bare weight": (lambda t: t.update({"wte.weight": torch.zeros(97, 16)}), "no factor .* into PEFT's format"),
    "an embedding's LoRA": (
        lambda t: t.update({KEY_A.replace("A.weight", "embedding_A"): torch.ones(2)}),
        "no factor of one lora adapter",
    ),
    "DoRA's magnitudes": (
        lambda t: t.update({KEY_A.replace("A.weight", "magnitude_vector"): torch.ones(2)}),
        "magnitude_vector' .F32, .2.., which is no factor of one lora adapter",
    ),
    "A on its side": (lambda t: t.update({KEY_A: t[KEY_A].T.contiguous()}), "says r=3"),
    "B on its side": (lambda t: t.update({KEY_B: t[KEY_B].T.contiguous()}), "says r=3"),
    "A too wide": (
        lambda t: t.update({KEY_A: torch.zeros(3, 17)}),
        r"shapes \[\(3, 17\), \(48, 3\)\], and maps 16 to 48 here",
    ),
    "B too long": (
        lambda t: t.update({KEY_B: torch.zeros(49, 3)}),
        r"shapes \[\(3, 16\), \(49, 3\)\], and maps 16 to 48 here",
    ),
    "A in one dimension": (lambda t: t.update({KEY_A: torch.zeros(48)}), r"\[48\].*FSDP: a full state dict"),
    "A left empty by ZeRO-3": (lambda t: t.update({KEY_A: torch.zeros(0)}), r"\[0\].*zero_to_fp32.py"),
    "A and B cut into shares": (lambda t: t.update({KEY_A: torch.zeros(2, 16), KEY_B: torch.zeros(24, 3)}), "gathered"),
    "A in three": (lambda t: t.update({KEY_A: torch.zeros(3, 16, 1)}), "says r=3"),
    "A without a column": (lambda t: t.update({KEY_A: torch.zeros(3, 0)}), r"shapes \[\[3, 0\], .*gathered"),
    "whole numbers": (lambda t: t.update({KEY_A: torch.zeros(3, 16, dtype=torch.int64)}), "I64"),
    "NaN": (_fill(float("nan")), "NaN or infinity"),
    "infinity": (_fill(float("inf")), "NaN or infinity"),
    "a layer that is not there": (_move("transformer.h.7.attn.c_attn"), "h.7.attn.c_attn', which does not exist"),
    "an embedding": (_move("transformer.wte"), "'transformer.wte', which is not a linear layer"),
    "a whole block": (_move("transformer.h.0"), "'transformer.h.0', which is not a linear layer"),
    "a path out of the model": (_move("..forward"), "does not exist"),
}


@pytest.mark.parametrize("case", CONTENTS)
def test_tensors_that_are_missing_unexpected_misshapen_or_not_finite_are_refused(folder, case):
    change, match = CONTENTS[case]
    edit_tensors(folder, change)
    assert_refused(folder, match)


def test_a_rank_above_the_layer_s_size_is_refused(tmp_path):
    peft_made(tmp_path / "p", r=17, target_modules=["c_attn"])
    assert_refused(tmp_path / "p", "rank r=17 does not fit a 16 -> 48 layer", base())


def test_factors_too_large_for_a_wrapper_that_was_cast_to_half_precision_are_refused(folder):
    edit_tensors(folder, _fill(1e6))
    load_adapter(base(), folder)
    assert_refused(folder, "float32", tuned().half())


def _header(text, length=None):
    return (len(text) if length is None else length).to_bytes(8, "little") + text


HOSTILE = {
    "empty": b"",
    "a zip, as .pt files are": b"PK\x03\x04" + bytes(200),
    "a pickle": pickle.dumps({"a": 1}),
    "noise": bytes(range(256)) * 40,
    "a header of 2^63": _header(b"{}", 2**63),
    "a header of 2^64 - 1": _header(b"{}", 2**64 - 1),
    "a header longer than the file": _header(b"{}", 99_000_000),
    "a header that is no JSON": _header(b"{{{{{{{{"),
    "a header that is not UTF-8": _header(b'{"\xff": 1}'),
    "a header of brackets": _header(b"[" * 100_000),
    "a tensor of 2^80 values": _header(
        b'{"%s":{"dtype":"F32","shape":[1099511627776,1099511627776],"data_offsets":[0,4]}}' % KEY_A.encode()
    )
    + bytes(4),
    "a tensor past the end": _header(b'{"x":{"dtype":"F32","shape":[1000],"data_offsets":[0,4000]}}') + bytes(4),
    "tensors on top of each other": _header(
        b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"y":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    )
    + bytes(4),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_tensors_file_that_is_damaged_or_hostile_is_refused(folder, case):
    (folder / TENSORS).write_bytes(HOSTILE[case])
    assert_refused(folder, "damaged")


def _one(name=KEY_A, shape=(3, 16), metadata=None):
    """A file with one tensor of zeros under a name, of a shape, beside metadata: all a stranger's."""
    size = 4 * math.prod(shape)
    header = {name: dict(dtype="F32", shape=list(shape), data_offsets=[0, size])} | (
        {"__metadata__": metadata} if metadata else {}
    )
    return _header(json.dumps(header).encode()) + bytes(size)


STRANGE = {
    "a name of a megabyte": _one("a." * 500_000 + "lora_A.weight"),
    "a name for a terminal": _one("base_model.model.\x1b[2J\n.lora_A.weight"),
    "an adapter's name of a megabyte": _one(KEY_A.replace(".weight", f".{'x' * 10**6}.weight")),
    "a shape of a hundred thousand sides": _one(shape=[1] * 10**5),
    "a shape of nothing": _one(shape=[0, 10**18]),
    "a shape of nothing, on its side": _one(shape=[10**18, 0]),
    "a header beyond all": _header(b" " * (2**25 + 1)),
    "an error with a long name": _header(
        json.dumps({"x" * 10**6: dict(dtype="F32", shape=[9], data_offsets=[0, 4])}).encode()
    ),
}


@pytest.mark.parametrize("case", STRANGE)
def test_names_and_shapes_of_any_size_are_one_short_printable_sentence(folder, case):
    (folder / TENSORS).write_bytes(STRANGE[case])
    for use in (inspect_adapter, lambda path: load_adapter(base(), path)):
        with pytest.raises(AdapterError) as caught:
            use(folder)
        said = str(caught.value).replace(str(folder), "FOLDER")
        assert len(said) < 500 and said.isprintable()


def test_marks_of_any_size_are_shown_short(folder):
    marks = dict(base_fingerprint="\x1b" * 10**6, base_quantized="\n" * 10**6)
    save_file(load((folder / TENSORS).read_bytes()), folder / TENSORS, marks)
    said = str(inspect_adapter(folder))
    assert len(said.split("\n")) == 4 and len(said) < 2000 and "\x1b" not in said
    assert_refused(folder, "another base")


DEEP = "[" * 900 + "]" * 900


@pytest.mark.parametrize(
    "key", ["exclude_modules", "layers_pattern", "init_ia3_weights", "rank_pattern", "auto_mapping", "x"]
)
def test_a_config_of_any_depth_loads_or_is_one_sentence(folder, key):
    config = json.loads((folder / CONFIG).read_text())
    text = json.dumps(config | {key: 0}).replace(f'"{key}": 0', f'"{key}": {DEEP}')
    (folder / CONFIG).write_text(text)
    (folder / STAGED).write_text(text)
    for use in (inspect_adapter, lambda path: load_adapter(base(), path)):
        try:
            use(folder)
        except AdapterError as error:
            assert len(str(error).replace(str(folder), "FOLDER")) < 500


def test_a_config_larger_than_any_adapter_s_is_not_read(folder):
    (folder / CONFIG).write_text(" " * (2**23 + 1))
    assert_refused(folder, "cannot be read as JSON .it is larger")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes")
def test_a_pipe_in_place_of_a_file_is_never_waited_for(folder):
    (folder / CONFIG).unlink()
    os.mkfifo(folder / CONFIG)
    assert_refused(folder, f"has no {CONFIG}")


def test_a_path_that_no_disk_takes_is_one_sentence():
    with pytest.raises(AdapterError, match="cannot be read"):
        load_adapter(base(), "x" * 5000)


def test_a_tensors_file_whose_metadata_is_null_says_nothing_of_its_base_and_loads(folder):
    whole = (folder / TENSORS).read_bytes()
    size = int.from_bytes(whole[:8], "little")
    header = json.dumps(json.loads(whole[8 : 8 + size]) | {"__metadata__": None}).encode()
    (folder / TENSORS).write_bytes(_header(header) + whole[8 + size :])
    assert torch.equal(answer_of(folder), tuned()(IDX)) and inspect_adapter(folder).fingerprint is None


def test_a_tensors_file_cut_anywhere_is_refused(tmp_path):
    save_adapter(tuned(), tmp_path / "a")
    whole, model = (tmp_path / "a" / TENSORS).read_bytes(), base()
    for length in [*range(0, len(whole), 977), len(whole) - 1]:
        (tmp_path / "a" / TENSORS).write_bytes(whole[:length])
        with pytest.raises(AdapterError, match="damaged"):
            load_adapter(model, tmp_path / "a")
    assert not lora_layers(model)


class Bomb:
    def __reduce__(self):
        return os.mkdir, (Bomb.target,)


def test_a_pickle_is_never_opened(folder):
    Bomb.target = str(folder / "exploded")
    torch.save({KEY_A: Bomb()}, folder / "adapter_model.bin")
    load_adapter(base(), folder)
    (folder / TENSORS).unlink()
    assert_refused(folder, "a pickle .* can run code and is never opened here")
    shutil.copy(folder / "adapter_model.bin", folder / TENSORS)
    assert_refused(folder, "damaged")
    assert not (folder / "exploded").exists()


@pytest.mark.parametrize("config", [True, False])
def test_half_an_adapter_is_refused(folder, config):
    name = CONFIG if config else TENSORS
    (folder / name).unlink()
    assert_refused(folder, f"has no {name}")
    (folder / name).mkdir()
    assert_refused(folder, name)


def test_a_path_that_is_missing_or_a_file_or_an_empty_folder_is_refused(tmp_path):
    assert_refused(tmp_path / "nowhere", "does not exist")
    (tmp_path / "file").write_text("x")
    assert_refused(tmp_path / "file", "is a file: give the folder that holds adapter_config.json")
    assert_refused(tmp_path, "has no adapter_model.safetensors")


def test_inspect_refuses_what_load_refuses(folder):
    edit_tensors(folder, _fill(float("nan")))
    with pytest.raises(AdapterError, match="NaN"):
        inspect_adapter(folder)
    with pytest.raises(AdapterError, match="does not exist"):
        inspect_adapter(folder / "nowhere")


@pytest.mark.parametrize("changes", [dict(lora_alpha=17), dict(use_rslora=True), dict(target_modules=["c_attn"])])
def test_an_adapter_of_ours_edited_by_hand_is_refused_even_when_it_still_makes_sense(tmp_path, changes):
    save_adapter(tuned(alpha=16), tmp_path / "a")
    edit_config(tmp_path / "a", task_type="CAUSAL_LM", base_model_name_or_path="mine")  # no part of the adapter
    load_adapter(base(), tmp_path / "a")
    edit_config(tmp_path / "a", **changes)
    assert_refused(tmp_path / "a", "edited")


def test_a_config_of_one_adapter_with_the_tensors_of_another_is_refused(tmp_path):
    save_adapter(tuned(alpha=16), tmp_path / "a")
    save_adapter(tuned(alpha=32), tmp_path / "b")
    shutil.copy(tmp_path / "a" / CONFIG, tmp_path / "b" / CONFIG)
    assert_refused(tmp_path / "b", "another adapter")


# saving: refused in one sentence, or done whole


def test_a_model_without_lora_layers_is_not_saved(tmp_path):
    for model in (base(), merge_lora(tuned())):
        with pytest.raises(AdapterError, match="apply_lora"):
            save_adapter(model, tmp_path / "a")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("spoil", ["A", "B", "scale"])
def test_what_is_not_finite_is_not_saved_and_the_old_adapter_stays(tmp_path, spoil):
    model = tuned()
    save_adapter(model, tmp_path / "a")
    before = answer_of(tmp_path / "a")
    layer = model.transformer.h[1].mlp.c_fc
    if spoil == "scale":
        layer.scale = float("inf")
    else:
        getattr(layer, spoil).data[0, 0] = float("nan")
    with pytest.raises(AdapterError, match="h.1.mlp.c_fc.*not finite"):
        save_adapter(model, tmp_path / "a")
    assert torch.equal(answer_of(tmp_path / "a"), before)


@pytest.mark.parametrize("other", [nn.Linear(4, 4), nn.LayerNorm(4), nn.ReLU()])
def test_a_target_whose_name_is_also_the_end_of_another_path_comes_back_alone(tmp_path, other):
    def model():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 4), nn.Sequential(copy.deepcopy(other)))

    x = torch.randn(3, 4)
    trained = apply_lora(model(), r=2, targets=lambda path: path == "0")
    randomise(trained, 0)
    save_adapter(trained, tmp_path / "a")
    loaded = load_adapter(model(), tmp_path / "a")
    assert list(lora_layers(loaded)) == ["0"] and torch.equal(loaded(x), trained(x))
    if isinstance(other, nn.Linear):  # PEFT wraps that one, too, with an update of zero
        with pytest.warns(UserWarning, match="missing"):
            opened = PeftModel.from_pretrained(model(), tmp_path / "a")
        torch.testing.assert_close(opened(x), trained(x))


def test_a_place_that_cannot_hold_a_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file", tmp_path / "file" / "a"):
        with pytest.raises(WriteError, match="could not write .*: nothing was lost; choose another place"):
            save_adapter(tuned(), place)
    assert (tmp_path / "file").read_text() == "mine"


def answer_of(folder):
    return load_adapter(base(), folder)(IDX)


NEW = dict(seed=7, r=2, alpha=3.0, scaling="alpha/sqrt(r)", targets=["c_attn"])
OLD = {
    "of another shape": lambda folder: save_adapter(tuned(), folder),
    "of the same shape": lambda folder: save_adapter(tuned(**NEW | {"seed": 1}), folder),
    "of another alpha": lambda folder: save_adapter(tuned(**NEW | {"seed": 1, "alpha": 9.0}), folder),
    "made by PEFT": lambda folder: peft_made(folder, r=2, lora_alpha=5, target_modules=["c_attn", "c_fc"]),
}


@pytest.fixture(params=OLD)
def replaced(request, tmp_path):
    """A folder with an old adapter and a file of the user's, both answers, and the model whose adapter comes next."""
    OLD[request.param](tmp_path / "a")
    (tmp_path / "a" / "notes.txt").write_text("mine")
    model = tuned(**NEW)
    return tmp_path / "a", answer_of(tmp_path / "a"), model(IDX), model


def which(folder, old, new):
    answer = answer_of(folder)
    assert (folder / "notes.txt").read_text() == "mine"
    is_old, is_new = (torch.allclose(answer, known, rtol=0, atol=1e-6) for known in (old, new))
    assert is_old != is_new
    return "old" if is_old else "new"


def assert_sound(folder, model, new):
    """The next save leaves what every save leaves, for PEFT as well."""
    save_adapter(model, folder)
    assert not (folder / STAGED).exists()
    theirs = PeftModel.from_pretrained(base(), folder).eval()
    assert (theirs(IDX) - new).abs().max() < 1e-5 and (answer_of(folder) - new).abs().max() < 1e-5


def watch(monkeypatch, look):
    """Call `look` whenever a kill could strike: around each rename and in the middle of each write."""
    replace, write_bytes, write_text = os.replace, Path.write_bytes, Path.write_text

    def watched_replace(*names):
        look()
        replace(*names)
        look()

    def watched_write(write):
        def half_then_whole(path, data, *args, **options):
            write(path, data[: len(data) // 2], *args, **options)
            look()
            return write(path, data, *args, **options)

        return half_then_whole

    monkeypatch.setattr(os, "replace", watched_replace)
    monkeypatch.setattr(Path, "write_bytes", watched_write(write_bytes))
    monkeypatch.setattr(Path, "write_text", watched_write(write_text))


def killed_states(model, folder, where):
    """A copy of the folder as a kill would leave it, at every moment of one save."""
    copies = []
    where.mkdir()

    def look():
        copies.append(where / str(len(copies)))
        shutil.copytree(folder, copies[-1])

    with pytest.MonkeyPatch.context() as patch:
        watch(patch, look)
        save_adapter(model, folder)
    return copies


def test_a_kill_at_any_moment_leaves_the_old_adapter_or_the_new_one(replaced, tmp_path):
    folder, old, new, model = replaced
    copies = killed_states(model, folder, tmp_path / "copies")
    found = [which(copy, old, new) for copy in copies]
    assert len(found) >= 8 and found == sorted(found, reverse=True) and set(found) == {"old", "new"}
    assert set(os.listdir(folder)) - {"README.md"} == {CONFIG, TENSORS, "notes.txt"}  # README.md is PEFT's
    for place in copies[::3]:
        assert_sound(place, model, new)


def test_a_second_kill_after_the_first_still_leaves_an_adapter(tmp_path):
    save_adapter(tuned(), tmp_path / "a")
    first, second = tuned(**NEW), tuned(seed=5, r=4)
    copies = killed_states(first, tmp_path / "a", tmp_path / "copies")
    answers = [tuned()(IDX), first(IDX), second(IDX)]
    for i, place in enumerate(copies):
        for again in killed_states(second, place, tmp_path / f"again{i}"):
            assert any(torch.allclose(answer_of(again), known, rtol=0, atol=1e-6) for known in answers)


def failing(monkeypatch, owner, name, nth, error):
    """Let the nth call of `owner.name` raise; returns the calls seen."""
    calls, real = [], getattr(owner, name)

    def call(*args, **options):
        calls.append(args)
        if len(calls) == nth:
            raise error
        return real(*args, **options)

    monkeypatch.setattr(owner, name, call)
    return calls


@pytest.mark.parametrize(
    "error", [OSError(errno.EACCES, "Permission denied"), KeyboardInterrupt()], ids=["refused", "^C"]
)
@pytest.mark.parametrize("nth", [1, 2, 3])
def test_a_rename_that_fails_leaves_the_old_adapter_or_the_new_one_and_says_which(replaced, nth, error):
    folder, old, new, model = replaced
    before = set(os.listdir(folder))
    with pytest.MonkeyPatch.context() as patch:
        calls = failing(patch, os, "replace", nth, error)
        with pytest.raises((AdapterError, WriteError) if isinstance(error, OSError) else KeyboardInterrupt) as caught:
            save_adapter(model, folder)
        assert len(calls) == nth
    found = which(folder, old, new)
    assert found == ("old" if nth < 3 else "new")
    assert set(os.listdir(folder)) - {STAGED} == before
    if isinstance(error, OSError):
        says = (
            "(Permission denied): nothing was lost" if found == "old" else "is saved to .* (Permission denied): save it"
        )
        assert re.search(says.replace("(", r"\(").replace(")", r"\)"), str(caught.value)) and "\n" not in str(
            caught.value
        )
    assert_sound(folder, model, new)


@pytest.mark.parametrize("writer", ["write_text", "write_bytes"])
def test_a_full_disk_while_saving_is_one_sentence_and_the_old_adapter_stays(replaced, writer):
    folder, old, new, model = replaced
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.MonkeyPatch.context() as patch:
        real = getattr(Path, writer)

        def fill(path, data, *args, **options):
            real(path, data[: len(data) // 2], *args, **options)
            raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr(Path, writer, fill)
        with pytest.raises(WriteError, match="No space left on device.*nothing was lost; make room there") as caught:
            save_adapter(model, folder)
        assert "\n" not in str(caught.value)
        with pytest.raises(WriteError, match="No space"):
            save_adapter(model, folder.parent / "fresh")
    assert not os.listdir(folder.parent / "fresh")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert which(folder, old, new) == "old"


def test_a_config_left_behind_by_an_old_kill_is_never_taken_for_the_adapter_s_own(tmp_path):
    folder = tmp_path / "a"
    save_adapter(tuned(alpha=16), folder)
    right = answer_of(folder)
    for text in ("{", "[]", "", (folder / CONFIG).read_text().replace("48", "96")):
        (folder / STAGED).write_text(text)
        assert torch.equal(answer_of(folder), right)
        with safe_open(folder / TENSORS, "pt") as f:
            assert f.metadata()["base_fingerprint"] == fingerprint(base())
    save_adapter(tuned(alpha=16), folder)
    assert sorted(os.listdir(folder)) == [CONFIG, TENSORS] and torch.equal(answer_of(folder), right)


@pytest.mark.parametrize("method", ["lora", "dora", "lora-fa"])
def test_an_adapter_on_a_layer_that_stands_in_two_places_knows_its_base(tmp_path, method):
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.c = nn.Linear(8, 8), nn.Linear(8, 8)
            self.b = self.a

    torch.manual_seed(0)
    model = Shared()
    bare = copy.deepcopy(model)
    METHODS[method].prepare(model, 2)
    for layer in lora_layers(model).values():
        nn.init.normal_(layer.B)
    assert fingerprint(model) == fingerprint(bare)
    save_adapter(model, tmp_path / "shared")
    load_adapter(bare, tmp_path / "shared")


def test_an_adapter_of_lora_fa_says_so_and_keeps_its_A_frozen_where_it_is_loaded(tmp_path):
    model = METHODS["lora-fa"].prepare(base(), 2)
    save_adapter(model, tmp_path / "fa")
    loaded = load_adapter(base(), tmp_path / "fa")
    assert inspect_adapter(tmp_path / "fa").method == method_of(loaded) == "lora-fa"
    assert {name.rpartition(".")[2] for name, p in loaded.named_parameters() if p.requires_grad} == {"B"}


def test_an_alpha_of_any_size_comes_back(tmp_path):
    for alpha in (1e31, 1e-31, 0.1):
        save_adapter(METHODS["lora"].prepare(base(), 2, alpha), tmp_path / "a")
        assert inspect_adapter(tmp_path / "a").alpha == alpha


def test_a_scale_that_no_config_can_hold_is_refused_before_the_old_adapter_goes(folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    model = load_adapter(base(), folder)
    for layer in lora_layers(model).values():
        layer.scale = 1e308
    with pytest.raises(AdapterError, match="too large to be written"):
        save_adapter(model, folder)
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}
