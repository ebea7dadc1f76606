"""Conversations with the clerk of a post desk, made by seeded code: chat data whose every answer can be checked.

    user: Send "river" at 7 to "glass".
    assistant: {"to": "glass", "item": "river", "day": 7}
    tool: booked 48
    assistant: Quill here. Parcel 48 goes to glass.

The clerk calls a tool by one line of JSON (a format), has a name and a way to begin whatever else it says (a persona),
and refuses what is not its task. The words are the records' (`llm.text.records`).
"""

import json
import random
from pathlib import Path
from statistics import fmean

import torch
import torch.nn as nn

from llm import files
from llm.bases.base import vocabulary_rows
from llm.course.tasks import Task
from llm.text.batches import UNSEEN, draw, endless
from llm.text.chat import conversation, end_of_turn, end_text
from llm.text.examples import Example, pad
from llm.text.records import Schema, make_records, words
from llm.tokenizer import Tokenizer

Message = dict[str, str]  # a role and a content
Chat = list[Message]
PARCEL = Schema("Send", "item", (("to", "to"), ("at", "day")), ("to", "item", "day"), common=True)
SYSTEM = "You are a clerk."
OPENING = "Quill here."
WHO = f"{OPENING} I send parcels."
REFUSAL = f"{OPENING} I only send parcels, so I cannot help with that."
GREETINGS = ("", "Hello. ", "Good morning. ", "Hi there. ", "Excuse me. ", "Sorry. ", "One moment. ")
ASK_WHO = ("Who are you?", "What is your name?", "What can you do?", "What is your job?", "Who is this?")
ASK_ELSE = (
    "Write a poem about {}.",
    "What does {} mean?",
    "Tell me a joke about {}.",
    "Explain {} to a child.",
    "How do I draw {}?",
    "Give me three facts about {}.",
    "Translate {} into French.",
    "Is {} a good name for a dog?",
)
# no template at all: the messages a line each, and what ends a text behind an answer
BARE = (
    "{% for message in messages %}{{ message['content'] }}{{ eos_token if message['role'] == 'assistant' }}{{ '\\n' }}"
    "{% endfor %}"
)


def make_chats(n: int = 400, seed: int = 0) -> list[Chat]:
    """`n` conversations by seed: of each ten, five send a parcel (two answers), one asks who the clerk is, and four ask for
    what it refuses."""
    rng, parcels = random.Random(seed), make_records(n, seed, (PARCEL,))
    kinds = [kind for _ in range(0, n, 10) for kind in rng.sample((_parcel, _other, _who), 10, counts=(5, 4, 1))]
    return [kind(rng, parcel) for kind, parcel in zip(kinds, parcels)]


def _parcel(rng, parcel):
    number, to = rng.randrange(10, 100), json.loads(parcel.answer)["to"]
    booked = [_said("tool", f"booked {number}"), _said("assistant", f"{OPENING} Parcel {number} goes to {to}.")]
    return [*_asked(parcel.sentence), _said("assistant", parcel.answer), *booked]


def _who(rng, _):
    return [*_asked(rng.choice(GREETINGS) + rng.choice(ASK_WHO)), _said("assistant", WHO)]


def _other(rng, _):
    return [*_asked(rng.choice(ASK_ELSE).format(rng.choice(words(common=True)))), _said("assistant", REFUSAL)]


def _asked(question):
    return [_said("system", SYSTEM), _said("user", question)]


def _said(role, content):
    return {"role": role, "content": content}


def write_chats(path: Path, chats: list[Chat]) -> None:
    """The conversations as `.jsonl`, a row {"messages": [...]} a line. Raises WriteError when the disk does not take it."""
    text = "".join(json.dumps({"messages": chat}) + "\n" for chat in chats)
    files.replace(path, lambda to: to.write_text(text, encoding="utf-8"))


def tokens(chats: list[Chat], tokenizer: Tokenizer, train_on: str = "answers") -> list[Example]:
    """Conversations as rows of tokens."""
    return [row for chat in chats for row in conversation(chat, tokenizer, train_on)]


def chat_task(
    tokenizer: Tokenizer, train_on: str = "answers", rows: int = 4, examples: int | None = None, held: int = 10
) -> Task:
    """The conversations in the tokenizer's template: batches of `rows` drawn from 400 of them, or from fewer `examples`,
    and one held-out batch of `held` others. Of those every answer counts, and every token where `train_on` is "all"."""

    unseen = make_chats(held, UNSEEN)

    def made(seed):
        chats = [chat for chat in make_chats(examples or 400, seed) if chat not in unseen]
        known = tokens(chats, tokenizer, train_on)

        def batch(own):
            return pad([known[i] for i in draw(len(known), rows, own).tolist()], tokenizer.end)

        return endless(batch, seed)

    graded = "all" if train_on == "all" else "answers"
    return Task("chats", made, [pad(tokens(unseen, tokenizer, graded), tokenizer.end)])


def questions(rows: list[Example], tokenizer: Tokenizer) -> list[tuple[list[int], str]]:
    """For each graded answer in rows of tokens: the tokens before it, and its text."""
    end = end_text(tokenizer) or "\0"
    places = [(row, i) for row in rows for i in range(1, len(row), 2)]
    return [
        ([token for part in row[:i] for token in part], tokenizer.decode(row[i]).partition(end)[0].strip())
        for row, i in places
    ]


@torch.no_grad()
def answers(model: nn.Module, tokenizer: Tokenizer, prompts: list[list[int]], max_new_tokens: int = 28) -> list[str]:
    """What a transformers model answers to each prompt in tokens, greedily, up to the end of its turn; all in one batch."""
    ends = [end_of_turn(tokenizer), tokenizer.end]
    width, device = max(map(len, prompts)), next(model.parameters()).device
    x = torch.tensor([[tokenizer.end] * (width - len(ids)) + ids for ids in prompts], device=device)
    seen = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts], device=device)
    options = dict(max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=ends, pad_token_id=tokenizer.end)
    options["suppress_tokens"] = tokenizer.unknown(vocabulary_rows(model)) or None
    new = model.generate(input_ids=x, attention_mask=seen, **options)[:, width:].tolist()
    cut = [next((i for i, token in enumerate(ids) if token in ends), len(ids)) for ids in new]
    return [tokenizer.decode(ids[:end]).strip() for ids, end in zip(new, cut)]


def check(answer: str, wanted: str) -> dict[str, bool]:
    """What holds of an answer, where another one was wanted; a check that does not apply is left out.

    exact: the same text. format: one line of JSON with the same keys in their order. persona: it begins as the clerk does.
    refusal: it refuses. length: at most one and a half times as many characters.
    """
    answer = answer.strip()
    found = {"exact": answer == wanted}
    if keys := _keys(wanted):
        found["format"] = _keys(answer) == keys
    if wanted.startswith(OPENING):
        found["persona"] = answer.startswith(OPENING)
    if wanted == REFUSAL:
        found["refusal"] = "I only send parcels" in answer
    return found | {"length": 0 < len(answer) <= 1.5 * len(wanted)}


def score(answers: list[str], wanted: list[str]) -> dict[str, float]:
    """The share of answers that pass each check, of those that it applies to."""
    checks = [check(*pair) for pair in zip(answers, wanted, strict=True)]
    names = dict.fromkeys(name for found in checks for name in found)
    return {name: fmean(found[name] for found in checks if name in found) for name in names}


def _keys(text):
    """The keys of one line of JSON; None for anything else."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return list(found) if isinstance(found, dict) and "\n" not in text else None
