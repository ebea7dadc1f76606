"""What a row is, told by its field names: a text, a prompt and its completion, a conversation, or a preference.

Every kind of conversation becomes OpenAI's messages, which chat templates read. Fields are recognized by their format's
exact names and never guessed; `--map` translates a file's own names.
"""

import json
import re
import shlex
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from llm.errors import SettingError, TextError
from llm.text.txt import check_text

# the required fields of each format; the first format whose fields a row has counts
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
USUAL = {
    "prompt": ("question", "query", "request", "input", "user"),
    "completion": ("answer", "response", "reply", "output", "assistant"),
}
TURN = ("role", "content", "from", "value")  # of one message
NAMES = tuple(dict.fromkeys(name for names in (*FORMATS.values(), *OPTIONAL.values(), TURN) for name in names))
ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model", "function_call"), "assistant"),
    **dict.fromkeys(("tool", "observation", "function"), "tool"),
}
GRADES = ("weight", "train")  # keys with which other tools exclude single messages from the loss


@dataclass(frozen=True)
class Row:
    """A valid row. kind: "text", "prompt" for a prompt and a completion of plain text, or "chat".

    answers_from: assistant messages before this index do not count in the loss.
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
    """Parse "prompt=question" into the file's field name for each of ours; raises SettingError for unknown names."""
    names = dict(map(str.strip, pair.partition("=")[::2]) for pair in (text or "").split(",") if pair)
    if wrong := [ours for ours, theirs in names.items() if ours not in NAMES or not theirs]:
        ours, theirs = wrong[0][:40], names[wrong[0]][:40]
        if not theirs:
            raise SettingError(f"--map {ours}= names no field: give pairs, as in prompt=question,completion=answer")
        cure = f"begin with one of {', '.join(NAMES)}"
        if all(name in NAMES for name in names.values()):
            cure = f"write --map {shlex.quote(','.join(f'{name}={other}' for other, name in names.items()))}"
        raise SettingError(f"--map {ours}={theirs} does not begin with a name of the course: {cure}")
    return names


def as_rows(rows: Iterable[tuple[str, dict]], names: dict[str, str] | None = None) -> tuple[str, list[Row], Counter]:
    """Return the format of rows, the parsed rows, and for each key without effect the number of rows that have it.

    names: the file's field name for each of ours. Raises TextError for the first row that has no known format, has
    another format than the first row, or is a preference.
    """
    names, made, unread, first = names or {}, [], Counter(), None
    for where, fields in rows:
        row = _renamed(fields, names)
        kind = next((name for name, keys in FORMATS.items() if row.keys() >= {*keys}), None)
        if kind is None:
            if first and first[0] in FORMATS and (missing := [key for key in FORMATS[first[0]] if key not in row]):
                has = ", ".join(repr(str(key))[:40] for key in [*fields][:5]) or "nothing"
                unlike = f"it has no {missing[0]!r}, unlike the rows before it, it has {has}"
                raise TextError(f"{where}: {unlike}: correct this row or take it out")
            raise TextError(f"{where}: {_unknown(fields, row, names)}")
        if kind == "preference":
            raise TextError(f"{where}: it is a preference, of which no run here learns both answers: {_chosen(row)}")
        known = {names.get(key, key) for key in (*FORMATS[kind], *OPTIONAL.get(kind, ()))}
        unread.update(str(key)[:40] for key in fields.keys() - known)
        if kind == "prompt/completion" and all(_is_chat(row[key]) for key in FORMATS[kind]):
            kind += " of messages"
        first = first or (kind, where)
        if kind != first[0]:
            raise TextError(f"{where}: it is {kind}, and {first[1]} is {first[0]}: give each format a file of its own")
        made.append(READERS[kind](where, row, names, unread))
    return first[0] if first else "text", made, unread


def _renamed(fields, names):
    left = {key: value for key, value in fields.items() if key not in names and key not in names.values()}
    return left | {ours: fields[theirs] for ours, theirs in names.items() if theirs in fields}


def _is_chat(value):
    """Whether a value is messages, or their JSON text as tables have it. Plain text may also begin with a bracket."""
    return isinstance(value, list) or isinstance(value, str) and re.match(r'\s*\[\s*\{\s*"(role|content)"', value)


def _unknown(fields, row, names):
    """Why a row has no known format, and what to do about it."""
    has = ", ".join(repr(str(key))[:40] for key in [*fields][:5]) or "nothing"
    near = next((keys for keys in FORMATS.values() if row.keys() & {*keys}), FORMATS["prompt/completion"])
    missing, free = [key for key in near if key not in row], [str(key)[:40] for key in row if key not in NAMES]
    # suggest fields by their usual names, else by their order; the person decides
    alike = [next((name for name in free if name.lower() in USUAL.get(key, ())), None) for key in missing]
    free = alike if all(alike) else [name for name in free if name.lower() not in ("id", "index")]
    named = f" ({names[missing[0]]!r} by --map)" if missing[0] in names else ""
    pairs = ",".join(map("=".join, zip(missing, free)))
    cure = f"say which field it is, as in --map {shlex.quote(pairs)}" if pairs else f"give {' and '.join(near)}"
    return f"it has no {missing[0]!r}{named}, it has {has}: {cure}"


