"""A prompt and its completion as one row of tokens: how they are joined, what of them counts, how rows are padded."""

import torch

from llm.errors import SettingError
from llm.loss import IGNORE
from llm.text.batches import Batch
from llm.tokenizer import GPT2, Tokenizer

BREAK = "\n"  # between prompt and completion
JOIN = "a line break, unless the prompt ends in one"  # what `run.json` says of how the two are joined
Example = tuple[list[int], list[int]]  # prompt and completion, both tokens


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
    return len(row[0]) + len(row[1]) - 1


def pad(rows: list[Example], end: int, width: int | None = None) -> Batch:
    """Rows as inputs and targets (rows, width), by default as wide as the longest: only completions count to the loss.

    Raises SettingError when a row is longer than `width`.
    """
    longest = max(map(length, rows))
    if width is not None and longest > width:
        raise SettingError(f"a row of {longest} tokens does not fit a context of {width}")
    width = width or longest
    x, y = torch.full((len(rows), width), end), torch.full((len(rows), width), IGNORE)
    for i, (prompt, completion) in enumerate(rows):
        x[i, : length((prompt, completion))] = torch.tensor((prompt + completion)[:-1])
        y[i, len(prompt) - 1 : length((prompt, completion))] = torch.tensor(completion)
    return x, y
