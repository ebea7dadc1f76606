"""Adapters to PEFT and back: per-layer ranks and alphas, transformers' own models, and what is refused by name."""

import contextlib
import json
import re
import time
import warnings

import peft
import pytest
import torch
from packaging.version import Version
from peft import LoHaConfig, LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load, save_file
from test_adapters import IDX, TINY, assert_refused, base, edit_config, edit_tensors, peft_made, randomise, tuned
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from llm.adapters import inspect_adapter, load_adapter, save_adapter
from llm.adapters.folder import CONFIG, TENSORS
from llm.errors import AdapterError
from llm.lora import LoraLinear, apply_lora, lora_layers, merge_lora, remove_lora
from llm.model import GPTConfig
from llm.relatives import METHODS, layers_of

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft", "ignore::FutureWarning:transformers")

GPT2 = GPTConfig(**{**vars(TINY), "bias": True, "tied_lm_head": True})
older = Version(peft.__version__) < Version("0.20")
MICA = pytest.param("mica", marks=pytest.mark.skipif(older, reason="PEFT knows it since 0.20"))
LLAMA = dict(vocab_size=97, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4)


def llama(seed=0, **changes):
    """A tiny transformers model of SmolLM2's kind: four heads share two keys, and the head is tied."""
    torch.manual_seed(seed)
    config = dict(num_key_value_heads=2, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0)
    return LlamaForCausalLM(LlamaConfig(**LLAMA | config | changes)).half().float().eval()


def gpt2(config=GPT2):
    """transformers' GPT-2 with the weights of `base(config=config)`; its linears are Conv1D, so transposed."""
    sizes = {k: getattr(config, k) for k in ("vocab_size", "n_layer", "n_head", "n_embd")}
    model = GPT2LMHeadModel(GPT2Config(n_positions=config.block_size, bos_token_id=0, eos_token_id=0, **sizes))
    linears = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    weights = base(config=config).state_dict()
    model.load_state_dict({name: w.T if name.endswith(linears) else w for name, w in weights.items()})
    return model.eval()


def answer(model):
    with torch.no_grad():
        out = model(IDX)
    return out if torch.is_tensor(out) else out.logits


