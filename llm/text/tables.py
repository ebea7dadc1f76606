"""Tokenizes a learner's rows: what is graded, what fits, and which rows are held out. Knows nothing about models."""

import hashlib
import shlex
from dataclasses import dataclass
from pathlib import Path

from llm.errors import SettingError, TextError
from llm.text import chat, rows, txt
from llm.text.examples import Example, ask, example, length
from llm.text.formats import Row, as_rows
from llm.text.txt import unreadable
from llm.tokenizer import Tokenizer

SUFFIXES = (".txt", *rows.SUFFIXES)
NAMED = 8  # rows that a sentence lists
Examples = tuple[tuple[tuple[int, ...], ...], ...]  # the examples made from one row, usually one


@dataclass(frozen=True)
class Table:
    """The rows of a learner's file as tokens, sorted by how they can be used.

    train, heldout: the usable rows, each as its examples. lengths: tokens of every row with something to grade, uncut.
    long: lengths of rows of which nothing fits, by place. cut, bare: places of rows cut, or with nothing to grade.
    """

    kind: str
    digest: str
    train: list[Examples]
    heldout: list[Examples]
    lengths: list[int]
    long: dict[str, int]
    cut: list[str]
    bare: list[str]
    notes: tuple[str, ...]
    chat: bool


def read_table(
    path: Path,
    tokenizer: Tokenizer,
    limit: int,
    fields: dict[str, str] | None = None,
    train_on: str = "answers",
    corpora: tuple[str, ...] = (),
) -> Table:
    """Read and tokenize the rows of a learner's file, or of a folder that `datasets` saved.

    limit: the most tokens of a row. A longer conversation is cut after the last answer that fits, and a longer text is
    split into pieces. fields, train_on: see `dataset.load_dataset`. corpora: names that an error message suggests.
    Raises TextError for the first row that cannot be used, whatever its length.
    """
    if train_on not in chat.TRAIN_ON:
        raise SettingError(f"there is no --train-on {train_on} here: choose one of {', '.join(chat.TRAIN_ON)}")
    apart = ()
    if any((path / name).is_file() for name in rows.SAVED):
        raw = b"".join(part.read_bytes() for part in sorted(path.rglob("*.arrow")))
        found, apart = map(list, rows.read_folder(path))
    else:
        raw = txt.read(path, SUFFIXES, corpora)
        found = [*rows.read(path, raw)]
    kind, read, unread = as_rows([*found, *apart], fields)
    chats = any(row.kind == "chat" for row in read)
    made, held, lengths, long, cut, bare, pieces = [], [], [], {}, [], [], []
    for i, row in enumerate(read):
        whole = _examples(row, tokenizer, limit, train_on)
        if not any(part for example in whole for part in example[1::2]) or not _says_something(row, train_on):
            bare.append(row.where)
            continue
        lengths.append(max(map(length, whole)))
        fits = [part for part in (_cut(part, limit) for part in whole) if part]
        if not fits and train_on == "all" and row.kind == "chat":  # its answers still show where it can be cut
            turns = [_cut(part, limit) for part in _examples(row, tokenizer, limit, "answers")]
            fits = [_graded(part) for part in turns if part]
        if not fits:
            long[row.where] = lengths[-1]
            continue
        if fits != whole:
            cut.append(row.where)
        if row.kind == "text" and len(fits) > 1:
            pieces.append(row.where)
        (made if i < len(found) else held).append(tuple(tuple(map(tuple, part)) for part in fits))
    notes = unreadable([text for row in read for text in _texts(row)], tokenizer, unread, chats)
    if kind == "prompt/completion" and tokenizer.template != "plain":
        names = dict(prompt="prompt", completion="completion") | (fields or {})
        notes += (
            "prompt and completion are joined by a line break, without this base's chat template: --map "
            f"{shlex.quote('instruction={prompt},output={completion}'.format(**names))} makes a chat of them",
        )
    if chats:
        notes += tuple(chat.template_notes(tokenizer, tools=any(row.tools for row in read)))
    facts = {
        "rows with nothing to grade are left out": bare,
        f"conversations of more than {limit:,} tokens are cut behind the last answer that fits": cut,
        f"texts of more than {limit:,} tokens are read in pieces": pieces,
    }
    notes += tuple(f"{fact}: {len(places):,} ({named(places)})" for fact, places in facts.items() if places)
    train, held, more = _split(made, held, kind != "text" and train_on != "all")
    return Table(kind, hashlib.sha256(raw).hexdigest(), train, held, lengths, long, cut, bare, notes + more, chats)


