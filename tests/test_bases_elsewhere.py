"""Bases as they are found elsewhere: other layouts, other architectures, tokenizers that differ, weights that are packed."""

import json
import logging
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load, save_file

from llm import bases
from llm.bases import Base, load_base
from llm.bases import base as base_module
from llm.bases.transformers_tokenizers import read_tokenizer
from llm.errors import BaseError, TextError
from llm.lora import apply_lora, merge_lora
from llm.model import GPT, GPTConfig
from llm.paths import ROOT
from llm.text.dataset import load_dataset
from llm.text.examples import example
from llm.tokenizer import GPT2, Tokenizer

transformers = pytest.importorskip("transformers")
END, BEGIN = "<|end|>", "<|begin|>"
TEXT = "Who is it that can tell me who I am?\n" * 30


def tokenizer(begin=None, vocabulary=None):
    """One token a byte, one that ends a text, and perhaps one before it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    letters = vocabulary or {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    made = Tokenizer(models.BPE(letters, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    if not begin:
        return transformers.PreTrainedTokenizerFast(tokenizer_object=made, eos_token=END)
    made.add_special_tokens([END, begin])
    ids = [(begin, made.token_to_id(begin))]
    made.post_processor = processors.TemplateProcessing(single=f"{begin} $A", special_tokens=ids)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, eos_token=END, bos_token=begin)


def model(kind="Llama", **options):
    torch.manual_seed(0)
    sizes = dict(vocab_size=260, hidden_size=32, intermediate_size=48, num_hidden_layers=2, max_position_embeddings=64)
    sizes |= dict(num_attention_heads=4, num_key_value_heads=2, pad_token_id=0, bos_token_id=0, eos_token_id=0)
    if kind in ("Mamba", "Mamba2", "Rwkv"):
        sizes = dict(vocab_size=260, hidden_size=32, num_hidden_layers=2, state_size=4, eos_token_id=0, bos_token_id=0)
        sizes |= dict(attention_hidden_size=32, head_dim=16, num_heads=4, n_groups=1, chunk_size=8)
    if kind in ("GPT2", "OpenAIGPT"):
        sizes = dict(vocab_size=260, n_positions=64, n_layer=2, n_head=2, n_embd=32)
    config = getattr(transformers, f"{kind}Config")(**sizes | options)
    heads = (f"{kind}ForCausalLM", f"{kind}LMHeadModel")
    return next(getattr(transformers, name) for name in heads if hasattr(transformers, name))(config).eval()


def saved(made, folder, own=None, **options):
    made.save_pretrained(folder, **options)
    if own:
        own.save_pretrained(folder)
    return folder


def edit(folder, **changes):
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


def refused(name, *parts, **options):
    with pytest.raises(BaseError) as caught:
        bases.load(name, **options)
    said = str(caught.value)
    assert "\n" not in said and all(part in said for part in parts), said


# the tokenizer that lies beside a model


def test_a_tokenizer_file_goes_before_a_guess_from_sizes(tmp_path):
    folder = saved(model("GPT2", vocab_size=GPT2.size), tmp_path / "m", tokenizer())
    base = bases.load(folder)
    assert base.tokenizer.encode("hi") == tokenizer().encode("hi") and base.tokenizer.end == 256
    bases.save(Base("x", GPT(GPTConfig(n_layer=1, n_head=1, n_embd=8)), base.tokenizer, 64, None), tmp_path / "own")
    assert bases.load(tmp_path / "own").tokenizer.encode("hi") == base.tokenizer.encode("hi")


@pytest.mark.parametrize("rows", [260, GPT2.size, 60_000])
def test_a_merged_gpt2_says_what_base_and_adapter_said(tmp_path, rows):
    base = bases.load(saved(model("GPT2", vocab_size=rows), tmp_path / "m", tokenizer()))
    bases.save(Base("x", merge_lora(apply_lora(base.model, r=2)), base.tokenizer, 64, None), tmp_path / "merged")
    again = bases.load(tmp_path / "merged")
    assert again.generate("Who", 9, seed=1) == base.generate("Who", 9, seed=1)


def test_a_tokenizer_that_cannot_be_saved_with_its_model_is_not_dropped_in_silence(tmp_path):
    own = Tokenizer("bytes", None, None, 256)
    with pytest.raises(BaseError, match="with its tokenizer"):
        bases.save(Base("x", GPT(GPTConfig(n_layer=1, n_head=1, n_embd=8)), own, 64, None), tmp_path / "new")


def test_a_tokenizers_files_may_have_other_names(tmp_path):
    own = tokenizer()
    folder = saved(model(), tmp_path / "m", own)
    (folder / "vocab.json").write_text(json.dumps(own.get_vocab()))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text(
        json.dumps(dict(tokenizer_class="GPT2Tokenizer", eos_token=END, bos_token=END, unk_token=END))
    )
    base = bases.load(folder)
    assert base.tokenizer.encode("hi") == own.encode("hi") and base.tokenizer.end == 256
    for name in ("vocab.json", "merges.txt"):
        (folder / name).unlink()
    refused(folder, "has no tokenizer.json, nor another vocabulary")


def test_an_end_that_the_tokenizers_files_do_not_name_is_that_of_the_models_config(tmp_path):
    folder = saved(model(), tmp_path / "m", tokenizer())
    own = json.loads((folder / "tokenizer_config.json").read_text())
    own.pop("eos_token")
    (folder / "tokenizer_config.json").write_text(json.dumps(own))
    for end, found in ((256, 256), ([256, 3], 256)):
        edit(folder, eos_token_id=end)
        assert bases.load(folder).tokenizer.end == found
    edit(folder, eos_token_id=None)
    refused(folder, "names no eos_token")


def test_what_a_tokenizer_raises_is_one_sentence(tmp_path, monkeypatch):
    own = read_tokenizer(saved(model(), tmp_path / "m", tokenizer()))

    class PanicException(BaseException):
        pass

    for error in (KeyError("no"), PanicException("overflow")):

        def broken(*args, error=error, **options):
            raise error

        monkeypatch.setattr(type(own.source), "encode", broken)
        with pytest.raises(TextError, match="^the tokenizer in .* cannot encode this text"):
            own.encode("x")


# ids without a token


@pytest.mark.parametrize("temperature", [0, 1.0])
@pytest.mark.parametrize("kind", ["GPT2", "Llama"])
def test_ids_that_the_tokenizer_does_not_have_are_never_drawn(tmp_path, kind, temperature):
    letters = {c: i + (i > 40) for i, c in enumerate(sorted(tokenizer().get_vocab()))}  # no token has the number 41
    base = bases.load(saved(model(kind, vocab_size=400), tmp_path / "m", tokenizer(vocabulary=letters)))
    assert base.tokenizer.unknown(400) == [41, *range(258, 400)]
    drawn = bases.generate(base.model, torch.tensor([[1]] * 50), 20, base.tokenizer, temperature=temperature, seed=0)
    assert set(drawn.flatten().tolist()) <= set(range(258)) - {41}
    assert isinstance(base.generate("x", 30, temperature=temperature, top_k=None, seed=0), str)


def test_gpt2_with_a_padded_vocabulary_speaks(tmp_path):
    base = bases.load(saved(model("GPT2", vocab_size=51_200), tmp_path / "m"))
    assert base.tokenizer is GPT2 and all(isinstance(base.generate("x", 20, 1.5, None, seed), str) for seed in range(5))


# the token that texts begin with


def test_a_window_a_row_and_a_prompt_begin_with_the_token_that_the_bases_texts_began_with(tmp_path):
    base = bases.load(saved(model(vocab_size=300), tmp_path / "m", tokenizer(BEGIN)))
    begin = base.tokenizer.source.bos_token_id
    assert base.tokenizer.begin == (begin,) and base.tokenizer.start("a") == base.tokenizer.source.encode("a")
    (tmp_path / "a.txt").write_text(TEXT)
    x, y = next(load_dataset(str(tmp_path / "a.txt"), base.tokenizer, 64, 16).batches(9, 0, 0))
    assert x.shape == y.shape == (9, 16) and (x[:, 0] == begin).all() and (x[:, 1:] != begin).all()
    assert (y[:, 0] == -100).all() and torch.equal(x[:, 2:], y[:, 1:-1])
    (tmp_path / "a.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 3)
    x, y = next(load_dataset(str(tmp_path / "a.jsonl"), base.tokenizer, 64).batches(1, 0, 0))
    assert x[0].tolist() == base.tokenizer.source.encode("a\nb") and y[0, :2].tolist() == [-100, -100]
    seen = []
    base.model.model.embed_tokens.register_forward_pre_hook(lambda module, args: seen.append(args[0].tolist()))
    for prompt in ("a", "", "b" * 100):
        seen.clear()
        base.generate(prompt, 3, seed=0)
        assert next(ids for ids in seen if ids)[0][0] == begin


def test_a_beginning_that_is_also_the_end_and_what_stands_for_unknown_text_is_one(tmp_path):
    own = tokenizer(BEGIN)
    own.add_special_tokens(dict(eos_token=BEGIN, unk_token=BEGIN))
    read = read_tokenizer(saved(model(vocab_size=300), tmp_path / "m", own))
    assert read.begin == (own.bos_token_id,) == (own.unk_token_id,) and read.start("a") == own.encode("a")


def test_a_tokenizer_that_adds_nothing_has_no_beginning(tmp_path):
    assert read_tokenizer(saved(model(), tmp_path / "m", tokenizer())).begin == () == GPT2.begin


def test_a_window_that_slides_keeps_the_token_that_texts_begin_with(tmp_path):
    for kind, options in (("Llama", {}), ("GPT2", dict(n_positions=32))):
        base = bases.load(saved(model(kind, vocab_size=300, **options), tmp_path / kind, tokenizer(BEGIN)))
        begin, long = base.tokenizer.begin, "b" * (base.context + 20)
        window = torch.tensor([[*begin, *base.tokenizer.encode(long)[1 - base.context :]]])
        logits = base.model(window)
        wanted = getattr(logits, "logits", logits)[0, -1, : base.tokenizer.size].argmax()
        assert base.generate(long, 1, temperature=0) == base.tokenizer.decode([int(wanted)])


# what is written behind a prompt


def blanks_before_words():
    """A tokenizer as sentencepiece's: a blank is part of the word behind it, and the first one is left out."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    words = ["<unk>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁", "▁the", "▁quick", "▁brown", "▁fox"]
    letters = sorted(set("▁thequickbrownfox"))
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(words + letters))}
    merges, made = [], []
    for word in words[-4:]:
        for at in range(2, len(word) + 1):
            pair = word[: at - 1], word[at - 1]
            vocabulary.setdefault(word[:at], len(vocabulary))
            if pair not in merges:
                merges.append(pair)
    made = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize(
    ("prompt", "new", "text"),
    [
        ("the quick", ["▁brown", "▁fox"], " brown fox"),
        ("the quick", ["</s>", "▁fox"], ""),
        ("the qui", ["c", "k", "▁fox"], "ck fox"),
        ("the fox ", ["q"], "q"),
        ("", ["▁the", "▁fox"], "the fox"),
        ("fox é", ["▁fox"], " fox"),
        ("fox é", ["<0xC3>", "<0xA9>"], "é"),
    ],
)
def test_what_is_written_goes_on_where_the_prompt_ended(tmp_path, monkeypatch, prompt, new, text):
    own = blanks_before_words()
    base = bases.load(saved(model(vocab_size=len(own)), tmp_path / "m", own))
    script = own.convert_tokens_to_ids(new) + [own.eos_token_id]
    monkeypatch.setattr("llm.generation.sample", lambda logits, *rest: torch.tensor([script.pop(0)]))
    assert base.generate(prompt, len(script)) == text