def learn(model, steps=5):
    """A few steps of real training, ours and PEFT's models alike."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(steps):
        out = model(IDX)
        logits = out if torch.is_tensor(out) else out.logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), IDX[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def in_peft(model, folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # PEFT only warns when keys are missing
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", message="fan_in_fan_out")  # which PEFT sets right by itself
        warnings.filterwarnings("ignore", message=".*tie_word_embeddings=True")  # it warns of any tied head in targets
        return PeftModel.from_pretrained(model, folder).eval()


def mixed(model, scaling="alpha/r", seed=0):
    """LoRA layers of three ranks and alphas, wrapped by hand as apply_lora wraps them."""
    linears = [path for path, m in model.named_modules() if isinstance(m, torch.nn.Linear) and path != "lm_head"]
    model.requires_grad_(False)
    for i, path in enumerate(linears):
        kind = (4, 8.0) if i % 3 else (2, 3.0) if i % 2 else (1, 0.5)
        model.set_submodule(path, LoraLinear(model.get_submodule(path), *kind, scaling))
    randomise(model, seed)
    return model


def settings(folder):
    return json.loads((folder / CONFIG).read_text())


# ranks and alphas by layer


@pytest.mark.parametrize("scaling", ["alpha", "alpha/r", "alpha/sqrt(r)"])
def test_layers_of_other_ranks_and_scales_go_to_peft_and_come_back(tmp_path, scaling):
    model = mixed(base(), scaling)
    save_adapter(model, tmp_path / "a")
    theirs = in_peft(base(), tmp_path / "a")
    assert (answer(theirs) - answer(model)).abs().max() < 1e-5
    back = load_adapter(base(), tmp_path / "a")
    assert torch.equal(answer(back), answer(model))
    for path, layer in lora_layers(model).items():
        peft = theirs.base_model.model.get_submodule(path)
        assert (peft.r["default"], peft.scaling["default"]) == (layer.r, pytest.approx(layer.scale)), path
        again = lora_layers(back)[path]
        assert (again.r, again.scale) == (layer.r, pytest.approx(layer.scale)), path


def test_the_config_says_what_most_layers_have_and_names_the_others_by_path(tmp_path):
    model = tuned(r=4, alpha=8, scaling="alpha/r")
    model.transformer.h[1].mlp.c_fc = LoraLinear(model.transformer.h[1].mlp.c_fc.base, 2, 6, "alpha/r")
    save_adapter(model, tmp_path / "a")
    config, path = settings(tmp_path / "a"), "transformer.h.1.mlp.c_fc"
    assert (config["r"], config["lora_alpha"]) == (4, 8)
    key = "^" + re.escape(path)  # as an end it might mean another layer too
    assert config["rank_pattern"] == {key: 2} and config["alpha_pattern"] == {key: 6}
    save_adapter(tuned(r=4), tmp_path / "b")
    assert not {"rank_pattern", "alpha_pattern"} & settings(tmp_path / "b").keys()


def test_rslora_by_layer_stays_rslora(tmp_path):
    save_adapter(mixed(base(), "alpha/sqrt(r)"), tmp_path / "a")
    config = settings(tmp_path / "a")
    assert config["use_rslora"] is True and set(config["alpha_pattern"].values()) == {0.5, 3}


def test_layers_of_different_scalings_or_scaled_by_hand_keep_their_scales(tmp_path):
    model = mixed(base(), "alpha/sqrt(r)")
    model.transformer.h[0].mlp.c_fc.scale = 0.3
    other = model.transformer.h[1].mlp.c_fc
    model.transformer.h[1].mlp.c_fc = LoraLinear(other.base, 4, 8.0, "alpha")
    randomise(model, 1)
    save_adapter(model, tmp_path / "a")
    assert (answer(in_peft(base(), tmp_path / "a")) - answer(model)).abs().max() < 1e-5
    back = lora_layers(load_adapter(base(), tmp_path / "a"))
    assert all(back[path].scale == pytest.approx(layer.scale) for path, layer in lora_layers(model).items())


def stack():
    """Paths that are one another's ends, or regular expressions for one another, or neither."""
    torch.manual_seed(0)
    linear = lambda: torch.nn.Linear(6, 6)  # noqa: E731
    inner = torch.nn.ModuleDict({"0": linear(), "a+b+c+d+e+f": linear()})
    return torch.nn.ModuleDict({"0": linear(), "1": torch.nn.ModuleDict({"0": linear()}), "10": linear(), "in": inner})


@pytest.mark.parametrize("odd", ["0", "1.0", "10", "in.0", "in.a+b+c+d+e+f"])
def test_a_path_that_is_another_s_end_or_no_plain_pattern_gets_its_own_rank_and_no_other_does(tmp_path, odd):
    model = apply_lora(stack(), r=3, alpha=6, scaling="alpha/r")
    model.set_submodule(odd, LoraLinear(model.get_submodule(odd).base, 2, 5.0, "alpha/r"))
    randomise(model, 0)
    save_adapter(model, tmp_path / "a")
    back = load_adapter(stack(), tmp_path / "a")
    theirs = in_peft(stack(), tmp_path / "a").base_model.model
    for path, layer in lora_layers(model).items():
        peft = theirs.get_submodule(path)
        assert (peft.r["default"], peft.lora_alpha["default"]) == (layer.r, layer.alpha), path
        assert (back.get_submodule(path).r, back.get_submodule(path).alpha) == (layer.r, layer.alpha), path


