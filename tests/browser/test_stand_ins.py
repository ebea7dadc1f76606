"""The pictures that stand for the explorers where a page runs no scripts.

Take them anew, and put them and the present bundle into the notebooks' outputs, after a run of the notebooks or a new bundle:
COURSE_STAND_INS=1 python -m pytest tests/browser/test_stand_ins.py
"""

import html
import io
import os
import re

import nbformat
import pytest
from conftest import ROOT
from PIL import Image

from llm.course.widgets.explorer import STAND_INS, Explorer, bundle
from llm.course.widgets.rank_explorer import rank_explorer

WIDE, MOST = 760, 25_000  # pixels, bytes
FRAMES = "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
STORED = re.compile(r'<div class="llm-(\w+)">(?:<p>|<img alt=")(.*?)["<].*?(?=<p><i>It moves)')
SCRIPT = re.compile(r'(?<=<script type="module">).*?</script>', re.S)


class Output:
    """The stored output of an explorer."""

    def __init__(self, kind, page):
        self.kind, self._repr_html_ = kind, lambda: page


def small(png):
    """The same picture in as many colors as its bytes allow; matrices of noise keep two tints of blue and of red."""
    picture, few = Image.open(io.BytesIO(png)).convert("RGB"), Image.new("P", (1, 1))
    few.putpalette(bytes.fromhex("ffffff 222222 969696 0072b2 a0bee1 5a96cd ebaaa0 dc6455"))
    plain, covering = Image.Dither.NONE, Image.Quantize.MAXCOVERAGE
    ways = [picture.quantize(colors, method=covering, dither=plain) for colors in (256, 128, 64, 32, 16)]
    for fewer in [*ways, picture.quantize(palette=few, dither=plain)]:
        held = io.BytesIO()
        fewer.save(held, "PNG", optimize=True)
        if held.tell() <= MOST:
            break
    return held.getvalue()


def kinds():
    listed = re.search(r"INSTRUMENTS = {([^}]*)}", (STAND_INS.parent / "browser" / "src" / "index.js").read_text())
    return re.findall(r"\w+", listed[1])


@pytest.mark.skipif(os.environ.get("COURSE_STAND_INS") != "1", reason="only on request: it writes pictures")
def test_each_picture_is_taken_from_a_notebook_and_put_there(open_page):
    taken = set()
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        notebook = nbformat.read(path, 4)
        for cell in notebook.cells:
            for output in cell.get("outputs", []):
                page = output.get("data", {}).get("text/html", "")
                if not (found := STORED.match(page)):
                    continue
                kind, about = found[1], html.unescape(found[2])
                if kind not in taken:
                    taken.add(kind)
                    shown = open_page(Output(kind, page), WIDE + 16)
                    shown.page.evaluate(FRAMES)  # it has found the page's width
                    (STAND_INS / f"{kind}.png").write_bytes(small(shown.root.screenshot()))
                    assert not shown.errors
                anew = STORED.match(Explorer(kind, about)._repr_html_())[0]
                output.data["text/html"] = anew + SCRIPT.sub(lambda _: f"{bundle()}</script>", page[found.end() :])
        nbformat.write(notebook, path)


@pytest.mark.parametrize("kind", sorted(path.stem for path in STAND_INS.glob("*.png")))
def test_a_picture_is_of_an_instrument_and_small(kind):
    png = (STAND_INS / f"{kind}.png").read_bytes()
    assert kind in kinds() and len(png) <= MOST and Image.open(io.BytesIO(png)).width == WIDE


def test_every_instrument_has_one():
    assert {path.stem for path in STAND_INS.glob("*.png")} == set(kinds())


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
    page, about = Explorer("none", 'Two < "three".')._repr_html_(), html.escape('Two < "three".')
    assert f"<p>{about}</p>" in page and "<img" not in page and STORED.match(page)[2] == about
