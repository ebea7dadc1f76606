"""Base models by name or folder: the same numbers as transformers', and one sentence for what cannot be had."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.torch import load, save_file

from llm import bases, generation, gpt2_weights
from llm.bases import Base, loading, saving, smollm2
from llm.bases import transformers_models as hf
from llm.bases.transformers_tokenizers import read_tokenizer
from llm.course.tasks import answers
from llm.errors import BaseError, TextError, WriteError
from llm.lora import LoraLinear, apply_lora, lora_disabled, lora_layers, merge_lora, remove_lora
from llm.model import GPT, GPTConfig
from llm.paths import BASE
from llm.text import corpora, download
from llm.text.records import make_records, record_batches
from llm.tokenizer import GPT2, Tokenizer
from llm.training import evaluate, train

transformers = pytest.importorskip("transformers")
END = "<|end|>"
TEXT = "O, that this <|end|> too\n\n  solid flesh"


def tokenizer():
    """One token a byte, and one that ends a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, eos_token=END)


def llama(kind="Llama", **options):
    torch.manual_seed(0)
    sizes = dict(vocab_size=260, hidden_size=32, intermediate_size=48, num_hidden_layers=2, max_position_embeddings=64)
    sizes |= dict(num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True, head_dim=8, pad_token_id=0)
    config = getattr(transformers, f"{kind}Config")(**sizes | options)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return model


def saved(model, folder):
    model.save_pretrained(folder), tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path):
    return saved(llama(), tmp_path / "llama")


@pytest.fixture
def batch():
    idx = torch.randint(256, (3, 17), generator=torch.Generator().manual_seed(1))
    return idx[:, :-1], idx[:, 1:]


def refused(name, *parts, **options):
    with pytest.raises(BaseError) as caught:
        bases.load(name, **options)
    said = str(caught.value)
    assert "\n" not in said and all(part in said for part in parts), said


# the loss of a transformers model


def reference_loss(model, x, y):
    return F.cross_entropy(model(x).logits.flatten(0, 1), y.flatten())


@pytest.mark.parametrize("tied", [True, False])
def test_the_loss_and_its_gradients_are_those_of_the_whole_logits(tied, batch):
    x, y = batch
    y = y.clone()
    y[0, :5] = -100
    model = llama(tie_word_embeddings=tied)
    reference_loss(model, x, y).backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    value = hf.loss(model, x, y)
    value.backward()
    assert (value - reference_loss(model, x, y)).abs() < 1e-5
    assert all((p.grad - wanted[name]).abs().max() < 1e-5 for name, p in model.named_parameters())


