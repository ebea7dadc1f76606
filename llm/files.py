"""Files written whole or not at all. Knows nothing about models or text."""

import csv
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from llm.errors import WriteError


def replace(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a file beside `path`, then rename it over: a kill or a full disk leaves the old file.

    Raises WriteError when the disk does not take it; the message says what to do.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            write(Path(folder) / path.name)
            os.replace(Path(folder) / path.name, path)
    except (OSError, RuntimeError) as error:  # torch.save turns a full disk into a RuntimeError of many lines
        why = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise WriteError(f"could not write {path} ({why}): nothing was lost; make room there, then try again") from None


def whole_folder(folder: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a folder beside `folder`, then rename it: a kill or a full disk leaves none.

    Raises WriteError when the disk does not take it.
    """
    new = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        new.mkdir(parents=True)
        write(new)
        os.replace(new, folder)
    except (OSError, SafetensorError) as error:  # safetensors has a full disk as an error of its own
        raise WriteError(f"could not write {folder} ({error}): make room there, or choose another place") from None
    finally:
        shutil.rmtree(new, ignore_errors=True)


def write_csv(path: Path, rows: list[dict]) -> None:
    """Rows of the same keys as a table with a header; floats at full precision."""

    def write(to):
        with open(to, "w", newline="", encoding="utf-8") as f:
            writer = csv.DictWriter(f, rows[0].keys(), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    replace(path, write)


def read_csv(path: Path) -> list[dict]:
    """The rows of a table, each cell a number where it reads as one; no rows when there is no such file."""
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as f:
        return [{key: _number(value) for key, value in row.items()} for row in csv.DictReader(f)]


def _number(text):
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text
