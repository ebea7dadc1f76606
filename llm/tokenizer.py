"""GPT-2's byte-pair tokenizer through tiktoken, from the tables in `data/tokenizer/`.

Knows nothing about models or corpora.
"""

import os
from functools import lru_cache
from pathlib import Path

import tiktoken

TABLES = Path(__file__).resolve().parent.parent / "data" / "tokenizer"
END_OF_TEXT = 50256


@lru_cache(maxsize=1)
def get_tokenizer() -> tiktoken.Encoding:
    """GPT-2's encoding (50,257 tokens), offline.

    tiktoken looks for its tables in `TIKTOKEN_CACHE_DIR` before it asks the network, and checks the sha256
    that OpenAI published, so a damaged table is an error and never a silently different tokenizer.
    The variable is set for this one call and put back, whatever happens.
    """
    missing = [p.name for p in _table_paths() if not p.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{TABLES} lacks {', '.join(missing)}: restore the tokenizer with `git checkout data/tokenizer`"
        )
    before = os.environ.get("TIKTOKEN_CACHE_DIR")
    os.environ["TIKTOKEN_CACHE_DIR"] = str(TABLES)
    try:
        return tiktoken.get_encoding("gpt2")
    finally:
        if before is None:
            del os.environ["TIKTOKEN_CACHE_DIR"]
        else:
            os.environ["TIKTOKEN_CACHE_DIR"] = before


def _table_paths() -> list[Path]:
    # tiktoken's cache names a file by the sha1 of the address that it was published under
    return [TABLES / "6d1cbeee0f20b3d9449abfede4726ed8212e3aee", TABLES / "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6"]


def encode(text: str) -> list[int]:
    """Token ids of `text`; a literal `<|endoftext|>` in it is ordinary text, never the special token."""
    return get_tokenizer().encode_ordinary(text)


def decode(ids) -> str:
    """The text of `ids`, a list or a 1-D tensor."""
    return get_tokenizer().decode(list(map(int, ids)))
