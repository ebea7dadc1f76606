"""What the course needs, what of it is here, and how to get the rest. Imports nothing that might be missing."""

import importlib.metadata
import os
import platform
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from llm.paths import CHECKPOINT, PROJECT, ROOT, SOURCES

COURSE, REAL, LAB = "every notebook", "notebook 07", "JupyterLab"  # what a thing is needed for


@dataclass(frozen=True)
class Check:
    """One thing: its version or place, what needs it, and, when it is not as it should be, how to put that right."""

    name: str
    found: str | None
    needed: str
    how: str = ""

    @property
    def ok(self) -> bool:
        return not self.how


def checks() -> Iterator[Check]:
    """Everything that the course needs, each looked at as the course itself would."""
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted, own = SpecifierSet(project["requires-python"]), platform.python_version()
    yield Check("python", own, COURSE, "" if wanted.contains(own) else f"install a Python {wanted}")
    yield from (_package(line, COURSE, "pip install -e .") for line in project["dependencies"])
    yield from (
        _package(line, LAB, 'pip install -e ".[lab]"') for line in extras["lab"] if line.startswith("jupyterlab")
    )
    yield from (_package(line, REAL, 'make real, or pip install -e ".[real]"') for line in extras["real"])
    yield _look("tokenizer", COURSE, _tokenizer)
    yield _look("base model", COURSE, _base)
    declared = tomllib.loads(SOURCES.read_text(encoding="utf-8"))
    for name in [name for name in declared if name != "models"]:
        yield _look(f"corpus {name}", COURSE, partial(_corpus, name, declared[name]["file"]))
    yield _look("model smollm2", REAL, _smollm2)


def machine() -> dict[str, str]:
    """Device, cores, memory, and room on the disk that the course lies on."""
    gb = 1024**3
    try:
        memory = f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / gb:.1f} GB"
    except (AttributeError, ValueError, OSError):  # not every system tells
        memory = "unknown"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "device": _device(),
        "cores": str(cores),
        "memory": memory,
        "disk": f"{shutil.disk_usage(ROOT).free / gb:.1f} GB free",
        "system": f"{platform.system()} {platform.machine()}",
        "interpreter": sys.executable,
    }


def _device():
    try:
        import torch
    except Exception:  # also a torch that is there but broken
        return "unknown: torch does not load"
    if torch.cuda.is_available():
        return f"cuda: {torch.cuda.get_device_name(0)}, {torch.cuda.get_device_properties(0).total_memory / 1024**3:.1f} GB"
    return "cpu"


def _package(line, needed, how):
    wanted = Requirement(line)
    try:
        found = importlib.metadata.version(wanted.name)
    except importlib.metadata.PackageNotFoundError:
        return Check(wanted.name, None, needed, how)
    fits = wanted.specifier.contains(found, prereleases=True)
    return Check(wanted.name, found, needed, "" if fits else f"a version {wanted.specifier} is needed: {how}")


def _look(name: str, needed: str, look: Callable[[], str]) -> Check:
    """A check whose `look` finds the thing, or raises with what to do."""
    try:
        return Check(name, look(), needed)
    except ImportError as error:
        return Check(name, None, needed, f"cannot be looked at without {error.name}: install that first")
    except Exception as error:
        return Check(name, None, needed, " ".join(str(error).split()))


def _tokenizer():
    from llm import tokenizer

    return f"GPT-2's, {tokenizer.get_tokenizer().n_vocab:,} tokens"


def _base():
    from llm.bases import load_base

    load_base()
    return f"your own {CHECKPOINT}" if CHECKPOINT.is_file() else "the one that ships"


def _corpus(name, file):
    from llm.text import download

    if not (download.CACHE / file).is_file():
        raise FileNotFoundError("not fetched yet: python -m llm fetch")
    return f"{download.fetch(name).stat().st_size / 1e6:.1f} MB"


def _smollm2():
    from llm.bases.smollm2 import smollm2_folder

    if not smollm2_folder().is_dir():
        raise FileNotFoundError("not fetched yet: make real, or python -m llm fetch --real")
    return f"{sum(path.stat().st_size for path in smollm2_folder().iterdir()) / 1e6:.1f} MB"
