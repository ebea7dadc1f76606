"""Read the tokenizer in a model's folder through transformers, whatever its files are called."""

import hashlib
import json
from contextlib import suppress
from copy import copy
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from llm.bases.transformers_models import quiet, theirs
from llm.checkpoint_folder import CONFIG
from llm.errors import BaseError, TextError
from llm.text.chat import jinja
from llm.tokenizer import Tokenizer, in_pieces

# files that hold a vocabulary; the settings files beside them are no tokenizer by themselves
VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "*.model", "tekken.json")
MISTRAL = "fix_mistral_regex"  # transformers warns of tokenizers that need this argument


@dataclass(frozen=True)
class TransformersTokenizer(Tokenizer):
    """A `Tokenizer` that keeps its transformers tokenizer, to save it with its model.

    needs: the rows that a model must have for every token of a text, including its beginning and end.
    """

    source: object = None
    needs: int = 0

    def save(self, folder: Path) -> None:
        """Save it to `folder`, from which `read_tokenizer` reads it."""
        source = copy(self.source)
        if self.template != _template(source):
            source.chat_template = jinja(self)
        with quiet():
            source.save_pretrained(folder)


def has_vocabulary(folder: Path) -> bool:
    """Whether `folder` contains a tokenizer's vocabulary."""
    return any(any(folder.glob(pattern)) for pattern in VOCABULARIES)


def read_tokenizer(folder: Path) -> TransformersTokenizer:
    """Read the tokenizer in `folder`. Raises BaseError when there is none, or it has no token that ends a text."""
    if not has_vocabulary(folder):
        raise BaseError(f"{folder} has no tokenizer.json, nor another vocabulary: copy its tokenizer's files into it")
    cure = "copy all of its files again, or save it with AutoTokenizer.from_pretrained(...).save_pretrained(...) where it works"
    with quiet() as warnings, theirs(f"transformers cannot read the tokenizer in {folder}", cure):
        from transformers import AutoTokenizer

        options = dict(local_files_only=True, trust_remote_code=False)
        source = AutoTokenizer.from_pretrained(folder, **options)
        if any(MISTRAL in warning for warning in warnings):
            with suppress(Exception):  # transformers 5.1 asks for this argument but fails on it; its warning then stays
                source = AutoTokenizer.from_pretrained(folder, **options, fix_mistral_regex=True)
                warnings[:] = [warning for warning in warnings if MISTRAL not in warning]
    if source.eos_token_id is None:
        with suppress(Exception):  # the config may give no id, or an id without a token
            end = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["eos_token_id"]
            source.eos_token = source.convert_ids_to_tokens(end[0] if isinstance(end, list) else end)
    if source.eos_token_id is None:
        raise BaseError(f"the tokenizer in {folder} names no eos_token, which ends a text: set one and save it")
    known = set(source.get_vocab().values())
    size = max(known, default=-1) + 1
    # special tokens in a text are encoded as plain text, except the one for unknown text
    special = {i for i, token in source.added_tokens_decoder.items() if token.special} - {source.unk_token_id}
    # hash only what determines a text's tokens: a chat template, for example, does not
    tables = source.backend_tokenizer.to_str() if source.is_fast else repr(sorted(source.get_vocab().items()))
    digest = hashlib.sha256(f"{tables}{source.eos_token_id}".encode()).hexdigest()

    @quiet()
    @theirs(f"the tokenizer in {folder} cannot encode this text", "give another text, or another base", TextError)
    def encode(text):
        return source.encode(text, add_special_tokens=False, split_special_tokens=True, verbose=False)

    def decode(ids):
        return source.decode(list(map(int, ids)), clean_up_tokenization_spaces=False)

    @quiet()
    @theirs(f"the tokenizer in {folder} cannot encode this conversation", "give another, or another base", TextError)
    def mark(text):
        options = dict(add_special_tokens=False, return_offsets_mapping=source.is_fast, verbose=False)
        found = source(text, **options)
        return found["input_ids"], found.get("offset_mapping")

    with quiet():  # a base's training texts began with the special tokens that transformers puts before this one
        begin = tuple(takewhile(set(source.all_special_ids).__contains__, source.encode("a", verbose=False)))
    return TransformersTokenizer(
        f"tokenizer-{digest[:12]}",
        lambda text: in_pieces(encode, text),
        decode,
        source.eos_token_id,
        size,
        begin=begin,
        holes=frozenset(range(size)) - known,
        special=tuple(t.content for t in source.added_tokens_decoder.values() if t.special and len(t.content) > 1),
        digest=digest,
        template=_template(source),
        named=tuple((name, str(token)) for name, token in source.special_tokens_map.items() if isinstance(token, str)),
        mark=mark,
        source=source,
        needs=max(known - special | {source.eos_token_id, *begin}) + 1,
    )


def _template(source):
    own = source.chat_template
    return (own.get("default") if isinstance(own, dict) else own) or "plain"  # other templates may be for tools only
