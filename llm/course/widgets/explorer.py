"""An explorer: numbers from the kernel, once, and an instrument that lives in the page (browser/src).

Moving a control needs no kernel, so an explorer is alive during Run All, in a saved notebook, in an HTML export and on
any web page. Its output is HTML with the bundle of all instruments inside.
"""

import base64
import html
import json
from functools import cache
from pathlib import Path
from typing import Any

import torch

from llm.course.figures.palette import COLOURS

BUNDLE = Path(__file__).with_name("bundle.js")  # built from browser/ by `make bundle`
STAND_INS = Path(__file__).with_name("stand_ins")  # a picture of each kind, as tests/browser/test_stand_ins.py takes it


class Explorer:
    """Shows the instrument `kind` of the bundle with its `data`, which JSON can hold.

    about: what it shows and what moves, in a sentence, for a reader whose page runs no scripts; it goes with the
    picture that stands there in its place.
    """

    def __init__(self, kind: str, about: str, **data: Any):
        self.kind, self.about, self.data = kind, about, data

    def __repr__(self) -> str:
        return f"({self.about})"

    def _repr_html_(self) -> str:
        given = json.dumps({"kind": self.kind, "colors": COLOURS, **self.data}, separators=(",", ":"), allow_nan=False)
        about, picture = html.escape(self.about), STAND_INS / f"{self.kind}.png"
        stand_in = f"<p>{about}</p>"
        if picture.exists():
            source = base64.b64encode(picture.read_bytes()).decode()
            stand_in = f'<img alt="{about}" style="max-width: 100%" src="data:image/png;base64,{source}">'
        return (
            f'<div class="llm-{self.kind}">{stand_in}'
            "<p><i>It moves where scripts may run: in JupyterLab, trust this notebook.</i></p></div>\n"
            f'<script type="application/json" class="llm-data">{given.replace("<", chr(92) + "u003c")}</script>\n'
            f'<script type="module">{bundle()}</script>'
        )


def packed(matrix: torch.Tensor, scale: float | None = None, bits: int = 8) -> dict[str, Any]:
    """A matrix in whole steps of `scale`, for a picture.

    scale: of one step; so that the largest entry just fits when not given. bits: 8, or 16 where many are added up.
    """
    most = 2 ** (bits - 1) - 1
    scale = scale or max(matrix.abs().max().item(), 1e-12) / most
    levels = (matrix / scale).round().clamp(-most, most).to({8: torch.int8, 16: torch.int16}[bits]).contiguous()
    return {
        "shape": list(matrix.shape),
        "scale": float(f"{scale:.6g}"),
        f"int{bits}": base64.b64encode(levels.numpy().tobytes()).decode(),
    }


@cache
def bundle() -> str:
    """All instruments, and the views of the widgets, as one ES module."""
    return BUNDLE.read_text(encoding="utf-8")
