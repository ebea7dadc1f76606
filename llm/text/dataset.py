"""What `finetune` trains on: a corpus by name or a learner's own file, as batches in any base's tokens.

A text is cut into windows, and every token counts in the loss. For rows of prompt and completion only the completion
counts, and for conversations only the answers. Knows nothing about models.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass
from pathlib import Path

import torch

from llm.errors import SettingError, TextError
from llm.paths import user_path
from llm.text import corpora, download, txt
from llm.text.batches import UNSEEN, Batch, batches, draw, endless, heldout_batches
from llm.text.examples import Example, pad
from llm.text.records import make_records, record_batches
from llm.text.tables import SUFFIXES, Table, named, read_table
from llm.text.txt import unreadable
from llm.tokenizer import GPT2, Tokenizer

HELD = 32  # held-out rows to measure the loss on: this takes a few seconds even for a real model
WINDOW = 64  # default tokens per window


@dataclass(frozen=True)
class Dataset:
    """Training batches from (rows, seed, start), held-out batches, and a digest that identifies the text.

    completes: the data are prompts and completions, so `examples.ask` formats a prompt for the trained model. skipped:
    the number of rows left out as too long. notes: sentences about the file, such as what in it has no effect. kind:
    the format's name. chat: the data are conversations in the tokenizer's template. size: the number of training rows,
    or of training windows of a text; None if they never end. rows: all rows as tokens, training rows first.
    """

    batches: Callable[[int, int, int], Iterator[Batch]]
    heldout: list[Batch]
    digest: str
    completes: bool
    skipped: int = 0
    notes: tuple[str, ...] = ()
    kind: str = "text"
    chat: bool = False
    size: int | None = None
    rows: tuple[Example, ...] = ()


def names() -> tuple[str, ...]:
    """The names of the corpora that `load_dataset` knows."""
    return *download.sources(), "records"


def load_dataset(
    data: str,
    tokenizer: Tokenizer = GPT2,
    context: int = 64,
    block: int | None = None,
    skip_long: bool = False,
    fields: dict[str, str] | None = None,
    train_on: str = "answers",
) -> Dataset:
    """Load the corpus called `data`, or the file at that path: a `.txt`, or rows of one of `formats.FORMATS`.

    block: tokens per window of a text (default 64, or the context if shorter), or the most tokens of a row (default the
    context). skip_long: leave out rows of which nothing fits. fields: the file's field name for each of ours. train_on:
    what counts in the loss, one of `chat.TRAIN_ON`.
    Raises TextError when the text is missing or unusable, and SettingError when `block` does not fit the context.
    """
    check_block(block, context)
    window, limit = block or min(WINDOW, context), block or context
    if data == "records":
        return _records(tokenizer, limit)
    if data in download.sources():
        text = corpora.load(data, tokenizer=tokenizer)
        some = [] if tokenizer is GPT2 else [next(iter(corpora.documents(data).values()))]
        return _text(text.train, text.heldout, window, tokenizer, download.sources()[data]["sha256"], some)
    path = user_path(data)
    if path.suffix.lower() != ".txt" or path.is_dir():
        return _rows(path, read_table(path, tokenizer, limit, fields, train_on, names()), tokenizer, limit, skip_long)
    raw = txt.read(path, SUFFIXES, names())
    text = txt.decode(path, raw)
    ids = torch.tensor([*tokenizer.encode(text), tokenizer.end])
    held = max(len(ids) // 10, window + 1)  # tokens at the end of the text; no window spans both parts
    if len(ids) - held <= window:
        raise TextError(
            f"{path} is too short: {len(ids)} tokens, and windows of {window} need {2 * (window + 1)} to train on some and "
            "hold some out; give a longer text or a smaller --block"
        )
    return _text(ids[:-held], ids[-held:], window, tokenizer, hashlib.sha256(raw).hexdigest(), [text])


def check_block(block: int | None, context: int) -> None:
    """Raise SettingError when a window of `block` tokens does not fit the context."""
    if block is not None and not 1 <= block <= context:
        raise SettingError(f"--block {block} does not fit this base: its context takes 1 to {context} tokens")


def _text(train, heldout, window, tokenizer, digest, texts):
    def made(rows, seed, start):
        return batches(train, rows, window, seed, start, tokenizer.begin)

    held = heldout_batches(heldout, HELD // 4, window, limit=4, begin=tokenizer.begin)
    return Dataset(made, held, digest, completes=False, notes=unreadable(texts, tokenizer), size=len(train) // window)


def _records(tokenizer, limit):
    def made(rows, seed, start):
        for x, y in record_batches(rows, None, seed, start=start, tokenizer=tokenizer):
            if x.size(1) > limit:
                raise SettingError(f"a record of {x.size(1)} tokens does not fit: a row may have {limit} here")
            yield x, y

    notes = unreadable([text for record in make_records(HELD, UNSEEN) for text in astuple(record)], tokenizer)
    return Dataset(made, [next(made(HELD, UNSEEN, 0))], "records", completes=True, notes=notes, kind="records")


def _rows(path, table: Table, tokenizer, limit, skip_long):
    if table.long and not skip_long:
        are = f"{named([*table.long])} {'is' if len(table.long) == 1 else 'are'}"
        raise TextError(
            f"{are} too long: up to {max(table.long.values())} tokens, and {limit} fit; shorten them, or "
            "leave them out with --skip-long"
        )
    check_rows(path, table)
    train, held = ([part for row in rows for part in row] for rows in (table.train, table.heldout))

    def made(rows, seed, start):
        def batch(own):
            return pad([train[i] for i in draw(len(train), rows, own).tolist()], tokenizer.end)

        return endless(batch, seed, start)

    notes = ((f"rows that are too long are left out: {len(table.long):,}",) if table.long else ()) + table.notes
    own = dict(notes=notes, kind=table.kind, chat=table.chat, size=len(train), rows=(*train, *held))
    completes, some = table.kind == "prompt/completion", held[:HELD]
    heldout = [pad(some[i : i + HELD // 4], tokenizer.end) for i in range(0, len(some), HELD // 4)]
    return Dataset(made, heldout, table.digest, completes, len(table.long), **own)


def check_rows(path: Path, table: Table) -> None:
    """Raises TextError unless there are two rows that fit: one to train on and one to hold out."""
    if not table.train or len(table.lengths) - len(table.long) < 2:
        reasons = {"are too long": len(table.long), "have nothing to grade": len(table.bare)}
        besides = " and ".join(f"{n} that {why}" for why, n in reasons.items() if n)
        few = ("no row", "one row")[len(table.train)] + (f" besides {besides}" if besides else "")
        raise TextError(f"{path} has {few}: give at least two, as every tenth, or else the last, is held out")
