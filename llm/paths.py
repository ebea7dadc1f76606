"""Where the course's files lie, seen from here and from nowhere else."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROJECT = ROOT / "pyproject.toml"
NOTEBOOKS = ROOT / "notebooks"
DATA = ROOT / "data"
SOURCES = DATA / "sources.toml"  # packages, versions and sha256 of what is fetched
TOKENIZER = DATA / "tokenizer"
BASE = DATA / "base"  # the model that ships
RESULTS = DATA / "results"  # recorded sweeps
CACHE = DATA / "cache"  # what was fetched, not tracked
CHECKPOINT = ROOT / "checkpoints" / "model.pt"  # where a learner's earlier chapters save their own model