@pytest.mark.parametrize("completion", ["the fox", " the fox", "\nthe fox", "é fox"])
def test_a_row_teaches_the_completion_as_it_stands_behind_its_prompt(tmp_path, completion):
    own = blanks_before_words()
    base = bases.load(saved(model(vocab_size=len(own)), tmp_path / "m", own))
    prompt, new = example("the quick", completion, base.tokenizer)
    assert base.tokenizer.decode(prompt + new[:-1]) == f"the quick\n{completion}"
    assert base_module.new_text(base.tokenizer, prompt, new) == completion


def test_a_character_cut_by_the_end_of_the_prompt_spoils_no_more_than_itself():
    *ids, last = GPT2.encode("a 😀")
    assert GPT2.decode(ids).endswith("\N{REPLACEMENT CHARACTER}")
    assert base_module.new_text(GPT2, ids, [last, *GPT2.encode(" so")]).endswith(" so")


# tokens that a text can hold


def test_a_special_token_that_the_model_has_no_row_for_is_refused_only_where_a_text_can_hold_it(tmp_path):
    own = tokenizer()
    own.add_special_tokens({"additional_special_tokens": ["<|pad|>"]})  # no text is written with it
    base = bases.load(saved(model(vocab_size=257), tmp_path / "special", own))
    assert isinstance(base.generate("So <|pad|>", 20, temperature=1.5, top_k=None, seed=0), str)
    assert max(base.tokenizer.encode("So <|pad|>")) < 257
    own = tokenizer()
    own.add_tokens(["<word>"])
    refused(saved(model(vocab_size=257), tmp_path / "word", own), "its tokenizer has 258 tokens, its model 257")
    refused(saved(model(vocab_size=256), tmp_path / "end", tokenizer()), "its tokenizer has 257 tokens, its model 256")
    refused(saved(model(vocab_size=257), tmp_path / "begin", tokenizer(BEGIN)), "its tokenizer has 258 tokens")


