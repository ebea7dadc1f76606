"""Sliders over plots: controls, and what happens when one moves. No maths and no drawing of its own.

    controls -> numbers(**values) -> draw(numbers, figure) -> an image, and describe(numbers) -> a line of text

Only what ipywidgets 7.7 and 8 share; a picture in an `Image`, never an `Output`, so that it is quick and testable.
"""

import html
import io
from collections.abc import Callable
from typing import Any

import ipywidgets as widgets
import torch
from matplotlib.figure import Figure

from llm import diagrams, matrices, spectra


class Explorer(widgets.VBox):
    """Controls above a line of text and a picture that follow them; `.controls`, `.text`, `.image` for tests."""

    def __init__(self, controls: dict[str, widgets.Widget], numbers: Callable, draw: Callable, describe: Callable):
        self.controls, self.text, self.image = controls, widgets.HTML(), widgets.Image(format="png")
        self._numbers, self._draw, self._describe = numbers, draw, describe
        self._figure: Figure | None = None  # one figure, drawn again: half the time of a new one
        self.refresh()
        for control in controls.values():
            control.observe(self.refresh, names="value")
        super().__init__([*controls.values(), self.text, self.image])

    def refresh(self, _change: Any = None) -> None:
        found = self._numbers(**{name: control.value for name, control in self.controls.items()})
        self._figure = self._draw(found, self._figure)
        buffer = io.BytesIO()
        self._figure.savefig(buffer, format="png")
        # a live region: a screen reader speaks the new numbers as the slider moves
        self.text.value = f'<div role="status" aria-live="polite">{html.escape(self._describe(found))}</div>'
        self.image.value = buffer.getvalue()

    def __repr__(self) -> str:  # what a reader without a kernel sees in its place
        return "(an interactive picture: run this cell to move it)"


def slider(label: str, value: int, low: int, high: int) -> widgets.IntSlider:
    return widgets.IntSlider(value, low, high, description=label, layout=widgets.Layout(width="420px"))


def choice(label: str, options: list) -> widgets.Dropdown:
    return widgets.Dropdown(options=options, description=label)


def rank_explorer() -> Explorer:
    """A matrix of one's choice and its best rank-r factors."""

    def numbers(which: str, r: int) -> matrices.Approximation:
        return matrices.approximate(matrices.MATRICES[which](), r)

    def describe(part: matrices.Approximation) -> str:
        whole = part.target.numel()
        return (
            f"rank {part.A.size(1)}: {part.numbers:,} numbers in A and B for {whole:,} in the matrix, "
            f"{whole / part.numbers:.1f} times fewer; {part.error:.1%} off"
        )

    controls = {"which": choice("matrix", list(matrices.MATRICES)), "r": slider("rank r", 2, 1, 32)}
    return Explorer(controls, numbers, diagrams.factors, describe)


def delta_explorer(deltas: dict[str, dict[str, torch.Tensor]]) -> Explorer:
    """A layer's delta W and its best rank-r part. deltas: task -> weight name -> (out, in)."""
    done: dict[tuple[str, str], spectra.Parts] = {}  # a decomposition costs more than a picture

    def numbers(task: str, layer: str, r: int) -> tuple[spectra.Parts, int]:
        if (task, layer) not in done:
            done[task, layer] = spectra.decompose(deltas[task][layer])
        return done[task, layer], r

    def describe(found: tuple) -> str:
        parts, r = found
        [held] = spectra.energy(parts.s, [r])
        return f"rank {r} of {len(parts.s)}: {held:.0%} of the energy in {r / len(parts.s):.0%} of the directions"

    first = next(iter(deltas.values()))
    controls = {
        "task": choice("task", list(deltas)),
        "layer": choice("layer", [(name.removeprefix("transformer.").removesuffix(".weight"), name) for name in first]),
        "r": slider("rank r", 8, 1, 64),
    }
    return Explorer(controls, numbers, diagrams.spectrum, describe)
