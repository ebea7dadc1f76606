"""GPT-2's tokenizer: offline, the published tables, text there and back, and a sentence when a table is damaged."""

import hashlib
import os
import shutil
import socket
import subprocess
import sys

import pytest
import torch

from llm import tokenizer
from llm.errors import TextError
from llm.paths import TOKENIZER
from llm.tokenizer import END_OF_TEXT, TABLES, decode, encode, get_tokenizer

TEXTS = [
    "To be, or not to be: that is the question.\n\n\tWhether 'tis nobler",
    '{"destination": "glass", "day": 7}',
    "def f(x):\n    return x ** 2  # naïve\r\n",
    "señor Ærø 東京 🙂 \u200d \x00 \ufffd",
    "",
    "   leading and trailing   ",
]


@pytest.fixture
def tables(tmp_path, monkeypatch):
    """A copy of the tables that a test may damage, and a tokenizer that has not read any yet."""
    copy = shutil.copytree(TOKENIZER, tmp_path / "tables")
    monkeypatch.setattr(tokenizer, "TOKENIZER", copy)
    monkeypatch.setenv(
        "TIKTOKEN_CACHE_DIR", ""
    )  # a copy that tiktoken keeps elsewhere would stand in for a damaged one
    get_tokenizer.cache_clear()
    yield copy
    get_tokenizer.cache_clear()


@pytest.fixture
def offline(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.parametrize("text", TEXTS)
def test_text_comes_back_as_it_went_in_from_a_list_and_from_a_tensor(text):
    ids = encode(text)
    assert decode(ids) == text and decode(torch.tensor(ids, dtype=torch.long)) == text


def test_ids_are_gpt2s_own():
    assert encode("Hello world") == [15496, 995]
    assert get_tokenizer().n_vocab == 50257 and get_tokenizer().eot_token == END_OF_TEXT


def test_the_ids_agree_with_transformers_own_gpt2_tokenizer_on_the_same_tables(tmp_path):
    import json

    from transformers import GPT2Tokenizer

    merges, vocabulary = ((TOKENIZER / name).read_text(encoding="utf-8") for name in TABLES)
    merges = [tuple(line.split()) for line in merges.splitlines()[1:] if line]
    theirs = GPT2Tokenizer(vocab=json.loads(vocabulary), merges=merges)
    for text in TEXTS:
        assert theirs(text)["input_ids"] == encode(text)


def test_a_literal_end_of_text_is_ordinary_text():
    ids = encode("a <|endoftext|> b")
    assert END_OF_TEXT not in ids and decode(ids) == "a <|endoftext|> b"
    assert decode([END_OF_TEXT]) == "<|endoftext|>"


def test_the_tables_that_ship_have_the_published_hashes():
    assert {p.name for p in TOKENIZER.iterdir()} == TABLES.keys()
    for name, sha256 in TABLES.items():
        assert hashlib.sha256((TOKENIZER / name).read_bytes()).hexdigest() == sha256


def test_the_declared_hashes_are_the_ones_that_tiktoken_declares(monkeypatch):
    from tiktoken_ext import openai_public

    seen = {}
    monkeypatch.setattr(openai_public, "data_gym_to_mergeable_bpe_ranks", lambda **names: seen.update(names) or {})
    openai_public.gpt2()
    for kind in ("vocab_bpe", "encoder_json"):
        cached_as = hashlib.sha1(seen[f"{kind}_file"].encode()).hexdigest()
        assert TABLES[cached_as] == seen[f"{kind}_hash"]


def test_a_fresh_start_asks_no_network(tables, offline):
    assert decode(encode(TEXTS[0])) == TEXTS[0]


def test_what_tiktoken_keeps_for_others_is_not_asked_and_the_environment_stays(tables, offline, monkeypatch, tmp_path):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "elsewhere"))
    assert get_tokenizer().n_vocab == 50257
    assert os.environ["TIKTOKEN_CACHE_DIR"] == str(tmp_path / "elsewhere")


DAMAGES = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "one bit": lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", TABLES)
def test_a_damaged_table_is_one_sentence_asks_no_network_and_is_not_deleted(tables, offline, name, damage):
    DAMAGES[damage](tables / name)
    with pytest.raises(TextError) as caught:
        get_tokenizer()
    said = str(caught.value)
    assert str(tables / name) in said and "`git checkout data/tokenizer`" in said and "\n" not in said
    assert (tables / name).exists() is (damage != "missing")


