"""Text to token ids and back: GPT-2's byte-pair tokenizer through tiktoken, from the tables in `data/tokenizer/`.

Knows nothing about models or corpora.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import tiktoken
from tiktoken.load import check_hash, data_gym_to_mergeable_bpe_ranks, read_file
from tiktoken_ext.openai_public import r50k_pat_str

from llm.errors import TextError
from llm.paths import TOKENIZER

END_OF_TEXT = 50256
# tiktoken's own cache names a file by the sha1 of the address that it was published under, and so do we; beside it the
# sha256 that OpenAI published: vocab.bpe, encoder.json
TABLES = {
    "6d1cbeee0f20b3d9449abfede4726ed8212e3aee": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}


@lru_cache(maxsize=1)
def get_tokenizer() -> tiktoken.Encoding:
    """GPT-2's encoding (50,257 tokens), offline: tiktoken reads the tables in `data/tokenizer/`, and checks their sha256.

    Raises TextError when a table is missing or damaged.
    """
    tables = [str(TOKENIZER / name) for name in TABLES]
    for table, sha256 in zip(tables, TABLES.values()):
        if not os.path.isfile(table) or not check_hash(read_file(table), sha256):
            raise TextError(f"{table} is missing or damaged: restore the tokenizer with `git checkout data/tokenizer`")
    ranks = data_gym_to_mergeable_bpe_ranks(*tables, *TABLES.values())
    special = {"<|endoftext|>": END_OF_TEXT}
    return tiktoken.Encoding("gpt2", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens=special)


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
