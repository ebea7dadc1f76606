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