def test_importing_the_tokenizer_reads_no_table():
    script = "import llm.tokenizer as t, sys; sys.exit(t.get_tokenizer.cache_info().currsize)"
    assert subprocess.run([sys.executable, "-c", script], cwd=TOKENIZER.parents[1]).returncode == 0


def test_a_tokenizer_beside_a_model_names_its_special_tokens_and_a_digest_of_its_files(tmp_path):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from llm.bases.transformers_tokenizers import read_tokenizer

    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(sorted(level.alphabet()))}, merges=[]))
    made.pre_tokenizer, made.decoder = level, decoders.ByteLevel()

    def read(name, extra):
        source = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", unk_token="?")
        source.add_special_tokens({"additional_special_tokens": extra})
        source.add_tokens(["<tool>"])  # not special: it is read as the token that it is
        source.save_pretrained(tmp_path / name)
        return read_tokenizer(tmp_path / name)

    chat, same, other = read("a", ["<|im_start|>"]), read("b", ["<|im_start|>"]), read("c", ["[INST]"])
    assert set(chat.special) == {"</s>", "<|im_start|>"} and set(other.special) == {"</s>", "[INST]"}
    assert chat.decode(chat.encode("<|im_start|>")) == "<|im_start|>" and len(chat.encode("<|im_start|>")) > 1
    assert chat.digest == same.digest != other.digest and chat.digest and not tokenizer.GPT2.digest
    assert tokenizer.GPT2.special == ("<|endoftext|>",)


# long texts


LONG = "".join(
    f"{'  ' * (i % 3)}Line {i}, {'and so on' * (i % 5)}.{' ' * (i % 4)}\n" + "\n" * (i % 3) for i in range(400)
)
LINES = "1\n22.\n\n\n  three\r\nfour 's\n\tfive\n6\nÄrger\n?\n - seven \n eight\nnine.\nten"


@pytest.mark.parametrize("size", [3, 7, 40, 1000])
@pytest.mark.parametrize("text", [LONG, LINES * 20], ids=["long", "lines"])
def test_a_text_in_pieces_has_the_ids_of_the_whole_when_there_is_a_place_to_cut_in_each(text, size):
    whole = get_tokenizer().encode_ordinary(text)
    found = tokenizer.in_pieces(get_tokenizer().encode_ordinary, text, size)
    assert decode(found) == text and (found == whole or size < 100)


def kinds_of_tokenizers():
    """The ways in which the tokenizers of today's models cut a text before they merge: GPT-2, Llama 3, Llama 2, T5."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    llama3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    cuts = {
        "gpt2": pre_tokenizers.ByteLevel(add_prefix_space=False),
        "llama3": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(llama3), "isolated"), level]),
        "prefixed": pre_tokenizers.ByteLevel(add_prefix_space=True),
        "metaspace": pre_tokenizers.Metaspace(prepend_scheme="first", split=True),
        "words": pre_tokenizers.Whitespace(),
    }
    for name, cut in cuts.items():
        made = Tokenizer(models.BPE(unk_token="?") if name in ("metaspace", "words") else models.BPE())
        made.pre_tokenizer, made.decoder = cut, decoders.ByteLevel()
        alphabet = [] if name in ("metaspace", "words") else pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=400, special_tokens=["?"], initial_alphabet=alphabet, show_progress=False
        )
        made.train_from_iterator([LONG, LINES], trainer)
        yield pytest.param(lambda text, made=made: made.encode(text).ids, id=name)


@pytest.mark.parametrize("encoding", [*kinds_of_tokenizers()])
def test_pieces_have_the_ids_of_the_whole_with_the_tokenizers_of_others(encoding):
    for size in (150, 1000):
        assert tokenizer.in_pieces(encoding, LONG, size) == encoding(LONG)


@pytest.mark.parametrize("run", [" ", "\n", "\t ", "a", "\u3000", "."])
def test_a_text_without_a_place_to_cut_it_comes_back_as_it_was(run):
    text = "Chapter one.\n" + run * 400_000 + "The end.\n"
    assert decode(encode(text)) == text
