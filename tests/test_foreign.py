"""Adapters as others write them: read where their meaning is clear, else named for what they are, with the cure."""

import json

import pytest
import torch
import torch.nn as nn
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load, save_file
from test_adapters import IDX, assert_refused, base, edit_config, edit_tensors, randomise, tuned
from test_peft import answer, in_peft, learn, llama, settings
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from llm.adapters import fingerprint, inspect_adapter, load_adapter, save_adapter
from llm.adapters.folder import CONFIG, TENSORS
from llm.errors import AdapterError
from llm.lora import apply_lora, lora_layers, remove_lora

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft", "ignore::FutureWarning:transformers")


def peft_llama(folder, **options):
    """A trained adapter of PEFT's in `folder`, and what PEFT answers with it."""
    model = learn(get_peft_model(llama(), LoraConfig(**dict(r=2, target_modules=["q_proj", "v_proj"]) | options)))
    model.save_pretrained(folder)
    return answer(model)


def rename(folder, how):
    tensors = load((folder / TENSORS).read_bytes())
    save_file({how(key): tensor for key, tensor in tensors.items()}, folder / TENSORS, {"format": "pt"})


# which layers a config means


CHOICES = {
    "all linears": dict(target_modules="all-linear"),
    "all linears but some": dict(target_modules="all-linear", exclude_modules=["k_proj", "1.mlp.up_proj"]),
    "exceptions by name": dict(exclude_modules=["0.self_attn.q_proj"]),
    "exceptions by pattern": dict(exclude_modules=r".*layers\.1\..*"),
    "one block": dict(layers_to_transform=1),
    "the first block": dict(layers_to_transform=0),
    "blocks": dict(layers_to_transform=[0, 7]),
    "blocks of a list": dict(layers_to_transform=[1], layers_pattern="layers"),
    "blocks of one of some lists": dict(layers_to_transform=[1], layers_pattern=["h", "layers"]),
    "the best-known generator's pattern": dict(
        target_modules=r"(?:.*?(?:language|text).*?(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense).*?(?:q_proj|"
        r"k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|attention|"
        r"attn|mlp|feed_forward|ffn|dense)\.(?:(?:q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)))"
    ),
    "a long alternation": dict(target_modules=r".*\.(" + "|".join(map(str, range(2000))) + r")\.self_attn\.(q|v)_proj"),
    "a look-ahead": dict(target_modules=r"^(?!.*layers\.0).*(q_proj|v_proj)$"),
    "a thousand names": dict(target_modules=["q_proj", *(f"model.layers.{i}.mlp.up_proj" for i in range(1000))]),
}


@pytest.mark.parametrize("case", CHOICES)
def test_layers_that_peft_chose_are_the_layers_that_load_here(tmp_path, case):
    theirs = peft_llama(tmp_path / "p", **CHOICES[case])
    if "all" in case.split():  # PEFT writes what it found; people and other programs write the word
        edit_config(tmp_path / "p", target_modules="All-Linear")
        assert PeftModel.from_pretrained(llama(), tmp_path / "p").targeted_module_names
    assert (answer(load_adapter(llama(), tmp_path / "p")) - theirs).abs().max() < 1e-5


def test_all_linear_holds_with_the_head_and_without_it_as_the_factors_have_it(tmp_path):
    for name, skip in (("without", None), ("with", ())):
        model = tuned(skip=skip)
        save_adapter(model, tmp_path / name)
        save_file(load((tmp_path / name / TENSORS).read_bytes()), tmp_path / name / TENSORS, {"format": "pt"})
        edit_config(tmp_path / name, target_modules="all-linear")
        assert torch.equal(load_adapter(base(), tmp_path / name)(IDX), model(IDX))


NONSENSE = {
    "a dropout of everything": (dict(lora_dropout=1.0), "lora_dropout=1.0"),
    "a dropout that is a word": (dict(lora_dropout="much"), "lora_dropout='much'"),
    "a dropout below nothing": (dict(lora_dropout=-0.5), "lora_dropout=-0.5, but it must be a share"),
}


