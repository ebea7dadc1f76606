"""The rows of a learner's `.jsonl`: a prompt and a completion a line, and a sentence for anything else."""

import json
from functools import partial
from pathlib import Path

from llm.errors import TextError
from llm.text.examples import Example, example, length
from llm.tokenizer import Tokenizer

WANTED = 'a line is {"prompt": "...", "completion": "..."}'


def read_rows(
    path: Path, text: str, tokenizer: Tokenizer, limit: int, skip_long: bool = False
) -> tuple[list[Example], int]:
    """The rows of `text`, which was read from `path`, as tokens, and how many were left out; blank lines are none.

    limit: the most tokens of a row; skip_long: leave out what is longer. Raises TextError for the first line that is not
    as `WANTED`, and for all that are too long.
    """
    rows, long = [], {}
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            row = example(*_fields(f"{path}, line {number}", line), tokenizer)
            if length(row) > limit:
                long[number] = length(row)
            else:
                rows.append(row)
    if long and not skip_long:
        raise TextError(
            f"{path}, {_lines([*long])} too long: up to {max(long.values())} tokens, and {limit} fit; shorten them, or "
            "leave them out with --skip-long"
        )
    return rows, len(long)


def _lines(numbers, shown=8):
    if len(numbers) == 1:
        return f"line {numbers[0]} is"
    more = len(numbers) - shown
    named = ", ".join(map(str, numbers[:shown])) + (f" and {more} more" if more > 0 else "")
    return f"lines {named} are"


def _fields(where, line):
    try:
        row = json.loads(line, object_pairs_hook=partial(_once, where))
        fields = [row[key] for key in ("prompt", "completion")]
    except RecursionError:
        raise TextError(f"{where} is nested too deeply: {WANTED}") from None
    except json.JSONDecodeError as error:
        raise TextError(f"{where} is not JSON ({error.msg} at column {error.colno}): {WANTED}") from None
    except ValueError:  # Python reads no number of more than 4,300 digits
        raise TextError(f"{where} holds a number that is too long: {WANTED}") from None
    except KeyError as error:
        has = ", ".join(repr(key)[:40] for key in list(row)[:5]) or "nothing"
        raise TextError(f"{where} has no {error}, it has {has}: {WANTED}") from None
    except TypeError:
        raise TextError(f"{where} is not an object: {WANTED}") from None
    for key, field in zip(("prompt", "completion"), fields):
        if not isinstance(field, str) or not field.strip():
            raise TextError(f"{where}: its {key} is not a text or is empty: {WANTED}")
        if any(0xD800 <= ord(c) < 0xE000 for c in field):
            raise TextError(f"{where}: its {key} holds half of a character (a lone surrogate): write it whole")
    return fields


def _once(where, pairs):
    """An object from its pairs. Python itself would keep the last of two that have one key, and say nothing."""
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise TextError(f"{where}: the key {twice[:40]!r} stands twice: give each once")
    return row
