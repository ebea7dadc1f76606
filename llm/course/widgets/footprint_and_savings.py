"""Curves that have a formula, drawn in the browser (anywidget), where no kernel has to answer before they move."""

from pathlib import Path

import anywidget
import traitlets

from llm.course.figures.palette import COLOURS
from llm.course.widgets.explorer import Explorer


class Curve(anywidget.AnyWidget):
    """What every curve of `footprint_and_savings.js` shares; `.curve` names it there."""

    _esm = Path(__file__).with_name("footprint_and_savings.js").read_text(encoding="utf-8")
    curve = traitlets.Unicode().tag(sync=True)
    colours = traitlets.Dict(COLOURS).tag(sync=True)

    def __repr__(self) -> str:  # what a reader without a kernel sees in its place
        return "(an interactive curve: run this cell to move it)"


def Savings(r: int = 8, d: int = 128) -> Explorer:
    """d / (2r): how many times fewer numbers a square d x d matrix trains at rank r."""
    return Explorer("savings", "A curve: how many times fewer numbers LoRA trains, by width and rank.", r=r, d=d)


class Footprint(Curve):
    """Megabytes on disk for `.n` fine-tunes: a checkpoint each, or one base and an adapter each.

    model, adapter: bytes of one model and of one adapter, both above zero.
    """

    curve = traitlets.Unicode("footprint").tag(sync=True)
    n = traitlets.Int(10, min=1, max=10_000).tag(sync=True)
    model = traitlets.Float(min=1).tag(sync=True)
    adapter = traitlets.Float(min=1).tag(sync=True)

    def __init__(self, model: float, adapter: float, **more):
        super().__init__(model=model, adapter=adapter, **more)
