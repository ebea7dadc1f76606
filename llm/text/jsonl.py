"""The rows of a learner's `.jsonl`: a prompt and a completion a line, and a sentence for anything else."""

import json
import re
from collections import Counter
from functools import partial
from pathlib import Path

from llm.errors import TextError
from llm.text.examples import Example, ask, example, length
from llm.text.txt import check_text, losses
from llm.tokenizer import Tokenizer

KEYS = "prompt", "completion"
WANTED = 'a line is {"prompt": "...", "completion": "..."}'
# What shows in a line that is not as `WANTED`, and the cure. The first pattern that matches decides.
CURES = {
    r"^\s*\[": f"give each row of the array a line of its own, as `jq -c '.[]'` does; {WANTED}",
    r"\}\s*,\s*$": "remove the comma after each row",
    r"^\s*\{\s*['“”‘’]": "write straight double quotes, as JSON has them",
    r"^\s*\{(.*[^}\s])?\s*$": "the row is cut off, or takes several lines: give each row one line, as `jq -c .` does",
    r'"(messages|conversations|prompt|completion)"\s*:\s*\[': f"make the last message of a chat the completion, and the text before it the prompt; {WANTED}",
    '"instruction"': "rename Alpaca's 'output' to 'completion', and join 'instruction' and 'input' as the prompt",
    '"chosen"': "rename 'chosen' to 'completion', without the prompt if it repeats that",
    r'^\s*\{\s*"text"': "put texts without a prompt into a .txt file",
}


def read_rows(
    path: Path, text: str, tokenizer: Tokenizer, limit: int, skip_long: bool = False
) -> tuple[list[Example], int, tuple[str, ...]]:
    """The rows of `text`, which was read from `path`, as tokens, how many were left out, and notes; blank lines are none.

    limit: the most tokens of a row; skip_long: leave out what is longer. Raises TextError for the first line that is not
    as `WANTED`, and for all that are too long.
    """
    rows, long, texts, keys = [], {}, [], Counter()
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            fields = _fields(f"{path}, line {number}", line)
            row = example(*(fields[key] for key in KEYS), tokenizer)
            if length(row) > limit:
                long[number] = length(row)
            else:
                rows.append(row)
                keys.update(key[:40] for key in fields.keys() - KEYS)
                texts += ask(fields["prompt"]), fields["completion"]
    if long and not skip_long:
        numbers = ", ".join(map(str, [*long][:8])) + (f" and {len(long) - 8} more" if len(long) > 8 else "")
        lines = f"line {numbers} is" if len(long) == 1 else f"lines {numbers} are"
        raise TextError(
            f"{path}, {lines} too long: up to {max(long.values())} tokens, and {limit} fit; shorten them, or "
            "leave them out with --skip-long"
        )
    return rows, len(long), losses(texts, tokenizer, keys)


def _fields(where, line):
    try:
        row = json.loads(line, object_pairs_hook=partial(_once, where))
        wrong = [key for key in KEYS if not isinstance(row[key], str) or not row[key].strip()]
        if not wrong:
            for key in KEYS:
                check_text(row[key], f"{where}: its {key}")
            return row
        why = f"its {wrong[0]} is not a text or is empty"
    except json.JSONDecodeError as error:
        why = f"it is not JSON ({error.msg} at column {error.colno})"
    except (RecursionError, ValueError):  # Python reads no number of more than 4,300 digits
        why = "it is nested too deeply, or holds a number that is too long"
    except KeyError as error:
        why = f"it has no {error}, it has {', '.join(repr(key)[:40] for key in list(row)[:5]) or 'nothing'}"
    except TypeError:
        why = "it is not an object"
    cure = next((cure for mark, cure in CURES.items() if re.search(mark, line)), WANTED)
    raise TextError(f"{where}: {why}: {cure}")


def _once(where, pairs):
    """An object from its pairs. Python itself would keep the last of two that have one key, and say nothing."""
    row, keys = dict(pairs), [key for key, _ in pairs]
    if len(row) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise TextError(f"{where}: the key {twice[:40]!r} stands twice: give each once")
    return row
