"""Files and folders written whole or not at all, and a folder that one process works in alone. Knows no models or text."""

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

LOCK, UNFINISHED = ".lock", ".unfinished-"  # a lock's name, and how the names of files that are being written begin
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, None)  # numpy has no number for a file that was cut short
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR)


def replace(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a file beside `path`, then rename it over: a kill or a full disk leaves the old file.

    Raises WriteError when the disk does not take it; the message says what to do.
    """
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=UNFINISHED) as folder:
            write(Path(folder) / path.name)
            os.replace(Path(folder) / path.name, path)


def whole_folder(folder: Path, write: Callable[[Path], object], last: str = "config.json") -> None:
    """Let `write` fill a folder beside `folder`, then rename it: a kill or a full disk leaves none.

    An empty folder that is there, also behind a link, stays, as it may be a mount or the current folder: the files move
    into it, `last` behind all others, without which they are no model. Raises WriteError when there is more in it, or the
    disk does not take the files.
    """
    target = Path(os.path.realpath(folder))
    with _writing(folder):
        inside = target.is_dir()
        place = target if inside else target.parent
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place, prefix=".") as private:
            if inside and os.listdir(target) != [Path(private).name]:  # another process may have begun to write here
                raise WriteError(f"{folder} is there already and is not an empty folder: choose another name")
            new = Path(private) / "new"  # with the rights of any new folder; `private` has its owner's alone
            new.mkdir()
            write(new)
            if not inside:
                os.rename(new, target)  # fails where another process was quicker
            for path in sorted(new.iterdir(), key=lambda path: path.name == last) if inside else ():
                os.replace(path, target / path.name)


@contextmanager
def claim(folder: Path) -> Iterator[None]:
    """Let no other process, nor another `claim` here, work in `folder` inside the `with`; the end of a process frees it.

    The folder is made where there is none; what is still empty at the end goes again. Raises RunError when somebody works
    in it, and WriteError when it cannot be written.
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
        with suppress(OSError):  # Windows keeps it until it is released, and takes it away then
            (folder / LOCK).unlink()
        lock.release()
        for path in made:
            with suppress(OSError):
                path.rmdir()


@contextmanager
def _writing(path):
    """What the operating system refuses inside the `with`, as a WriteError; a defect stays as it is."""
    try:
        yield
    except CourseError:
        raise
    except (OSError, RuntimeError, SafetensorError) as error:
        why = str(error).partition("\n")[0]
        if isinstance(error, OSError):
            number, why = error.errno, error.strerror or why
        elif code := re.search(r"\(os error (\d+)\)|code: (\d+)", why):  # safetensors, and its versions before 0.6
            number = int(code[1] or code[2])
            why = os.strerror(number)
        elif "inline_container.cc" in why:  # torch, which does not say more of a file that was cut short
            number, why = None, why.partition("strerror: ")[2] or "not all of it was taken"
        else:
            raise
        cure = "make room there, then try again" if number in FULL else "try again, or choose another place"
        cure = "choose another place" if number in FORBIDDEN else cure
        raise WriteError(f"could not write {path} ({why}): nothing was lost; {cure}") from None


def write_csv(path: Path, rows: list[dict]) -> None:
    """Rows as a table whose header has every key of theirs, empty cells where a row lacks one; floats at full precision."""

    def write(to):
        with open(to, "w", newline="", encoding="utf-8") as f:
            keys = dict.fromkeys(key for row in rows for key in row)
            writer = csv.DictWriter(f, keys, lineterminator="\n")
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
        with suppress(ValueError):
            return kind(text)
    return text
