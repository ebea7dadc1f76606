"""What `finetune` reads: a corpus by name or a learner's own file, as batches in any base's tokens.

A text becomes windows, its loss on every token; rows of prompt and completion have theirs on the completion alone.
Knows nothing about models.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from llm.errors import SettingError, TextError
from llm.text import corpora, decoding, download
from llm.text.batches import UNSEEN, Batch, batches, draw, endless, heldout_batches
from llm.text.examples import Example, pad
from llm.text.jsonl import read_rows
from llm.text.records import record_batches
from llm.tokenizer import GPT2, Tokenizer

HELD = 32  # rows that the loss before and after is measured on: a few seconds, also for a real model
WINDOW = 64  # tokens of a window, unless somebody says otherwise


@dataclass(frozen=True)
class Dataset:
    """Training batches by (rows, seed, start), held-out batches, and a digest that tells one text from another.

    completes: made of prompts and completions, so a prompt is put as `examples.ask` puts it when the model is asked.
    skipped: rows of the file that were left out because they are too long.
    """

    batches: Callable[[int, int, int], Iterator[Batch]]
    heldout: list[Batch]
    digest: str
    completes: bool
    skipped: int = 0


def names() -> tuple[str, ...]:
    """The corpora that `load_dataset` knows."""
    return *download.sources(), "records"


def load_dataset(
    data: str, tokenizer: Tokenizer = GPT2, context: int = 64, block: int | None = None, skip_long: bool = False
) -> Dataset:
    """The corpus called `data`, or the learner's file of that name: `.txt`, or `.jsonl` with a prompt and a completion
    a line.

    block: tokens of a window (64, or the context if that is shorter); the most that a row may have (the context).
    skip_long: leave out the rows of a file that have more.
    Raises TextError when the text cannot be had or used, and SettingError when block does not fit the context.
    """
    if block is not None and not 1 <= block <= context:
        raise SettingError(f"--block {block} does not fit this base: its context takes 1 to {context} tokens")
    window, limit = block or min(WINDOW, context), block or context
    if data == "records":
        return _records(tokenizer, limit)
    if data in download.sources():
        text = corpora.load(data, tokenizer=tokenizer)
        return _text(text.train, text.heldout, window, tokenizer.begin, download.sources()[data]["sha256"])
    path = Path(data).expanduser()
    raw = decoding.read(path, names())
    digest = hashlib.sha256(raw).hexdigest()
    text = decoding.decode(path, raw)
    if path.suffix.lower() == ".jsonl":
        rows, skipped = read_rows(path, text, tokenizer, limit, skip_long)
        return _completions(path, rows, tokenizer, digest, skipped)
    ids = tokenizer.encode(text)
    ids = torch.tensor(ids + [tokenizer.end])
    held = max(len(ids) // 10, window + 1)  # the end of the text: no window lies in both
    if len(ids) - held <= window:
        raise TextError(
            f"{path} is too short: {len(ids)} tokens, and windows of {window} need {2 * (window + 1)} to train on some and "
            "hold some out; give a longer text or a smaller --block"
        )
    return _text(ids[:-held], ids[-held:], window, tokenizer.begin, digest)


def _text(train, heldout, window, begin, digest):
    def made(rows, seed, start):
        return batches(train, rows, window, seed, start, begin)

    return Dataset(made, heldout_batches(heldout, HELD // 4, window, limit=4, begin=begin), digest, completes=False)


def _records(tokenizer, limit):
    longest = partial(record_batches, block=None, tokenizer=tokenizer)

    def made(rows, seed, start):
        for x, y in longest(rows, seed=seed, start=start):
            if x.size(1) > limit:
                raise SettingError(f"a record of {x.size(1)} tokens does not fit: a row may have {limit} here")
            yield x, y

    return Dataset(made, [next(made(HELD, UNSEEN, 0))], "records", completes=True)


def _completions(path, rows: list[Example], tokenizer, digest, skipped):
    if len(rows) < 2:
        few = f"{('no row', 'one row')[len(rows)]}" + (f" besides {skipped} that are too long" if skipped else "")
        raise TextError(f"{path} has {few}: give at least two, as every tenth, or else the last, is held out")
    held = rows[9::10] or rows[-1:]
    train = [row for i, row in enumerate(rows) if i % 10 != 9] if len(rows) >= 10 else rows[:-1]

    def made(rows, seed, start):
        def batch(own):
            return pad([train[i] for i in draw(len(train), rows, own).tolist()], tokenizer.end)

        return endless(batch, seed, start)

    return Dataset(made, [pad(held[:HELD], tokenizer.end)], digest, completes=True, skipped=skipped)