@pytest.mark.parametrize("name", ["float32", "auto", "bfloat16"])
def test_only_who_asks_for_bfloat16_by_name_gets_it_in_the_blocks_of_a_foreign_model_on_a_processor(name, batch):
    model, seen = apply_lora(llama(), r=2), set()
    for layer in lora_layers(model).values():
        layer.base.register_forward_hook(lambda module, x, y: seen.add(y.dtype))
    exact = hf.loss(model, *batch)
    found = hf.loss(model, *batch, name)
    found.backward()
    assert seen == {torch.float32} | ({torch.bfloat16} if name == "bfloat16" else set())
    assert found.dtype == torch.float32 and (found - exact).abs() < 0.01 * exact
    assert {p.grad.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


@pytest.mark.parametrize("with_bias", [False, True])
def test_a_wrapped_head_and_a_head_with_a_bias_are_graded_as_they_are(with_bias, batch):
    model = llama(tie_word_embeddings=False)
    if with_bias:
        model.lm_head.bias = nn.Parameter(torch.randn(260))
    apply_lora(model, r=4, skip=())
    for layer in lora_layers(model).values():
        nn.init.normal_(layer.B, std=0.1)
    assert isinstance(model.lm_head, LoraLinear)
    value = hf.loss(model, *batch)
    assert (value - reference_loss(model, *batch)).abs() < 1e-5
    value.backward()
    assert model.lm_head.B.grad.abs().sum() > 0
    with lora_disabled(model):
        assert (hf.loss(model, *batch) - reference_loss(model, *batch)).abs() < 1e-5
        assert (hf.loss(model, *batch) - value).abs() > 1e-3


def test_a_head_of_another_kind_is_graded_by_what_it_computes(batch):
    peft = pytest.importorskip("peft")
    inner = llama(tie_word_embeddings=False)
    before = hf.loss(inner, *batch)
    peft.get_peft_model(inner, peft.LoraConfig(target_modules=["lm_head"], init_lora_weights=False))
    assert (hf.loss(inner, *batch) - reference_loss(inner, *batch)).abs() < 1e-5
    assert (hf.loss(inner, *batch) - before).abs() > 1e-3


def test_a_model_that_does_more_to_its_logits_is_graded_by_those(batch):
    capped = llama("Gemma2", final_logit_softcapping=0.5)
    assert (hf.loss(capped, *batch) - reference_loss(capped, *batch)).abs() < 1e-5


def test_the_logits_are_never_held_whole(monkeypatch, batch):
    model = llama()
    assert hf._plain_logits(model)
    monkeypatch.setattr(type(model), "forward", None)  # what would make them
    assert hf.loss(model, *batch).isfinite()


def test_the_models_mode_is_kept_and_it_trains_with_the_courses_loop(batch):
    model = apply_lora(llama().train(), r=4, alpha=4)
    hf.loss(model, *batch)
    assert model.training  # the first call asks the model something, in eval mode
    before = evaluate(model, [batch], hf.loss)
    assert model.training
    steps = list(train(model, [batch] * 8, steps=8, lr=1e-2, warmup=1, loss=hf.loss, precision="float32"))
    assert len(steps) == 8 and evaluate(model, [batch], hf.loss) < before - 0.1
    assert abs(steps[0].loss - before) < 1e-5


# generating


def test_greedy_text_is_that_of_transformers(folder, batch):
    base = bases.load(folder)
    prompt = batch[0][:2, :6]
    wanted = llama().generate(prompt, max_new_tokens=12, do_sample=False, eos_token_id=None)
    assert torch.equal(bases.generate(base.model, prompt, 12, temperature=0), wanted)


@pytest.mark.parametrize("kind", ["course", "transformers"])
def test_the_same_seed_gives_the_same_text_whatever_else_is_drawn(kind, folder):
    base = bases.load("course" if kind == "course" else folder)
    first = base.generate("To be", 12, seed=3)
    torch.rand(5)
    state = torch.random.get_rng_state()
    assert base.generate("To be", 12, seed=3) == first != base.generate("To be", 12, seed=4)
    assert torch.equal(state, torch.random.get_rng_state())
    assert base.generate("To be", 12, temperature=0) == base.generate("To be", 12, temperature=0, seed=9)
    assert not first.startswith("To be") and base.generate("", 3, seed=0) != ""


def test_text_stops_at_the_end_token_which_is_no_part_of_it(folder, monkeypatch):
    base = bases.load(folder)
    script = [*b"So be it", base.tokenizer.end, *b"more"]
    ids = [base.tokenizer.encode(chr(b))[0] if b < 200 else b for b in script[:8]] + script[8:]
    monkeypatch.setattr(generation, "sample", lambda logits, *rest: torch.tensor([ids.pop(0)]))
    assert base.generate("x", 20) == "So be it" and len(ids) == 4


def test_an_answer_ends_at_the_end_token_of_its_base(folder, monkeypatch):
    base, calls = bases.load(folder), []
    monkeypatch.setattr(generation, "sample", lambda logits, *rest: calls.append(1) or torch.tensor([256]))
    assert answers(base.model, make_records(1, seed=0), 9, base.tokenizer) == [""] and len(calls) == 1


def test_rows_that_have_ended_are_filled_and_the_others_go_on(folder, monkeypatch):
    draws = iter([[5, 9], [7, 5], [5, 9], [5, 9]])
    monkeypatch.setattr(generation, "sample", lambda logits, *rest: torch.tensor(next(draws)))
    out = bases.generate(bases.load(folder).model, torch.tensor([[1], [2]]), 10, stop=5)
    assert out.tolist() == [[1, 5, 5], [2, 9, 5]]


def test_rows_that_have_ended_stay_ended_when_the_window_slides(folder, monkeypatch):
    draws = iter([[7, 9], [5, 9], [7, 9], [7, 9], [7, 5]])
    model = bases.load(folder).model
    monkeypatch.setattr(generation, "sample", lambda logits, *rest: torch.tensor(next(draws)))
    out = bases.generate(model, torch.ones(2, 63, dtype=torch.long), 10, stop=5)[:, 63:]
    assert out.tolist() == [[7, 5, 5, 5, 5], [9, 9, 9, 9, 5]]


@pytest.mark.parametrize("length", [3, 40, 63, 64, 65, 90])
def test_a_foreign_base_reads_all_that_fits_and_then_slides_its_window(folder, length):
    model = bases.load(folder).model
    idx = wanted = torch.randint(256, (2, length), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for _ in range(30):
            wanted = torch.cat((wanted, model(wanted[:, -64:], use_cache=False).logits[:, -1:].argmax(-1)), dim=1)
    assert torch.equal(bases.generate(model, idx, 30, temperature=0), wanted)


def test_a_prompt_that_fits_a_foreign_base_is_read_whole_however_much_is_to_come_after_it(folder):
    base = bases.load(folder)
    for prompt in ("What a piece of work is a man, how noble in reason!", "x" * 64):
        first = base.generate(prompt, 8, seed=1)
        assert base.generate(prompt, 60, seed=1).startswith(first)


def test_options_that_lie_in_a_models_folder_change_no_text(folder):
    prompt, options = torch.tensor([[1, 2, 3], [4, 5, 6]]), dict(temperature=0.9, top_k=50, seed=3, stop=256)
    wanted = bases.generate(bases.load(folder).model, prompt, 70, **options)
    own = dict(repetition_penalty=3.0, bad_words_ids=[[5]], min_length=50, eos_token_id=[1, 2, 3], do_sample=True)
    own |= dict(top_p=0.1, temperature=0.7, suppress_tokens=[8], num_beams=3, no_repeat_ngram_size=2, max_length=5)
    own |= dict(forced_eos_token_id=9, cache_implementation="static", return_dict_in_generate=True)
    (folder / "generation_config.json").write_text(json.dumps(own))
    model = bases.load(folder).model
    assert torch.equal(bases.generate(model, prompt, 70, **options), wanted)
    assert model.generation_config.repetition_penalty == 3.0, "what the folder says is saved with the model"


def test_a_foreign_model_wearing_lora_writes_with_it_and_keeps_its_mode_and_its_gradients(folder):
    model = apply_lora(bases.load(folder).model, r=2).train()
    for layer in lora_layers(model).values():
        nn.init.normal_(layer.B)
    model.model.layers[0].eval()
    before = [(m.training, *(p.requires_grad for p in m.parameters())) for m in model.modules()]
    idx = torch.tensor([[1, 2, 3]])
    out = bases.generate(model, idx, 9, temperature=0)
    assert [(m.training, *(p.requires_grad for p in m.parameters())) for m in model.modules()] == before
    with lora_disabled(model):
        assert not torch.equal(bases.generate(model, idx, 9, temperature=0), out)
    assert torch.equal(bases.generate(merge_lora(model), idx, 9, temperature=0), out)


def test_a_prompt_longer_than_the_context_is_read_from_its_end(folder):
    base = bases.load(folder)
    assert base.context == 64
    assert base.generate("a" * 100 + "b" * 64, 10, seed=0) == base.generate("b" * 64, 10, seed=0)
    assert base.generate("abc" * 500, 70, seed=0)


def test_a_prompt_that_fits_the_context_is_read_whole_however_much_is_to_come_after_it():
    base = bases.load("course")
    prompt = 'Copy "river" from "Angel" to "glass" at 7.\n'
    first = base.generate(prompt, 5, temperature=0)
    assert first.startswith('{"') and base.generate(prompt, 60, temperature=0).startswith(first)


# tokenizers


def test_text_goes_through_the_tokenizer_of_a_folder_and_back(folder):
    own = bases.load(folder).tokenizer
    assert own.decode(own.encode(TEXT)) == TEXT and own.decode(torch.tensor(own.encode(TEXT))) == TEXT
    assert own.end not in own.encode(TEXT), "special tokens in a text are text"
    assert own.size == 257 and own.end == 256
    assert own.name == read_tokenizer(folder).name != "gpt2"


def test_a_corpus_is_cached_by_tokenizer_and_large_vocabularies_do_not_overflow(monkeypatch, tmp_path):
    monkeypatch.setattr(corpora, "sources", lambda: {"toy": {"sha256": "0"}})
    monkeypatch.setattr(corpora, "fetch", lambda name, cache: None)
    monkeypatch.setattr(corpora, "documents", lambda name, cache: {f"{i:02}": f"document {i}" for i in range(20)})
    large = Tokenizer("large", lambda text: [70_000 + ord(c) for c in text], None, 90_000, 90_001)
    ours, theirs = corpora.load("toy", tmp_path), corpora.load("toy", tmp_path, large)
    assert GPT2.decode(ours.heldout) == "document 9<|endoftext|>document 19<|endoftext|>"
    ids = [70_000 + ord(c) for c in "document 9"] + [90_000] + [70_000 + ord(c) for c in "document 19"] + [90_000]
    for _ in range(2):  # made, then from the cache
        assert corpora.load("toy", tmp_path, large).heldout.tolist() == ids and theirs.heldout.dtype == torch.int64
    assert len(list(tmp_path.iterdir())) == 4
    small = Tokenizer("large", large.encode, None, 90_000, 80_000)
    with pytest.raises(TextError, match="is damaged"):
        corpora.load("toy", tmp_path, small)


def test_records_are_made_and_answered_in_the_tokens_of_the_base(folder):
    base = bases.load(folder)
    x, y = next(record_batches(2, block=250, tokenizer=base.tokenizer))
    for row, targets in zip(x, y):
        answer = base.tokenizer.decode(targets[targets != -100][:-1])
        assert json.loads(answer).keys() == {"destination", "item", "day", "origin"}
        assert base.tokenizer.decode(row).startswith('Send "') and targets[targets != -100][-1] == base.tokenizer.end
    made = make_records(5, seed=0)
    found = answers(base.model, made, 4, base.tokenizer)
    assert found == [base.generate(r.sentence + "\n", 4, temperature=0) for r in made]


# loading


def test_a_name_gives_the_model_with_its_tokenizer_context_and_loss(batch):
    base = bases.load("course")
    assert isinstance(base, Base) and base.name == "course" and base.tokenizer is GPT2 and base.context == 64
    assert not base.model.training and torch.equal(base.loss(base.model, *batch), base.model(*batch)[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_weight_is_in_the_dtype_that_was_asked_for(dtype, folder):
    for name in ("course", folder):
        assert {p.dtype for p in bases.load(name, dtype).model.parameters()} == {dtype}


def test_a_gpt2_folder_comes_as_the_courses_own_model_with_its_own_tokenizer(tmp_path, folder):
    config = transformers.GPT2Config(vocab_size=260, n_positions=32, n_layer=1, n_head=2, n_embd=16)
    small = saved(transformers.GPT2LMHeadModel(config), tmp_path / "small")
    base = bases.load(small)
    assert isinstance(base.model, GPT) and base.context == 32 and base.tokenizer.size == 257
    (small / "tokenizer.json").unlink()
    refused(small, "GPT-2's tokenizer has 50257 tokens, its model 260: copy its own too")
    config.vocab_size = GPT2.size
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "real")
    assert bases.load(tmp_path / "real").tokenizer is GPT2


def test_gpt2_comes_by_name(monkeypatch):
    made = GPT(GPTConfig(n_layer=1, n_embd=8, n_head=1))
    monkeypatch.setattr(GPT, "from_pretrained", lambda name: made if name == "gpt2-large" else None)
    base = bases.load("gpt2-large")
    assert base.model is made and base.tokenizer is GPT2 and base.name == "gpt2-large"


def test_importing_this_imports_no_transformers():
    script = "import sys, llm.bases, llm.course.tasks; sys.exit('transformers' in sys.modules or 'huggingface_hub' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


# what cannot be had


def test_an_unknown_name_is_one_sentence_with_what_there_is(tmp_path):
    refused("llama-9", "there is no base called 'llama-9': choose one of course, smollm2, gpt2", "folder")
    refused(tmp_path / "nowhere", "there is no base called")


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn, "float32"], ids=str)
def test_a_dtype_that_a_model_cannot_have_is_one_sentence(dtype):
    refused("course", "a model cannot be in", "use torch.float32", dtype=dtype)


def test_a_dtype_too_narrow_for_the_weights_is_one_sentence(tmp_path):
    model = llama()
    nn.init.constant_(model.model.norm.weight, 1e6)
    folder = saved(model, tmp_path / "wide")
    refused(folder, "model.norm.weight holds NaN or infinity in torch.float16: use float32", dtype=torch.float16)
    assert bases.load(folder, torch.bfloat16)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_one_sentence():
    refused("course", "cannot be put on cuda", "use device='cpu'", device="cuda")


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("x\ny"), RuntimeError("[enforce] DefaultCPUAllocator: can't allocate memory: you tried\nto")], ids=repr)  # fmt: skip
def test_out_of_memory_is_one_sentence(monkeypatch, folder, error):
    def full(*args, **options):
        raise error

    monkeypatch.setattr(loading, "load_base", full)
    refused("course", "course does not fit into memory: close other programs")
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", full)
    refused(folder, "does not fit into memory")


