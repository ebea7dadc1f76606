"""The rows of a learner's `.jsonl`: a prompt and a completion a line, and a sentence for anything else."""

import json
from pathlib import Path

from llm.errors import TextError
from llm.text.examples import Example, example, length
from llm.tokenizer import Tokenizer

WANTED = 'a line is {"prompt": "...", "completion": "..."}'


def read_rows(path: Path, text: str, tokenizer: Tokenizer, limit: int) -> list[Example]:
    """The rows of `text`, which was read from `path`, as tokens; blank lines are none. limit: the most tokens of a row.

    Raises TextError for the first line that is not as `WANTED`, or too long.
    """
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            row = example(*_fields(f"{path}, line {number}", line), tokenizer)
            if length(row) > limit:
                raise TextError(
                    f"{path}, line {number} is too long: {length(row)} tokens, and {limit} fit; shorten or drop it"
                )
            rows.append(row)
    return rows


def _fields(where, line):
    try:
        row = json.loads(line)
        fields = [row[key] for key in ("prompt", "completion")]
    except RecursionError:
        raise TextError(f"{where} is nested too deeply: {WANTED}") from None
    except json.JSONDecodeError as error:
        raise TextError(f"{where} is not JSON ({error.msg} at column {error.colno}): {WANTED}") from None
    except (KeyError, TypeError) as error:
        what = f"has no {error}" if isinstance(error, KeyError) else "is not an object"
        raise TextError(f"{where} {what}: {WANTED}") from None
    for key, field in zip(("prompt", "completion"), fields):
        if not isinstance(field, str) or not field.strip():
            raise TextError(f"{where}: its {key} is not a text or is empty: {WANTED}")
        if any(0xD800 <= ord(c) < 0xE000 for c in field):
            raise TextError(f"{where}: its {key} holds half of a character (a lone surrogate): write it whole")
    return fields
