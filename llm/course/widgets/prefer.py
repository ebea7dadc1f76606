"""An explorer: two answers to one prompt, side by side and blind, and how often the reader prefers whose."""

from collections.abc import Sequence

from llm.course.widgets.explorer import Explorer
from llm.errors import SettingError

FIRST_REVEAL = 5  # pairs that are judged before the score may be asked for


def prefer(
    pairs: Sequence[tuple[str | list[dict], str, str]], names: tuple[str, str] = ("base", "adapter"), seed: int = 0
) -> Explorer:
    """A blind comparison of (prompt, first answer, second answer), 10 to 20 of them, by the reader.

    A prompt is a text or a list of messages. names: of the two who answered, in the order of the answers; the score is
    the second's. seed: of the draw of whose answer stands left. Pairs whose answers are the same are ties already, and
    are not shown. Raises SettingError where nothing can be compared.
    """
    if len(set(names)) != 2 or len(names) != 2:
        raise SettingError(f"names are {names!r}; a comparison needs two that differ")
    for i, pair in enumerate(pairs):
        if len(pair) != 3 or not all(isinstance(answer, str) for answer in pair[1:]):
            raise SettingError(f"pair {i} is {pair!r}; give (prompt, answer of {names[0]}, answer of {names[1]})")
    shown = [[_text(prompt), *answers] for prompt, *answers in pairs if answers[0].strip() != answers[1].strip()]
    if not shown:
        raise SettingError(f"{len(pairs)} pairs and no answers that differ: there is nothing to compare")
    return Explorer(
        "prefer",
        f"A blind comparison: a prompt and two answers, of {names[0]} and of {names[1]}, in an order drawn anew for each "
        "prompt. The reader prefers one or says that it is a tie; at the end stands the score with its interval.",
        pairs=shown,
        same=len(pairs) - len(shown),
        names=list(names),
        seed=seed,
        least=min(FIRST_REVEAL, len(shown)),
    )


def _text(prompt: str | list[dict]) -> str:
    """A prompt as the reader sees it; messages one under another, each behind its role."""
    return prompt if isinstance(prompt, str) else "\n".join(f"{m['role']}: {m['content']}" for m in prompt)
