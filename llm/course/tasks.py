"""What the course adapts the base to: three tasks, and the arms that learn them.

records: a sentence to its JSON record in a schema that the base has never seen, the loss on the record alone.
facts: 512 words and what was found at each. The base cannot help: what an update can store is what is measured.
shakespeare: the register of the plays, trained on every token. Inside a play the base needs no training to go on in
verse; so what is measured is a play's text after the opening of a speech, where the base expects more speech.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn as nn

from llm import bases
from llm.errors import SettingError
from llm.finetune.settings import COURSE_RATE
from llm.lora import apply_lora
from llm.loss import IGNORE
from llm.model import GPT
from llm.relatives import METHODS
from llm.text import corpora
from llm.text.batches import UNSEEN, Batch, batches, heldout_batches
from llm.text.examples import ask, pad
from llm.text.records import FACTS, Record, as_example, drawn_batches, make_facts, make_records, record_batches
from llm.tokenizer import GPT2, Tokenizer

WIDTH = 44  # tokens of a row of records: the longest has 41, and a context of 64 would be padding for a third


@dataclass(frozen=True)
class Task:
    """A name, training batches by seed, and held-out batches."""

    name: str
    batches: Callable[[int], Iterator[Batch]]
    heldout: list[Batch]


def load_task(
    name: str,
    limit: int = 4,
    tokenizer: Tokenizer = GPT2,
    rows: int | None = None,
    block: int | None = None,
    examples: int | None = None,
) -> Task:
    """The task called "records", "facts" or "shakespeare"; `limit` held-out batches of 32 rows. Of the facts none is held
    out: whether they are stored is the question.

    rows and block: of a training batch; by default as many as the course's model trains well on. examples: how many
    different ones to train on, drawn by the seed; by default fresh records for ever, 512 facts, all of the plays.
    Raises SettingError for another name, TextError when the text cannot be had.
    """
    if name == "records":
        block = block or (WIDTH if tokenizer is GPT2 else 64)
        make = partial(record_batches, block=block, tokenizer=tokenizer)
        unseen = make(32, seed=UNSEEN)

        def made(seed):
            if examples:
                return drawn_batches(make_records(examples, seed), rows or 32, block, seed, tokenizer)
            return make(rows or 32, seed=seed)

        return Task(name, made, [next(unseen) for _ in range(limit)])
    if name == "shakespeare":
        block, text = block or 64, corpora.load(name, tokenizer=tokenizer)
        plays = heldout_batches(text.heldout, block=block, limit=limit)
        held = [_after(*pair) for pair in zip(speeches(limit, tokenizer, block), plays)]
        made = partial(batches, text.train, rows or 16, block, begin=tokenizer.begin, windows=examples)
        return Task(name, lambda seed: made(seed=seed), held)
    if name == "facts":
        facts = make_facts(examples or FACTS)
        known = [as_example(fact, tokenizer) for fact in facts[: 32 * limit]]
        held = [pad(known[i : i + 32], tokenizer.end) for i in range(0, len(known), 32)]
        return Task(name, lambda seed: drawn_batches(facts, rows or 32, block, seed, tokenizer), held)
    raise SettingError(f'there is no task called {name!r}: choose "records", "facts" or "shakespeare"')


def speeches(limit: int = 4, tokenizer: Tokenizer = GPT2, block: int = 64) -> list[Batch]:
    """Held-out speeches, on which forgetting is measured: the base knows them and no task trains them."""
    text = corpora.load("speeches", tokenizer=tokenizer).heldout
    return heldout_batches(text, block=block, limit=limit, begin=tokenizer.begin)


def _after(first: Batch, second: Batch) -> Batch:
    """The left half of each row of `first`, then that of `second`, which alone is graded."""
    half = first[0].size(1) // 2
    x = torch.cat((first[0][:, :half], second[0][:, :half]), dim=1)
    return x, torch.cat((torch.full_like(first[1][:, :half], IGNORE), second[1][:, :half]), dim=1)


@dataclass(frozen=True)
class Arm:
    """One way to fine-tune: what it makes of a base, and its peak learning rate."""

    prepare: Callable[[GPT], nn.Module]
    lr: float


# One rate for both tasks, from data/results/rates.csv (`python -m llm experiments rates`). On the plays LoRA goes lower
# by 0.08 with three times this one; on the records three times the rate costs each method much of its English.
ARMS = {
    "full": Arm(lambda model: model.requires_grad_(True), 1e-3),
    "lora": Arm(lambda model: apply_lora(model, r=8, alpha=8, scaling="alpha/r"), COURSE_RATE),
    "norm": Arm(METHODS["norm"].prepare, 3e-2),  # the cheap control: the final norm's gain and shift
}


def answers(
    model: nn.Module, records: list[Record], max_new_tokens: int = 40, tokenizer: Tokenizer = GPT2
) -> list[str]:
    """What the model writes after each record's sentence, greedily, up to the end of the text."""
    found = [""] * len(records)
    by_length: dict[int, list[int]] = {}
    device = next((p.device for p in model.parameters()), None) if isinstance(model, nn.Module) else None
    prompts = [tokenizer.start(ask(record.sentence)) for record in records]
    for i, ids in enumerate(prompts):  # prompts of one length go through the model together
        by_length.setdefault(len(ids), []).append(i)
    for length, rows in by_length.items():
        together = torch.tensor([prompts[i] for i in rows], device=device)
        out = bases.generate(model, together, max_new_tokens, tokenizer, temperature=0.0, stop=tokenizer.end)
        for i, ids in zip(rows, out.tolist()):
            found[i] = bases.new_text(tokenizer, ids[:length], ids[length:])
    return found


def respond(model: GPT, task: str, prompt: str, seed: int = 4) -> str:
    """What the model writes after a prompt: the likeliest record, or 60 sampled tokens of text after the prompt itself."""
    if task == "records":
        return answers(model, [Record(prompt, "")])[0]
    ids = torch.tensor([GPT2.encode(prompt)], device=next(model.parameters()).device)
    written = model.generate(ids, 60, temperature=0.8, top_k=40, seed=seed, stop=GPT2.end)[0].tolist()
    return bases.new_text(GPT2, [], written)


def score(found: list[str], records: list[Record]) -> dict[str, float]:
    """The shares of answers that parse as JSON, have the schema's keys in their order, and are right throughout."""
    parsed = [_parse(answer) for answer in found]
    wanted = [json.loads(record.answer) for record in records]
    keys = [isinstance(p, dict) and list(p) == list(w) for p, w in zip(parsed, wanted)]
    n = len(records)
    return {
        "parses": sum(p is not NOT_JSON for p in parsed) / n,
        "keys": sum(keys) / n,
        "right": sum(k and p == w for k, p, w in zip(keys, parsed, wanted)) / n,
    }


NOT_JSON = object()  # None is what "null" parses to


def _parse(text):
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return NOT_JSON