@pytest.mark.parametrize("case", NONSENSE)
def test_a_choice_that_makes_no_sense_is_one_sentence(tmp_path, case):
    peft_llama(tmp_path / "p")
    changes, says = NONSENSE[case]
    edit_config(tmp_path / "p", **changes)
    assert_refused(tmp_path / "p", says, llama())


# dropout


def test_dropout_goes_to_peft_and_comes_back(tmp_path):
    save_adapter(randomised(apply_lora(base(), r=2, dropout=0.25)), tmp_path / "a")
    assert settings(tmp_path / "a")["lora_dropout"] == 0.25
    theirs = in_peft(base(), tmp_path / "a")
    assert {m.p for m in theirs.modules() if isinstance(m, nn.Dropout)} >= {0.25}
    loaded = load_adapter(base(), tmp_path / "a")
    assert {layer.dropout for layer in lora_layers(loaded).values()} == {0.25}
    assert inspect_adapter(tmp_path / "a").dropout == 0.25 and "dropout 0.25" in str(inspect_adapter(tmp_path / "a"))
    save_adapter(tuned(), tmp_path / "b")
    load_adapter(loaded, tmp_path / "b") if inspect_adapter(tmp_path / "b").r == 2 else None
    peft_llama(tmp_path / "p", lora_dropout=0.5)
    mine = load_adapter(llama(), tmp_path / "p")
    assert {layer.dropout for layer in lora_layers(mine).values()} == {0.5}
    mine.train()
    assert not torch.equal(answer(mine), answer(mine))


def randomised(model, seed=0):
    randomise(model, seed)
    return model


def test_a_swap_brings_the_other_s_dropout(tmp_path):
    for name, dropout in (("a", 0.25), ("b", 0.0)):
        save_adapter(randomised(apply_lora(base(), r=2, dropout=dropout)), tmp_path / name)
    model = load_adapter(load_adapter(base(), tmp_path / "a"), tmp_path / "b")
    assert {layer.dropout for layer in lora_layers(model).values()} == {0.0}


# factors under other names


NAMES = {
    "the adapter's name inside": lambda key: key.replace(".weight", ".default.weight"),
    "an odd name inside": lambda key: key.replace(".weight", ".my-poet_2.weight"),
    "nothing before the path": lambda key: key.removeprefix("base_model.model."),
    "wrapped twice": lambda key: "base_model.model." + key,
    "Lightning's": lambda key: "model." + key,
    "DataParallel's": lambda key: "module." + key,
    "torch.compile's, outside": lambda key: "_orig_mod." + key,
    "torch.compile's, inside": lambda key: key.replace("base_model.model.", "base_model.model._orig_mod."),
    "a compiled layer": lambda key: key.replace("self_attn.", "self_attn._orig_mod."),
    "no .weight": lambda key: key.removesuffix(".weight"),
    "two at once": lambda key: "module._orig_mod." + key.replace(".weight", ".default.weight"),
}


@pytest.mark.parametrize("case", NAMES)
def test_factors_under_names_whose_meaning_is_clear_are_read(tmp_path, case):
    theirs = peft_llama(tmp_path / "p")
    rename(tmp_path / "p", NAMES[case])
    assert (answer(load_adapter(llama(), tmp_path / "p")) - theirs).abs().max() < 1e-5
    assert all(path.startswith("model.layers.") for path in inspect_adapter(tmp_path / "p").targets)


def test_targets_with_a_wrapper_s_name_are_read_too(tmp_path):
    theirs = peft_llama(tmp_path / "p")
    targets = [f"_orig_mod.{path}" for path in inspect_adapter(tmp_path / "p").targets]
    edit_config(tmp_path / "p", target_modules=targets)
    assert (answer(load_adapter(llama(), tmp_path / "p")) - theirs).abs().max() < 1e-5


def test_two_adapters_in_one_file_are_refused(tmp_path):
    peft_llama(tmp_path / "p")
    edit_tensors(
        tmp_path / "p", lambda t: t.update({k.replace(".weight", ".poet.weight"): v + 0 for k, v in t.items()})
    )
    assert_refused(tmp_path / "p", "q_proj.*, which is no factor of one lora adapter", llama())


