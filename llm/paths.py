"""The locations of the course's files, defined only here."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LESSON = ROOT / "llm"
PROJECT = ROOT / "pyproject.toml"
NOTEBOOKS = ROOT / "notebooks"
DATA = ROOT / "data"
SOURCES = DATA / "sources.toml"  # packages, versions and sha256 of the downloads
TOKENIZER = DATA / "tokenizer"
BASE = DATA / "base"  # the model that ships with the course
RESULTS = DATA / "results"  # recorded sweeps
CACHE = DATA / "cache"  # downloads, not tracked by git
CHECKPOINT = ROOT / "checkpoints" / "model.pt"  # a learner's own model, saved in earlier chapters


def user_path(name: str | os.PathLike) -> Path:
    """Return the path that a person means by `name`: a leading `~` is the home folder.

    When there is no such user or no home, `~name` is a file of that name, as `./~name` always is. Such a path is
    returned as absolute, so that a second call returns the same path.
    """
    path = Path(os.path.expanduser(name))
    return path.absolute() if str(path).startswith("~") else path
