"""One row of tokens: how prompt and completion are joined, which tokens count in the loss, how rows are padded."""

import torch

from llm.errors import SettingError
from llm.loss import IGNORE
from llm.text.batches import Batch
from llm.tokenizer import GPT2, Tokenizer

BREAK = "\n"  # between prompt and completion
JOIN = "a line break, unless the prompt ends in one"  # how `run.json` records that prompt and completion are joined
# Lists of tokens, alternately ungraded and graded (in the loss): (prompt, completion), and so on for the answers of a
# conversation. The first list is never empty, because nothing predicts a text's first token.
Example = tuple[list[int], ...]


def ask(prompt: str, join: str | None = JOIN) -> str:
    """Format a prompt as the model sees it in training and in use: it ends in a line break.

    join: the value in the run's report. Older runs recorded none; they always added a line break, even after another.
    """
    return prompt if join == JOIN and prompt.endswith(BREAK) else prompt + BREAK


def example(prompt: str, completion: str, tokenizer: Tokenizer = GPT2) -> Example:
    """Tokenize prompt and completion, with the beginning token (if any) before them and the end token after them.

    A completion is encoded in its place after the prompt, because many tokenizers add a blank at the start of a text.
    """
    start, whole = tokenizer.start(ask(prompt)), tokenizer.start(ask(prompt) + completion)
    behind = whole[len(start) :] if whole[: len(start)] == start else tokenizer.encode(completion)
    return start, [*behind, tokenizer.end]


def length(row: Example) -> int:
    """The number of context tokens that a row needs; its last token is only a target."""
    return sum(map(len, row)) - 1


def pad(rows: list[Example], end: int, width: int | None = None) -> Batch:
    """Pad rows to inputs and targets (rows, width), by default as wide as the longest; only graded tokens are targets.

    Raises SettingError when a row is longer than `width`.
    """
    longest = max(map(length, rows))
    if width is not None and longest > width:
        raise SettingError(f"a row of {longest} tokens does not fit a context of {width}")
    width = width or longest
    x, y = torch.full((len(rows), width), end), torch.full((len(rows), width), IGNORE)
    for i, row in enumerate(rows):
        x[i, : length(row)] = torch.tensor([token for part in row for token in part][:-1])
        y[i, : length(row)] = torch.tensor(targets(row)[1:])
    return x, y


def targets(row: Example) -> list[int]:
    """The tokens of a row, with IGNORE in place of each ungraded one."""
    return [token if i % 2 else IGNORE for i, part in enumerate(row) for token in part]
