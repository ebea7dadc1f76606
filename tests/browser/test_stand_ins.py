"""The pictures that stand for the explorers where a page runs no scripts.

Take them anew from the notebooks' outputs: COURSE_STAND_INS=1 python -m pytest tests/browser/test_stand_ins.py
"""

import html
import io
import json
import os
import re

import pytest
from conftest import ROOT
from instrument import Instrument
from PIL import Image

from llm.course.widgets.explorer import STAND_INS, Explorer
from llm.course.widgets.rank_explorer import rank_explorer

WIDE, MOST = 760, 25_000  # pixels, bytes


def stored():
    """By kind, the first output of an explorer that a notebook holds."""
    found = {}
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            for output in cell.get("outputs", []):
                page = "".join(output.get("data", {}).get("text/html", ""))
                if kind := re.search(r'class="llm-data">{"kind":"(\w+)"', page):
                    found.setdefault(kind[1], page)
    return found


def small(png):
    """The same picture in as many colors as its bytes allow."""
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    for colors in (256, 128, 64, 32, 16, 12, 10, 8, 7, 6, 5):
        held = io.BytesIO()
        fewer = picture.quantize(colors, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        fewer.save(held, "PNG", optimize=True)
        if held.tell() <= MOST:
            break
    return held.getvalue()


def kinds():
    listed = re.search(r"INSTRUMENTS = {([^}]*)}", (STAND_INS.parent / "browser" / "src" / "index.js").read_text())
    return re.findall(r"\w+", listed[1])


@pytest.mark.skipif(os.environ.get("COURSE_STAND_INS") != "1", reason="only on request: it writes the pictures")
def test_each_picture_is_taken_from_a_notebook(browser, tmp_path, times):
    for kind, page in stored().items():
        (tmp_path / f"{kind}.html").write_text(f'<!doctype html><meta charset="utf-8"><body>{page}', encoding="utf-8")
        context = browser.new_context(viewport={"width": WIDE + 16, "height": 900})
        shown = Instrument(context.new_page(), (tmp_path / f"{kind}.html").as_uri(), kind, times)
        shown.page.evaluate("() => new Promise(requestAnimationFrame).then(() => new Promise(requestAnimationFrame))")
        (STAND_INS / f"{kind}.png").write_bytes(small(shown.root.screenshot()))
        assert not shown.errors
        context.close()


@pytest.mark.parametrize("kind", kinds())
def test_every_instrument_has_a_picture_that_is_small(kind):
    png = (STAND_INS / f"{kind}.png").read_bytes()
    assert len(png) <= MOST and Image.open(io.BytesIO(png)).width == WIDE


def test_a_page_without_scripts_shows_the_picture_and_says_the_same_in_words(browser, tmp_path):
    explorer = rank_explorer()
    (tmp_path / "still.html").write_text(f'<meta charset="utf-8">{explorer._repr_html_()}', encoding="utf-8")
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((tmp_path / "still.html").as_uri())
    picture = page.get_by_role("img", name=explorer.about)
    assert picture.bounding_box()["width"] == WIDE
    context.close()


def test_an_explorer_without_a_picture_says_what_it_shows():
    page = Explorer("none", "Two < three.")._repr_html_()
    assert f"<p>{html.escape('Two < three.')}</p>" in page and "<img" not in page