PATTERNS = {
    "last parts": (dict(c_attn=2, c_fc=5), dict(c_fc=9)),
    "ends of paths": ({"attn.c_proj": 2, "1.mlp.c_proj": 5}, {"mlp.c_proj": 9}),
    "full paths": ({"transformer.h.0.attn.c_attn": 2, "^transformer.h.1.mlp.c_fc": 4}, {}),
    "regular expressions": ({r"h\.\d+\.mlp\..*": 2, r"h\.(0|7)\.attn\.c_[ap].*": 5}, {"c_proj": 9, r"mlp\.c_fc": 4}),
    # PEFT sorts them when it saves
    "the first that matches counts": ({"0.mlp.c_fc": 2, "c_fc": 4, "h.1.mlp.c_fc": 5}, {"1.mlp.c_fc": 9, "c_fc": 7}),
    "what only looks like an end": ({"proj": 2, "fc": 5, "attn": 4}, {"c_at": 3, "transformer": 2}),
    "what no layer has": ({"q_proj": 2}, {"k_proj": 5}),
    "alphas alone": ({}, {"c_attn": 1.5}),
}


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("case", PATTERNS)
def test_patterns_made_by_peft_mean_here_what_they_mean_there(tmp_path, case, rslora):
    ranks, alphas = PATTERNS[case]
    names = ["c_attn", "c_proj", "c_fc"]
    options = dict(r=3, lora_alpha=7, use_rslora=rslora, rank_pattern=ranks, alpha_pattern=alphas, target_modules=names)
    expected = peft_made(tmp_path / "p", **options)
    theirs = PeftModel.from_pretrained(base(), tmp_path / "p").base_model.model
    model = load_adapter(base(), tmp_path / "p")
    for path, layer in lora_layers(model).items():
        peft = theirs.get_submodule(path)
        assert (layer.r, layer.scale) == (peft.r["default"], pytest.approx(peft.scaling["default"])), path
    assert (answer(model) - expected).abs().max() < 1e-5


def test_adapters_whose_ranks_agree_layer_by_layer_swap_and_others_are_refused(tmp_path):
    for seed, scaling in enumerate(("alpha/r", "alpha/sqrt(r)")):
        save_adapter(mixed(base(), scaling, seed), tmp_path / str(seed))
    model = load_adapter(base(), tmp_path / "0")
    kept = list(model.parameters())
    for seed in (1, 0, 1):
        load_adapter(model, tmp_path / str(seed))
        expected = mixed(base(), ("alpha/r", "alpha/sqrt(r)")[seed], seed)
        torch.testing.assert_close(answer(model), answer(expected), rtol=0, atol=1e-6)
    assert all(a is b for a, b in zip(model.parameters(), kept))
    assert_refused(tmp_path / "0", "call remove", tuned(r=4))
    save_adapter(tuned(r=4), tmp_path / "even")
    assert_refused(tmp_path / "even", "call remove", model)


def test_a_rank_above_one_layer_s_size_is_refused_by_its_path(tmp_path):
    peft_made(tmp_path / "p", r=3, rank_pattern={"h.1.mlp.c_fc": 17}, target_modules=["c_attn", "c_fc"])
    assert_refused(tmp_path / "p", "does not fit transformer.h.1.mlp.c_fc: rank r=17", base())


def test_inspect_tells_ranks_and_scales_from_the_least_to_the_most(tmp_path):
    model = mixed(base())
    save_adapter(model, tmp_path / "a")
    info = inspect_adapter(tmp_path / "a")
    assert info.layers == {path: (x.r, x.alpha, x.scale) for path, x in sorted(lora_layers(model).items())}
    assert (info.r, info.alpha, info.scale) == (4, 8, 2) and info.targets == tuple(sorted(lora_layers(model)))
    assert "rank 1 to 4, alpha 0.5 to 8, scale alpha/r = 0.5 to 2" in str(info)


def test_an_edited_pattern_of_ours_is_refused(tmp_path):
    save_adapter(mixed(base()), tmp_path / "a")
    edit_config(tmp_path / "a", alpha_pattern={})
    assert_refused(tmp_path / "a", "edited")


# patterns and sizes that a stranger chooses

PATTERN = "((a{1000}){1000})"  # to compile it takes seconds and half a gigabyte; once more around it, and it never ends


@pytest.mark.parametrize(
    "where",
    ["target_modules", "exclude_modules", "layers_pattern", "rank_pattern", "alpha_pattern", "feedforward_modules"],
)
def test_no_pattern_of_a_file_is_compiled(tmp_path, where):
    made(tmp_path / "p")
    edit_config(tmp_path / "p", **{where: {PATTERN: 2} if where.endswith("k_pattern") or where[0] == "a" else PATTERN})
    began = time.process_time()
    for use in (inspect_adapter, lambda folder: load_adapter(llama(), folder)):
        with contextlib.suppress(AdapterError):
            use(tmp_path / "p")
    assert time.process_time() - began < 3


