"""A file is written whole or not at all, whatever goes wrong."""

import errno
import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from llm import files
from llm.bases import smollm2
from llm.errors import RunError, WriteError
from llm.files import claim, read_csv, replace, whole_folder, write_csv


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


@contextmanager
def forbidden_folder():
    """A folder in which this process may write nothing, also where root runs the tests."""
    if not hasattr(os, "geteuid"):
        pytest.skip("rights as Unix has them")
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o555)
        root = os.geteuid() == 0
        try:
            if root:
                os.seteuid(65534)
            yield Path(folder)
        finally:
            if root:
                os.seteuid(0)
            os.chmod(folder, 0o755)


def save_tensor(path):
    save_file({"a": torch.zeros(99)}, path)


@pytest.mark.parametrize(
    "write",
    [lambda path: path.write_text("x" * 99), lambda path: torch.save([0] * 999, path), save_tensor],
    ids=["text", "torch", "safetensors"],
)
def test_a_full_disk_is_one_sentence_and_the_old_file_stays(old, write):
    with full_disk(), pytest.raises(OSError) as caught:
        replace(old, write)
    said = str(caught.value)
    assert said.startswith(f"could not write {old} (") and "nothing was lost; make room there" in said
    assert "\n" not in said and len(said) < 300 + len(str(old))
    assert_untouched(old)


def test_a_place_that_is_forbidden_is_not_called_a_full_disk():
    def write(path):
        path.write_text("new")

    with forbidden_folder() as folder:
        for attempt in (
            lambda: replace(folder / "a.txt", write),
            lambda: whole_folder(folder / "new", lambda new: write(new / "a.txt")),
            lambda: whole_folder(folder, lambda new: write(new / "a.txt")),
            lambda: claim(folder / "new").__enter__(),
        ):
            with pytest.raises(WriteError, match=r"could not write .*\(Permission denied\).*; choose another place$"):
                attempt()


@pytest.mark.parametrize("error", [RuntimeError("a defect"), RecursionError(), NotImplementedError("later")], ids=repr)
def test_a_defect_in_a_writer_is_not_called_a_full_disk(tmp_path, error):
    def write(path):
        raise error

    for attempt in (lambda: replace(tmp_path / "a.txt", write), lambda: whole_folder(tmp_path / "new", write)):
        with pytest.raises(type(error)) as caught:
            attempt()
        assert caught.value is error and list(tmp_path.iterdir()) == []


# folders


def write_model(folder):
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (folder / name).write_text(name)


def assert_model(folder):
    assert sorted(os.listdir(folder)) == ["config.json", "model.safetensors", "tokenizer.json"]


def test_a_folder_is_made_at_once_with_the_rights_of_any_other(tmp_path):
    whole_folder(tmp_path / "a" / "new", write_model)
    assert_model(tmp_path / "a" / "new")
    (tmp_path / "plain").mkdir()
    assert stat.S_IMODE((tmp_path / "a" / "new").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)
    assert sorted(os.listdir(tmp_path / "a")) == ["new"]


@pytest.mark.parametrize("name", [".", "empty", "empty/", "link", "dangling", "empty/../new", "links/new"])
def test_a_new_name_or_an_empty_folder_takes_a_model_however_it_is_called(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for folder in ("empty", "real", "parent"):
        Path(folder).mkdir()
    Path("link").symlink_to("real")
    Path("dangling").symlink_to("gone")
    Path("links").symlink_to("parent")
    if name == ".":
        monkeypatch.chdir("empty")
    before = os.stat(name).st_ino if os.path.isdir(name) else None
    whole_folder(Path(name), write_model)
    assert_model(name)
    assert before in (None, os.stat(name).st_ino)  # an empty folder stays: it may be a mount, or where somebody is
    assert (tmp_path / "link").is_symlink() and (tmp_path / "dangling").is_symlink()
    assert not [path for path in tmp_path.rglob(".*")]


@pytest.mark.parametrize("empty", [True, False], ids=["in an empty folder", "under a new name"])
def test_of_two_that_write_one_folder_at_a_time_one_is_through_and_the_other_is_refused(tmp_path, empty):
    folder, refused = tmp_path / "new", []
    if empty:
        folder.mkdir()
    both = threading.Barrier(2)

    def work(text):
        def write(new):
            (new / "config.json").write_text(text)
            both.wait(timeout=1200) if not empty else None
            (new / "model.safetensors").write_text(text)

        if empty:
            both.wait(timeout=1200)
        try:
            whole_folder(folder, write)
        except WriteError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=work, args=(text,)) for text in ("one", "two")]
    [thread.start() for thread in threads], [thread.join() for thread in threads]
    if len(refused) == 1:
        assert len({(folder / name).read_text() for name in ("config.json", "model.safetensors")}) == 1
    assert refused and (empty or len(refused) == 1) and str(folder) in refused[0]
    assert os.listdir(tmp_path) == ["new"]


