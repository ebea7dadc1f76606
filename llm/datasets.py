"""What `finetune` reads: a corpus by name or a learner's own file, as batches in any base's tokens.

A text becomes windows, its loss on every token; rows of prompt and completion have theirs on the completion alone.
Knows nothing about models.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from llm import corpora
from llm.corpora import Batch, CorpusError
from llm.loss import IGNORE
from llm.records import make_records
from llm.tasks import UNSEEN
from llm.tokenizer import GPT2, Tokenizer

HELD = 32  # rows that the loss before and after is measured on: a few seconds, also for a real model
WINDOW = 64  # tokens of a window, unless somebody says otherwise
BREAK = "\n"  # between prompt and completion
Row = tuple[list[int], list[int]]  # prompt and completion, both tokens


@dataclass(frozen=True)
class Dataset:
    """Training batches by (rows, seed, start), held-out batches, and a digest that tells one text from another.

    completes: made of prompts and completions, so a prompt wants `BREAK` behind it when the model is asked.
    """

    batches: Callable[[int, int, int], Iterator[Batch]]
    heldout: list[Batch]
    digest: str
    completes: bool


def names() -> tuple[str, ...]:
    """The corpora that `load_dataset` knows."""
    return *corpora.sources(), "records"


def load_dataset(data: str, tokenizer: Tokenizer = GPT2, context: int = 64, block: int | None = None) -> Dataset:
    """The corpus called `data`, or the learner's file of that name: `.txt`, or `.jsonl` with a prompt and a completion
    a line.

    block: tokens of a window (64, or the context if that is shorter); the most that a row may have (the context).
    Raises CorpusError when the text cannot be had or used, and ValueError when block does not fit the context.
    """
    if block is not None and not 1 <= block <= context:
        raise ValueError(f"--block {block} does not fit this base: its context takes 1 to {context} tokens")
    window, limit = block or min(WINDOW, context), block or context
    if data == "records":
        return _records(tokenizer, limit)
    if data in corpora.sources():
        text = corpora.load(data, tokenizer=tokenizer)
        return _windows(text.train, text.heldout, window, corpora.sources()[data]["sha256"])
    path = Path(data)
    raw = _read(path)
    digest = hashlib.sha256(raw).hexdigest()
    text = _decode(path, raw)
    if path.suffix == ".jsonl":
        return _completions(path, text, tokenizer, limit, digest)
    ids = torch.tensor([*tokenizer.encode(text), tokenizer.end])
    held = max(len(ids) // 10, window + 1)  # the end of the text: no window lies in both
    if len(ids) - held <= window:
        raise CorpusError(
            f"{path} is too short: {len(ids)} tokens, and windows of {window} need {2 * (window + 1)} to train on some and "
            "hold some out; give a longer text or a smaller --block"
        )
    return _windows(ids[:-held], ids[-held:], window, digest)


# a text


def _windows(train, heldout, window, digest):
    def batches(rows, seed, start):
        return corpora.batches(train, rows, window, seed, start)

    return Dataset(batches, corpora.heldout_batches(heldout, HELD // 4, window, limit=4), digest, completes=False)


# rows of prompt and completion


def _records(tokenizer, limit):
    def made(rows, seed):
        found = [_row(r.sentence, r.answer, tokenizer) for r in make_records(rows, seed)]
        if (longest := max(map(_length, found))) > limit:
            raise ValueError(f"a record of {longest} tokens does not fit: a row may have {limit} here")
        return found

    def batches(rows, seed, start):
        while True:
            yield _padded(made(rows, seed * 1_000_003 + start), tokenizer.end)
            start += 1

    return Dataset(batches, [_padded(made(HELD, UNSEEN * 1_000_003), tokenizer.end)], "records", completes=True)


def _completions(path, text, tokenizer, limit, digest):
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            row = _row(*_fields(f"{path}, line {number}", line), tokenizer)
            if _length(row) > limit:
                raise CorpusError(
                    f"{path}, line {number} is too long: {_length(row)} tokens, and {limit} fit; shorten or drop it"
                )
            rows.append(row)
    if len(rows) < 2:
        raise CorpusError(f"{path} has one row: give at least two, as every tenth, or else the last, is held out")
    held = rows[9::10] or rows[-1:]
    train = [row for i, row in enumerate(rows) if i % 10 != 9] if len(rows) >= 10 else rows[:-1]

    def batches(rows, seed, start):
        while True:  # batch i depends on (seed, i) only, as a corpus's does
            generator = torch.Generator().manual_seed(seed * 1_000_003 + start)
            at = torch.randint(len(train), (rows,), generator=generator).tolist()
            yield _padded([train[i] for i in at], tokenizer.end)
            start += 1

    return Dataset(batches, [_padded(held[:HELD], tokenizer.end)], digest, completes=True)


def _fields(where, line):
    wanted = 'a line is {"prompt": "...", "completion": "..."}'
    try:
        row = json.loads(line)
        fields = [row[key] for key in ("prompt", "completion")]
    except RecursionError:
        raise CorpusError(f"{where} is nested too deeply: {wanted}") from None
    except json.JSONDecodeError as error:
        raise CorpusError(f"{where} is not JSON ({error.msg} at column {error.colno}): {wanted}") from None
    except (KeyError, TypeError) as error:
        what = f"has no {error}" if isinstance(error, KeyError) else "is not an object"
        raise CorpusError(f"{where} {what}: {wanted}") from None
    for key, field in zip(("prompt", "completion"), fields):
        if not isinstance(field, str) or not field.strip():
            raise CorpusError(f"{where}: its {key} is not a text or is empty: {wanted}")
        if any(0xD800 <= ord(c) < 0xE000 for c in field):
            raise CorpusError(f"{where}: its {key} holds half of a character (a lone surrogate): write it whole")
    return fields


def _row(prompt, completion, tokenizer):
    return tokenizer.encode(prompt + BREAK), [*tokenizer.encode(completion), tokenizer.end]


def _length(row):
    return len(row[0]) + len(row[1]) - 1  # inputs: the last token is only a target


def _padded(rows: list[Row], end: int) -> Batch:
    """Rows as inputs and targets (rows, longest row): only completions count towards the loss."""
    width = max(map(_length, rows))
    x, y = torch.full((len(rows), width), end), torch.full((len(rows), width), IGNORE)
    for i, (prompt, completion) in enumerate(rows):
        x[i, : len(prompt) + len(completion) - 1] = torch.tensor((prompt + completion)[:-1])
        y[i, len(prompt) - 1 : len(prompt) + len(completion) - 1] = torch.tensor(completion)
    return x, y


# a file of the learner's own


def _read(path):
    known = f"choose one of {', '.join(names())}, or give a .txt or .jsonl file"
    if path.is_dir():
        raise CorpusError(f"{path} is a folder: give one .txt or .jsonl file in it")
    if path.suffix not in (".txt", ".jsonl"):
        kind = f"{path} is neither .txt nor .jsonl" if path.exists() else f"there is no corpus called {str(path)!r}"
        raise CorpusError(f"{kind}: {known}")
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise CorpusError(f"there is no file {path}: {known}") from None
    except OSError as error:
        raise CorpusError(f"{path} cannot be read ({error.strerror}): {known}") from None


def _decode(path, raw):
    if not raw.strip():
        raise CorpusError(f"{path} is empty: put some text into it")
    if b"\0" in raw:
        raise CorpusError(f"{path} is not text (it is binary, or UTF-16): save it as UTF-8 text")
    try:
        return raw.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise CorpusError(
            f"{path} is not UTF-8 (line {line}, byte 0x{raw[error.start]:02x}): save it as UTF-8"
        ) from None
