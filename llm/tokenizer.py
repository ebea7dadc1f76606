"""Text to token ids and back: GPT-2's byte-pair tokenizer through tiktoken, from the tables in `data/tokenizer/`.

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
PIECE = 100_000  # characters that are tokenized at once
# a piece up to the last place between two words, or else between two lines
WHOLE = re.compile(r".{2,}(?<=\S)(?= [^\W_])|.{2,}(?<=\S\n)(?=[^\W_])", re.DOTALL)
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
    return in_pieces(get_tokenizer().encode_ordinary, text)


def in_pieces(encode: Callable[[str], list[int]], text: str, size: int = PIECE) -> list[int]:
    """`encode(text)`, a piece of `size` characters at a time: tokenizers hold many times what they read, or give up.

    A piece ends between two words, before the blank, or else between two lines, behind the break. Tokenizers cut a text
    there before they merge, so the ids are those of the whole. Where there is no such place it ends anywhere: the text
    still comes back as it was.
    """
    if len(text) <= size:
        return encode(text)
    lead, ids, start = encode("\n"), [], 0
    while start < len(text):
        whole = WHOLE.match(text, start, start + size + 1) if start + size < len(text) else None
        end = whole.end() if whole else start + size
        # behind a line break, as some put a blank before whatever they take for the beginning of a text
        behind = encode("\n" + text[start:end]) if start else []
        ids += behind[len(lead) :] if start and behind[: len(lead)] == lead else encode(text[start:end])
        start = end
    return ids


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
    begin: tuple[int, ...] = ()  # what every text that a base has seen began with, where there was such a token
    holes: frozenset[int] = frozenset()  # ids below `size` that are no token
    special: tuple[str, ...] = ()  # the written forms of special tokens that a text may hold
    digest: str = ""  # of the tokenizer's files; empty for the built-in one
    template: str = "plain"  # of conversations: Jinja, or the word for the one that `text.chat` has built in
    named: tuple[tuple[str, str], ...] = ()  # what templates call special tokens: ("eos_token", "</s>")
    # a text with special tokens in it to ids, and to each one's place in it (first character, one past the last) or None
    mark: Callable[[str], tuple[list[int], list[tuple[int, int]] | None]] | None = None

    def start(self, text: str) -> list[int]:
        """Tokens of a text from its beginning on: what a model is given to go on with."""
        return [*self.begin, *self.encode(text)]

    def unknown(self, rows: int) -> list[int]:
        """Which of a model's `rows` of output are no token: vocabularies are padded to a round number."""
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
