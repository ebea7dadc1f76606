"""What transformers and its models raise and print, as one sentence and as silence.

transformers is imported where it is used: who only adapts the course's own model does not have it.
"""

import importlib.metadata
import tomllib
from contextlib import contextmanager
from pathlib import Path
from traceback import walk_tb

import torch
from packaging.requirements import Requirement

from llm.errors import BaseError, CourseError
from llm.paths import PROJECT

OURS = Path(__file__).parents[1]


@contextmanager
def quiet():
    """transformers without its progress bars and warnings; afterwards they are as they were."""
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401  # what is broken shows here
        from transformers.utils import logging
    except Exception as error:  # another package that does not fit it, in whatever way
        if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == "transformers":
            raise BaseError("this base needs transformers: run `make real`, or pip install -e '.[real]'") from None
        raise BaseError(
            f"transformers is installed but does not load ({line(error)}): install what it asks for, or all of it anew "
            "with pip install --upgrade --force-reinstall transformers"
        ) from None
    before = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar(), logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before[1])
        if before[0]:
            logging.enable_progress_bar()


@contextmanager
def theirs(what: str, cure: str, kind: type[CourseError] = BaseError):
    """Whatever other people's code raises inside the `with`, as one sentence: what (its first line): cure.

    What our own code raised, and a full memory, goes through as it is. Raises `kind`.
    """
    try:
        yield
    except (CourseError, MemoryError, torch.OutOfMemoryError):
        raise
    except BaseException as error:
        panicked = type(error).__name__ == "PanicException"  # Rust's, which is no Exception
        if not (isinstance(error, Exception) or panicked) or "can't allocate memory" in str(error) or _ours(error):
            raise
        raise kind(f"{what} ({line(error)}): {cure}") from None


def _ours(error):
    """Whether it was raised in a file of this package: a defect, which keeps its traceback."""
    *_, (frame, _) = walk_tb(error.__traceback__)
    at = Path(frame.f_code.co_filename)
    return at.is_relative_to(OURS) and at != Path(__file__)


def too_old() -> str | None:
    """The end of a sentence where the installed transformers is older than the course's lowest; else None."""
    found = importlib.metadata.version("transformers")
    extra = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["optional-dependencies"]["real"]
    wanted = next(line for line in map(Requirement, extra) if line.name == "transformers").specifier
    if wanted.contains(found, prereleases=True):
        return None
    return f"transformers {found} is installed and {wanted} is needed: run `make real`"


def line(error: BaseException) -> str:
    """The first line of what an error says, cut to the length that a sentence bears."""
    lines = [text.strip() for text in str(error).splitlines() if text.strip()]
    return (lines[0] if lines else type(error).__name__)[:200].rstrip(".:")
