"""What the base model reads: how many rows of each register a batch has."""

import zlib
from collections.abc import Iterator

import torch

from llm.text import corpora
from llm.text.batches import UNSEEN, Batch, batches, heldout_batches
from llm.text.records import BASE_SCHEMAS, record_batches

# Rows of a pretraining batch by corpus: 60 windows of text and 24 records, 5,376 positions a step. The more records, the
# sooner a word of a sentence is copied right; once it is, after about 3,500 steps, the text gains from each row more.
MIXTURE = {"speeches": 24, "shakespeare": 20, "python": 16, "records": 24}


def mixture(seed: int = 0, start: int = 0) -> Iterator[Batch]:
    """Pretraining batches: rows of every register, in the proportions of `MIXTURE`; batch i depends on (seed, i)."""
    streams = []
    for name, rows in MIXTURE.items():
        own_seed = seed * 1009 + zlib.crc32(name.encode()) % 1000
        if name == "records":
            streams.append(record_batches(rows, seed=own_seed, schemas=BASE_SCHEMAS, start=start))
        else:
            streams.append(batches(corpora.load(name).train, rows, seed=own_seed, start=start))
    for parts in zip(*streams):
        yield torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])


def heldout(limit: int = 4) -> dict[str, list[Batch]]:
    """Held-out batches of each register in the mixture: documents, and records, that training never sees."""
    text = [name for name in MIXTURE if name != "records"]
    found = {name: heldout_batches(corpora.load(name).heldout, limit=limit) for name in text}
    unseen = record_batches(32, seed=UNSEEN, schemas=BASE_SCHEMAS)
    return found | {"records": [next(unseen) for _ in range(limit)]}