def test_ten_thousand_layers_under_ten_thousand_keys_take_no_square_of_that(tmp_path):
    made(tmp_path / "p")
    paths = [f"{'deep.' * 4}layers.{i}.q_proj" for i in range(10_000)]
    keys = (f"base_model.model.{path}.lora_{x}.weight" for path in paths for x in "AB")
    save_file({key: torch.zeros(1, 1) for key in keys}, tmp_path / "p" / TENSORS)
    pattern = {path: 1 for path in paths}
    edit_config(tmp_path / "p", rank_pattern=pattern, alpha_pattern=pattern, target_modules=paths)
    began = time.process_time()
    assert len(inspect_adapter(tmp_path / "p").layers) == 10_000
    assert_refused(tmp_path / "p", "does not exist in this model", llama())
    assert time.process_time() - began < 60


def test_alphas_under_the_names_that_earlier_versions_wrote_are_read(tmp_path):
    made(tmp_path / "p")
    pattern = {r"^model\.layers\.1\.self_attn\.q_proj": 6, "^q_proj": 99, "0.self_attn.q_proj": 4}
    edit_config(tmp_path / "p", alpha_pattern=pattern)
    assert [alpha for _, alpha, _ in inspect_adapter(tmp_path / "p").layers.values()] == [4, 6]


# transformers' own models


@pytest.mark.parametrize("scaling", ["alpha", "alpha/r", "alpha/sqrt(r)"])
@pytest.mark.parametrize("targets", [None, ["q_proj", "v_proj"], ["mlp.down_proj", "layers.1.self_attn.o_proj"]])
def test_ours_on_a_llama_opens_in_peft_with_the_same_logits(tmp_path, scaling, targets):
    model = apply_lora(llama(), r=3, alpha=4, scaling=scaling, targets=targets)
    learn(model)
    save_adapter(model, tmp_path / "a")
    assert (answer(in_peft(llama(), tmp_path / "a")) - answer(model)).abs().max() < 1e-5
    assert (answer(llama()) - answer(model)).abs().max() > 1e-2


def test_a_llama_with_ranks_by_layer_opens_in_peft_with_the_same_logits(tmp_path):
    model = mixed(llama())
    save_adapter(model, tmp_path / "a")
    assert (answer(in_peft(llama(), tmp_path / "a")) - answer(model)).abs().max() < 1e-5


@pytest.mark.parametrize(
    "options",
    [
        dict(target_modules=["q_proj", "v_proj"]),
        dict(target_modules="all-linear", use_rslora=True, lora_dropout=0.1),
        dict(
            target_modules=r".*\.self_attn\.[qkvo]_proj",
            rank_pattern={"q_proj": 2},
            alpha_pattern={"layers.1.self_attn.q_proj": 3},
        ),
    ],
    ids=["list", "all-linear", "pattern"],
)
def test_a_llama_trained_with_peft_opens_here_with_the_same_logits(tmp_path, options):
    theirs = get_peft_model(llama(), LoraConfig(r=4, lora_alpha=6, **options))
    learn(theirs).save_pretrained(tmp_path / "p")
    model = load_adapter(llama(), tmp_path / "p")
    assert (answer(model) - answer(theirs)).abs().max() < 1e-5
    assert (answer(llama()) - answer(theirs)).abs().max() > 1e-2
    assert all(torch.equal(a, b) for a, b in zip(remove_lora(model).parameters(), llama().parameters()))


@pytest.mark.parametrize("scaling", ["alpha/r", "alpha/sqrt(r)"])
def test_ours_trained_on_gpt2_s_weights_opens_on_transformers_gpt2_with_the_same_logits(tmp_path, scaling):
    model = learn(apply_lora(base(config=GPT2), r=3, alpha=4, scaling=scaling))
    save_adapter(model, tmp_path / "a")
    assert (answer(in_peft(gpt2(), tmp_path / "a")) - answer(model)).abs().max() < 1e-4
    assert (answer(gpt2()) - answer(model)).abs().max() > 1e-2


def test_ranks_by_layer_pass_to_transformers_gpt2_too(tmp_path):
    model = mixed(base(config=GPT2))
    save_adapter(model, tmp_path / "a")
    assert (answer(in_peft(gpt2(), tmp_path / "a")) - answer(model)).abs().max() < 1e-4