def _examples(row: Row, tokenizer, limit, train_on) -> list[Example]:
    if row.kind == "text":
        return list(_pieces(tokenizer, row.text, limit))
    if row.kind == "prompt":
        made = [example(row.prompt, row.completion, tokenizer)]
    else:
        try:
            made = chat.conversation(row.messages, tokenizer, train_on, row.tools, row.answers_from)
        except TextError as error:
            raise TextError(f"{row.where}: {error}") from None
    return [_graded(part) for part in made] if train_on == "all" else made


def _pieces(tokenizer, text, limit):
    """Split a text into pieces that fit; no token is graded twice."""
    lead, left = list(tokenizer.begin), [*tokenizer.encode(text), tokenizer.end] if text.strip() else []
    if not lead:
        lead, left = left[:1], left[1:]
    room = max(limit + 1 - len(lead), 1)
    for start in range(0, len(left), room):
        yield lead, left[start : start + room]
        lead = list(tokenizer.begin) or left[start + room - 1 : start + room]


def _graded(row: Example) -> Example:
    """The same tokens, all but the first graded."""
    tokens = [token for part in row for token in part]
    return tokens[:1], tokens[1:]


def _cut(row: Example, limit) -> Example:
    """The row up to the end of its last graded part that fits; empty if none fits."""
    ends = range(len(row) // 2 * 2, 0, -2)
    return row if length(row) <= limit else next((row[:end] for end in ends if length(row[:end]) <= limit), ())


def _says_something(row, train_on):
    """Whether any graded answer is more than white space; otherwise a model would learn to say nothing."""
    if row.kind != "chat" or train_on == "all":
        return True
    answers = [message for message in row.messages[row.answers_from :] if message["role"] == "assistant"]
    answers = answers[-1:] if train_on == "last" else answers
    return any(message["content"].strip() or message.get("tool_calls") for message in answers)


def _texts(row):
    if row.kind == "prompt":
        return ask(row.prompt), row.completion
    return [row.text] if row.kind == "text" else [message["content"] for message in row.messages]


def named(places: list[str]) -> str:
    """List the places of rows, at most NAMED of them: "a.jsonl, lines 2, 5 and 12 more"."""
    files, numbers = zip(*(place.rsplit(" ", 1) for place in places[:NAMED]))
    some = f"{files[0]}s {', '.join(numbers)}" if len({*files}) == 1 < len(files) else ", ".join(places[:NAMED])
    return some + (f" and {len(places) - NAMED} more" if len(places) > NAMED else "")


def _split(made, apart, asked):
    """Split rows into training and held-out rows; returns both, and notes.

    apart: rows that the file itself holds out. asked: whether rows have a prompt. All copies of a row go to one side,
    so training sees no held-out answer. Rows that share only a prompt may be separated: in many files all share one.
    """
    different = list(dict.fromkeys(made))
    held = dict.fromkeys(apart or different[9::10] or different[-1:])
    train = [row for row in made if row not in held] or made
    prompts = {row[0][0] for row in train} if asked else ()
    copies, both = len(made) - len(different), len(held.keys() & train)
    unused = 0 if both else len(made) - len(train) - (0 if apart else len(held))
    known = sum(row[0][0] in prompts for row in held)
    facts = {
        "copies of rows: {:,}; all copies of a row are held out together, or trained on together": copies,
        "of the copies that are held out one counts, and {:,} are left out": unused,
        "all rows are the same, so the held-out loss says nothing about new rows: give rows that differ": both,
        "held-out rows whose prompt is trained on as well: {:,}; the held-out loss may look better than it is": known,
    }
    return train, [*held], tuple(fact.format(n) for fact, n in facts.items() if n)
