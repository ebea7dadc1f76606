"""Curves that have a formula, drawn in the browser (anywidget), where no kernel has to answer before they move."""

from pathlib import Path

import anywidget
import traitlets


class Savings(anywidget.AnyWidget):
    """d / (2r): how many times fewer numbers a square d x d matrix trains at rank r. `.r` and `.d` follow the hand."""

    _esm = Path(__file__).with_name("savings.js").read_text(encoding="utf-8")
    r = traitlets.Int(8, min=1, max=256).tag(sync=True)
    d = traitlets.Int(128, min=32, max=16384).tag(sync=True)

    def __repr__(self) -> str:  # what a reader without a kernel sees in its place
        return "(an interactive curve: run this cell to move it)"
