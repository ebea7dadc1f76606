"""The relatives in PEFT's format: what is written opens in PEFT and says the same, comes back, and every damage has a sentence."""

import json

import pytest
import torch
import torch.nn as nn
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load
from test_adapters import assert_refused, base, edit_config, edit_tensors
from test_peft import GPT2, answer, gpt2, in_peft, learn, llama, settings
from test_relatives import CONFIG, prepared, shaken

from llm.adapters import fingerprint, inspect_adapter, load_adapter, save_adapter
from llm.adapters.folder import CONFIG as CONFIG_FILE
from llm.adapters.folder import STAGED, TENSORS
from llm.errors import AdapterError
from llm.lora import LoraLinear, apply_lora, lora_layers
from llm.quantize import quantize
from llm.relatives import METHODS, DoraLinear, Ia3Linear, disabled, layers_of, merge, method_of, remove

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft", "ignore::FutureWarning:transformers")

SAVED = [name for name, method in METHODS.items() if method.saves]
BACK = {
    "lora-fa": "lora-fa",
    "pissa": "lora",
    "dora": "dora",
    "ia3": "ia3",
}  # as what it comes back; the others as LoRA


def tensors(folder):
    return load((folder / TENSORS).read_bytes())


# to PEFT and back


@pytest.mark.parametrize("scaling", ["alpha", "alpha/r", "alpha/sqrt(r)"])
@pytest.mark.parametrize("name", SAVED)
def test_ours_opens_in_peft_and_here_with_the_same_logits(tmp_path, name, scaling):
    model = shaken(prepared(name, scaling=scaling))
    save_adapter(model, tmp_path / "a")
    theirs = in_peft(base(config=CONFIG), tmp_path / "a")
    assert (answer(theirs) - answer(model)).abs().max() < 1e-5
    assert (answer(base(config=CONFIG)) - answer(model)).abs().max() > 1e-2
    back = load_adapter(base(config=CONFIG), tmp_path / "a")
    assert (answer(back) - answer(model)).abs().max() < 1e-5
    assert method_of(back) == BACK.get(name, "lora")
    assert inspect_adapter(tmp_path / "a").method == BACK.get(name, "lora")


@pytest.mark.parametrize("name", ["dora", "pissa", "ia3"])
def test_ours_opens_on_transformers_gpt2_and_a_llama_too(tmp_path, name):
    for mine, theirs, atol in ((base(config=GPT2), gpt2(), 1e-4), (llama(), llama(), 1e-5)):
        model = learn(prepared(name, model=mine), steps=3)
        save_adapter(model, tmp_path / "a")
        said = answer(in_peft(theirs, tmp_path / "a"))
        assert (said - answer(model)).abs().max() < atol and (said - answer(remove(model))).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["dora", "ia3"])
def test_what_was_trained_over_four_bits_says_so_and_comes_back_over_the_same_four_bits_alone(tmp_path, name):
    model = shaken(prepared(name, model=quantize(base(config=CONFIG))))
    save_adapter(model, tmp_path / "nf4")
    info = inspect_adapter(tmp_path / "nf4")
    assert (info.method, info.quantized) == (name, "nf4") and str(info).endswith(", quantized to nf4")
    back = load_adapter(quantize(base(config=CONFIG)), tmp_path / "nf4")
    torch.testing.assert_close(answer(back), answer(model))
    assert method_of(back) == name
    plain, double = base(config=CONFIG), quantize(base(config=CONFIG), double=True)
    assert_refused(tmp_path / "nf4", "that one was quantized to nf4, this model is not quantized", plain)
    assert_refused(tmp_path / "nf4", "quantized to nf4, this model is quantized to nf4-double:", double)
    save_adapter(shaken(prepared(name)), tmp_path / "plain")
    assert inspect_adapter(tmp_path / "plain").quantized is None
    assert_refused(tmp_path / "plain", "that one was not quantized, this model", quantize(base(config=CONFIG)))


DORA = {
    "plain": {},
    "rslora": dict(use_rslora=True),
    "ranks by layer": dict(rank_pattern={"h.1.*": 4}, alpha_pattern={"c_fc": 3}),
    "by a pattern": dict(target_modules=r".*\.(c_attn|c_fc)"),
}


