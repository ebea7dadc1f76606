"""What `finetune` reads: a corpus by name or a learner's own file, as batches in any base's tokens.

A text becomes windows, its loss on every token; rows of prompt and completion have theirs on the completion alone.
Knows nothing about models.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass

import torch

from llm.errors import SettingError, TextError
from llm.paths import user_path
from llm.text import corpora, download, txt
from llm.text.batches import UNSEEN, Batch, batches, draw, endless, heldout_batches
from llm.text.examples import Example, pad
from llm.text.jsonl import read_rows
from llm.text.records import make_records, record_batches
from llm.text.txt import losses
from llm.tokenizer import GPT2, Tokenizer

HELD = 32  # rows that the loss before and after is measured on: a few seconds, also for a real model
WINDOW = 64  # tokens of a window, unless somebody says otherwise


@dataclass(frozen=True)
class Dataset:
    """Training batches by (rows, seed, start), held-out batches, and a digest that tells one text from another.

    completes: made of prompts and completions, so a prompt is put as `examples.ask` puts it when the model is asked.
    skipped: how many rows of the file are too long and left out. notes: what of the file has no effect, in sentences.
    """

    batches: Callable[[int, int, int], Iterator[Batch]]
    heldout: list[Batch]
    digest: str
    completes: bool
    skipped: int = 0
    notes: tuple[str, ...] = ()


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
        some = [] if tokenizer is GPT2 else [next(iter(corpora.documents(data).values()))]
        return _text(text.train, text.heldout, window, tokenizer, download.sources()[data]["sha256"], some)
    path = user_path(data)
    raw = txt.read(path, names())
    digest = hashlib.sha256(raw).hexdigest()
    text = txt.decode(path, raw)
    if path.suffix.lower() == ".jsonl":
        rows, skipped, notes = read_rows(path, text, tokenizer, limit, skip_long)
        return _completions(path, rows, tokenizer, digest, skipped, notes)
    ids = torch.tensor([*tokenizer.encode(text), tokenizer.end])
    held = max(len(ids) // 10, window + 1)  # the end of the text: no window lies in both
    if len(ids) - held <= window:
        raise TextError(
            f"{path} is too short: {len(ids)} tokens, and windows of {window} need {2 * (window + 1)} to train on some and "
            "hold some out; give a longer text or a smaller --block"
        )
    return _text(ids[:-held], ids[-held:], window, tokenizer, digest, [text])


def _text(train, heldout, window, tokenizer, digest, texts):
    def made(rows, seed, start):
        return batches(train, rows, window, seed, start, tokenizer.begin)

    held = heldout_batches(heldout, HELD // 4, window, limit=4, begin=tokenizer.begin)
    return Dataset(made, held, digest, completes=False, notes=losses(texts, tokenizer))


def _records(tokenizer, limit):
    def made(rows, seed, start):
        for x, y in record_batches(rows, None, seed, start=start, tokenizer=tokenizer):
            if x.size(1) > limit:
                raise SettingError(f"a record of {x.size(1)} tokens does not fit: a row may have {limit} here")
            yield x, y

    notes = losses([text for record in make_records(HELD, UNSEEN) for text in astuple(record)], tokenizer)
    return Dataset(made, [next(made(HELD, UNSEEN, 0))], "records", completes=True, notes=notes)


def _completions(path, rows: list[Example], tokenizer, digest, skipped, notes):
    if len(rows) < 2:
        few = f"{('no row', 'one row')[len(rows)]}" + (f" besides {skipped} that are too long" if skipped else "")
        raise TextError(f"{path} has {few}: give at least two, as every tenth, or else the last, is held out")
    # Copies of a row are all held out or all trained on, so training has seen no held-out answer. Rows that share only
    # their prompt may be split: in many files the same instruction is the prompt of every row.
    rows = [(tuple(prompt), tuple(completion)) for prompt, completion in rows]
    different = list(dict.fromkeys(rows))
    held = dict.fromkeys(different[9::10] or different[-1:])
    train = [row for row in rows if row not in held] or rows
    prompts = {prompt for prompt, _ in train}
    facts = {
        "{:,} rows are left out: they are too long": skipped,
        "copies of rows: {:,}; all copies of a row are held out together, or trained on together": len(rows)
        - len(different),
        "all rows are the same, so the held-out loss says nothing about new rows: give rows that differ": len(
            held.keys() & train
        ),
        "held-out rows whose prompt is trained on as well: {:,}": sum(row[0] in prompts for row in held),
    }
    notes += tuple(fact.format(n) for fact, n in facts.items() if n)

    def made(rows, seed, start):
        def batch(own):
            return pad([train[i] for i in draw(len(train), rows, own).tolist()], tokenizer.end)

        return endless(batch, seed, start)

    return Dataset(made, [pad([*held][:HELD], tokenizer.end)], digest, completes=True, skipped=skipped, notes=notes)