@pytest.mark.parametrize("targets", [["c_attn"], ["attn.c_proj", "mlp.c_fc", "mlp.c_proj"], r".*\.(c_attn|c_fc)"])
def test_gpt2_trained_with_peft_opens_on_our_gpt_with_the_same_logits(tmp_path, targets):
    options = dict(target_modules=targets, rank_pattern={"h.1.*": 2}, fan_in_fan_out=True, task_type="CAUSAL_LM")
    theirs = get_peft_model(gpt2(), LoraConfig(r=4, lora_alpha=6, **options))
    learn(theirs).save_pretrained(tmp_path / "p")
    assert settings(tmp_path / "p")["fan_in_fan_out"] is True
    model = load_adapter(base(config=GPT2), tmp_path / "p")
    assert (answer(model) - answer(theirs)).abs().max() < 1e-4
    assert (answer(base(config=GPT2)) - answer(theirs)).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("make", "theirs"), [(lambda: base(config=GPT2), gpt2), (llama, llama)], ids=["GPT-2", "Llama"]
)
def test_a_wrapped_tied_head_goes_both_ways_and_leaves_the_embedding_alone(tmp_path, make, theirs):
    model = learn(apply_lora(make(), r=3, targets=["lm_head"], skip=()))
    save_adapter(model, tmp_path / "a")
    opened = in_peft(theirs(), tmp_path / "a")
    assert (answer(opened) - answer(model)).abs().max() < 1e-4
    opened.save_pretrained(tmp_path / "p", save_embedding_layers=False)
    back = load_adapter(make(), tmp_path / "p")
    assert (answer(back) - answer(model)).abs().max() < 1e-4
    embedding = next(name for name, _ in make().named_parameters())
    assert torch.equal(merge_lora(back).get_parameter(embedding), make().get_parameter(embedding))


def test_the_base_weights_that_peft_saves_beside_a_head_s_adapter_are_refused_with_the_cure(tmp_path):
    theirs = get_peft_model(llama(tie_word_embeddings=False), LoraConfig(r=2, target_modules=["q_proj", "lm_head"]))
    theirs.save_pretrained(tmp_path / "p")
    assert any("base_layer" in key for key in load((tmp_path / "p" / TENSORS).read_bytes()))
    assert_refused(tmp_path / "p", "base_layer.weight' .*, which is no factor .*merge it there", llama())
    theirs.save_pretrained(tmp_path / "q", save_embedding_layers=False)
    load_adapter(llama(tie_word_embeddings=False), tmp_path / "q")


# what is not supported, by name


def made(folder, model=None, **options):
    model = get_peft_model(
        llama() if model is None else model, LoraConfig(**dict(r=2, target_modules=["q_proj"]) | options)
    )
    model.save_pretrained(folder)


CURE = ".*: open the adapter in PEFT, or merge it there .*save_pretrained with the tokenizer"
MADE = {
    "whole layers": (dict(modules_to_save=["lm_head"]), "modules_to_save="),
    "token embeddings": (dict(trainable_token_indices=[1, 2]), "trainable_token_indices="),
    "a bias beside B": (dict(lora_bias=True), "lora_bias=True, but there is no support here for this option"),
    "the base's biases": (dict(bias="lora_only"), "bias='lora_only', but there is no support"),
    "a bare parameter": (dict(target_modules=[], target_parameters=["q_proj.weight"]), "target_parameters="),
    "PiSSA": (dict(init_lora_weights="pissa"), "init_lora_weights='pissa', but there is no support"),
    "OLoRA": (dict(init_lora_weights="olora"), "init_lora_weights='olora', but there is no support"),
    "an embedding": (
        dict(target_modules=["q_proj", "embed_tokens"]),
        "embed_tokens.*, which is no factor of one lora adapter",
    ),
    "aLoRA": (dict(alora_invocation_tokens=[1], task_type="CAUSAL_LM"), "alora_invocation_tokens"),
    "blocks repeated": (dict(layer_replication=[(0, 2), (1, 2)]), "layer_replication="),
}


@pytest.mark.parametrize("case", MADE)
def test_what_peft_made_and_is_not_supported_is_refused_by_name(tmp_path, case):
    options, match = MADE[case]
    made(tmp_path / "p", **options)
    assert_refused(tmp_path / "p", match + CURE, llama(), apply_lora(llama(), r=2, targets=["q_proj"]))


