"""Text to token ids and back: GPT-2's byte-pair tokenizer through tiktoken, from the tables in `data/tokenizer/`.

Knows nothing about models or corpora.
"""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import tiktoken

TABLES = Path(__file__).resolve().parent.parent / "data" / "tokenizer"
END_OF_TEXT = 50256
# tiktoken's cache names a file by the sha1 of the address that it was published under; beside it the sha256 that
# OpenAI published: vocab.bpe, encoder.json
HASHES = {
    "6d1cbeee0f20b3d9449abfede4726ed8212e3aee": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}


@lru_cache(maxsize=1)
def get_tokenizer() -> tiktoken.Encoding:
    """GPT-2's encoding (50,257 tokens), offline.

    tiktoken looks for its tables in `TIKTOKEN_CACHE_DIR` before it asks the network; one that is damaged it would
    delete and ask for anew, so they are checked first. The variable is set for this one call and put back.
    Raises ValueError when a table is missing or damaged.
    """
    for name, sha256 in HASHES.items():
        table = TABLES / name
        if not table.is_file() or hashlib.sha256(table.read_bytes()).hexdigest() != sha256:
            raise ValueError(f"{table} is missing or damaged: restore the tokenizer with `git checkout data/tokenizer`")
    before = os.environ.get("TIKTOKEN_CACHE_DIR")
    os.environ["TIKTOKEN_CACHE_DIR"] = str(TABLES)
    try:
        return tiktoken.get_encoding("gpt2")
    finally:
        if before is None:
            del os.environ["TIKTOKEN_CACHE_DIR"]
        else:
            os.environ["TIKTOKEN_CACHE_DIR"] = before


def encode(text: str) -> list[int]:
    """Token ids of `text`; a literal `<|endoftext|>` in it is ordinary text, never the special token."""
    return get_tokenizer().encode_ordinary(text)


def decode(ids) -> str:
    """The text of `ids`, a list or a 1-D tensor."""
    return get_tokenizer().decode(list(map(int, ids)))


@dataclass(frozen=True)
class Tokenizer:
    """What the rest of the course needs of any tokenizer; `GPT2` is the one that most of it uses."""

    name: str  # part of a file's name where tokens are cached
    encode: Callable[[str], list[int]]  # ordinary text: never a special token
    decode: Callable[..., str]  # of a list or a 1-D tensor
    end: int  # the token that ends a text
    size: int | None = None  # every id is below it, where that is known


GPT2 = Tokenizer("gpt2", encode, decode, END_OF_TEXT, END_OF_TEXT + 1)