def test_ids_without_a_token_beyond_the_models_rows_are_no_matter(tmp_path):
    base = bases.load(saved(model(vocab_size=260), tmp_path / "m", tokenizer()))
    far = replace(base.tokenizer, size=301, holes=frozenset(range(257, 300)))  # a special token has the number 300
    assert isinstance(replace(base, tokenizer=far).generate("So", 9, seed=0), str)


# weights


@pytest.mark.parametrize("kind", ["GPT2", "own", "Llama"])
def test_weights_in_several_files_are_read_and_a_missing_one_is_named(tmp_path, kind):
    folder = tmp_path / "m"
    if kind == "own":
        bases.save(GPT(GPTConfig(n_layer=1, n_head=1, n_embd=8)), folder)
        state = load((folder / "model.safetensors").read_bytes())
        parts = {f"part-{i}.safetensors": names for i, names in enumerate((list(state)[:3], list(state)[3:]))}
        for part, names in parts.items():
            save_file({name: state[name] for name in names}, folder / part)
        index = {name: part for part, names in parts.items() for name in names}
        wanted = bases.load(folder).model
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(json.dumps(dict(weight_map=index)))
    else:
        wanted = model(kind, vocab_size=GPT2.size)
        saved(wanted, folder, tokenizer(), max_shard_size="1MB")
    parts = sorted(folder.glob("*-*.safetensors"))
    idx = torch.arange(8)[None]
    outs = [getattr(m(idx), "logits", m(idx)) for m in (wanted, bases.load(folder).model)]
    assert len(parts) > 1 and torch.allclose(*[getattr(out, "logits", out) for out in outs], atol=1e-5)
    parts[0].rename(tmp_path / "kept")
    refused(folder, f"lacks {parts[0].name}, one of the {len(parts)} files of its weights")
    os.mkfifo(parts[0])
    refused(folder, f"lacks {parts[0].name}")
    maps = ("{}", '{"a": "../kept"}', '{"a": ["x"]}', '{"a": null}', '{"a": ".."}', '{"a": "\\u0000"}', "[]")
    for damage in ("{", "[]", *(f'{{"weight_map": {text}}}' for text in maps)):
        (folder / "model.safetensors.index.json").write_text(damage)
        refused(folder, "damaged")


