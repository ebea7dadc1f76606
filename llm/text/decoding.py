"""A learner's own file: found, read and decoded, or refused with a sentence."""

from pathlib import Path

from llm.errors import TextError

KINDS = (".txt", ".jsonl")


def read(path: Path, corpora: tuple[str, ...] = ()) -> bytes:
    """The bytes of a file of one of `KINDS`; corpora: names that could be meant instead, for the sentence.

    Raises TextError when there is no such file, or it cannot be read.
    """
    known = f"choose one of {', '.join(corpora)}, or give a .txt or .jsonl file"
    if path.is_dir():
        raise TextError(f"{path} is a folder: give one .txt or .jsonl file in it")
    if path.suffix.lower() not in KINDS:
        kind = f"{path} is neither .txt nor .jsonl" if path.exists() else f"there is no corpus called {str(path)!r}"
        raise TextError(f"{kind}: {known}")
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise TextError(f"there is no file {path}: {known}") from None
    except OSError as error:
        raise TextError(f"{path} cannot be read ({error.strerror}): {known}") from None


def decode(path: Path, raw: bytes) -> str:
    """The text in `raw`, which was read from `path`: UTF-8, line breaks as "\\n". Raises TextError for anything else."""
    if not raw.strip():
        raise TextError(f"{path} is empty: put some text into it")
    if b"\0" in raw:
        raise TextError(f"{path} is not text (it is binary, or UTF-16): save it as UTF-8 text")
    try:
        return raw.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise TextError(f"{path} is not UTF-8 (line {line}, byte 0x{raw[error.start]:02x}): save it as UTF-8") from None
