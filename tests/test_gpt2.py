"""GPT-2's weights in the course's GPT: the same numbers as transformers', and a sentence for what is not a GPT-2."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save_file

from llm import gpt2_weights
from llm.errors import BaseError
from llm.lora import apply_lora, lora_layers, merge_lora
from llm.model import GPT

transformers = pytest.importorskip("transformers")
SIZES = dict(vocab_size=101, n_positions=24, n_layer=2, n_head=2, n_embd=16)


def theirs(**options):
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**SIZES, **options)).eval()
    with torch.no_grad():  # from its start biases are zero and norms one, and a lost one would not show
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return model


@pytest.fixture
def folder(tmp_path):
    theirs().save_pretrained(tmp_path / "gpt2")
    return tmp_path / "gpt2"


def edit(folder, **changes):
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


def rewrite(folder, change):
    state = load((folder / "model.safetensors").read_bytes())
    (folder / "model.safetensors").unlink()  # a model that was read may still hold the old one
    save_file(change(state) or state, folder / "model.safetensors")


def refused(folder, *parts):
    with pytest.raises(BaseError) as caught:
        GPT.from_pretrained(folder)
    said = str(caught.value)
    assert "\n" not in said and all(part in said for part in parts), said


# parity


@pytest.mark.parametrize("options", [{}, dict(n_inner=32), dict(tie_word_embeddings=False)], ids=str)
def test_the_logits_are_those_of_transformers_and_so_is_the_greedy_text(tmp_path, options):
    reference = theirs(**options)
    reference.save_pretrained(tmp_path / "gpt2")
    model = GPT.from_pretrained(tmp_path / "gpt2")
    idx = torch.randint(101, (3, 24), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert (model(idx) - reference(idx).logits).abs().max() < 1e-4
    continued = reference.generate(idx[:, :4], max_new_tokens=16, do_sample=False, pad_token_id=0)
    assert continued.shape == (3, 20) and torch.equal(model.generate(idx[:, :4], 16, temperature=0), continued)
    assert not model.training and model.config.dropout == 0


def test_the_head_is_the_embedding_when_the_config_ties_them_and_a_matrix_of_its_own_when_not(tmp_path, folder):
    tied = GPT.from_pretrained(folder)
    assert tied.lm_head.weight is tied.transformer.wte.weight
    theirs(tie_word_embeddings=False).save_pretrained(tmp_path / "apart")
    apart = GPT.from_pretrained(tmp_path / "apart")
    assert not torch.equal(apart.lm_head.weight, apart.transformer.wte.weight)


def test_the_file_of_the_hub_with_bare_names_and_mask_buffers_gives_the_same_model(folder):
    before = GPT.from_pretrained(folder).state_dict()

    def as_published(state):
        bare = {k.removeprefix("transformer."): t for k, t in state.items()}
        masks = {f"h.{i}.attn.bias": torch.ones(1, 1, 24, 24).tril() for i in range(2)}
        return bare | masks | {"h.0.attn.masked_bias": torch.tensor(-1e4)}

    rewrite(folder, as_published)
    after = GPT.from_pretrained(folder).state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)


def test_half_precision_files_are_read_as_float32_and_the_model_works_in_bfloat16(folder):
    rewrite(folder, lambda state: {k: t.bfloat16() for k, t in state.items()})
    model = GPT.from_pretrained(folder)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    idx = torch.arange(20).view(2, 10)
    whole = model(idx)
    half = apply_lora(model.bfloat16(), r=4)
    assert half(idx).dtype == torch.bfloat16 and (half(idx) - whole).abs().max() < 0.1 * whole.abs().max()
    half(idx, idx)[1].backward()
    assert all(layer.B.grad.abs().sum() > 0 for layer in lora_layers(half).values())


def test_lora_goes_on_every_block_and_leaves_the_tied_head_and_embedding_alone(folder):
    model = apply_lora(GPT.from_pretrained(folder), r=3)
    assert len(lora_layers(model)) == 8 and "lm_head" not in lora_layers(model)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == 2 * 3 * ((16 + 48) + (16 + 16) + (16 + 64) + (64 + 16))
    embedding = model.transformer.wte.weight.clone()
    for layer in lora_layers(model).values():
        torch.nn.init.normal_(layer.B)
    merge_lora(model)
    assert model.lm_head.weight is model.transformer.wte.weight
    assert torch.equal(model.transformer.wte.weight, embedding)


# what is refused


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        (dict(n_layer=3), "missing in the file"),
        (dict(n_layer=1), "missing in the model"),
        (dict(n_embd=32), "in the model"),
        (dict(vocab_size=10**12), "wte.weight first ((101, 16) in the file, (1000000000000, 16) in the model)"),
        (dict(n_positions=25), "wpe.weight first ((24, 16) in the file, (25, 16) in the model)"),
        (dict(n_inner=48), "tensors differ"),
        (dict(tie_word_embeddings=False), "lm_head.weight first (missing in the file"),
    ],
    ids=str,
)
def test_other_sizes_than_the_config_says_are_one_sentence(folder, changes, part):
    edit(folder, **changes)
    refused(folder, "holds another model than expected", part)


@pytest.mark.parametrize("sizes", [dict(n_head=3), dict(n_head=0), dict(n_embd="16"), dict(n_layer=None), dict(n_inner=-1), dict(n_embd=-16), dict(n_embd=True), dict(n_head=2.0), dict(n_layer=10**9), dict(n_embd="%999999999s")], ids=str)  # fmt: skip
def test_sizes_that_cannot_be_are_one_sentence(folder, sizes):
    edit(folder, **sizes)
    refused(folder, "config.json describes no model that the course's GPT computes")


@pytest.mark.parametrize(
    "change",
    [dict(activation_function="relu"), dict(layer_norm_epsilon=1e-3), dict(scale_attn_by_inverse_layer_idx=True), dict(scale_attn_weights=False)],
    ids=str,
)  # fmt: skip
def test_a_variant_that_would_compute_other_numbers_is_refused_by_name(folder, change):
    edit(folder, **change)
    refused(folder, *change, "describes no model that the course's GPT computes")


def test_an_mlp_that_the_courses_gpt_cannot_have_is_named(folder):
    edit(folder, n_inner=17)
    refused(folder, "n_inner=17 is no multiple of n_embd=16")


def test_a_model_of_another_kind_is_refused(folder):
    edit(folder, model_type="llama")
    refused(folder, "model_type='llama', not 'gpt2'")


def test_tensors_too_few_too_many_and_not_finite_are_one_sentence_each(folder):
    whole = load((folder / "model.safetensors").read_bytes())
    name = "transformer.h.1.mlp.c_fc.bias"
    rewrite(folder, lambda state: {k: t for k, t in whole.items() if k != name})
    refused(folder, "1 tensors differ, transformer.h.1.mlp.c_fc.bias first (missing in the file")
    rewrite(folder, lambda state: whole | {"surplus": torch.zeros(2)})
    refused(folder, "1 tensors differ, transformer.surplus first ((2,) in the file, missing in the model)")
    for bad in (float("nan"), float("inf")):
        rewrite(folder, lambda state, bad=bad: whole | {name: torch.full_like(whole[name], bad)})
        refused(folder, "h.1.mlp.c_fc.bias holds NaN or infinity")
    rewrite(folder, lambda state: whole | {name: torch.full_like(whole[name], 1e300, dtype=torch.float64)})
    refused(folder, "h.1.mlp.c_fc.bias holds NaN or infinity")  # in float32, in which it is read


@pytest.mark.parametrize("keep", [0, 5, 300, -7])
def test_a_file_cut_short_is_one_sentence(folder, keep):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    refused(folder, "model.safetensors is missing or damaged")


def test_what_is_no_model_folder_is_one_sentence(tmp_path, folder):
    refused(tmp_path / "nowhere", "there is no folder", "gpt2-xl")
    refused(folder / "config.json", "there is no folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "is no model, as it has no config.json")
    for damage in ("", "{", "[]", "[" * 100_000, "\0"):
        (folder / "config.json").write_text(damage)
        refused(folder, "config.json is damaged")


def test_a_pickle_is_refused_unopened(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refused(folder, "has no model.safetensors (no other weights are read, as a pickle (.bin, .pt) can run code)")


# the hub


def test_a_name_comes_from_the_hub_two_files_only(folder, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    asked = []

    def snapshot_download(repo, allow_patterns):
        asked.append((repo, allow_patterns))
        return str(folder)

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    assert GPT.from_pretrained("gpt2-medium").config.n_embd == 16
    assert asked == [("openai-community/gpt2-medium", ["config.json", "model.safetensors"])]


def test_no_network_is_one_sentence_with_two_ways_out(monkeypatch):
    hub = pytest.importorskip("huggingface_hub")

    def snapshot_download(*args, **options):
        raise hub.errors.LocalEntryNotFoundError("no\nnetwork")

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    refused("gpt2", "could not fetch gpt2 from the Hugging Face hub", "check the network, or give a folder")


def test_a_name_of_the_hub_is_that_whatever_lies_here_and_a_folder_of_that_name_is_a_path(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub, "snapshot_download", lambda *_, **__: 1 / 0)
    refused("gpt2", "could not fetch gpt2 from the Hugging Face hub")
    for there in ("./gpt2", Path("gpt2")):
        assert GPT.from_pretrained(there).config.n_embd == 16


def test_a_tilde_is_the_home_folder(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    monkeypatch.setenv("USERPROFILE", str(folder.parent))
    assert GPT.from_pretrained(f"~/{folder.name}").config.n_embd == 16


def test_reading_does_not_touch_the_random_numbers(folder):
    before = torch.random.get_rng_state()
    GPT.from_pretrained(folder)
    assert torch.equal(before, torch.random.get_rng_state())
    assert gpt2_weights.HUB.keys() == {"gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"}
