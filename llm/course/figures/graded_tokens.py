"""The tokens of a text, in color where they count in the loss: HTML in a notebook, plain text elsewhere."""

import html
from collections.abc import Sequence
from dataclasses import dataclass

from llm.course.figures.palette import COLOURS

BREAK = "\u23ce"  # what stands for a line break


@dataclass
class Tokens:
    """What `graded_tokens` returns, for a cell's last expression: (text, does it count) of each token."""

    tokens: list[tuple[str, bool]]

    def _said(self) -> str:
        return f"{len(self.tokens)} tokens, of which {sum(graded for _, graded in self.tokens)} count"

    def _repr_html_(self) -> str:  # underlined, too, for whoever does not see the color; the page gives the text's
        style = "display: inline-block; margin: 1px; padding: 0 3px; border: 1px solid #8884; white-space: pre"
        graded = f"{style}; background: {COLOURS['lora']}44; border-bottom: 3px solid {COLOURS['lora']}"
        spans = (
            f'<span style="{graded if counts else style}">{html.escape(text).replace(chr(10), BREAK)}</span>'
            + "<br>" * text.endswith("\n")
            for text, counts in self.tokens
        )
        body = f'<div role="img" aria-label="{html.escape(repr(self))}">{"".join(spans)}</div>'
        return f'<div style="font-family: monospace; line-height: 1.7">{body}<p>{self._said()}</p></div>'

    def __repr__(self) -> str:  # what counts stands between marks
        text, before = "", False
        for token, graded in [*self.tokens, ("", False)]:
            text, before = text + ("\u00ab" if graded > before else "\u00bb" * (graded < before)) + token, graded
        return f"{text.rstrip()}\n({self._said()})"


def graded_tokens(parts: Sequence[Sequence[str]]) -> Tokens:
    """Lists of tokens, by turns only read and graded, as a row of `llm.text.examples` has them, each token as its text."""
    return Tokens([(token, bool(i % 2)) for i, part in enumerate(parts) for token in part])