CLAIMED = {
    "LoftQ": (dict(init_lora_weights="loftq"), "init_lora_weights='loftq', but there is no support"),
    "a start of tomorrow": (dict(init_lora_weights="whatever"), "init_lora_weights='whatever', but"),
    "QA-LoRA": (dict(use_qalora=True), "use_qalora=True, but there is no support"),
    "an option of tomorrow": (dict(use_whatever={"a": 1}), "use_whatever={'a': 1}, but there is no support here"),
}


@pytest.mark.parametrize("case", CLAIMED)
def test_what_a_config_claims_and_is_not_supported_is_refused_by_name(tmp_path, case):
    changes, match = CLAIMED[case]
    made(tmp_path / "p")
    edit_config(tmp_path / "p", **changes)
    assert_refused(tmp_path / "p", match, llama())


def test_another_method_is_refused_by_its_type(tmp_path):
    get_peft_model(llama(), LoHaConfig(target_modules=["q_proj"])).save_pretrained(tmp_path / "p")
    assert_refused(tmp_path / "p", "peft_type='LOHA', but only .* LORA and IA3 load here: open it in PEFT", llama())
    tokens = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    get_peft_model(llama(), tokens).save_pretrained(tmp_path / "q")
    assert_refused(tmp_path / "q", "peft_type='PROMPT_TUNING', but only", llama())


FOREIGN = ["lora_magnitude_vector", "lora_B.bias", "lora_embedding_B", "base_layer.weight", "lora_C"]
FOREIGN += ["token_adapter.trainable_tokens_delta"]


@pytest.mark.parametrize("end", FOREIGN)
def test_a_tensor_that_plain_lora_has_none_of_is_refused_by_name(tmp_path, end):
    made(tmp_path / "p")
    key = f"base_model.model.model.layers.0.self_attn.q_proj.{end}"
    edit_tensors(tmp_path / "p", lambda t: t.update({key: torch.ones(2)}))
    assert_refused(tmp_path / "p", f"{end}' .F32, .2.., which is no factor of one lora adapter: .*merge it", llama())


# what has nothing unusual in it is not refused


def test_an_adapter_with_every_default_of_peft_loads(tmp_path):
    made(tmp_path / "p")
    assert len(settings(tmp_path / "p")) > 30  # the installed PEFT writes every option
    load_adapter(llama(), tmp_path / "p")


@pytest.mark.parametrize("start", [True, False, "gaussian", "orthogonal", MICA, None])
def test_a_start_that_leaves_the_base_alone_loads(tmp_path, start):
    theirs = get_peft_model(llama(), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=start or False))
    learn(theirs).save_pretrained(tmp_path / "p")
    edit_config(tmp_path / "p", init_lora_weights=start)
    assert (answer(load_adapter(llama(), tmp_path / "p")) - answer(theirs)).abs().max() < 1e-5


OLDER = {
    "the least there is": lambda c: {k: c[k] for k in ("peft_type", "r", "lora_alpha", "target_modules")},
    "PEFT 0.2": lambda c: (
        {k: c[k] for k in ("peft_type", "r", "lora_alpha", "target_modules", "base_model_name_or_path", "task_type")}
        | dict(bias="none", enable_lora=None, merge_weights=False, fan_in_fan_out=False, inference_mode=True)
        | dict(init_lora_weights=True, lora_dropout=0.05, modules_to_save=None)
    ),
    "null for empty": lambda c: c | dict(rank_pattern=None, alpha_pattern=None, loftq_config=None, use_dora=None),
    "null for unknown": lambda c: c | dict(use_whatever=None, other_config=None, more=False, list_of=[], object_of={}),
    "with a name and a task": lambda c: c | dict(base_model_name_or_path="HuggingFaceTB/x", task_type="CAUSAL_LM"),
    "before versions": lambda c: {k: v for k, v in c.items() if k not in ("peft_version", "rank_pattern", "bias")},
}


@pytest.mark.parametrize("case", OLDER)
def test_a_config_that_lacks_keys_or_has_empty_ones_loads(tmp_path, case):
    theirs = get_peft_model(llama(), LoraConfig(r=2, target_modules=["q_proj"]))
    learn(theirs).save_pretrained(tmp_path / "p")
    config = OLDER[case](settings(tmp_path / "p"))
    (tmp_path / "p" / CONFIG).write_text(json.dumps(config))
    assert (answer(load_adapter(llama(), tmp_path / "p")) - answer(theirs)).abs().max() < 1e-5