@pytest.mark.parametrize("case", DORA)
def test_dora_made_by_peft_opens_here_and_trains_on(tmp_path, case):
    options = dict(r=3, lora_alpha=5, use_dora=True, target_modules=["c_attn", "c_proj", "c_fc"]) | DORA[case]
    theirs = learn(get_peft_model(base(config=CONFIG), LoraConfig(**options)))
    theirs.save_pretrained(tmp_path / "p")
    model = load_adapter(base(config=CONFIG), tmp_path / "p")
    assert (answer(model) - answer(theirs)).abs().max() < 1e-5
    assert {type(layer) for layer in lora_layers(model).values()} == {DoraLinear}
    trains = {n.rpartition(".")[2] for n, p in model.named_parameters() if p.requires_grad}
    assert trains == {"A", "B", "magnitude"}
    assert (answer(learn(model)) - answer(theirs)).abs().max() > 1e-3


def test_ia3_made_by_peft_opens_here_with_its_queries_scaled_too(tmp_path):
    config = IA3Config(target_modules=["c_attn", "mlp.c_proj"], feedforward_modules=["mlp.c_proj"])
    theirs = get_peft_model(base(config=CONFIG), config)
    shaken(theirs).save_pretrained(tmp_path / "p")
    model = load_adapter(base(config=CONFIG), tmp_path / "p")
    assert (answer(model) - answer(theirs)).abs().max() < 1e-5
    assert {layer.first for layer in layers_of(model).values()} == {0}
    assert {n.rpartition(".")[2] for n, p in model.named_parameters() if p.requires_grad} == {"l"}


