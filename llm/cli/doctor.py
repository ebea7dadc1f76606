"""Checks what the course needs, what is installed, and how to get the rest. Imports nothing that might be missing."""

import os
import platform
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata

from packaging.requirements import Requirement

from llm.course import contents
from llm.paths import CHECKPOINT, PROJECT, ROOT, SOURCES

COURSE, REAL, LAB = (
    "every notebook",
    f"notebook {contents.number('real_model')}",
    "JupyterLab",
)  # the values of `Check.needed`


@dataclass(frozen=True)
class Check:
    """One requirement: its version or place if found, what needs it, and how to fix it if something is wrong."""

    name: str
    found: str | None
    needed: str
    how: str = ""  # empty if all is well


def checks() -> Iterator[Check]:
    """Check everything that the course needs, in the way that the course itself would load it."""
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    extras, python = project["optional-dependencies"], f"python{project['requires-python']}"
    lab = [line for line in extras["lab"] if line.startswith("jupyterlab")]
    yield _package(python, COURSE, "install it", platform.python_version())
    yield from (_package(line, COURSE, "pip install -e .") for line in project["dependencies"])
    yield from (_package(line, LAB, 'pip install -e ".[lab]"') for line in lab)
    yield from (_package(line, REAL, 'make real, or pip install -e ".[real]"') for line in extras["real"])
    yield _look("tokenizer", COURSE, _tokenizer)
    yield _look("base model", COURSE, _base)
    sources = tomllib.loads(SOURCES.read_text(encoding="utf-8"))
    yield from (_look(f"corpus {name}", COURSE, _corpus, name) for name in sources if name != "models")
    yield _look("model smollm2", REAL, _smollm2)


def machine() -> dict[str, str]:
    """Describe this machine: device, cores, memory, and free space on the disk of the course."""
    gb = 1024**3
    try:
        import torch

        gpu = torch.cuda.is_available() and torch.cuda.get_device_properties(0)
        device = f"cuda: {gpu.name}, {gpu.total_memory / gb:.1f} GB" if gpu else "cpu"
    except Exception:  # also a torch that is installed but broken
        device = "unknown: torch does not load"
    known = "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {})  # not on Windows
    size = known and os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    memory = f"{size / gb:.1f} GB" if size else "unknown"
    cores = str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    disk = f"{shutil.disk_usage(ROOT).free / gb:.1f} GB free"
    system = f"{platform.system()} {platform.machine()}"
    return dict(device=device, cores=cores, memory=memory, disk=disk, system=system, interpreter=sys.executable)


def _package(line: str, needed: str, how: str, version: str | None = None) -> Check:
    """Check a requirement against `version`, or else the installed version."""
    wanted = Requirement(line)
    try:
        version = version or metadata.version(wanted.name)
    except metadata.PackageNotFoundError:
        return Check(wanted.name, None, needed, how)
    fits = wanted.specifier.contains(version, prereleases=True)
    return Check(wanted.name, version, needed, "" if fits else f"a version {wanted.specifier} is needed: {how}")


def _look(name: str, needed: str, look: Callable[..., str], *args) -> Check:
    """Make a check from `look`, which returns what it finds, or raises an error that says what to do."""
    try:
        return Check(name, look(*args), needed)
    except ImportError as error:
        how = f"cannot be looked at without {error.name}: install that first"
    except Exception as error:
        how = " ".join(str(error).split())
    return Check(name, None, needed, how)


def _tokenizer():
    from llm.tokenizer import get_tokenizer

    return f"GPT-2's, {get_tokenizer().n_vocab:,} tokens"


def _base():
    from llm.bases import load_base

    load_base()
    return f"your own {CHECKPOINT}" if CHECKPOINT.is_file() else "the one that ships"


def _corpus(name):
    from llm.text import download

    if not (download.CACHE / download.sources()[name]["file"]).is_file():
        raise FileNotFoundError("not fetched yet: python -m llm fetch")
    return f"{download.fetch(name).stat().st_size / 1e6:.1f} MB"


def _smollm2():
    from llm.bases.smollm2 import smollm2_folder

    if not smollm2_folder().is_dir():
        raise FileNotFoundError("not fetched yet: make real, or python -m llm fetch --real")
    return f"{sum(path.stat().st_size for path in smollm2_folder().iterdir()) / 1e6:.1f} MB"