@pytest.mark.parametrize("missing", ["transformers", "gguf"])
def test_without_the_real_extra_it_says_how_to_get_it(monkeypatch, tmp_path, folder, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    if missing == "transformers":
        monkeypatch.setitem(sys.modules, "transformers.utils", None)
        refused(folder, "this base needs transformers (", "): run `make real`, or pip install -e '.[real]'")
    else:
        monkeypatch.setattr(smollm2, "smollm2_folder", lambda: tmp_path / "smollm2")
        monkeypatch.setattr(smollm2, "fetch_model", lambda *a: tmp_path / "x.gguf")

        def no_gguf(*args, **options):
            raise ImportError("gguf")

        monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", no_gguf)
        refused("smollm2", "needs gguf", "make real")
        assert not (tmp_path / "smollm2").exists()


def test_folders_that_are_no_models_are_one_sentence_each(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "is no model, as it has no config.json")
    (folder / "tokenizer.json").rename(tmp_path / "kept")
    refused(folder, "has no tokenizer.json")
    (folder / "tokenizer.json").write_text("{")
    refused(folder, "cannot read the tokenizer")
    shutil.copy(tmp_path / "kept", folder / "tokenizer.json")
    config = (folder / "config.json").read_text()
    for text, part in (
        ("{", "is damaged"),
        ('{"model_type": "nothing"}', "transformers cannot read"),
        ("{}", "holds another model than expected"),
    ):
        (folder / "config.json").write_text(text)
        refused(folder, part)
    (folder / "config.json").write_text(config)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refused(folder, "no other weights are read, as a pickle (.bin, .pt) can run code")


def test_weights_cut_short_missing_misshapen_or_not_finite_are_one_sentence_each(folder):
    path = folder / "model.safetensors"
    whole = load(path.read_bytes())
    name = "model.layers.1.mlp.up_proj.weight"
    changes = {
        f"1 tensors differ, {name} first (missing in the file": {k: t for k, t in whole.items() if k != name},
        "cannot read": whole | {name: torch.zeros(3, 3)},
        f"{name} holds NaN": whole | {name: whole[name] * float("nan")},
    }
    for part, state in changes.items():
        save_file(state, path, {"format": "pt"})
        refused(folder, part)
    save_file(whole, path, {"format": "pt"})
    path.write_bytes(path.read_bytes()[:-9])
    refused(folder, "model.safetensors is missing or damaged")


def test_code_in_a_folder_is_never_run(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text("open('was_run', 'w')")
    refused(folder, "transformers cannot read", "code in a folder is never run")
    assert not (tmp_path / "was_run").exists()


def test_a_tokenizer_larger_than_its_model_is_one_sentence(tmp_path):
    refused(saved(llama(vocab_size=200), tmp_path / "odd"), "its tokenizer has 257 tokens, its model 200")


# saving


SMALL = GPTConfig(n_layer=1, n_head=2, n_embd=16)


def merged(model):
    torch.manual_seed(2)
    for layer in lora_layers(model).values():
        nn.init.normal_(layer.B, std=0.3)
    return merge_lora(model)


@pytest.mark.parametrize("skip", [("lm_head",), ()], ids=["blocks", "head too"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["course", "transformers"])
def test_a_merged_model_comes_back_as_it_was(kind, tied, skip, tmp_path, batch):
    if kind == "course":
        base = Base("x", GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16, tied_lm_head=tied)).eval(), GPT2, 64, None)
    else:
        base = bases.load(saved(llama(tie_word_embeddings=tied), tmp_path / "llama"))
    merged(apply_lora(base.model, r=2, skip=skip))
    bases.save(base, tmp_path / "out" / "mine")
    again = bases.load(tmp_path / "out" / "mine")
    logits = [getattr(out, "logits", out) for out in (base.model(batch[0]), again.model(batch[0]))]
    assert torch.equal(*logits) and type(again.model) is type(base.model)
    config = json.loads((tmp_path / "out" / "mine" / "config.json").read_text())
    assert (config.get("tied_lm_head") or config.get("tie_word_embeddings", False)) == (tied and skip != ())
    assert (again.tokenizer.encode(TEXT), again.tokenizer.end) == (base.tokenizer.encode(TEXT), base.tokenizer.end)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine"]


def test_the_shipped_base_is_a_folder_like_any_other(batch):
    base = bases.load(BASE)
    assert torch.equal(base.model(batch[0]), bases.load_base(shipped=BASE)(batch[0]))


def test_what_is_there_already_is_not_touched_and_layers_must_be_merged_first(tmp_path, folder):
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    model = GPT(SMALL)
    for where, part in ((folder, "is there already"), (folder / "config.json", "nothing was lost")):
        with pytest.raises(WriteError, match=part):
            bases.save(model, where)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    with pytest.raises(BaseError, match="prepared for lora: merge\\(model\\) or remove\\(model\\)"):
        bases.save(apply_lora(model, r=2), tmp_path / "new")
    with pytest.raises(BaseError, match="the Base of a transformers model"):
        bases.save(llama(), tmp_path / "new")
    assert not (tmp_path / "new").exists()
    (tmp_path / "new").mkdir()
    bases.save(remove_lora(model), tmp_path / "new")
    assert bases.load(tmp_path / "new")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=repr)