@pytest.mark.parametrize("kind", ["GPT2", "own"])
def test_a_head_in_the_file_is_used_though_the_config_says_that_it_is_the_embedding(tmp_path, kind):
    folder = tmp_path / "m"
    if kind == "own":
        bases.save(GPT(GPTConfig(n_layer=1, n_head=1, n_embd=8, tied_lm_head=True)), folder)
    else:
        saved(model("GPT2", vocab_size=GPT2.size), folder)
    path, idx = folder / "model.safetensors", torch.arange(8)[None]
    state = load(path.read_bytes())
    tied = bases.load(folder).model
    assert tied.lm_head.weight is tied.transformer.wte.weight
    wte = state["transformer.wte.weight"]
    path.unlink()  # `tied` may still hold it
    save_file(state | {"lm_head.weight": wte.clone()}, path, {"format": "pt"})
    same = bases.load(folder).model
    assert same.lm_head.weight is same.transformer.wte.weight
    path.unlink()  # `tied` may still hold it
    save_file({k: t for k, t in state.items() if "wte" not in k} | {"lm_head.weight": wte}, path, {"format": "pt"})
    assert torch.equal(bases.load(folder).model(idx), tied(idx)), "of two names for one matrix a file keeps either"
    head = wte.flip(0).contiguous()
    save_file(state | {"lm_head.weight": head}, path, {"format": "pt"})
    other = bases.load(folder).model
    assert torch.equal(other.lm_head.weight, head) and torch.equal(other.transformer.wte.weight, wte)


