"""What a row is, by the names of its fields: a text, a prompt and its completion, a conversation, a preference.

Every kind of conversation becomes OpenAI's messages, as chat templates read them. Fields are recognized by the names that
their format gives them, and never guessed: `--map` says which of a file's names stand for these.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from llm.errors import SettingError, TextError
from llm.text.txt import check_text

# what a row has to have, by the format's name for people; the first that a row has counts
FORMATS = {
    "messages": ("messages",),
    "ShareGPT": ("conversations",),
    "preference": ("chosen", "rejected"),
    "prompt/completion": ("prompt", "completion"),
    "Alpaca": ("instruction", "output"),
    "text": ("text",),
}
OPTIONAL = {
    "messages": ("tools",),
    "ShareGPT": ("system", "tools"),
    "prompt/completion": ("tools",),
    "Alpaca": ("input", "system", "history"),
}
TURN = ("role", "content", "from", "value")  # of one message
NAMES = tuple(dict.fromkeys(name for names in (*FORMATS.values(), *OPTIONAL.values(), TURN) for name in names))
ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model", "function_call"), "assistant"),
    **dict.fromkeys(("tool", "observation", "function"), "tool"),
}
GRADES = ("weight", "train")  # keys by which other tools leave single messages out of the loss


@dataclass(frozen=True)
class Row:
    """A row that can be read. kind: "text", "prompt" for a prompt and a completion of plain text, or "chat".

    answers_from: assistant messages before this index are only read.
    """

    where: str
    kind: str
    text: str | None = None
    prompt: str | None = None
    completion: str | None = None
    messages: list[dict] | None = None
    tools: list | None = None
    answers_from: int = 0


def read_map(text: str | None) -> dict[str, str]:
    """The names of a file's fields by ours, from "prompt=question,completion=answer"; raises SettingError for another."""
    pairs = [pair.partition("=")[::2] for pair in text.split(",")] if text else []
    for ours, theirs in ((ours.strip(), theirs.strip()) for ours, theirs in pairs):
        if ours not in NAMES or not theirs:
            known = ", ".join(NAMES)
            raise SettingError(f"--map {text[:80]} is not as prompt=question,completion=answer; our names are {known}")
    return {ours.strip(): theirs.strip() for ours, theirs in pairs}


def as_rows(rows: Iterable[tuple[str, dict]], names: dict[str, str] | None = None) -> tuple[str, list[Row], Counter]:
    """The format, the rows, and how many rows have each key that has no effect; names: a file's field names by ours.

    Raises TextError for the first row that is of no format, of another than the first, or a preference.
    """
    names, made, unread, first = names or {}, [], Counter(), None
    for where, fields in rows:
        row = _renamed(fields, names)
        found = next((name for name, keys in FORMATS.items() if row.keys() >= {*keys}), None)
        if found is None:
            raise TextError(f"{where}: {_unknown(fields, row, names)}")
        if found == "preference":
            raise TextError(f"{where}: it is a preference, of which no run here learns both answers: {_chosen(row)}")
        kind = f"{found} of messages" if found == "prompt/completion" and _is_chat(row["prompt"]) else found
        first = first or (kind, where)
        if kind != first[0]:
            raise TextError(f"{where}: it is {kind}, and {first[1]} is {first[0]}: give each format a file of its own")
        known = {*FORMATS[found], *OPTIONAL.get(found, ())}
        unread.update(str(key)[:40] for key in fields.keys() - {names.get(key, key) for key in known})
        made.append(READERS[found](where, row, names, unread))
    return first[0] if first else "text", made, unread


def _renamed(fields, names):
    left = {key: value for key, value in fields.items() if key not in names and key not in names.values()}
    return left | {ours: fields[theirs] for ours, theirs in names.items() if theirs in fields}


def _is_chat(text):
    return isinstance(text, list) or isinstance(text, str) and re.match(r'\s*\[\s*\{\s*"role"', text)


def _unknown(fields, row, names):
    """Why a row is of no format, and what to do."""
    has = ", ".join(repr(str(key))[:40] for key in [*fields][:5]) or "nothing"
    near = next((keys for keys in FORMATS.values() if row.keys() & {*keys}), FORMATS["prompt/completion"])
    missing, free = [key for key in near if key not in row], [str(key)[:40] for key in row if key not in NAMES]
    named = f" ({names[missing[0]]!r} by --map)" if missing[0] in names else ""
    pairs = ",".join(map("=".join, zip(missing, free)))
    cure = f"say which field it is, as in --map {pairs}" if pairs else f"give {' and '.join(near)}"
    return f"it has no {missing[0]!r}{named}, it has {has}: {cure}"


def _chosen(row):
    whole = isinstance(row["chosen"], list) and row["chosen"][:1] and row["chosen"][0].get("role") != "assistant"
    ours = "messages" if whole else "completion" if "prompt" in row else "text"
    return f"to train on the chosen ones alone, give --map {ours}=chosen"


def _text(where, row, names, unread):
    if not isinstance(row["text"], str):
        raise TextError(f"{where}: its {names.get('text', 'text')} is not a text")
    check_text(row["text"], f"{where}: its text")
    return Row(where, "text", text=row["text"])


