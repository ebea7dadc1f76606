"""Write files and folders whole or not at all, and lock a folder for one process. Knows nothing of models or text."""

import csv
import errno
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from llm.errors import CourseError, RunError, WriteError

LOCK, UNFINISHED = ".lock", ".unfinished-"  # a lock's name, and the prefix of files being written
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, None)  # None: numpy gives no errno for a short write
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR)


def replace(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a new file, then rename it to `path`: a killed process or a full disk leaves the old file.

    Raises WriteError when the file cannot be written; the message says what to do.
    """
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=UNFINISHED) as folder:
            write(Path(folder) / path.name)
            os.replace(Path(folder) / path.name, path)


def whole_folder(folder: Path, write: Callable[[Path], object], last: str = "config.json") -> None:
    """Let `write` fill a temporary folder, then rename it to `folder`, so that it is complete or not there.

    An existing empty folder is kept, even behind a link, because it may be a mount or the current folder. The files
    then move into it, and `last`, without which they are no model, moves last. Raises WriteError when the folder is not
    empty or cannot be written.
    """
    target = Path(os.path.realpath(folder))
    with _writing(folder):
        inside = target.is_dir()
        place = target if inside else target.parent
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place, prefix=".") as private:
            if inside and os.listdir(target) != [Path(private).name]:  # another process may have started to write here
                raise WriteError(f"{folder} is there already and is not an empty folder: choose another name")
            new = Path(private) / "new"  # has the default permissions; `private` is open to its owner only
            new.mkdir()
            write(new)
            if not inside:
                os.rename(new, target)  # fails if another process was faster
            for path in sorted(new.iterdir(), key=lambda path: path.name == last) if inside else ():
                os.replace(path, target / path.name)


@contextmanager
def claim(folder: Path) -> Iterator[None]:
    """Keep every other process or `claim` out of `folder` inside the `with`; the lock ends with the process.

    A missing folder is made; folders made here that are still empty at the end are removed. Raises RunError when the
    folder is in use, and WriteError when it cannot be written.
    """
    folder = Path(os.path.realpath(shown := folder))
    with _writing(shown):
        made = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK, thread_local=False)  # a generator may be closed in another thread
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise RunError(f"a run is at work in {shown}: wait until it ends, or choose another --out") from None
    try:
        yield
    finally:
        with suppress(OSError):  # Windows refuses this before the release, which then deletes the file
            (folder / LOCK).unlink()
        lock.release()
        for path in made:
            with suppress(OSError):
                path.rmdir()


@contextmanager
def _writing(path):
    """Turn what the operating system refuses inside the `with` into a WriteError; other exceptions pass through."""
    try:
        yield
    except CourseError:
        raise
    except (OSError, RuntimeError, SafetensorError) as error:
        why = str(error).partition("\n")[0]
        if isinstance(error, OSError):
            number, why = error.errno, error.strerror or why
        elif code := re.search(r"\(os error (\d+)\)|code: (\d+)", why):  # safetensors, now and before 0.6
            number = int(code[1] or code[2])
            why = os.strerror(number)
        elif "inline_container.cc" in why:  # torch, which says no more about a short write
            number, why = None, why.partition("strerror: ")[2] or "not all of it was taken"
        else:
            raise
        cure = "make room there, then try again" if number in FULL else "try again, or choose another place"
        cure = "choose another place" if number in FORBIDDEN else cure
        raise WriteError(f"could not write {path} ({why}): nothing was lost; {cure}") from None


def write_csv(path: Path, rows: list[dict]) -> None:
    """Write rows as a CSV table with a column for every key, empty cells for missing ones, and full float precision."""

    def write(to):
        with open(to, "w", newline="", encoding="utf-8") as f:
            keys = dict.fromkeys(key for row in rows for key in row)
            writer = csv.DictWriter(f, keys, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    replace(path, write)


def read_csv(path: Path) -> list[dict]:
    """Return the rows of a CSV table, numbers converted; an empty list when the file does not exist."""
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as f:
        return [{key: _number(value) for key, value in row.items()} for row in csv.DictReader(f)]


def _number(text):
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text