# another model, another dtype


def test_an_adapter_for_a_model_of_another_kind_is_refused(tmp_path):
    save_adapter(apply_lora(llama(), r=2), tmp_path / "llama")
    save_adapter(tuned(model=base(config=GPT2)), tmp_path / "gpt2")
    assert_refused(tmp_path / "llama", "which does not exist in this model: load the base", base(config=GPT2), gpt2())
    assert_refused(tmp_path / "gpt2", "which does not exist in this model: load the base", llama())
    made(tmp_path / "p")  # PEFT's have no fingerprint
    assert_refused(
        tmp_path / "p", "q_proj', which does not exist in this model: load the base", base(config=GPT2), gpt2()
    )
    peft_made(tmp_path / "q", r=2, target_modules=["c_attn"])
    assert_refused(tmp_path / "q", "c_attn', which does not exist in this model: load the base", llama())
    assert_refused(tmp_path / "q", "c_attn', which is not a linear layer but Conv1D in this model", gpt2())
    made(tmp_path / "wide", llama(hidden_size=32))
    assert_refused(
        tmp_path / "wide",
        r"q_proj has factors of shapes \[\(2, 32\), \(32, 2\)\], and maps 16 to 16 here: load the base",
        llama(),
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_factors_that_the_model_s_own_cannot_hold_are_refused(tmp_path, dtype):
    model = apply_lora(llama(), r=2)
    with torch.no_grad():
        lora_layers(model)["model.layers.1.mlp.up_proj"].B[0, 0] = 3.4e38
    save_adapter(model, tmp_path / "a")
    cast = apply_lora(llama(), r=2).to(dtype)  # over a 16-bit base they are float32 unless somebody casts them
    assert_refused(tmp_path / "a", r"layers.1.mlp.up_proj: the factors are too large for torch.*float32", cast)
    load_adapter(apply_lora(llama().to(dtype), r=2), tmp_path / "a")


# the base's name


def test_a_base_s_name_goes_to_peft_and_comes_back_and_is_no_part_of_the_digest(tmp_path):
    model = tuned()
    save_adapter(model, tmp_path / "a", base="openai-community/gpt2")
    config = settings(tmp_path / "a")
    assert (config["base_model_name_or_path"], config["task_type"]) == ("openai-community/gpt2", "CAUSAL_LM")
    info = inspect_adapter(tmp_path / "a")
    assert info.base == "openai-community/gpt2" and f"base {info.base} ({info.fingerprint})" in str(info)
    edit_config(tmp_path / "a", base_model_name_or_path=None, task_type=None)
    load_adapter(base(), tmp_path / "a")
    assert inspect_adapter(tmp_path / "a").base is None
    save_adapter(model, tmp_path / "b")
    assert (settings(tmp_path / "b")["base_model_name_or_path"], settings(tmp_path / "b")["task_type"]) == (None, None)
    in_peft(base(), tmp_path / "b")


@pytest.mark.parametrize(
    ("make", "theirs"), [(lambda: base(config=GPT2), gpt2), (llama, llama)], ids=["GPT-2", "Llama"]
)
def test_auto_peft_opens_an_adapter_that_names_its_base(tmp_path, make, theirs):
    theirs().save_pretrained(tmp_path / "base")
    model = learn(apply_lora(make(), r=2))
    save_adapter(model, tmp_path / "a", base=str(tmp_path / "base"))
    opened = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "a").eval()
    assert (answer(opened) - answer(model)).abs().max() < 1e-4


NAMED = {
    "a list": (["x"], None, "base not named"),
    "nothing": ("", None, "base not named"),
    "a hub's": ("org/model", "org/model", "base org/model"),
    "a folder's": ("right", "right", "base right"),
    "somebody's path": ("/home/somebody/models/poet", "/home/somebody/models/poet", "base poet"),
    "somebody's on Windows": (r"C:\Users\somebody\poet", r"C:\Users\somebody\poet", "base poet"),
    "a terminal's": ("a\x1b[2J\nb", r"a\x1b[2J\nb", None),
    "a megabyte": ("x" * 10**6, None, None),
}


