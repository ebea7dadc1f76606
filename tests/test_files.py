"""A file is written whole or not at all, whatever goes wrong."""

import errno
import os
from contextlib import contextmanager

import pytest
import torch

from llm import files
from llm.files import read_csv, replace, write_csv


@pytest.fixture
def old(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("old")
    return path


def assert_untouched(path):
    assert path.read_text() == "old" and os.listdir(path.parent) == [path.name]


@contextmanager
def full_disk():
    """No file may grow beyond a few bytes: what a full disk does, from the operating system itself.

    Not a fixture: pytest reports a test before it undoes its fixtures, and its report may go to a file too.
    """
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_the_new_file_takes_the_place_of_the_old_and_leaves_nothing_beside_it(old):
    replace(old, lambda path: path.write_text("new"))
    assert old.read_text() == "new" and os.listdir(old.parent) == [old.name]


def test_folders_are_made_on_the_way(tmp_path):
    replace(tmp_path / "a" / "b" / "c.txt", lambda path: path.write_text("x"))
    assert (tmp_path / "a" / "b" / "c.txt").read_text() == "x"


def test_the_writer_sees_the_files_own_name_on_the_same_disk(old):
    seen = []
    replace(old, lambda path: seen.append(path) or path.write_text("new"))
    assert seen[0].name == old.name and seen[0].parent.parent == old.parent  # np.save goes by the ending


def test_the_old_file_stands_until_the_new_one_is_complete(old):
    def write(path):
        path.write_text("half")
        assert old.read_text() == "old"

    replace(old, write)


@pytest.mark.parametrize("error", [KeyboardInterrupt, TypeError("a bug"), MemoryError])
def test_a_writer_that_fails_leaves_the_old_file_and_its_own_error(old, error):
    def write(path):
        path.write_text("half")
        raise error

    with pytest.raises(error if isinstance(error, type) else type(error)):
        replace(old, write)
    assert_untouched(old)


def test_a_rename_that_fails_leaves_the_old_file(old, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "replace", refuse)
    with pytest.raises(OSError, match="No space left on device"):
        replace(old, lambda path: path.write_text("new"))
    monkeypatch.undo()
    assert_untouched(old)


@pytest.mark.parametrize("write", [lambda path: path.write_text("x" * 99), lambda path: torch.save([0] * 999, path)])
def test_a_full_disk_is_one_sentence_and_the_old_file_stays(old, write):
    with full_disk(), pytest.raises(OSError) as caught:
        replace(old, write)
    said = str(caught.value)
    assert said.startswith(f"could not write {old} (") and "nothing was lost; make room there" in said
    assert "\n" not in said and len(said) < 300 + len(str(old))
    assert_untouched(old)


def test_a_table_on_a_full_disk_leaves_the_old_table(old):
    with full_disk(), pytest.raises(OSError, match="nothing was lost"):
        write_csv(old, [dict(name="x" * 99)])
    assert_untouched(old)


def test_a_table_comes_back_as_it_was_written_numbers_as_numbers(tmp_path):
    rows = [dict(name="a, b", n=3, loss=0.1 + 0.2, note=""), dict(name='say "so"', n=-1, loss=1e-30, note="naïve")]
    write_csv(tmp_path / "t.csv", rows)
    assert read_csv(tmp_path / "t.csv") == rows
    assert [type(v) for v in read_csv(tmp_path / "t.csv")[0].values()] == [str, int, float, str]
    assert b"\r" not in (tmp_path / "t.csv").read_bytes()


def test_a_table_that_is_not_there_has_no_rows(tmp_path):
    assert read_csv(tmp_path / "none.csv") == []