def _chosen(row):
    first = row["chosen"][0] if isinstance(row["chosen"], list) and row["chosen"] else None
    whole = isinstance(first, dict) and first.get("role") != "assistant"
    ours = "messages" if whole else "completion" if "prompt" in row else "text"
    return f"to train on the chosen ones alone, give --map {ours}=chosen"


def _text(where, row, names, unread):
    return Row(where, "text", text=_string(where, "text", row["text"], names))


def _prompt(where, row, names, unread):
    prompt, completion = (_string(where, key, row[key], names, empty=False) for key in FORMATS["prompt/completion"])
    return Row(where, "prompt", prompt=prompt, completion=completion)


def _prompt_of_messages(where, row, names, unread):
    before, after = (_messages(where, key, row[key], names, unread) for key in FORMATS["prompt/completion"])
    return _chat(where, before + after, row, len(before))


def _alpaca(where, row, names, unread):
    system, asked, more, answer = (
        _string(where, key, row.get(key) or "", names) for key in ("system", "instruction", "input", "output")
    )
    history = _list(where, "history", row.get("history") or [])
    if not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise TextError(f"{where}: its history is not a list of pairs, a question and its answer each")
    turns = [dict(role="system", content=system)] if system else []
    for question, reply in [*history, ("\n".join(filter(None, (asked, more))), answer)]:
        turns += dict(role="user", content=question), dict(role="assistant", content=reply)
    return _chat(where, _messages(where, "history", turns, {}, unread), row)


def _conversation(where, row, names, unread):
    key = "messages" if "messages" in row else "conversations"
    messages = _messages(where, key, row[key], names, unread)
    if key == "conversations" and (system := row.get("system")) and messages[0]["role"] != "system":
        messages.insert(0, dict(role="system", content=_string(where, "system", system, names)))
    return _chat(where, messages, row)


def _chat(where, messages, row, answers_from=0):
    tools = _list(where, "tools", row.get("tools") or []) or None
    return Row(where, "chat", messages=messages, tools=tools, answers_from=answers_from)


READERS = {"messages": _conversation, "ShareGPT": _conversation, "text": _text, "Alpaca": _alpaca}
READERS |= {"prompt/completion": _prompt, "prompt/completion of messages": _prompt_of_messages}


def _string(where, key, value, names, empty=True):
    if not isinstance(value, str | None) or value is None and empty:
        raise TextError(f"{where}: its {names.get(key, key)} is not a text")
    if not empty and not (value or "").strip():
        raise TextError(f"{where}: its {names.get(key, key)} is empty: fill it in, or take the row out")
    check_text(value, f"{where}: its {names.get(key, key)}")
    return value


def _list(where, key, value):
    """Return a list, which tables often hold as JSON text."""
    try:
        value = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        raise TextError(f"{where}: its {key} is a text that is no JSON list: write it with json.dumps") from None
    if not isinstance(value, list):
        raise TextError(f"{where}: its {key} is not a list")
    return value


def _messages(where, key, turns, names, unread):
    """Convert a conversation into what `apply_chat_template` takes. key: the field that holds it."""
    turns = _list(where, key, turns)
    if not turns:
        raise TextError(f"{where}: its {key} is an empty conversation: give a question and its answer")
    return [_message(f"{where}: message {n} of its {key}", turn, names, unread) for n, turn in enumerate(turns, 1)]


def _message(which, turn, names, unread):
    if not isinstance(turn, dict):
        raise TextError(f'{which} is not an object, as {{"role": "user", "content": "..."}}')
    turn = {name: value for name, value in _renamed(turn, names).items() if value is not None}
    said, text = turn.pop("from", None), turn.pop("value", None)
    said, text = turn.pop("role", said), turn.pop("content", text)
    role = ROLES.get(str(said).lower())
    if role is None:
        has = "no role" if said is None else f"the role {str(said)[:40]!r}"
        raise TextError(f"{which} has {has}: give one of system, user, assistant, tool")
    unread.update(f"{name} of a message" for name in GRADES if name in turn)
    if isinstance(text, list):
        for part in text:
            if not isinstance(part, dict) or not isinstance(part.get("text"), str):
                what = repr(str(part.get("type") if isinstance(part, dict) else part))[:40]
                raise TextError(f"{which} has content that is not text ({what}): a language model reads text alone")
        text = "".join(part["text"] for part in text)
    if said == "function_call" and isinstance(text, str) and (call := _decoded(text)) is not text:
        turn["tool_calls"], text = [dict(type="function", function=call)], None
    if "tool_calls" in turn:
        turn["tool_calls"] = [_call(which, call) for call in _list(which, "tool_calls", turn["tool_calls"])]
        text = text or ""  # some templates would print "None"
    if not isinstance(text, str):
        problem = "no content: add it, or take the row out" if text is None else "content that is not a text"
        raise TextError(f"{which} has {problem}")
    check_text(text, f"{which}: its content")
    return dict(role=role, content=text) | turn


def _call(which, call):
    """A tool call with its arguments as an object. OpenAI has them as JSON text, which templates would quote again."""
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise TextError(f"{which} has a tool call without a function's name")
    function = function | dict(arguments=_decoded(function.get("arguments", {})))
    return call | dict(function=function) if "function" in call else function


def _decoded(value):
    """The object in a JSON text; any other value unchanged."""
    try:
        inside = json.loads(value) if isinstance(value, str) else None
    except (ValueError, RecursionError):
        inside = None
    return inside if isinstance(inside, dict) else value