@pytest.mark.parametrize("case", NAMED)
def test_whatever_a_config_calls_its_base_is_shown_on_one_short_line(tmp_path, case):
    name, read, line = NAMED[case]
    made(tmp_path / "p")
    edit_config(tmp_path / "p", base_model_name_or_path=name)
    info = inspect_adapter(tmp_path / "p")
    assert info.base == read or case == "a megabyte" and len(info.base) < 2000
    *_, last = lines = str(info).split("\n")
    assert len(lines) == 4 and last.isprintable() and len(last) < 300 and line in (last, None)
    load_adapter(llama(), tmp_path / "p")


def test_an_adapter_that_does_not_fit_names_the_base_that_it_was_trained_on(tmp_path):
    made(tmp_path / "p", llama(hidden_size=32))
    edit_config(tmp_path / "p", base_model_name_or_path="org/wide")
    assert_refused(tmp_path / "p", "load the base it was trained on, org/wide$", llama())
    assert_refused(tmp_path / "p", "load the base it was trained on, org/wide$", base())
    save_adapter(tuned(), tmp_path / "a", base="org/ours")
    assert_refused(tmp_path / "a", "trained on another base org/ours", base(seed=1))


# parts of a base


def test_embeddings_with_new_rows_are_never_left_behind(tmp_path):
    def resized():
        model = llama(tie_word_embeddings=False)
        model.resize_token_embeddings(99)
        return model

    theirs = get_peft_model(resized(), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    theirs.save_pretrained(tmp_path / "p", save_embedding_layers=True)
    assert_refused(tmp_path / "p", "weight' .*, which is no factor .*merge_and_unload.*with the tokenizer", llama())
    theirs.merge_and_unload().save_pretrained(tmp_path / "merged")
    merged = LlamaForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert merged.get_input_embeddings().weight.size(0) == 99


# swaps


@pytest.mark.parametrize("method", ["lora-fa", "dora", "ia3"])
def test_a_swap_leaves_frozen_what_was_frozen(tmp_path, method):
    save_adapter(METHODS[method].prepare(base(config=GPT2), r=2), tmp_path / "a")
    model = METHODS[method].prepare(base(config=GPT2), r=2)
    frozen = next(iter(layers_of(model)))
    model.get_submodule(frozen).requires_grad_(False)
    trains = {name for name, p in model.named_parameters() if p.requires_grad}
    load_adapter(model, tmp_path / "a")
    assert trains and {name for name, p in model.named_parameters() if p.requires_grad} == trains
    fresh = load_adapter(base(config=GPT2), tmp_path / "a")
    parts = {"lora-fa": {"B"}, "dora": {"A", "B", "magnitude"}, "ia3": {"l"}}[method]
    assert {name.rpartition(".")[2] for name, p in fresh.named_parameters() if p.requires_grad} == parts


def test_a_name_that_no_layer_has_is_ignored_as_peft_ignores_it(tmp_path):
    made(tmp_path / "p")
    edit_config(tmp_path / "p", target_modules=["q_proj", "query_key_value"])
    assert len(lora_layers(load_adapter(llama(), tmp_path / "p"))) == 2


def test_a_layer_that_is_listed_and_has_no_factors_is_missed(tmp_path):
    made(tmp_path / "p")
    edit_config(tmp_path / "p", target_modules=["q_proj", "v_proj"])
    assert_refused(tmp_path / "p", "lacks the factors of model.layers.0.self_attn.v_proj", llama())


RANKS = {
    "another r": (dict(r=4), True),
    "a pattern of ranks": (dict(r=4, rank_pattern={"q_proj": 2}), False),
    "no r, as PEFT has a default": (dict(r=None), False),
}


@pytest.mark.parametrize("case", RANKS)
def test_a_rank_that_the_config_does_not_explain_is_refused(tmp_path, case):
    changes, refused = RANKS[case]
    made(tmp_path / "p", lora_alpha=6)
    edit_config(tmp_path / "p", **changes)
    if refused:
        return assert_refused(tmp_path / "p", "shapes .*, and adapter_config.json says r=4", llama())
    assert set(inspect_adapter(tmp_path / "p").layers.values()) == {(2, 6, 3.0)}