def test_of_a_model_from_elsewhere_a_head_of_its_own_is_used_or_refused(tmp_path):
    folder = saved(model(tie_word_embeddings=True), tmp_path / "m", tokenizer())
    state = load((folder / "model.safetensors").read_bytes())
    head = state["model.embed_tokens.weight"].flip(0).contiguous()
    save_file(state | {"lm_head.weight": head}, folder / "model.safetensors", {"format": "pt"})
    try:
        assert torch.equal(bases.load(folder).model.lm_head.weight, head)
    except BaseError as error:
        assert "lm_head.weight" in str(error)


@pytest.mark.parametrize(
    ("options", "config", "first"),
    [
        (dict(num_hidden_layers=3), dict(num_hidden_layers=2, layer_types=None), "model.layers.2."),
        (dict(attention_bias=True), dict(attention_bias=False), "model.layers.0.self_attn.k_proj.bias"),
    ],
    ids=["blocks", "biases"],
)
def test_tensors_of_the_file_that_the_config_would_drop_are_refused(tmp_path, options, config, first):
    folder = saved(model(**options), tmp_path / "m", tokenizer())
    edit(folder, **config)
    refused(folder, "holds another model than expected", f"{first}", "missing in the model")


def test_tensors_beside_the_model_are_no_part_of_it(tmp_path):
    folder = saved(model(), tmp_path / "m", tokenizer())
    path, odd = folder / "model.safetensors", torch.ones(4)
    beside = ("v_head.summary.weight", "model.layers.0.self_attn.rotary_emb.inv_freq", "model.layers.1.self_attn.bias")
    state = load(path.read_bytes())
    path.unlink()
    save_file(state | {key: odd.clone() for key in beside}, path, {"format": "pt"})
    idx = torch.arange(8)[None]
    assert torch.allclose(bases.load(folder).model(idx).logits, model()(idx).logits, atol=1e-5)


