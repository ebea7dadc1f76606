"""A tokenizer that lies beside a model, read through transformers, whatever its files are called."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from llm.bases.theirs import line, quiet, theirs, too_old
from llm.errors import BaseError, TextError
from llm.gpt2_weights import CONFIG
from llm.tokenizer import Tokenizer, in_pieces

# each holds a vocabulary; beside them lie settings, which alone are no tokenizer
VOCABULARIES = (
    "tokenizer.json",
    "vocab.json",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "spm.model",
    "tiktoken.model",
    "tekken.json",
)
SETTINGS = ("merges.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


@dataclass(frozen=True)
class TransformersTokenizer(Tokenizer):
    """A `Tokenizer` that remembers the one of transformers behind it, to save it with its model."""

    source: object = None

    def save(self, folder: Path) -> None:
        """Write it into `folder`, from which `read_tokenizer` has it back."""
        with quiet():
            self.source.save_pretrained(folder)


def files(folder: Path) -> list[Path]:
    """The files of the tokenizer in `folder`; none where no vocabulary is among them."""
    if not any((folder / name).is_file() for name in VOCABULARIES):
        return []
    return [folder / name for name in VOCABULARIES + SETTINGS if (folder / name).is_file()]


def read_tokenizer(folder: Path, name: str | None = None) -> TransformersTokenizer:
    """The tokenizer in `folder`. Raises BaseError when there is none, or none that says how a text ends."""
    if not (found := files(folder)):
        raise BaseError(
            f"{folder} has no tokenizer.json, nor another vocabulary: copy the tokenizer's files into it too"
        )
    with quiet():
        from transformers import AutoTokenizer

        try:
            source = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # a dozen kinds, some of many lines
            again = (
                "copy all of its files again, or save it where it works with "
                "AutoTokenizer.from_pretrained(...).save_pretrained(...)"
            )
            raise BaseError(
                f"transformers cannot read the tokenizer in {folder} ({line(error)}): {too_old() or again}"
            ) from None
    if source.eos_token_id is None:
        _end_from_config(source, folder)
    known = set(source.get_vocab().values())
    size = max(known, default=-1) + 1
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in found)).hexdigest()
    broken = dict(cure="give a text of other characters, or another base", kind=TextError)

    def encode(text):
        with quiet(), theirs(f"the tokenizer in {folder} cannot encode this text", **broken):
            return source.encode(text, add_special_tokens=False, split_special_tokens=True, verbose=False)

    def decode(ids):
        with theirs(f"the tokenizer in {folder} cannot decode what the model wrote", **broken):
            return source.decode(list(map(int, ids)), clean_up_tokenization_spaces=False)

    return TransformersTokenizer(
        name or f"tokenizer-{digest[:12]}",
        lambda text: in_pieces(encode, text),
        decode,
        source.eos_token_id,
        size,
        begin=_begin(source, encode),
        holes=frozenset(range(size)) - known,
        source=source,
    )


def check_fit(tokenizer: Tokenizer, rows: int, folder: Path) -> None:
    """Raises BaseError when a model of so many rows has none for some of the tokens."""
    if tokenizer.size > rows:
        raise BaseError(f"{folder}: its tokenizer has {tokenizer.size} tokens, its model {rows}: copy both again")


def _end_from_config(source, folder):
    """The end token as the model's own config numbers it, where the tokenizer's files do not name one."""
    try:
        end = json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("eos_token_id")
        end = end[0] if isinstance(end, list) else end
        source.eos_token = source.convert_ids_to_tokens(end)
    except Exception:  # no number, or none of its tokens
        pass
    if source.eos_token_id is None:
        raise BaseError(
            f"the tokenizer in {folder} names no eos_token, the token that ends a text: set one and save it"
        )


def _begin(source, encode):
    """The tokens that transformers puts before a text: texts that a base was trained on began with them."""
    plain = encode("a")
    with quiet():
        whole = source.encode("a", verbose=False)
    at = next((i for i in range(len(whole)) if plain and whole[i : i + len(plain)] == plain), 0)
    return tuple(whole[:at])