OTHERS = {
    "kohya": "lora_unet_down_blocks_0_attn1_to_q.lora_down.weight",
    "kohya's alpha": "lora_te_text_model_encoder_layers_0_mlp_fc1.alpha",
    "diffusers": "unet.down_blocks.0.attn1.processor.to_q_lora.down.weight",
    "LyCORIS": "lycoris_layers_0_q_proj.hada_w1_a",
    "MLX": "model.layers.0.self_attn.q_proj.lora_a",
    "torchtune": "layers.0.attn.q_proj.lora_a.weight",
    "a name of nobody": "base_model.model.model.layers.0.self_attn.q_proj.loraA.weight",
    "slashes": "base_model/model/model/layers/0/self_attn/q_proj/lora_A/weight",
    "a trained head": "base_model.model.lm_head.modules_to_save.weight",
    "a bias with a name": "base_model.model.model.layers.0.self_attn.q_proj.lora_B.default.bias",
    "FSDP's flat share": "base_model.model._fsdp_wrapped_module._flat_param",
}


@pytest.mark.parametrize("case", OTHERS)
def test_tensors_that_are_no_factors_of_pefts_are_named_with_the_cures(tmp_path, case):
    peft_llama(tmp_path / "p")
    key = OTHERS[case]
    edit_tensors(tmp_path / "p", lambda t: (t.clear(), t.update({key: torch.ones(2, 2)})))
    cures = "merge it there .*; bring what another tool wrote into PEFT's format first"
    assert_refused(tmp_path / "p", f"{key}' .F32, .2, 2.., which is no factor of one lora adapter: .*{cures}", llama())


def test_a_path_that_lacks_its_beginning_is_shown_the_model_s_own(tmp_path):
    peft_llama(tmp_path / "p")
    rename(tmp_path / "p", lambda key: key.replace("base_model.model.model.", "base_model.model."))
    assert_refused(
        tmp_path / "p", r"'layers.0.self_attn.q_proj', which does not exist .*it has 'model.layers.0.self", llama()
    )


# folders of others


def _put(name, content=b"x"):
    def make(folder):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)

    return make


def _tensors(name, *keys):
    return lambda folder: save_file({key: torch.ones(2, 2) for key in keys}, folder / name)


def _inside(*names):
    return lambda folder: [peft_llama(folder / name) for name in names]