@pytest.mark.parametrize("empty", [True, False], ids=["in an empty folder", "under a new name"])
def test_a_folder_that_somebody_filled_meanwhile_is_not_touched(tmp_path, empty):
    folder = tmp_path / "new"
    if empty:
        folder.mkdir()
        (folder / "work.txt").write_text("hers")

    def write(new):
        write_model(new)
        folder.mkdir()
        (folder / "work.txt").write_text("hers")

    with pytest.raises(WriteError, match=f"{folder}.*(is there already|not empty|exists)"):
        whole_folder(folder, write)
    assert os.listdir(folder) == ["work.txt"] and os.listdir(tmp_path) == ["new"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the child that dies is a fork")
@pytest.mark.parametrize("empty", [True, False], ids=["in an empty folder", "under a new name"])
def test_a_kill_leaves_nothing_that_reads_as_a_model(tmp_path, empty):
    folder = tmp_path / "new"
    if empty:
        folder.mkdir()
    moves = iter(range(9))

    def write(new):
        write_model(new)
        if not empty:
            os._exit(9)

    def move(*_, move=os.replace):
        os._exit(9) if next(moves) == 2 else move(*_)

    if not (pid := os.fork()):  # the child dies before its last move
        files.os.replace = move
        whole_folder(folder, write)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    assert not (folder / "config.json").exists()
    assert folder.exists() == empty


def test_a_base_that_two_processes_unpack_at_a_time_is_there_for_both(tmp_path, monkeypatch):
    monkeypatch.setattr(smollm2, "CACHE", tmp_path)
    monkeypatch.setattr(smollm2, "fetch_model", lambda name, cache: cache / "packed")

    def unpack(gguf, folder):
        with monkeypatch.context() as patched:
            patched.setattr(smollm2, "unpack_gguf", lambda gguf, folder: write_model(folder))
            others.append(smollm2.fetch_smollm2())  # the other one begins later and is through earlier
        write_model(folder)

    others = []
    monkeypatch.setattr(smollm2, "unpack_gguf", unpack)
    assert [smollm2.fetch_smollm2()] == others
    assert_model(others[0])
    assert os.listdir(tmp_path) == [others[0].name]


# a folder for one alone


def hold(folder):
    """Another process that works in `folder`, and says so."""
    code = "import sys, time, pathlib; from llm.files import claim\nwith claim(pathlib.Path(sys.argv[1])):\n print(1, flush=True)\n time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", code, folder], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"1\n"
    return process


def test_a_folder_in_which_another_process_works_is_refused_until_that_has_died(tmp_path):
    folder = tmp_path / "out"
    process = hold(folder)
    try:
        with pytest.raises(RunError, match=f"^a run is at work in {folder}: "), claim(folder):
            pass
        process.send_signal(signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
        process.wait()
    finally:
        process.kill(), process.wait(), process.stdout.close()
    assert folder.exists()  # what a killed process leaves keeps nobody out
    with claim(folder):
        (folder / "work.txt").write_text("mine")
    assert os.listdir(folder) == ["work.txt"]


def test_a_claim_leaves_no_trace_and_takes_no_folder_that_it_did_not_make(tmp_path):
    (tmp_path / "empty").mkdir()
    with claim(tmp_path / "empty"), claim(tmp_path / "a" / "b"):
        pass
    assert os.listdir(tmp_path) == ["empty"]


def test_a_claim_holds_whatever_the_folder_is_called(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with claim(tmp_path / "link"):
        for name in ("real", "link", "real/../link"):
            with pytest.raises(RunError, match="a run is at work in"), claim(tmp_path / name):
                pass
    with claim(tmp_path / "real"):
        pass


# tables


def test_a_table_has_every_column_of_its_rows_and_may_have_no_rows(tmp_path):
    write_csv(tmp_path / "t.csv", [dict(a=1), dict(a=2, b="x"), dict(b="y")])
    assert read_csv(tmp_path / "t.csv") == [dict(a=1, b=""), dict(a=2, b="x"), dict(a="", b="y")]
    write_csv(tmp_path / "t.csv", [])
    assert read_csv(tmp_path / "t.csv") == []


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