def test_a_head_that_the_file_has_only_as_its_embedding_is_named(tmp_path):
    folder = saved(model(tie_word_embeddings=True), tmp_path / "m", tokenizer())
    edit(folder, tie_word_embeddings=False)
    refused(folder, "1 tensors differ, lm_head.weight first (missing in the file")


def test_buffers_keep_their_dtype_when_weights_are_in_16_bits(tmp_path):
    base = bases.load(saved(model(), tmp_path / "m", tokenizer()), torch.bfloat16)
    assert {p.dtype for p in base.model.parameters()} == {torch.bfloat16}
    assert {b.dtype for b in base.model.buffers()} == {torch.float32}


def test_loading_a_base_does_not_touch_the_random_numbers(tmp_path):
    bases.save(GPT(GPTConfig(n_layer=1, n_head=1, n_embd=8)), tmp_path / "own")
    folders = [saved(model(kind), tmp_path / kind, tokenizer()) for kind in ("Llama", "GPT2")]
    before = torch.random.get_rng_state()
    for read in (load_base, *[lambda f=f: bases.load(f) for f in ("course", tmp_path / "own", *folders)]):
        read()
        assert torch.equal(before, torch.random.get_rng_state())


def test_a_checkpoint_of_a_compiled_or_distributed_model_is_the_models(tmp_path):
    torch.manual_seed(1)
    own = GPT()
    for prefix in ("_orig_mod.", "module.", "module._orig_mod."):
        torch.save({prefix + name: tensor for name, tensor in own.state_dict().items()}, tmp_path / "own.pt")
        assert torch.equal(load_base(tmp_path / "own.pt").lm_head.weight, own.lm_head.weight)


# architectures


@pytest.mark.parametrize("kind", ["Mamba", "Mamba2", "Rwkv", "OpenAIGPT", "Llama"])
def test_a_model_writes_whether_it_keeps_keys_and_values_or_not(tmp_path, kind):
    base = bases.load(saved(model(kind), tmp_path / "m", tokenizer()))
    idx = torch.tensor([[5, 6, 7]])
    for n in (4, 80):  # within the context, and past it
        out = bases.generate(base.model, idx, n, base.tokenizer, temperature=0)
        assert out.shape == (1, 3 + n)
    with torch.no_grad():
        for at in (3, 4, 5):
            logits = base.model(input_ids=out[:, :at]).logits[:, -1, : base.tokenizer.size]
            assert out[0, at] == logits.argmax()
    base.loss(base.model, idx, idx).backward()


def test_a_model_whose_angles_change_with_the_length_writes_what_it_writes_without_a_cache(tmp_path):
    factors = dict(short_factor=[1.0] * 4, long_factor=[8.0, 9.0, 20.0, 40.0], original_max_position_embeddings=32)
    rope = dict(rope_type="longrope", rope_theta=10000.0, **factors)
    made = model("Phi3", rope_parameters=rope, original_max_position_embeddings=32, num_key_value_heads=4)
    with torch.no_grad():
        for p in made.parameters():
            if p.ndim > 1:
                p.mul_(6)
    base = bases.load(saved(made, tmp_path / "m", tokenizer()))
    out = wanted = torch.arange(2, 30)[None]
    with torch.no_grad():
        for _ in range(30):
            wanted = torch.cat((wanted, base.model(wanted, use_cache=False).logits[:, -1:].argmax(-1)), dim=1)
    options = dict(max_new_tokens=30, do_sample=False, eos_token_id=None, pad_token_id=0)
    if not torch.equal(base.model.generate(out, attention_mask=torch.ones_like(out), **options), wanted):
        pytest.skip("this transformers goes on from stale keys itself")
    assert torch.equal(bases.generate(base.model, out, 30, temperature=0), wanted)


