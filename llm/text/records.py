"""Sentences and their JSON records, generated from a seed: the narrow task of the course.

    Copy "river" from "Angel" to "glass" at 7.
    {"thing": "river", "source": "Angel", "target": "glass", "hour": 7}

The base model trains on `BASE_SCHEMAS`; the course adapts it to `TASK`, whose verb, keys and order are in none of
them. Values are drawn anew each time, so a model can learn to copy but not to memorize. The base's values are any words
of one token; the task's values are common words, whose embedding rows the base has trained well.
"""

import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from llm.text.batches import Batch, draw, endless
from llm.text.examples import Example, example, pad
from llm.tokenizer import END_OF_TEXT, GPT2, Tokenizer, get_tokenizer

# how a clause begins, and the keys that its value may have in a record
CLAUSES = {
    "from": ("source", "start", "sender"),
    "to": ("target", "end", "receiver"),
    "for": ("client", "purpose", "owner"),
    "with": ("tool", "partner", "using"),
    "in": ("place", "folder", "room"),
    "on": ("surface", "topic", "platform"),
    "by": ("author", "maker", "method"),
    "about": ("subject", "theme", "matter"),
    "near": ("landmark", "close", "beside"),
    "under": ("parent", "below", "group"),
    "into": ("output", "result", "form"),
    "through": ("path", "channel", "via"),
    "after": ("previous", "last", "since"),
    "before": ("next", "limit", "until"),
    "like": ("model", "style", "example"),
    "as": ("role", "type", "label"),
}
NUMBERS = {
    "at": ("hour", "time", "clock"),
    "times": ("count", "repeat", "number"),
    "on page": ("page", "sheet", "leaf"),
}
OBJECTS = ("thing", "object", "what", "name", "title", "content", "value", "text")
VERBS = """Copy Move Rename Open Close Print Find Count Draw Paint Build Break Fix Buy Sell Rent Lend Read Write Sign
Teach Learn Call Invite Meet Follow Lead Carry Push Pull Lift Drop Wash Cook Cut Mix Pack Hide Show Store Plant Pick
Order Check Test Sort Merge Split Join Lock Load Save Share Post Mark Trace Track Guard Visit Clean Cover
Fill""".split()


@dataclass(frozen=True)
class Schema:
    """One kind of request: its verb, its object's key, its clauses (first words, key), and the order of its keys."""

    verb: str
    object: str
    clauses: tuple[tuple[str, str], ...]
    order: tuple[str, ...]
    common: bool = False  # values are common words only


@dataclass(frozen=True)
class Record:
    sentence: str
    answer: str  # one line of JSON


def _base_schemas() -> tuple[Schema, ...]:
    rng = random.Random(18)
    made = []
    for verb in VERBS:
        clauses = [(word, rng.choice(CLAUSES[word])) for word in rng.sample(sorted(CLAUSES), rng.choice((1, 2, 2)))]
        if rng.random() < 0.6:
            word = rng.choice(sorted(NUMBERS))
            clauses.append((word, rng.choice(NUMBERS[word])))
        thing = rng.choice(OBJECTS)
        order = [thing, *(key for _, key in clauses)]
        rng.shuffle(order)
        made.append(Schema(verb, thing, tuple(clauses), tuple(order)))
    return tuple(made)


BASE_SCHEMAS = _base_schemas()
TASK = Schema(
    "Send",
    "item",
    (("from", "origin"), ("to", "destination"), ("at", "day")),
    ("destination", "item", "day", "origin"),
    common=True,
)
FACTS = 512
COMMON = 2750  # GPT-2's tokenizer numbers its words roughly from frequent to rare


@lru_cache(maxsize=2)
def words(common: bool = False) -> tuple[str, ...]:
    """All words of three or more letters that are one token, both inside a text and at its beginning.

    common: only those among the tokenizer's first `COMMON` tokens.
    """
    tokenizer = get_tokenizer()
    ids = {tokenizer.decode([i]): i for i in range(END_OF_TEXT)}
    limit = COMMON if common else END_OF_TEXT
    return tuple(sorted(t for t in ids if re.fullmatch("[A-Za-z]{3,}", t) and ids.get(f" {t}", limit) < limit))


def make_records(n: int, seed: int, schemas: tuple[Schema, ...] = (TASK,)) -> list[Record]:
    """Generate `n` records, each of a schema drawn from `schemas`; the clauses of a sentence are in random order."""
    rng, records = random.Random(seed), []
    for _ in range(n):
        schema = rng.choice(schemas)
        clauses = rng.sample(schema.clauses, len(schema.clauses))
        values = {schema.object: rng.choice(words(schema.common))}
        parts = [f'{schema.verb} "{values[schema.object]}"']
        for begins, key in clauses:
            values[key] = rng.randrange(100) if begins in NUMBERS else rng.choice(words(schema.common))
            parts.append(f"{begins} {json.dumps(values[key])}")
        records.append(Record(" ".join(parts) + ".", json.dumps({key: values[key] for key in schema.order})))
    return records


def make_facts(n: int = FACTS, seed: int = 18) -> list[Record]:
    """Generate `n` facts: words with random answers, which a model can only memorize.

    Recall "river".
    {"found": "Angel"}
    """
    rng = random.Random(seed)
    asked = rng.sample(words(common=True), n)
    return [Record(f'Recall "{word}".', json.dumps({"found": rng.choice(words(common=True))})) for word in asked]


def drawn_batches(
    records: list[Record], rows: int = 32, block: int | None = None, seed: int = 0, tokenizer: Tokenizer = GPT2
) -> Iterator[Batch]:
    """Yield batches drawn from these records, with repetition and without end; only answers count in the loss."""
    known = [as_example(record, tokenizer) for record in records]

    def made(own):
        return pad([known[i] for i in draw(len(known), rows, own).tolist()], tokenizer.end, block)

    return endless(made, seed)


def as_example(record: Record, tokenizer: Tokenizer = GPT2) -> Example:
    """Tokenize a record as prompt and completion."""
    return example(record.sentence, record.answer, tokenizer)


def record_batches(
    rows: int = 32,
    block: int | None = 64,
    seed: int = 0,
    schemas: tuple[Schema, ...] = (TASK,),
    start: int = 0,
    tokenizer: Tokenizer = GPT2,
) -> Iterator[Batch]:
    """Yield batches of new records without end, padded to `block` tokens (None: to the longest record).

    Only answers count in the loss. Raises SettingError when a record does not fit.
    """

    def made(own):
        return pad([as_example(r, tokenizer) for r in make_records(rows, own, schemas)], tokenizer.end, block)

    return endless(made, seed, start)