def test_a_save_cut_short_leaves_nothing(tmp_path, monkeypatch, error):
    def cut(state, path, metadata):
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(saving, "save_file", cut)
    with pytest.raises(WriteError if isinstance(error, OSError) else KeyboardInterrupt) as caught:
        bases.save(GPT(SMALL), tmp_path / "mine")
    assert list(tmp_path.iterdir()) == []
    assert isinstance(error, KeyboardInterrupt) or "make room there" in str(caught.value)


def test_damage_to_a_folder_of_ours_is_one_sentence_each(tmp_path):
    folder = tmp_path / "mine"
    bases.save(GPT(SMALL), folder)
    path, config = folder / "model.safetensors", json.loads((folder / "config.json").read_text())
    for change, part in (
        (dict(n_embd=32), "holds another model than expected"),
        (dict(n_layer=10**9), "config.json describes no model that the course's GPT computes (n_layer=1000000000"),
        (dict(n_embd="16"), "(n_embd is no positive whole number)"),
        (dict(n_head=-2), "(n_head is no positive whole number)"),
        (dict(n_head=2.0), "(n_head is no positive whole number)"),
        (dict(n_head=3), "describes no model"),
        (dict(colour="blue"), "describes no model"),
        (dict(vocab_size=10**12), "holds another model"),
        (dict(vocab_size=10**40), "describes no model"),
    ):
        (folder / "config.json").write_text(json.dumps(config | change))
        refused(folder, part)
    (folder / "config.json").write_text(json.dumps(config))
    whole = load(path.read_bytes())
    save_file(whole | {"lm_head.weight": whole["lm_head.weight"] / 0}, path)
    refused(folder, "lm_head.weight holds NaN or infinity")
    path.write_bytes(path.read_bytes()[:1000])
    refused(folder, "is missing or damaged")