FOLDERS = {
    "by the adapter's name": ([_inside("poet")], "in folders of their own: give one of FOLDER/poet$"),
    "two down": ([_inside("out/final")], "give one of FOLDER/out/final$"),
    "checkpoints": ([_inside("checkpoint-500", "checkpoint-1000")], "checkpoint-500, FOLDER/checkpoint-1000$"),
    "a pickle": (
        [_put("adapter_model.bin"), _put(CONFIG, b"{}")],
        "a pickle .* is never opened here, so save it again",
    ),
    "MLX": ([_tensors("adapters.safetensors", "layers.0.q.lora_a"), _put(CONFIG, b"{}")], "what another tool wrote"),
    "a whole model": (
        [_put("config.json", b"{}"), _tensors("model.safetensors", "x")],
        "a whole model is a base, for --",
    ),
    "nothing": ([_put("README.md")], f"has no {TENSORS}: give the folder that holds it"),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_a_folder_that_is_no_adapter_is_refused_with_the_cure(tmp_path, case):
    makers, says = FOLDERS[case]
    (tmp_path / "x").mkdir()
    for make in makers:
        make(tmp_path / "x")
    assert_refused(tmp_path / "x", says, base())


@pytest.mark.parametrize("name", [TENSORS, "poet.gguf", "notes.txt"])
def test_a_file_in_place_of_a_folder_is_refused_with_the_cure(tmp_path, name):
    _put(name)(tmp_path)
    assert_refused(tmp_path / name, "is a file: give the folder that holds adapter_config.json", base())


def test_a_note_of_git_lfs_in_place_of_the_tensors_is_named(tmp_path):
    save_adapter(tuned(), tmp_path / "a")
    (tmp_path / "a" / TENSORS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    assert_refused(tmp_path / "a", "Git LFS .*`git lfs pull` brings it")


# models in wrappers, models in other precisions


WRAPPED = {
    "compiled": torch.compile,
    "in DataParallel": nn.DataParallel,
    "compiled, in DataParallel": lambda model: nn.DataParallel(torch.compile(model)),
}


@pytest.mark.parametrize("case", WRAPPED)
def test_a_wrapped_model_saves_the_plain_one_s_adapter_and_loads_it(tmp_path, case):
    model = tuned()
    save_adapter(WRAPPED[case](model), tmp_path / "a")
    assert fingerprint(WRAPPED[case](model)) == fingerprint(model) == inspect_adapter(tmp_path / "a").fingerprint
    assert inspect_adapter(tmp_path / "a").targets[0] == "transformer.h.0.attn.c_attn"
    assert torch.equal(load_adapter(base(), tmp_path / "a")(IDX), model(IDX))
    fresh = base()
    load_adapter(WRAPPED[case](fresh), tmp_path / "a")
    assert torch.equal(fresh(IDX), model(IDX))


@pytest.mark.parametrize("wrap", [torch.compile, checkpoint_wrapper])
@pytest.mark.parametrize("where", ["mlp.c_fc", "mlp", ""])
def test_layers_and_blocks_in_wrappers_have_their_plain_names(tmp_path, wrap, where):
    def wrapped(model):
        for i in range(len(model.transformer.h)):
            path = f"transformer.h.{i}.{where}".removesuffix(".")
            model.set_submodule(path, wrap(model.get_submodule(path)))
        return model

    model = tuned()
    save_adapter(wrapped(model), tmp_path / "a")
    loaded = load_adapter(base(), tmp_path / "a")
    assert len(lora_layers(loaded)) == 8 and inspect_adapter(tmp_path / "a").fingerprint == fingerprint(base())
    assert len(lora_layers(load_adapter(wrapped(base()), tmp_path / "a"))) == 8
    assert not lora_layers(remove_lora(model)) and fingerprint(model) == fingerprint(base())


class Holder(nn.Module):
    """A model in a module of the learner's own, as Lightning wants it."""

    def __init__(self, model):
        super().__init__()
        self.model = model


def test_an_adapter_of_a_model_in_a_module_of_its_own_shows_the_path_and_blames_no_base(tmp_path):
    save_adapter(Holder(tuned()), tmp_path / "a")
    assert_refused(
        tmp_path / "a", r"'model.transformer.h.0.attn.c_attn', which does not exist .*it has 'transf", base()
    )
    assert len(lora_layers(load_adapter(Holder(base()), tmp_path / "a").model)) == 8


def test_loading_draws_no_random_number(tmp_path):
    save_adapter(tuned(), tmp_path / "a")
    model = base()
    before = torch.get_rng_state()
    load_adapter(load_adapter(model, tmp_path / "a"), tmp_path / "a")
    assert torch.equal(torch.get_rng_state(), before)


def shipped(dtype=torch.float32):
    """A base of which most weights are no float16, as many that ship in float32 are."""
    torch.manual_seed(3)
    model = base()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p) * 0.02)
    return model.to(dtype)


