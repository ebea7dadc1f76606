"""Text to token ids and back: GPT-2's byte-pair tokenizer, run by tiktoken on the tables in `data/tokenizer/`.

Knows nothing about models or corpora.
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import tiktoken
from tiktoken.load import check_hash, data_gym_to_mergeable_bpe_ranks, read_file
from tiktoken_ext.openai_public import r50k_pat_str

from llm.errors import TextError
from llm.paths import TOKENIZER

END_OF_TEXT = 50256
PIECE = 100_000  # characters tokenized at a time
# the longest piece that ends between two words, or else between two lines
WHOLE = re.compile(r".{2,}(?<=\S)(?= [^\W_])|.{2,}(?<=\S\n)(?=[^\W_])", re.DOTALL)
# vocab.bpe and encoder.json: the sha1 of the published address, which is the file's name here as in tiktoken's cache,
# and the sha256 that OpenAI published
TABLES = {
    "6d1cbeee0f20b3d9449abfede4726ed8212e3aee": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}


@lru_cache(maxsize=1)
def get_tokenizer() -> tiktoken.Encoding:
    """Return GPT-2's encoding (50,257 tokens), read offline from the tables in `data/tokenizer/`.

    Raises TextError when a table is missing or its sha256 is wrong.
    """
    tables = [str(TOKENIZER / name) for name in TABLES]
    for table, sha256 in zip(tables, TABLES.values()):
        if not os.path.isfile(table) or not check_hash(read_file(table), sha256):
            raise TextError(f"{table} is missing or damaged: restore the tokenizer with `git checkout data/tokenizer`")
    ranks = data_gym_to_mergeable_bpe_ranks(*tables, *TABLES.values())
    special = {"<|endoftext|>": END_OF_TEXT}
    return tiktoken.Encoding("gpt2", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens=special)


def encode(text: str) -> list[int]:
    """Return the token ids of `text`; a literal `<|endoftext|>` in it is ordinary text, never the special token."""
    return in_pieces(get_tokenizer().encode_ordinary, text)


def in_pieces(encode: Callable[[str], list[int]], text: str, size: int = PIECE) -> list[int]:
    """Return `encode(text)`, in pieces of `size` characters: on long texts, tokenizers use too much memory or fail.

    A piece ends between two words, before the space, or else between two lines, after the line break. Tokenizers split
    a text there before they merge, so the ids equal those of the whole text. Where there is no such place, the piece
    ends anywhere, and the ids may differ but still decode to the same text.
    """
    if len(text) <= size:
        return encode(text)
    lead, ids, start = encode("\n"), [], 0
    while start < len(text):
        whole = WHOLE.match(text, start, start + size + 1) if start + size < len(text) else None
        end = whole.end() if whole else start + size
        # encode after a line break, because some tokenizers put a space before the beginning of a text
        behind = encode("\n" + text[start:end]) if start else []
        ids += behind[len(lead) :] if start and behind[: len(lead)] == lead else encode(text[start:end])
        start = end
    return ids


def decode(ids) -> str:
    """Return the text of `ids`, a list or a 1-D tensor."""
    return get_tokenizer().decode(list(map(int, ids)))


@dataclass(frozen=True)
class Tokenizer:
    """All that the rest of the course needs of a tokenizer; most of it uses `GPT2`."""

    name: str  # part of the names of cache files
    encode: Callable[[str], list[int]]  # ordinary text: never a special token
    decode: Callable[..., str]  # of a list or a 1-D tensor
    end: int  # the token that ends a text
    size: int | None = None  # every id is below it; None if unknown
    begin: tuple[int, ...] = ()  # the tokens that began each of the base's training texts, if any
    holes: frozenset[int] = frozenset()  # ids below `size` that are not tokens
    special: tuple[str, ...] = ()  # the written forms of special tokens that a text may hold
    digest: str = ""  # a hash of what determines the ids; empty for the built-in one
    template: str = "plain"  # for conversations: Jinja, or the name of the one built into `text.chat`
    named: tuple[tuple[str, str], ...] = ()  # the names of special tokens in templates: ("eos_token", "</s>")
    # encodes a text with special tokens: the ids, and each one's span (first character, one past the last) or None
    mark: Callable[[str], tuple[list[int], list[tuple[int, int]] | None]] | None = None

    def start(self, text: str) -> list[int]:
        """Encode the start of a text, which a model is to continue: `begin`, then the ids of `text`."""
        return [*self.begin, *self.encode(text)]

    def unknown(self, rows: int) -> list[int]:
        """Return those of a model's `rows` of output that are not tokens: vocabularies are padded to a round number."""
        return [*sorted(self.holes), *range(rows if self.size is None else self.size, rows)]


GPT2 = Tokenizer(
    "gpt2",
    encode,
    decode,
    END_OF_TEXT,
    END_OF_TEXT + 1,
    special=("<|endoftext|>",),
    named=(("eos_token", "<|endoftext|>"),),
)
