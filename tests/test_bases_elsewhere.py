"""Bases as they are found elsewhere: other layouts, other architectures, tokenizers that differ, weights that are packed."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load, save_file

from llm import bases
from llm.bases import Base, theirs
from llm.bases.course import load_base
from llm.bases.transformers_tokenizers import read_tokenizer
from llm.errors import BaseError, TextError
from llm.lora import apply_lora, merge_lora
from llm.model import GPT, GPTConfig
from llm.text.dataset import load_dataset
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


def test_what_a_tokenizer_raises_is_one_sentence_and_a_defect_of_ours_is_not(tmp_path, monkeypatch):
    own = read_tokenizer(saved(model(), tmp_path / "m", tokenizer()))

    class PanicException(BaseException):
        pass

    for error in (KeyError("no"), PanicException("overflow")):

        def broken(*args, error=error, **options):
            raise error

        monkeypatch.setattr(type(own.source), "encode", broken)
        with pytest.raises(TextError, match="^the tokenizer in .* cannot encode this text"):
            own.encode("x")
    with pytest.raises(ZeroDivisionError), theirs.theirs("what", "cure"):
        GPTConfig(n_head=0)


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


def test_a_tokenizer_that_adds_nothing_has_no_beginning(tmp_path):
    assert read_tokenizer(saved(model(), tmp_path / "m", tokenizer())).begin == () == GPT2.begin


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
    refused(folder, f"lacks {parts[0].name}, one of the {len(parts)} files of its weights: copy it too")
    for damage in ("{", "[]", '{"weight_map": {}}', '{"weight_map": {"a": "../kept"}}'):
        (folder / "model.safetensors.index.json").write_text(damage)
        refused(folder, "model.safetensors.index.json is damaged")


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
        assert "holds a head that is not its embedding" in str(error)


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
    refused(folder, "drops", first, "config.json")


def test_tensors_beside_the_model_are_no_part_of_it(tmp_path):
    folder = saved(model(), tmp_path / "m", tokenizer())
    path, odd = folder / "model.safetensors", torch.ones(4)
    beside = ("v_head.summary.weight", "model.layers.0.self_attn.rotary_emb.inv_freq", "model.layers.1.self_attn.bias")
    state = load(path.read_bytes())
    path.unlink()
    save_file(state | {key: odd.clone() for key in beside}, path, {"format": "pt"})
    idx = torch.arange(8)[None]
    assert torch.allclose(bases.load(folder).model(idx).logits, model()(idx).logits, atol=1e-5)


def test_a_head_that_the_file_has_only_as_its_embedding_is_refused_with_that_cure(tmp_path):
    folder = saved(model(tie_word_embeddings=True), tmp_path / "m", tokenizer())
    edit(folder, tie_word_embeddings=False)
    refused(folder, "lm_head.weight", 'set "tie_word_embeddings" to true')


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
    ("changes", "part"),
    [
        (
            dict(quantization_config=dict(quant_method="bitsandbytes", load_in_4bit=True)),
            "packed (bitsandbytes, 4 bits)",
        ),
        (dict(quantization_config=dict(quant_method="gptq", bits=8)), "packed (gptq, 8 bits)"),
        (dict(quantization=dict(group_size=32, bits=4)), "packed (4 bits)"),
    ],
)
def test_packed_weights_are_named_for_what_they_are(tmp_path, changes, part):
    folder = saved(model(), tmp_path / "m", tokenizer())
    edit(folder, **changes)
    refused(folder, part, "does not load here: take the plain model")


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.int8, torch.float8_e4m3fn])
def test_weights_that_are_packed_are_found_where_no_config_says_so(tmp_path, dtype):
    folder = saved(model(), tmp_path / "m", tokenizer())
    state = {k: t.to(dtype) if t.ndim == 2 else t for k, t in load((folder / "model.safetensors").read_bytes()).items()}
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    refused(folder, "packed (stored as", "take the plain model")


def test_an_adapter_a_folder_further_up_a_file_and_a_gguf_are_each_named(tmp_path, monkeypatch):
    folder = saved(model(), tmp_path / "up" / "m", tokenizer())
    refused(tmp_path / "up", f"is no model: it has no config.json, and the model is in {folder}: give that")
    refused(folder / "model.safetensors", "is a file: give the folder that it lies in")
    (tmp_path / "gguf").mkdir()
    (tmp_path / "gguf" / "x.gguf").write_bytes(b"GGUF")
    refused(tmp_path / "gguf", "only x.gguf: save it as model.safetensors")
    refused(tmp_path / "gguf" / "x.gguf", "x.gguf: save it as model.safetensors")
    (tmp_path / "adapter").mkdir()
    for where, part in ((tmp_path / "adapter", "is an adapter, not a base"), (folder, "holds a model and an adapter")):
        (where / "adapter_config.json").write_text('{"peft_type": "LORA"}')
        refused(where, part)
    (folder / "adapter_config.json").unlink()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert bases.load("~/up/m").context == 64


def test_what_a_broken_transformers_says_is_passed_on(tmp_path):
    folder = saved(model(), tmp_path / "m", tokenizer())
    (tmp_path / "transformers").mkdir()
    for raised in ("ImportError", "RuntimeError", "ModuleNotFoundError"):
        (tmp_path / "transformers" / "__init__.py").write_text(f"raise {raised}('it wants tokenizers 0.21')")
        script = f"from llm import bases; bases.load({str(folder)!r})"
        path = dict(PYTHONPATH=f"{tmp_path}:{theirs.OURS.parent}", PATH="")
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=path)
        assert "transformers is installed but does not load (it wants tokenizers 0.21)" in done.stderr


def test_a_transformers_that_is_too_old_is_named_and_not_the_folder(tmp_path, monkeypatch):
    folder = saved(model(), tmp_path / "m", tokenizer())
    monkeypatch.setattr(theirs.importlib.metadata, "version", lambda name: "4.50.3")
    assert bases.load(folder).context == 64, "as long as it reads the model it will do"
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-7])
    refused(folder, "damaged")
    for name, kind in (("AutoModelForCausalLM", "model"), ("AutoTokenizer", "tokenizer")):
        folder = saved(model(), tmp_path / kind, tokenizer())

        def fails(*args, **options):
            raise TypeError("got an unexpected keyword argument 'dtype'")

        with monkeypatch.context() as patch:
            patch.setattr(getattr(transformers, name), "from_pretrained", fails)
            refused(folder, "'dtype'", "4.50.3 is installed and", "make real")


def test_a_defect_of_ours_while_a_base_is_loaded_keeps_its_traceback(tmp_path, monkeypatch):
    for error in (RuntimeError("ours"), AssertionError("ours")):

        def broken(error=error):
            raise error

        monkeypatch.setattr("llm.bases.loading.load_base", broken)
        with pytest.raises(type(error), match="^ours$"):
            bases.load("course")