def test_pissa_is_written_as_peft_would_convert_it(tmp_path):
    options = dict(r=2, lora_alpha=3, init_lora_weights="pissa", target_modules=["c_attn", "c_proj", "c_fc"])
    theirs = get_peft_model(base(config=CONFIG), LoraConfig(**options))
    theirs.peft_config["default"].init_lora_weights = True
    theirs.save_pretrained(tmp_path / "start")
    model = prepared("pissa")
    shaken(model)
    for path, layer in lora_layers(model).items():
        other = theirs.base_model.model.get_submodule(path)
        with torch.no_grad():
            other.lora_A["default"].weight.copy_(layer.A.T), other.lora_B["default"].weight.copy_(layer.B.T)
    theirs.peft_config["default"].init_lora_weights = "pissa"
    theirs.save_pretrained(tmp_path / "p", path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    save_adapter(model, tmp_path / "a")
    mine, wanted = settings(tmp_path / "a"), settings(tmp_path / "p")
    assert (mine["r"], mine["lora_alpha"]) == (wanted["r"], wanted["lora_alpha"]) == (4, 6)
    for key, tensor in tensors(tmp_path / "p").items():
        half = tensors(tmp_path / "a")[key]
        assert half.shape == tensor.shape
    for path in lora_layers(model):
        keys = [f"base_model.model.{path}.lora_{x}.weight" for x in "BA"]
        (B, A), (b, a) = ([t[key] for key in keys] for t in (tensors(tmp_path / "p"), tensors(tmp_path / "a")))
        torch.testing.assert_close(b @ a, B @ A, rtol=1e-4, atol=1e-5)  # a start may have the other sign


def test_a_pissa_of_full_rank_is_no_larger_than_its_layer(tmp_path):
    model = shaken(prepared("pissa", r=16))
    save_adapter(model, tmp_path / "a")
    assert {r for r, _, _ in inspect_adapter(tmp_path / "a").layers.values()} == {16}
    assert (answer(load_adapter(base(config=CONFIG), tmp_path / "a")) - answer(model)).abs().max() < 1e-4


def test_pissas_own_factors_on_the_original_base_say_something_else(tmp_path):
    model = learn(prepared("pissa", r=4))
    plain = apply_lora(base(config=CONFIG), 4, 3.0, "alpha/r")
    with torch.no_grad():
        for path, layer in lora_layers(model).items():
            lora_layers(plain)[path].A.copy_(layer.A), lora_layers(plain)[path].B.copy_(layer.B)
    assert (answer(plain) - answer(model)).abs().max() > 1e-2


@pytest.mark.parametrize("name", SAVED)
def test_an_adapter_knows_its_base_and_no_other_takes_it(tmp_path, name):
    model = shaken(prepared(name))
    assert fingerprint(model) == fingerprint(base(config=CONFIG))
    save_adapter(model, tmp_path / "a")
    assert inspect_adapter(tmp_path / "a").fingerprint == fingerprint(base(config=CONFIG))
    assert_refused(tmp_path / "a", "trained on another base", base(seed=1, config=CONFIG))
    load_adapter(base(config=CONFIG).to(torch.bfloat16), tmp_path / "a")


@pytest.mark.parametrize("name", ["prefix", "prompt"])
def test_a_prefix_does_not_change_the_bases_fingerprint(name):
    assert fingerprint(shaken(prepared(name))) == fingerprint(base(config=CONFIG))


def test_factors_in_the_file_are_no_larger_than_what_trains(tmp_path):
    for name, factor in {"lora": 1, "dora": 1, "pissa": 2}.items():
        model = prepared(name)
        save_adapter(model, tmp_path / name)
        trains = sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert sum(t.numel() for t in tensors(tmp_path / name).values()) == factor * trains
        assert inspect_adapter(tmp_path / name).parameters == factor * trains


# swapping


def test_adapters_of_one_kind_swap_and_of_another_are_refused(tmp_path):
    kinds = {"lora": LoraLinear, "dora": DoraLinear, "ia3": Ia3Linear}
    for name in kinds:
        for seed in (1, 2):
            save_adapter(shaken(prepared(name), seed), tmp_path / f"{name}{seed}")
    for name in kinds:
        model = load_adapter(base(config=CONFIG), tmp_path / f"{name}1")
        kept = list(layers_of(model).values()) if name != "ia3" else None
        for seed in (2, 1, 2):
            load_adapter(model, tmp_path / f"{name}{seed}")
            torch.testing.assert_close(answer(model), answer(shaken(prepared(name), seed)), rtol=0, atol=1e-5)
        assert kept is None or kept == list(layers_of(model).values())
        for other in kinds.keys() - {name}:
            said = f"prepared for {name}, in layers of another kind, .*call remove"
            assert_refused(tmp_path / f"{other}1", said, model)


@pytest.mark.parametrize("name", ["pissa", "prefix", "prompt", "bitfit", "norm", "full", "ia3"])
def test_an_adapter_over_another_method_is_refused(tmp_path, name):
    save_adapter(shaken(prepared("lora")), tmp_path / "a")
    said = f"prepared for {name}, in layers of another kind, .*call remove"
    assert_refused(tmp_path / "a", said, prepared(name))


def test_an_ia3_adapter_of_fewer_layers_takes_the_others_off(tmp_path):
    save_adapter(shaken(prepared("ia3"), 1), tmp_path / "all")
    save_adapter(shaken(prepared("ia3"), 2), tmp_path / "few")
    edit_tensors(tmp_path / "few", lambda t: [t.pop(key) for key in list(t) if "c_attn" in key])
    paths = [f"transformer.h.{i}.mlp.c_proj" for i in range(2)]
    edit_config(tmp_path / "few", target_modules=paths)
    model = load_adapter(load_adapter(base(config=CONFIG), tmp_path / "all"), tmp_path / "few")
    assert list(layers_of(model)) == paths
    assert torch.equal(answer(model), answer(load_adapter(base(config=CONFIG), tmp_path / "few")))


def test_a_loaded_relative_can_be_silenced_merged_and_removed(tmp_path):
    for name in ("dora", "ia3"):
        save_adapter(shaken(prepared(name)), tmp_path / name)
        model = load_adapter(base(config=CONFIG), tmp_path / name)
        said = answer(model)
        with disabled(model):
            assert torch.equal(answer(model), answer(base(config=CONFIG)))
        merged = merge(load_adapter(base(config=CONFIG), tmp_path / name))
        torch.testing.assert_close(answer(merged), said, rtol=1e-4, atol=1e-5)
        assert torch.equal(answer(remove(model)), answer(base(config=CONFIG)))


# what has no place in a folder


@pytest.mark.parametrize("name", [name for name in METHODS if name not in SAVED])
def test_what_has_no_place_in_the_format_is_one_sentence(tmp_path, name):
    with pytest.raises(AdapterError, match=f"what {name} trains has no place in an adapter's folder: ") as caught:
        save_adapter(prepared(name), tmp_path / "a")
    assert "\n" not in str(caught.value) and not (tmp_path / "a").exists()


def test_layers_of_two_kinds_are_one_sentence(tmp_path):
    model = prepared("dora")
    path = next(iter(lora_layers(model)))
    model.set_submodule(path, LoraLinear(model.get_submodule(path).base, 2))
    with pytest.raises(AdapterError, match=r"of several kinds \(dora, lora\)"):
        save_adapter(model, tmp_path / "a")


@pytest.mark.parametrize("name", ["dora", "ia3"])
def test_what_is_not_finite_is_not_saved(tmp_path, name):
    model = prepared(name)
    with torch.no_grad():
        next(p for n, p in model.named_parameters() if n.endswith((".magnitude", ".l"))).fill_(float("inf"))
    with pytest.raises(AdapterError, match="not finite, so nothing was saved"):
        save_adapter(model, tmp_path / "a")


# damage


FIRST = "base_model.model.transformer.h.0.attn.c_attn"
LENGTHS, SCALES = f"{FIRST}.lora_magnitude_vector", f"{FIRST}.ia3_l"
DAMAGE = {
    "DoRA: lengths missing": (
        "dora",
        lambda t: t.pop(LENGTHS),
        r"shapes \[\[2, 16\], \[48, 2\], \[\]\] for 'transformer.h.0.attn",
    ),
    "DoRA: lengths of no layer": (
        "dora",
        lambda t: t.update({"base_model.model.elsewhere.lora_magnitude_vector": torch.ones(3)}),
        r"shapes \[\[\], \[\], \[3\]\] for 'elsewhere'",
    ),
    "DoRA: too few": (
        "dora",
        lambda t: t.update({LENGTHS: torch.ones(47)}),
        r"shapes .*\(47,\)\], and maps 16 to 48 here",
    ),
    "DoRA: a matrix": (
        "dora",
        lambda t: t.update({LENGTHS: torch.ones(48, 1)}),
        r"shapes .*\(48, 1\)\], and maps 16 to 48",
    ),
    "DoRA: NaN": ("dora", lambda t: t[LENGTHS].fill_(float("nan")), "holds NaN or infinity"),
    "DoRA: whole numbers": (
        "dora",
        lambda t: t.update({LENGTHS: torch.ones(48).int()}),
        "I32, .*, which is no factor of one dora",
    ),
    "IA3: a factor missing": (
        "ia3",
        lambda t: t.pop(SCALES),
        "lacks the factors of transformer.h.0.attn.c_attn",
    ),
    "IA3: too few": (
        "ia3",
        lambda t: t.update({SCALES: torch.ones(47, 1)}),
        r"factors of shapes \[\(47, 1\)\], and maps 16 to 48 here",
    ),
    "IA3: a matrix": ("ia3", lambda t: t.update({SCALES: torch.ones(48, 2)}), r"shapes \[\(48, 2\)\], and maps"),
    "IA3: NaN": ("ia3", lambda t: t[SCALES].fill_(float("nan")), "holds NaN or infinity"),
    "IA3: a LoRA's factor": (
        "ia3",
        lambda t: t.update({f"{FIRST}.lora_A.weight": torch.ones(2, 2)}),
        "which is no factor of one ia3 adapter",
    ),
    "IA3: another's layer": (
        "ia3",
        lambda t: t.update({"base_model.model.elsewhere.ia3_l": torch.ones(3, 1)}),
        "adapts 'elsewhere', which does not exist in this model",
    ),
    "IA3: two adapters": (
        "ia3",
        lambda t: t.update({f"{FIRST}.ia3_l.other": torch.ones(48, 1)}),
        "which is no factor of one ia3 adapter",
    ),
    "IA3: nothing": ("ia3", lambda t: t.clear(), "holds 0 tensors"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_one_sentence_and_the_model_as_it_was(tmp_path, case):
    name, change, match = DAMAGE[case]
    save_adapter(shaken(prepared(name)), tmp_path / "a")
    edit_tensors(tmp_path / "a", change)
    assert_refused(tmp_path / "a", match, base(config=CONFIG), prepared(name))


CLAIMS = {
    "DoRA that says it is none": (
        "dora",
        dict(use_dora=False),
        "lora_magnitude_vector.*, which is no factor of one lora adapter",
    ),
    "DoRA in a word": ("dora", dict(use_dora="yes"), "use_dora='yes', but there is no support here"),
    "IA3 with whole layers": ("ia3", dict(modules_to_save=["ln_f"]), "modules_to_save=.*merge it there"),
    "IA3 for other layers": ("ia3", dict(target_modules=["c_fc"]), "which target_modules .* does not name"),
    "LoRA that says DoRA": ("lora", dict(use_dora=True), "lora_magnitude_vector of shapes"),
}


@pytest.mark.parametrize("case", CLAIMS)
def test_a_config_that_claims_something_else_is_one_sentence(tmp_path, case):
    name, changes, match = CLAIMS[case]
    save_adapter(shaken(prepared(name)), tmp_path / "a")
    edit_config(tmp_path / "a", **changes)
    edit_tensors(tmp_path / "a", lambda t: None)  # without our own digest of the config, as PEFT's files are
    assert_refused(tmp_path / "a", match, base(config=CONFIG))


@pytest.mark.parametrize("name", ["dora", "ia3"])
def test_an_edited_config_of_ours_is_refused(tmp_path, name):
    save_adapter(shaken(prepared(name)), tmp_path / "a")
    edit_config(tmp_path / "a", target_modules=["c_attn"])
    assert_refused(tmp_path / "a", "it was edited, or is another adapter's", base(config=CONFIG))


@pytest.mark.parametrize("end", ["", ".weight", ".default.weight", ".default"])
def test_doras_lengths_are_read_under_the_names_that_peft_has_given_them(tmp_path, end):
    model = shaken(prepared("dora"))
    save_adapter(model, tmp_path / "a")

    def rename(t):
        for key in [key for key in t if key.endswith("magnitude_vector")]:
            t[key + end] = t.pop(key)

    edit_tensors(tmp_path / "a", rename)
    assert torch.equal(answer(load_adapter(base(config=CONFIG), tmp_path / "a")), answer(model))


@pytest.mark.parametrize("name", ["dora", "ia3"])
def test_a_save_that_was_cut_short_before_the_last_rename_reads_as_the_new_adapter(tmp_path, name):
    save_adapter(shaken(prepared("lora")), tmp_path / "a")
    before = (tmp_path / "a" / CONFIG_FILE).read_text()
    save_adapter(shaken(prepared(name)), tmp_path / "a")
    new = (tmp_path / "a" / CONFIG_FILE).read_text()
    (tmp_path / "a" / STAGED).write_text(new), (tmp_path / "a" / CONFIG_FILE).write_text(before)
    assert method_of(load_adapter(base(config=CONFIG), tmp_path / "a")) == name


def test_inspect_says_what_it_is(tmp_path):
    for name in ("dora", "ia3", "lora"):
        save_adapter(prepared(name), tmp_path / name)
    said = {name: str(inspect_adapter(tmp_path / name)).splitlines()[0] for name in ("dora", "ia3", "lora")}
    assert said == {
        "dora": "DoRA, rank 2, alpha 3, scale alpha/r = 1.5",
        "ia3": "IA3",
        "lora": "rank 2, alpha 3, scale alpha/r = 1.5",
    }
    assert json.loads((tmp_path / "dora" / CONFIG_FILE).read_text())["use_dora"] is True
    assert "use_dora" not in json.loads((tmp_path / "lora" / CONFIG_FILE).read_text())


def test_an_ia3_of_peft_on_another_kind_of_model_is_refused(tmp_path):
    get_peft_model(llama(), IA3Config(target_modules=["k_proj"], feedforward_modules=[])).save_pretrained(
        tmp_path / "p"
    )
    assert_refused(tmp_path / "p", "which does not exist in this model", base(config=CONFIG))
    assert isinstance(PeftModel.from_pretrained(llama(), tmp_path / "p"), nn.Module)