def test_a_mixture_that_returns_a_loss_of_its_router_before_its_logits_is_read(tmp_path):
    made = model("Mixtral", num_local_experts=2, output_router_logits=True)
    base = bases.load(saved(made, tmp_path / "m", tokenizer(BEGIN)))
    x = torch.arange(2, 10)[None]
    wanted = torch.nn.functional.cross_entropy(made(x[:, :-1]).logits.flatten(0, 1), x[0, 1:])
    assert base.loss(base.model, x[:, :-1], x[:, 1:]).item() == pytest.approx(wanted.item(), abs=1e-4)


def test_a_context_is_a_number_of_tokens_that_the_model_can_read(tmp_path):
    sizes = dict(vocab_size=260, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48)
    padded = transformers.RobertaConfig(**sizes, max_position_embeddings=66, is_decoder=True)
    base = bases.load(saved(transformers.RobertaForCausalLM(padded), tmp_path / "roberta", tokenizer()))
    assert base.context == 64, "two of its 66 rows are for padding"
    assert isinstance(base.generate("x" * 70, 5, seed=0), str)
    x = torch.ones(1, base.context, dtype=torch.long)
    assert base.loss(base.model, x, x).isfinite()


def test_a_model_that_looks_ahead_or_cannot_read_is_found_before_anybody_trains_it(tmp_path, monkeypatch):
    sizes = dict(vocab_size=260, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48)
    bert = transformers.BertLMHeadModel(transformers.BertConfig(**sizes, initializer_range=0.5))
    refused(saved(bert, tmp_path / "bert", tokenizer()), "looks ahead at the text that it is to write")
    folder = saved(model(), tmp_path / "m", tokenizer())

    def broken(*args, **options):
        raise RuntimeError("no such kernel\nat all")

    monkeypatch.setattr(transformers.LlamaForCausalLM, "forward", broken)
    refused(folder, "reads no text (no such kernel): take another base")


# what is no plain model


@pytest.mark.parametrize(
    "changes",
    [
        dict(quantization_config=dict(quant_method="bitsandbytes", load_in_4bit=True)),
        dict(quantization=dict(group_size=32, bits=4)),
    ],
)
def test_packed_weights_are_named_for_what_they_are(tmp_path, changes):
    folder = saved(model(), tmp_path / "m", tokenizer())
    edit(folder, **changes)
    refused(folder, "are packed in fewer bits: take the model that they were packed from")


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.int8, torch.float8_e4m3fn])
def test_weights_that_are_packed_are_found_where_no_config_says_so(tmp_path, dtype):
    folder = saved(model(), tmp_path / "m", tokenizer())
    state = {k: t.to(dtype) if t.ndim == 2 else t for k, t in load((folder / "model.safetensors").read_bytes()).items()}
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    refused(folder, "are packed in fewer bits")


def test_an_adapter_a_folder_further_up_a_file_and_a_gguf_are_each_named(tmp_path, monkeypatch):
    folder = saved(model(), tmp_path / "up" / "m", tokenizer())
    refused(tmp_path / "up", f"is no model, as it has no config.json (a GGUF file is for llama.cpp): give {folder}")
    refused(folder / "model.safetensors", "there is no base called", "give the folder of a model")
    (tmp_path / "gguf").mkdir()
    (tmp_path / "gguf" / "x.gguf").write_bytes(b"GGUF")
    refused(tmp_path / "gguf", "a GGUF file is for llama.cpp")
    (tmp_path / "adapter").mkdir()
    for where in (tmp_path / "adapter", folder):
        (where / "adapter_config.json").write_text('{"peft_type": "LORA"}')
        refused(where, "holds an adapter: give it as the adapter")
    (folder / "adapter_config.json").unlink()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert bases.load("~/up/m").context == 64


def test_what_a_broken_transformers_says_is_passed_on(tmp_path):
    folder = saved(model(), tmp_path / "m", tokenizer())
    (tmp_path / "transformers").mkdir()
    for raised in ("ImportError", "RuntimeError", "ModuleNotFoundError"):
        (tmp_path / "transformers" / "__init__.py").write_text(f"raise {raised}('it wants tokenizers 0.21')")
        script = f"from llm import bases; bases.load({str(folder)!r})"
        path = dict(PYTHONPATH=f"{tmp_path}:{ROOT}", PATH="")
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=path)
        assert "this base needs transformers (it wants tokenizers 0.21): run `make real`" in done.stderr


