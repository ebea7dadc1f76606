"""Reads and decodes a learner's own text, and reports what its tokens lose."""

import re
from collections import Counter
from pathlib import Path
from unicodedata import normalize

from llm.errors import TextError
from llm.tokenizer import PIECE, Tokenizer

PACKED = (".gz", ".zip", ".bz2", ".xz", ".zst", ".7z", ".tar")


def read(path: Path, suffixes: tuple[str, ...], corpora: tuple[str, ...] = ()) -> bytes:
    """Read the bytes of a file that ends in one of `suffixes`; corpora: names that an error message suggests.

    Raises TextError when the file is missing, cannot be read, or has another suffix.
    """
    kinds = f"{', '.join(suffixes[:-1])} or {suffixes[-1]}"
    known = f"choose one of {', '.join(corpora)}, or give a {kinds} file"
    if path.is_dir():
        raise TextError(f"{path} is a folder: give one {kinds} file in it, or a folder that datasets has saved")
    if path.suffix.lower() in PACKED and path.exists():
        raise TextError(f"{path} is packed: unpack it, then give the {kinds} file that was inside")
    if path.suffix.lower() not in suffixes:
        kind = f"{path} is no {kinds} file" if path.exists() else f"there is no corpus called {str(path)!r}"
        raise TextError(f"{kind}: {known}")
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise TextError(f"there is no file {path}: {known}") from None
    except OSError as error:
        raise TextError(f"{path} cannot be read ({error.strerror}): {known}") from None


def decode(path: Path, raw: bytes) -> str:
    """Decode `raw` as UTF-8, with "\\n" line breaks and no byte order marks. Raises TextError if it is not text."""
    raw = raw.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    if not raw.strip():
        raise TextError(f"{path} is empty: put some text into it")
    if b"\0" in raw:
        raise TextError(f"{path} is not text (it is binary, or UTF-16): save it as UTF-8 text")
    try:
        return re.sub("^\ufeff", "", raw.decode(), flags=re.MULTILINE)  # joined files have one mark each
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise TextError(f"{path} is not UTF-8 (line {line}, byte 0x{raw[error.start]:02x}): save it as UTF-8") from None


def check_text(text: str, what: str) -> None:
    """Raise TextError, with `what` as its subject, when `text` holds a lone surrogate, which is not a character."""
    if re.search("[\ud800-\udfff]", text):
        raise TextError(f"{what} holds half of a character (a lone surrogate): write it whole, in UTF-8")


def unreadable(
    texts: list[str], tokenizer: Tokenizer, unread: Counter | None = None, chat: bool = False
) -> tuple[str, ...]:
    """One sentence for each kind of content in `texts` that does not reach the model.

    The check covers the beginning of the texts and one of each character that occurs only later. It ignores other forms
    of the same character (NFKC) and a blank at the beginning of a text, which many tokenizers drop. unread: the number
    of rows with each key that has no effect. chat: the texts are messages, where special tokens are read as such.
    """
    part = [text[:PIECE].removeprefix(" ") for text in texts[:1000]]
    part.append("".join(sorted(set().union(*texts).difference(*part))))
    back = [tokenizer.decode(tokenizer.encode(text)) for text in part]
    special = re.compile("|".join(map(re.escape, tokenizer.special)) or "(?!)")
    written, kept = (Counter(normalize("NFKC", special.sub("", "".join(side)))) for side in (part, back))
    spelled = "the text spells out {:,} special tokens of this base, which are read as ordinary text"
    if chat:
        spelled = (
            "messages spell out {:,} special tokens of this base, as rows do that a template has been put on already"
        )
    facts = {
        "keys of rows that have no effect, {:,} in all": Counter(unread),
        "this base's tokenizer cannot write {:,} characters of the text": written - kept,
        spelled: Counter(special.findall("\n".join(texts))),
    }
    return tuple(f"{fact.format(n.total())}: {str(dict(n.most_common(5)))[1:-1]}" for fact, n in facts.items() if n)
