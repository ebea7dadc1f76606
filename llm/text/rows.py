"""The rows of a learner's table, whatever file holds them: each with where it stands, for a sentence about it.

Knows no formats: a row is a dict of whatever the file has. Nothing is unpickled.
"""

import csv
import hashlib
import io
import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from llm.errors import TextError
from llm.text.txt import decode

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
INSTALL = "pip install -e '.[data]'"
SAVED = "dataset_dict.json", "state.json"  # one of them marks a folder that `datasets` has saved
HELD = "test", "validation"  # the first of these splits that a folder has is held out
# What shows in a line that is not JSON, and the cure. The first pattern that matches decides.
CURES = {
    r"^\s*\[": "give each row of the array a line of its own, as `jq -c '.[]'` does",
    r"\}\s*,\s*$": "remove the comma after each row",
    r"^\s*\{\s*['“”‘’]": "write straight double quotes, as JSON has them",
    r"^\s*\{(.*[^}\s])?\s*$": "the row is cut off, or takes several lines: give each row one line, as `jq -c .` does",
}
WANTED = 'a row is an object, as {"prompt": "...", "completion": "..."} or {"messages": [...]}'
Rows = Iterator[tuple[str, dict]]  # "chat.jsonl, line 3" and its fields


def read(path: Path, raw: bytes) -> Rows:
    """The rows in `raw`, the content of the file `path`, one of SUFFIXES; blank lines are none.

    Rows of a table count as a spreadsheet does: its header is row 1. Raises TextError for the first that is no row.
    """
    if path.suffix.lower() == ".parquet":
        return _parquet(path, raw)
    text = decode(path, raw)
    if path.suffix.lower() in (".csv", ".tsv"):
        return _table(path, text)
    first, *more = text.strip().split("\n", 1)
    whole = path.suffix.lower() == ".json" and not (more and _is_object(first))  # many a .json holds a row a line
    return _array(path, text) if whole or first.startswith("[") else _lines(path, text)


def read_folder(folder: Path) -> tuple[Rows, Rows]:
    """The rows of a folder that `datasets` saved: its "train" split or its only one, and those of one of HELD.

    Raises TextError when the folder is another, or `datasets` is missing.
    """
    try:
        import datasets

        splits = datasets.load_from_disk(str(folder))
    except ImportError:
        raise TextError(f"{folder} needs datasets to be read: {INSTALL}") from None
    except Exception as error:  # datasets and pyarrow raise half a dozen kinds here
        raise TextError(f"{folder} cannot be read ({_short(error)}): save it again with save_to_disk") from None
    if not isinstance(splits, dict):
        return _records(folder, splits), iter(())
    name = "train" if len(splits) > 1 else next(iter(splits), "train")
    if name not in splits:
        raise TextError(
            f"{folder} has no 'train', it has {', '.join(map(repr, splits))}: save the one that is to train"
        )
    held = next((split for split in HELD if split in splits and split != name), None)
    return _records(folder / name, splits[name]), _records(folder / held, splits[held]) if held else iter(())


def digest(folder: Path) -> str:
    """The sha256 of the files of a folder that `datasets` saved."""
    whole = hashlib.sha256()
    for path in sorted(folder.rglob("*.arrow")):
        with path.open("rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()


def _lines(path, text):
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            where = f"{path}, line {number}"
            yield where, _object(where, _parsed(where, line), line)


def _array(path, text):
    rows = _parsed(path, text)
    if isinstance(rows, dict):  # {"data": [...]}
        inside = [value for value in rows.values() if isinstance(value, list)]
        rows = (
            inside[0] if len(rows) == len(inside) == 1 and not rows.keys() & {"messages", "conversations"} else [rows]
        )
    for number, row in enumerate(rows if isinstance(rows, list) else [rows], start=1):
        where = f"{path}, row {number}"
        yield where, _object(where, row)


def _table(path, text):
    header = text.partition("\n")[0]
    mark = "\t" if path.suffix.lower() == ".tsv" else ";" if ";" in header and "," not in header else ","
    csv.field_size_limit(2**31 - 1)
    table = csv.reader(io.StringIO(text, newline=""), delimiter=mark, strict=True)
    try:
        names = next(table)
        if twice := [name for name in names if names.count(name) > 1]:
            raise TextError(f"{path}: the column {twice[0][:40]!r} stands twice: give each once")
        for number, cells in enumerate(table, start=2):
            where = f"{path}, row {number}"
            if len(cells) > len(names):
                raise TextError(
                    f"{where}: it has {len(cells)} cells, and the header {len(names)}: quote what holds a comma"
                )
            if any(cells):
                yield where, dict(zip(names, cells))
    except csv.Error as error:
        raise TextError(f"{path}, line {table.line_num}: it is not CSV ({error}): save the table again") from None


def _parquet(path, raw):
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise TextError(f"{path} needs pyarrow to be read: {INSTALL}") from None
    try:
        rows = parquet.read_table(pyarrow.BufferReader(raw)).to_pylist()
    except Exception as error:
        raise TextError(f"{path} is no Parquet file that can be read ({_short(error)}): save it again") from None
    for number, row in enumerate(rows, start=1):
        yield f"{path}, row {number}", _without_none(row)


def _records(name, table):
    rows = table.with_format("arrow")[:].to_pylist()  # pictures and sounds stay bytes
    return ((f"{name}, row {number}", _without_none(row)) for number, row in enumerate(rows, start=1))


def _without_none(value):
    """A table gives each row every key that any row has: what is None was not there."""
    if isinstance(value, dict):
        return {key: _without_none(inside) for key, inside in value.items() if inside is not None}
    return [_without_none(inside) for inside in value] if isinstance(value, list) else value


def _parsed(where, text):
    try:
        return json.loads(text, object_pairs_hook=partial(_once, where))
    except json.JSONDecodeError as error:
        many, cure = "\n" in text, next((cure for mark, cure in CURES.items() if re.search(mark, text)), WANTED)
        at = f"{where}, line {error.lineno}" if many else where
        why = f"{at}: it is not JSON ({error.msg} at column {error.colno}): {'put that right' if many else cure}"
    except (RecursionError, ValueError):  # Python reads no number of more than 4,300 digits
        why = f"{where}: it is nested too deeply, or holds a number that is too long"
    raise TextError(why)


def _is_object(line):
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _object(where, row, line=""):
    if not isinstance(row, dict):
        cure = next((cure for mark, cure in CURES.items() if re.search(mark, line)), WANTED)
        raise TextError(f"{where}: it is not an object: {cure}")
    return row


def _once(where, pairs):
    """An object from its pairs. Python itself would keep the last of two that have one key, and say nothing."""
    row, keys = dict(pairs), [key for key, _ in pairs]
    if len(row) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise TextError(f"{where}: the key {twice[:40]!r} stands twice: give each once")
    return row


def _short(error):
    return " ".join(str(error).split())[:120]