@pytest.mark.parametrize("there", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("here", [torch.float32, torch.float16, torch.bfloat16])
def test_an_adapter_knows_its_base_again_in_another_precision(tmp_path, here, there):
    if {here, there} == {torch.float16, torch.bfloat16}:
        pytest.skip("each has lost what the other kept: nothing tells that they were one")
    save_adapter(tuned(model=shipped(there)), tmp_path / "a")
    load_adapter(shipped(here), tmp_path / "a")
    assert_refused(tmp_path / "a", "another base", base().to(here))


def test_a_base_whose_weights_are_packed_is_refused_in_a_sentence(tmp_path):
    save_adapter(tuned(), tmp_path / "a")
    save_file(load((tmp_path / "a" / TENSORS).read_bytes()), tmp_path / "a" / TENSORS, {"format": "pt"})
    model = base()
    layer = model.transformer.h[0].attn.c_attn
    layer.weight = nn.Parameter(torch.zeros(layer.weight.numel() // 2, 1, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(AdapterError, match="packed as uint8.*load the model in float32"):
        load_adapter(model, tmp_path / "a")
    assert not lora_layers(model)


# where


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    model = tuned()
    save_adapter(model, "~/adapters/a")
    assert (tmp_path / "adapters" / "a" / TENSORS).is_file() and not (tmp_path / "~").exists()
    assert torch.equal(load_adapter(base(), "~/adapters/a")(IDX), model(IDX))
    assert inspect_adapter("~/adapters/a").r == 3


# factors that a file lacks or should not have


def without(folder, part):
    """The adapter without the tensors that have `part` in their names."""
    tensors = load((folder / TENSORS).read_bytes())
    save_file({key: t for key, t in tensors.items() if part not in key}, folder / TENSORS, {"format": "pt"})


def test_missing_factors_of_a_convolution_show_as_well(tmp_path):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv1d(4, 4, 1), nn.Linear(4, 4)

    options = dict(r=2, target_modules=["conv", "fc"], init_lora_weights=False)
    get_peft_model(Model(), LoraConfig(**options)).save_pretrained(tmp_path)
    without(tmp_path, "conv")
    with pytest.raises(AdapterError, match="lacks the factors of conv"):
        load_adapter(Model(), tmp_path)


def test_a_factor_larger_than_any_is_refused_before_it_is_read(tmp_path):
    """The file has a hole in place of 20 GB: it takes no room, and to read it would take minutes."""
    peft_llama(tmp_path / "p")
    width, key = 5 * 2**30, "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    entries = {
        key.format("A"): dict(dtype="F32", shape=[1, width], data_offsets=[0, 4 * width]),
        key.format("B"): dict(dtype="F32", shape=[8, 1], data_offsets=[4 * width, 4 * width + 32]),
    }
    header = json.dumps(entries).encode()
    with open(tmp_path / "p" / TENSORS, "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 4 * width + 32)
    with pytest.raises(AdapterError, match="1, 5368709120.., which is no factor of one lora adapter"):
        inspect_adapter(tmp_path / "p")


def test_an_option_that_is_null_is_the_option_left_out(tmp_path):
    expected = peft_llama(tmp_path / "p")
    edit_config(tmp_path / "p", use_rslora=None, use_dora=None)
    assert (answer(load_adapter(llama(), tmp_path / "p")) - expected).abs().max() < 1e-5


def test_missing_factors_show_where_a_list_excludes_layers(tmp_path):
    peft_llama(tmp_path / "p", exclude_modules=["0.self_attn.q_proj"])
    load_adapter(llama(), tmp_path / "p")
    without(tmp_path / "p", "layers.1.self_attn.q_proj")
    with pytest.raises(AdapterError, match="lacks the factors of model.layers.1.self_attn.q_proj"):
        load_adapter(llama(), tmp_path / "p")


def test_a_name_that_is_a_path_means_the_ends_of_others_as_well_as_it_does_in_peft(tmp_path):
    def nested():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4)))

    theirs = get_peft_model(nested(), LoraConfig(r=2, target_modules=["0"], init_lora_weights=False))
    theirs.save_pretrained(tmp_path)
    x = torch.randn(3, 4)
    assert torch.allclose(load_adapter(nested(), tmp_path)(x), theirs(x), atol=1e-6)


def test_of_keys_that_mean_one_path_the_first_gives_alpha_and_the_others_hide_nothing(tmp_path):
    peft_llama(tmp_path)
    edit_config(tmp_path, alpha_pattern={"^q_proj": 16, "\\^q_proj": 3, "k_proj": 32, "v_proj": 64})
    layers = inspect_adapter(tmp_path).layers
    assert {alpha for path, (_, alpha, _) in layers.items() if path.endswith("v_proj")} == {64}
