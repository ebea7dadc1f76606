"""A row of tokens: how prompt and completion are joined, which tokens count in the loss, how rows are padded."""

import torch

from llm.errors import SettingError
from llm.loss import IGNORE
from llm.text.batches import Batch
from llm.tokenizer import GPT2, Tokenizer

BREAK = "\n"  # between prompt and completion
JOIN = "a line break, unless the prompt ends in one"  # what `run.json` says of how the two are joined
# Token lists, by turns only read and graded: (prompt, completion), and on through the answers of a conversation. The first
# is never empty, as nothing predicts a text's first token.
Example = tuple[list[int], ...]


def ask(prompt: str, join: str | None = JOIN) -> str:
    """A prompt as a model is given it, in training and when it is asked: it ends in a line break.

    join: what the run's report says; one of an older run says nothing, and got one line break more whatever it ended in.
    """
    return prompt if join == JOIN and prompt.endswith(BREAK) else prompt + BREAK


def example(prompt: str, completion: str, tokenizer: Tokenizer = GPT2) -> Example:
    """Prompt and completion as tokens: the beginning token, if there is one, before them and the end token behind.

    A completion is encoded as it stands behind its prompt: many tokenizers put a blank before what begins a text.
    """
    start, whole = tokenizer.start(ask(prompt)), tokenizer.start(ask(prompt) + completion)
    behind = whole[len(start) :] if whole[: len(start)] == start else tokenizer.encode(completion)
    return start, [*behind, tokenizer.end]


def length(row: Example) -> int:
    """How many tokens of context a row takes: its last token is only a target."""
    return sum(map(len, row)) - 1


def pad(rows: list[Example], end: int, width: int | None = None) -> Batch:
    """Rows as inputs and targets (rows, width), by default as wide as the longest: only graded tokens are targets.

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
    """A row's tokens, with IGNORE for each that is only read."""
    return [token if i % 2 else IGNORE for i, part in enumerate(row) for token in part]