def test_what_transformers_cannot_read_may_want_a_newer_transformers(tmp_path, monkeypatch):
    folder = saved(model(), tmp_path / "m", tokenizer())

    def fails(*args, **options):
        raise TypeError("got an unexpected keyword argument 'dtype'")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", fails)
    refused(folder, "'dtype'", "a newer transformers")


def test_a_defect_of_ours_while_a_base_is_loaded_keeps_its_traceback(tmp_path, monkeypatch):
    for error in (RuntimeError("ours"), AssertionError("ours")):

        def broken(error=error):
            raise error

        monkeypatch.setattr("llm.bases.loading.load_base", broken)
        with pytest.raises(type(error), match="^ours$"):
            bases.load("course")


# what transformers warns of


def test_what_transformers_warns_of_is_told_once_and_in_one_line(tmp_path):
    folder = saved(model(), tmp_path / "m", tokenizer())
    rope = dict(rope_type="linear", factor=2.0, rope_theta=10000.0, colour="blue")
    edit(folder, rope_parameters=rope)
    script = f"from llm import bases; [bases.load({str(folder)!r}).generate('x', 3) for _ in range(2)]"
    path = dict(PYTHONPATH=str(ROOT), PATH="")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=path)
    (line,) = done.stderr.splitlines()
    assert line.startswith("transformers warns: ") and "Unrecognized keys" in line and "colour" in line


def test_nothing_is_said_of_bases_that_are_sound(tmp_path, capsys, caplog):
    for kind in ("Llama", "Mistral", "Mamba", "OpenAIGPT"):
        folder = saved(model(kind), tmp_path / kind, tokenizer())
        capsys.readouterr(), caplog.clear()
        base = bases.load(folder)
        base.generate("x", 70, seed=0), bases.save(base, tmp_path / f"{kind}-saved")
        assert capsys.readouterr().err == "" and not caplog.records


def test_transformers_speaks_as_before_once_we_are_done(tmp_path):
    log = logging.getLogger("transformers")
    before = [*log.handlers], log.level
    bases.load(saved(model(), tmp_path / "m", tokenizer()))
    assert ([*log.handlers], log.level) == before


def test_a_tokenizer_that_transformers_knows_how_to_mend_is_mended_and_saved_so(tmp_path, caplog):
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    wrong = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    letters = ["</s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "aO", *(f"filler{i}" for i in range(100_000))]
    made = Tokenizer(models.BPE({token: i for i, token in enumerate(letters)}, [("a", "O")]))
    split = pre_tokenizers.Split(Regex(wrong), behavior="isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    made.decoder = decoders.ByteLevel()
    own = transformers.PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>")
    sizes = dict(vocab_size=len(own), hidden_size=8, intermediate_size=8, num_attention_heads=2, num_hidden_layers=1)
    folder = saved(model("Mistral", **sizes), tmp_path / "m", own)
    new = read_tokenizer(folder)
    edit(folder, transformers_version="4.52.0")
    try:
        fixed = transformers.AutoTokenizer.from_pretrained(folder, fix_mistral_regex=True)
    except Exception:  # of transformers 5.1
        assert bases.load(folder).tokenizer.encode("NaOH") == new.encode("NaOH")
        assert "incorrect regex" in caplog.text
        return
    wanted = fixed.encode("NaOH", add_special_tokens=False)
    base = bases.load(folder)
    assert base.tokenizer.encode("NaOH") == wanted != new.encode("NaOH")
    assert base.tokenizer.name != new.name, "tokens that were cached under the name are others"
    bases.save(base, tmp_path / "saved")
    assert bases.load(tmp_path / "saved").tokenizer.encode("NaOH") == wanted
    assert not caplog.records
