"""Controls over a figure: what happens when one moves. No maths and no drawing of its own.

    controls -> numbers(**values) -> draw(numbers, figure) -> an image, and describe(numbers) -> a line of text

Only what ipywidgets 7.7 and 8 share; a picture in an `Image`, never an `Output`, so that it is quick and testable.
"""

import gc
import html
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ipywidgets as widgets
import torch
from matplotlib.figure import Figure

from llm.course.figures import canvas

_latest: dict[str, weakref.ref] = {}  # by kind, of widgets that hold something large


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
        gc.collect()  # what the cells before have left: else that is done in the middle of some later key

    def refresh(self, _change: Any = None) -> None:
        with canvas.DRAWING, undelayed():  # whoever comes last finds the values as they are then
            found = self._numbers(**{name: control.value for name, control in self.controls.items()})
            self._figure = self._draw(found, self._figure)
            self.text.value = live(self._describe(found))
            self.image.value = canvas.png(self._figure)

    def close(self) -> None:
        """Let go of all widgets and of what they show."""
        self._numbers = self._draw = self._describe = self._figure = None
        close_parts(self)
        super().close()

    def __repr__(self) -> str:  # what a reader without a kernel sees in its place
        return "(an interactive picture: run this cell to move it)"


@contextmanager
def undelayed() -> Iterator[None]:
    """Computed by this thread alone, and garbage left until afterwards: what a hand waits for.

    Matrices of this size take a millisecond on one thread; on two, of which one is kept waiting by other work, they
    were seen to take half a second. A full collection walks through all that the kernel holds: a quarter of a second.
    """
    threads, collects = torch.get_num_threads(), gc.isenabled()
    torch.set_num_threads(1)
    gc.disable()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        if collects:
            gc.enable()


def take_the_place_of_the_last(kind: str, made: widgets.Box) -> None:
    """Close the widget of this kind that was made before: its cell has run again.

    ipywidgets' registry would keep that one for ever, and with it a model, or the updates of every layer.
    """
    if kind in _latest and (last := _latest[kind]()):
        last.close()
    _latest[kind] = weakref.ref(made)


def close_parts(widget: widgets.Widget) -> None:
    """Close what a widget is made of: its children, and each one's layout and style."""
    for child in getattr(widget, "children", ()):
        close_parts(child)
        child.close()
    for name in ("layout", "style"):
        if isinstance(part := getattr(widget, name, None), widgets.Widget):
            part.close()


def live(text: str) -> str:
    """A live region: a screen reader speaks the new numbers as the slider moves."""
    return f'<div role="status" aria-live="polite">{html.escape(text)}</div>'


def slider(label: str, value: int, low: int, high: int, step: int = 1) -> widgets.IntSlider:
    return widgets.IntSlider(value, low, high, step, description=label, layout=widgets.Layout(width="420px"))


def choice(label: str, options: list) -> widgets.Dropdown:
    return widgets.Dropdown(options=options, description=label)
