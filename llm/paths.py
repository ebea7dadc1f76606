"""Where the course's files lie, seen from here and from nowhere else."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LESSON = ROOT / "llm"
PROJECT = ROOT / "pyproject.toml"
NOTEBOOKS = ROOT / "notebooks"
DATA = ROOT / "data"
SOURCES = DATA / "sources.toml"  # packages, versions and sha256 of what is fetched
TOKENIZER = DATA / "tokenizer"
BASE = DATA / "base"  # the model that ships
RESULTS = DATA / "results"  # recorded sweeps
CACHE = DATA / "cache"  # what was fetched, not tracked
CHECKPOINT = ROOT / "checkpoints" / "model.pt"  # where a learner's earlier chapters save their own model


def user_path(name: str | os.PathLike) -> Path:
    """The path that a person means by `name`: a leading `~` is the home folder.

    Where there is no such user, or no home, `~name` is a file of that name, and so is `./~name` always. Such a path is
    absolute: whoever asks for its meaning again gets the same.
    """
    path = Path(os.path.expanduser(name))
    return path.absolute() if str(path).startswith("~") else path
