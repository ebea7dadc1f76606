"""The explorer of methods in a bare page: their order at one rate for all, and each one's best."""

import re

import pytest

from llm.course import comparison
from llm.course.figures.palette import METHODS
from llm.course.widgets.method_explorer import TASKS, rate_explorer
from llm.files import read_csv
from llm.paths import RESULTS

ROWS = read_csv(RESULTS / "relatives.csv")
BOTH = set.intersection(*(set(comparison.by_method(ROWS, task)) for task in TASKS))
ROWS = [row for row in ROWS if row["method"] in BOTH]


def expected(task, rate=None):
    found = comparison.order(ROWS, task, rate)
    first, *_, last = sorted(found.now, key=found.now.__getitem__) * 2
    worse = sum(loss > found.base for loss in found.now.values())
    return (
        f"{len(found.now)} of {len(found.best)} tried: lowest {METHODS[first]} with {found.now[first]:.2f}, "
        f"highest {METHODS[last]} with {found.now[last]:.2f}; {worse} worse than no training."
    )


def places(shown):
    """Method -> its place, from top to bottom as the rows stand."""
    rows = [
        (row.bounding_box()["y"], row.locator("span").all_inner_texts())
        for row in shown.root.get_by_role("button").all()
    ]
    return {cells[1]: cells[0] for _, cells in sorted(rows)}


def still(shown):
    """Wait until no row moves."""
    shown.page.wait_for_function("() => document.getAnimations().every(a => a.playState === 'finished')")


@pytest.mark.parametrize(("width", "theme"), [(360, "dark"), (760, "light"), (1280, "dark")])
def test_rates(open_page, width, theme):
    explorer = rate_explorer(ROWS)
    shown = open_page(explorer, width, theme)
    assert shown.says.startswith("Rate 0.01 for all, " + expected("shakespeare", 0.01))
    low, high = shown.sweep("one rate")
    for words, rate in ((low, explorer.data["rates"][0]), (high, explorer.data["rates"][-1])):
        assert expected("shakespeare", rate) in words
    shown.choose("task", "facts")
    assert expected("facts", explorer.data["rates"][-1]) in shown.says
    height, own = shown.root.bounding_box()["height"], shown.root.get_by_role("checkbox", name="each at its own best")
    shown.press(own, "Space")
    assert (
        shown.says.startswith("Each at its own rate, " + expected("facts")) and shown.slider("one rate").is_disabled()
    )
    shown.choose("task", "plays")
    assert expected("shakespeare") in shown.says and shown.root.bounding_box()["height"] == height
    shown.press(own, "Space")
    before = shown.says
    shown.drag(0, right=-60, down=0)
    assert shown.says != before
    shown.drag(0, right=-2000, down=0)
    assert expected("shakespeare", explorer.data["rates"][0]) in shown.says
    assert not shown.collisions() and not shown.errors
    assert shown.page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_loss_above_the_frame_is_an_arrow_at_its_border_that_tells_its_value(open_page):
    explorer = rate_explorer(ROWS)
    shown = open_page(explorer)
    shown.press(shown.slider("one rate"), "End")
    curves = next(iter(explorer.data["tasks"].values()))["curves"].values()
    top = float(shown.root.locator("svg text[text-anchor=end]").last.text_content())
    arrows = shown.root.locator("svg path.out")
    assert sum(loss > top + 1 for curve in curves for _, loss in curve) <= arrows.count()
    frame, arrow = shown.root.locator("svg").bounding_box(), arrows.last.bounding_box()
    assert frame["y"] < arrow["y"] < frame["y"] + 20
    arrows.last.hover(force=True)
    assert float(shown.root.locator(".tip:visible").inner_text().split(": ")[1]) > top


def test_the_rows_stand_in_the_order_of_the_losses(open_page):
    shown = open_page(rate_explorer(ROWS))
    for rate in (0.01, None):
        found = comparison.order(ROWS, "shakespeare", rate)
        assert places(shown) == {METHODS[name]: str(place) for name, place in found.places.items()} | {
            METHODS[name]: "-" for name in found.best if name not in found.now
        }
        shown.press(shown.root.get_by_role("checkbox", name="each at its own best"), "Space")
        still(shown)


def test_a_method_is_chosen_by_a_click_on_its_row_or_its_point_and_by_keys(open_page):
    shown = open_page(rate_explorer(ROWS))
    found, best = comparison.order(ROWS, "shakespeare", 0.01), comparison.order(ROWS, "shakespeare")
    row = shown.root.get_by_role("button").filter(has_text=re.compile(r"^\d+DoRA"))
    row.hover()
    assert f"DoRA is {found.places['dora']} of {len(found.now)} with {found.now['dora']:.2f}." in shown.says
    assert f"it is {best.places['dora']} of 12 with {best.now['dora']:.2f}." in shown.says
    shown.root.get_by_role("slider").hover()
    assert shown.says.startswith("Rate 0.01 for all, ")
    shown.press(row, "Enter")
    assert row.get_attribute("aria-pressed") == "true"
    shown.press(shown.slider("one rate"), "ArrowLeft")
    assert "DoRA is" in shown.says, "a chosen method stays chosen"
    shown.press(row, "Enter")
    shown.slider("one rate").focus()
    assert "tried: lowest" in shown.says
    point = shown.root.locator("circle[style*=pointer]").last
    point.hover(force=True)
    tip = shown.root.locator(".tip:visible").inner_text()
    point.click(force=True)
    assert shown.says.split(": ")[1].split(" is ")[0] == tip.split(" at ")[0]
    assert not shown.errors
