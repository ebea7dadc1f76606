"""Sliders over plots: controls, and what happens when one moves. No maths and no drawing of its own.

    controls -> numbers(**values) -> draw(numbers, figure) -> an image, and describe(numbers) -> a line of text

Only what ipywidgets 7.7 and 8 share; a picture in an `Image`, never an `Output`, so that it is quick and testable.
"""

import html
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import torch
import torch.nn as nn
from matplotlib.figure import Figure

from llm import charts, diagrams, matrices, plots, spectra
from llm.adapters import AdapterError, load_adapter
from llm.audit import Row, audit_model
from llm.lora import apply_lora, remove_lora
from llm.model import GPT, GPTConfig
from llm.tasks import go_on


class Explorer(widgets.VBox):
    """Controls above a line of text and a picture that follow them; `.controls`, `.text`, `.image` for tests.

    beside: the names of controls that stand in one row.
    """

    def __init__(
        self,
        controls: dict[str, widgets.Widget],
        numbers: Callable,
        draw: Callable,
        describe: Callable,
        beside: tuple[str, ...] = (),
    ):
        self.controls, self.text = controls, widgets.HTML()
        self.image = widgets.Image(format="png", layout=dict(align_self="flex-start"))  # else stretched, and blurred
        self._numbers, self._draw, self._describe = numbers, draw, describe
        self._figure: Figure | None = None  # one figure, drawn again: half the time of a new one
        self.refresh()
        for control in controls.values():
            control.observe(self.refresh, names="value")
        row = [widgets.HBox([controls[name] for name in beside])] if beside else []
        above = [control for name, control in controls.items() if name not in beside]
        super().__init__([*above, *row, self.text, self.image])

    def refresh(self, _change: Any = None) -> None:
        with plots.DRAWING:  # whoever comes last finds the values as they are then
            found = self._numbers(**{name: control.value for name, control in self.controls.items()})
            self._figure = self._draw(found, self._figure)
            self.text.value = _spoken(self._describe(found))
            self.image.value = plots.png(self._figure)

    def __repr__(self) -> str:  # what a reader without a kernel sees in its place
        return "(an interactive picture: run this cell to move it)"


def _spoken(text: str) -> str:
    """A live region: a screen reader speaks the new numbers as the slider moves."""
    return f'<div role="status" aria-live="polite">{html.escape(text)}</div>'


def slider(label: str, value: int, low: int, high: int, step: int = 1) -> widgets.IntSlider:
    return widgets.IntSlider(value, low, high, step, description=label, layout=widgets.Layout(width="420px"))


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


def layer_explorer() -> Explorer:
    """One wrapped layer: its rank, its alpha and its width move, and W, A, B, their product and the sum follow."""

    def describe(part: matrices.Wrapped) -> str:
        (d, r), whole = part.A.shape, part.W.numel()
        numbers, moved = part.A.numel() + part.B.numel(), part.update.norm() / part.W.norm()
        return (
            f"r = {r}, d = {d}: {numbers:,} numbers in A and B for {whole:,} in W, {whole / numbers:.1f} times fewer; "
            f"at alpha = {part.scale:g} the update is {moved:.0%} of W's length"
        )

    controls = {
        "d": slider("width d", 128, matrices.THICKEST, matrices.WIDEST, step=8),
        "r": slider("rank r", 8, 1, matrices.THICKEST),
        "alpha": slider("alpha", 2, 0, 16),
    }
    return Explorer(controls, matrices.wrapped, diagrams.layer, describe)


def targets_explorer(ways: dict[str, Callable[[GPT], nn.Module]]) -> Explorer:
    """The course's model by kind of module: which linears get A and B, at which rank, and what trains then.

    ways: further ways to prepare a model for training, by name, to set beside `apply_lora`. Each is called for real,
    on a model whose tensors have shapes and no numbers (the meta device), so that nothing is computed or allocated.
    """
    ours = "apply_lora, with these targets"
    linears = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj", "lm_head")

    def numbers(way: str, r: int, **chosen: bool) -> list[Row]:
        for name in linears:
            controls[name].disabled = way != ours
        controls["r"].disabled = way != ours
        targets = [name for name, on in chosen.items() if on]
        with torch.device("meta"):
            model = GPT(GPTConfig())
            if way != ours:
                model = ways[way](model)
            elif targets:
                apply_lora(model, r=r, targets=targets, skip=())
            else:
                model.requires_grad_(False)
        return audit_model(model)

    def describe(rows: list[Row]) -> str:
        trained = sum(row.trained for row in rows)
        whole = sum(p.numel() for p in blank.parameters())
        if not trained:
            return "nothing trains: choose a target"
        return (
            f"{trained:,} parameters train, {whole / trained:,.1f} times fewer than the base has: "
            f"{4 * trained:,} bytes in float32"
        )

    with torch.device("meta"):
        blank = GPT(GPTConfig())
    controls = {
        "way": widgets.Dropdown(
            options=[ours, *ways], description="way", layout=widgets.Layout(width="420px"), value=ours
        ),
        "r": slider("rank r", 8, 1, 64),
    }
    controls |= {
        name: widgets.Checkbox(name != "lm_head", description=name, indent=False, layout=widgets.Layout(width="110px"))
        for name in linears
    }
    return Explorer(controls, numbers, charts.audit, describe, beside=linears)


class Voices(widgets.VBox):
    """Pick an adapter, hear the same prompt answered by it; what was heard stays, for comparison.

    model: a base of the explorer's own, on which adapters are swapped; folders: adapter folders by name.
    """

    BASE = "no adapter"

    def __init__(self, model: GPT, folders: dict[str, Path], prompt: str):
        self._model, self._folders, self._heard, self._lock = model, folders, {}, threading.RLock()
        self.choice = widgets.Dropdown(options=[self.BASE, *folders], description="adapter")
        self.prompt = widgets.Text(
            prompt, description="prompt", continuous_update=False, layout=widgets.Layout(width="640px")
        )
        self.text, self.answers = widgets.HTML(), widgets.HTML()
        self.answer()
        self.choice.observe(self.answer, names="value")
        self.prompt.observe(self._new_prompt, names="value")
        super().__init__([self.choice, self.prompt, self.text, self.answers])

    def _new_prompt(self, _change: Any) -> None:
        with self._lock:
            self._heard.clear()
            self.answer()

    def answer(self, _change: Any = None) -> None:
        """Swap to the chosen adapter and let it go on from the prompt, unless it has done so already."""
        with self._lock:
            self._answer(self.choice.value, self.prompt.value.strip())

    def _answer(self, name, prompt):
        if not prompt:
            self.text.value, self.answers.value = _spoken("the prompt is empty: type a few words"), ""
            return
        began = time.perf_counter()
        try:
            if name == self.BASE:
                remove_lora(self._model)
            else:
                load_adapter(self._model, self._folders[name])
        except AdapterError as error:
            self.text.value = _spoken(str(error))
            return
        swapped = time.perf_counter()
        if name not in self._heard:
            self._heard[name] = go_on(self._model, "shakespeare", prompt)
        done = time.perf_counter()
        self.text.value = _spoken(
            f"{name}: swapped in {1000 * (swapped - began):.1f} ms, answered in {done - swapped:.1f} s"
        )
        self.answers.value = "".join(
            f"<b>{html.escape(who)}{' (chosen)' if who == name else ''}</b><pre>{html.escape(said)}</pre>"
            for who, said in self._heard.items()
        )

    def __repr__(self) -> str:  # what a reader without a kernel sees in its place
        return "(three voices for one base: run this cell to hear them)"