# SmolLM2


needs_smollm2 = pytest.mark.skipif(
    not smollm2.smollm2_folder().is_dir(), reason="SmolLM2 is not in data/cache: `make real` fetches it"
)


@needs_smollm2
def test_smollm2_is_134_515_008_parameters_of_which_2_442_240_train(batch):
    base = bases.load("smollm2", torch.bfloat16)
    model = base.model
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    assert model.lm_head.weight is model.model.embed_tokens.weight and base.context == 8192
    assert hf._plain_logits(model)
    assert base.tokenizer.size == 49_152 and base.tokenizer.decode(base.tokenizer.encode(TEXT)) == TEXT
    apply_lora(model, r=8)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 2_442_240


@needs_smollm2
def test_smollm2_knows_english(capfd, caplog):
    text = "The people of the United States have the right to vote for their representatives in Congress."
    base = bases.load("smollm2")
    ids = torch.tensor([base.tokenizer.encode(text)])
    with torch.no_grad():
        assert base.loss(base.model, ids[:, :-1], ids[:, 1:]) < 4  # of a uniform guess it would be 10.8
    assert base.generate("The people of the United", 1, temperature=0) == " States"
    assert capfd.readouterr().err == "" and not caplog.records, "transformers has nothing to say of it"


def test_a_gguf_cut_short_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(smollm2, "CACHE", tmp_path)
    gguf = tmp_path / download.models()["smollm2"]["member"].split("/")[-1]
    gguf.write_bytes(b"GGUF" + bytes(1000))
    refused("smollm2", gguf.name, "is damaged (its sha256 is not the declared one): delete it and run")
    assert [p.name for p in tmp_path.iterdir()] == [gguf.name]
    assert gpt2_weights.HUB.keys() < set(bases.NAMES)
