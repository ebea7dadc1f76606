"""Reads the rows of a learner's table from any type of file, each with its place in the file for error messages.

Knows no formats: a row is a dict of whatever the file has. Nothing is unpickled.
"""

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from llm.checkpoint_folder import first_line
from llm.errors import TextError
from llm.text.txt import decode

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
SAVED = "dataset_dict.json", "state.json"  # either one marks a folder that `datasets` has saved
HELD = "test", "validation"  # the first of these splits that a folder has is held out
# Patterns in a line that is not a row of JSON, and what to do about each. The first match counts.
CURES = {
    r"^\s*\[": "give each row of the array a line of its own, as `jq -c '.[]'` does",
    r"\}\s*,\s*$": "remove the comma after each row",
    r"^\s*\{\s*['“”‘’]": "write straight double quotes, as JSON has them",
    r"^\s*\{(.*[^}\s])?\s*$": "the row is cut off, or takes several lines: give each row one line, as `jq -c .` does",
    "": 'a row is an object, as {"prompt": "...", "completion": "..."} or {"messages": [...]}',
}
Rows = Iterable[tuple[str, dict]]  # "chat.jsonl, line 3" and its fields


def read(path: Path, raw: bytes) -> Rows:
    """Read the rows in `raw`, the content of the file `path`, whose suffix is one of SUFFIXES; skips blank lines.

    Table rows are numbered as in a spreadsheet, with the header as row 1. Raises TextError for the first invalid row.
    """
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _arrow(path)
    text = decode(path, raw)
    if suffix in (".csv", ".tsv"):
        return _table(path, text, "\t" if suffix == ".tsv" else ",")
    first, *more = text.strip().split("\n", 1)
    lines = suffix == ".jsonl" or more and first.startswith("{") and first.rstrip().endswith("}")
    return _lines(path, text) if lines and not first.startswith("[") else _array(path, text)


def read_folder(folder: Path) -> tuple[Rows, Rows]:
    """Read a folder that `datasets` saved: its "train" split or its only one, and the first of HELD that it has."""
    if not (folder / SAVED[0]).is_file():
        return _arrow(folder), ()
    splits = sorted(part.parent.name for part in folder.glob(f"*/{SAVED[1]}"))
    train = splits[0] if len(splits) == 1 else "train"
    if train not in splits:
        raise TextError(
            f"{folder} has no 'train' but {', '.join(splits) or 'nothing'}: save the split that is to train"
        )
    held = next((split for split in HELD if split in splits and split != train), None)
    return _arrow(folder / train), _arrow(folder / held) if held else ()


def _lines(path, text) -> Iterator:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            where = f"{path}, line {number}"
            yield where, _object(where, _parsed(where, line), line)


def _array(path, text) -> Iterator:
    rows = _parsed(path, text, whole=True)
    if isinstance(rows, dict):  # {"data": [...]}, unlike a single conversation
        key, inside = next(iter(rows.items()), ("", None))
        alone = len(rows) == 1 and isinstance(inside, list) and key not in ("messages", "conversations")
        rows = inside if alone else [rows]
    for number, row in enumerate(rows if isinstance(rows, list) else [rows], start=1):
        where = f"{path}, row {number}"
        yield where, _object(where, row)


def _table(path, text, mark) -> Iterator:
    header = text.partition("\n")[0]
    mark = ";" if mark == "," not in header and ";" in header else mark  # in countries with decimal commas
    csv.field_size_limit(2**31 - 1)
    table = csv.reader(io.StringIO(text, newline=""), delimiter=mark, strict=True)
    try:
        names = next(table)
        if twice := [name for name in names if names.count(name) > 1]:
            raise TextError(f"{path}: the column {twice[0][:40]!r} stands twice: give each once")
        for number, cells in enumerate(table, start=2):
            where, many = f"{path}, row {number}", f"{len(cells)} cells, and the header {len(names)}"
            if len(cells) > len(names):
                raise TextError(f"{where}: it has {many}: quote what holds a comma")
            if any(cells):
                yield where, dict(zip(names, cells))
    except csv.Error as error:
        raise TextError(f"{path}, line {table.line_num}: it is not CSV ({error}): save the table again") from None


def _arrow(path) -> Iterator:
    """Yield the rows of a Parquet file, or of a folder that `datasets` saved; images and audio stay bytes."""
    try:
        from pyarrow import ipc, parquet
    except ImportError:
        raise TextError(f"{path} needs pyarrow to be read: pip install -e '.[data]'") from None
    try:
        if path.is_dir():
            files = json.loads((path / SAVED[1]).read_text(encoding="utf-8"))["_data_files"]
            tables = [ipc.open_stream((path / file["filename"]).read_bytes()).read_all() for file in files]
        else:
            tables = [parquet.read_table(path)]
        rows = [row for table in tables for row in table.to_pylist()]
    except Exception as error:  # pyarrow raises many types of errors here
        raise TextError(f"{path} cannot be read as a table ({first_line(error)}): save it again") from None
    for number, row in enumerate(rows, start=1):
        yield f"{path}, row {number}", _without_none(row)


def _without_none(value):
    """Drop keys whose value is None: a table gives every row all keys, and None means that the row had no such key."""
    if isinstance(value, dict):
        return {key: _without_none(inside) for key, inside in value.items() if inside is not None}
    return [_without_none(inside) for inside in value] if isinstance(value, list) else value


def _parsed(where, text, whole=False):
    try:
        return json.loads(text, object_pairs_hook=partial(_once, where))
    except json.JSONDecodeError as error:
        at, cure = (f"{where}, line {error.lineno}", "put that right") if whole else (where, _cure(text))
        why = f"{at}: it is not JSON ({error.msg} at column {error.colno}): {cure}"
    except (RecursionError, ValueError):  # Python refuses integers of more than 4,300 digits
        why = f"{where}: it is nested too deeply, or holds a number that is too long"
    raise TextError(why)


def _object(where, row, line=""):
    if not isinstance(row, dict):
        raise TextError(f"{where}: it is not an object: {_cure(line)}")
    return row


def _cure(line):
    return next(cure for mark, cure in CURES.items() if re.search(mark, line))


def _once(where, pairs):
    """Build an object from its pairs and reject duplicate keys, of which Python would silently keep the last."""
    row, keys = dict(pairs), [key for key, _ in pairs]
    if len(row) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise TextError(f"{where}: the key {twice[:40]!r} stands twice: give each once")
    return row