def _prompt(where, row, names, unread):
    if _is_chat(row["prompt"]) and _is_chat(row["completion"]):
        before, after = (_messages(where, key, row[key], names, unread) for key in ("prompt", "completion"))
        return _chat(where, before + after, row, len(before))
    for key in ("prompt", "completion"):
        if not isinstance(row[key], str) or not row[key].strip():
            raise TextError(f"{where}: its {names.get(key, key)} is not a text or is empty")
        check_text(row[key], f"{where}: its {key}")
    return Row(where, "prompt", prompt=row["prompt"], completion=row["completion"])


def _alpaca(where, row, names, unread):
    history = _list(where, "history", row.get("history") or [])
    if not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise TextError(f"{where}: its history is not a list of pairs, a question and its answer each")
    asked = [text for text in (row["instruction"], row.get("input")) if text not in ("", None)] or [""]
    for key in ("instruction", "input", "output", "system"):
        if not isinstance(row.get(key) or "", str):
            raise TextError(f"{where}: its {names.get(key, key)} is not a text")
    turns = [("system", row["system"])] if row.get("system") else []
    for question, answer in [*history, ("\n".join(asked), row["output"] or "")]:
        turns += ("user", question), ("assistant", answer)
    return _chat(where, _messages(where, "history", [dict(role=r, content=c) for r, c in turns], {}, unread), row)


def _conversation(where, row, names, unread):
    key = "messages" if "messages" in row else "conversations"
    messages = _messages(where, key, row[key], names, unread)
    if (system := row.get("system")) and messages[0]["role"] != "system" and key == "conversations":
        messages = _messages(where, "system", [dict(role="system", content=system)], {}, unread) + messages
    return _chat(where, messages, row)


def _chat(where, messages, row, answers_from=0):
    tools = _list(where, "tools", row.get("tools") or []) or None
    return Row(where, "chat", messages=messages, tools=tools, answers_from=answers_from)


READERS = {"messages": _conversation, "ShareGPT": _conversation, "text": _text}
READERS |= {"prompt/completion": _prompt, "Alpaca": _alpaca}


def _list(where, key, value):
    """A list, which tables often hold as JSON."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise TextError(f"{where}: its {key} is a text that is no JSON list: write it with json.dumps") from None
    if not isinstance(value, list):
        raise TextError(f"{where}: its {key} is not a list")
    return value


def _messages(where, key, turns, names, unread):
    """A conversation as `apply_chat_template` takes it. key: the field that holds it."""
    turns = _list(where, names.get(key, key), turns)
    if not turns:
        raise TextError(f"{where}: its {key} is an empty conversation: give a question and its answer")
    return [
        _message(f"{where}: message {n} of its {key}", turn, names, unread) for n, turn in enumerate(turns, start=1)
    ]


def _message(which, turn, names, unread):
    if not isinstance(turn, dict):
        raise TextError(f'{which} is not an object, as {{"role": "user", "content": "..."}}')
    turn = {name: value for name, value in _renamed(turn, names).items() if value is not None}
    role = turn.pop("from", None) if "role" not in turn else turn.pop("role")
    text = turn.pop("value", None) if "content" not in turn else turn.pop("content")
    if not isinstance(role, str) or role.lower() not in ROLES:
        has = f"the role {str(role)[:40]!r}" if role is not None else "no role"
        raise TextError(f"{which} has {has}: give one of system, user, assistant, tool")
    unread.update(f"{name} of a message" for name in GRADES if name in turn)
    if isinstance(text, list):
        other = next(
            (part for part in text if not isinstance(part, dict) or not isinstance(part.get("text"), str)), None
        )
        if other is not None:
            what = other.get("type") if isinstance(other, dict) else other
            raise TextError(
                f"{which} has content that is not text ({str(what)[:40]!r}): a language model reads text alone"
            )
        text = "".join(part["text"] for part in text)
    calls = turn.get("tool_calls")
    if calls is None and role.lower() == "function_call" and isinstance(text, str):
        calls, text = _written_call(text)
    if calls is not None:
        turn["tool_calls"] = [_call(which, call) for call in _list(which, "tool_calls", calls)]
    elif not isinstance(text, str):
        raise TextError(f"{which} has content that is not a text")
    text = text or ""  # beside a call there may be none, which some templates would print as "None"
    check_text(text, f"{which}: its content")
    return dict(role=ROLES[role.lower()], content=text) | turn


def _written_call(text):
    """A call that stands as JSON where a message's text does, and the text that is left."""
    try:
        call = json.loads(text)
    except (ValueError, RecursionError):
        return None, text
    return (
        ([{"type": "function", "function": call}], None) if isinstance(call, dict) and "name" in call else (None, text)
    )


def _call(which, call):
    """A tool call whose arguments are an object: OpenAI writes them as a text, and templates would quote that again."""
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise TextError(f"{which} has a tool call without a function's name")
    arguments = function.get("arguments")
    try:
        decoded = json.loads(arguments) if isinstance(arguments, str) else arguments
    except (ValueError, RecursionError):
        decoded = arguments
    function = function | {"arguments": decoded} if isinstance(decoded, dict) else function
    return call | {"function": function} if "function" in call else function
