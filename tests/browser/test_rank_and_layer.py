"""The rank and the layer explorer in a bare page: what they say is what the package computes."""

import re

import pytest
import torch

from llm.course.toy_matrices import MATRICES, approximate, pixels, wrapped
from llm.course.widgets.rank_explorer import layer_explorer, rank_explorer

PAGES = [(360, "dark"), (760, "light"), (1280, "dark")]


def number(pattern, text):
    return float(re.search(pattern, text)[1].replace(",", ""))


def to(shown, label, value):
    """A slider of whole numbers to a value, by keys."""
    slider = shown.slider(label)
    shown.press(slider, "Home")
    first, step = (8, 8) if label == "width d" else (0 if label == "alpha" else 1, 1)
    shown.press(slider, *["ArrowRight"] * ((value - first) // step))


@pytest.mark.parametrize(("width", "theme"), PAGES)
def test_rank(open_page, width, theme):
    shown = open_page(rank_explorer(), width, theme)
    assert shown.says == (
        "r = 2: 576 numbers in A and B for 14,175 in the matrix, 24.6 times fewer. Error 41%. "
        "An error under 5% takes r = 7."
    )
    for name, make in MATRICES.items():
        shown.choose("matrix", name)
        errors = [approximate(make(), r).error for r in range(64)]
        low, high = shown.sweep("rank r")
        assert low.startswith("r = 1:") and high.startswith("r = 63: 18,144 numbers in A and B, more than the 14,175")
        assert f"takes r = {next(r for r, error in enumerate(errors) if error < 0.05)}." in high
        for r in (1, 6, 40):
            to(shown, "rank r", r)
            assert number(r"Error (?:under )?([\d.]+)%", shown.says) == pytest.approx(100 * errors[r], abs=0.5), (
                name,
                r,
            )
    assert "Error 0%" in high
    assert not shown.errors


def test_every_edge_of_the_rank_can_be_dragged(open_page):
    shown = open_page(rank_explorer())
    shown.drag(0, right=-30, down=0)  # the edge of A, to the left
    wider = number(r"r = (\d+)", shown.says)
    assert 15 < wider < 35
    shown.drag(1, right=0, down=15)  # the edge of B, down
    less = number(r"r = (\d+)", shown.says)
    assert 4 < less < wider
    shown.drag(2, right=2000, down=0)  # the edge among the bars, beyond the end
    assert shown.says.startswith("r = 63:")
    shown.drag(2, right=-2000, down=0)
    assert shown.says.startswith("r = 1:")
    assert not shown.errors


def test_the_word_is_whole_at_rank_seven_and_what_is_left_is_clear(open_page):
    shown = open_page(rank_explorer())

    def ink(canvas):
        return (
            shown.root.locator("canvas")
            .nth(canvas)
            .evaluate(
                "c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data].filter((_, i) => i % 4 == 3)"
                ".reduce((most, alpha) => Math.max(most, alpha), 0)"
            )
        )

    to(shown, "rank r", 6)
    assert ink(0) == 255 and ink(1) > 25
    to(shown, "rank r", 7)
    assert ink(0) == 255 and ink(1) <= 1 and "Error 0%" in shown.says
    assert hovered(shown, "canvas >> nth=1", 0.51).endswith(": 0")
    assert "pattern 7: size" in hovered(shown, "svg", 0.178) and "kept" in hovered(shown, "svg", 0.178)


def test_a_hand_draws_another_matrix_with_the_mouse_or_the_keys(open_page):
    shown, drawn = open_page(rank_explorer()), pixels()
    canvas = shown.root.locator("canvas").first
    box = canvas.bounding_box()

    def move(i, j):
        shown.page.mouse.move(
            box["x"] + (j + 0.5) / 25 * box["width"], box["y"] + (i + 0.5) / 7 * box["height"], steps=40
        )

    def check():
        errors = [approximate(torch.kron(drawn, torch.ones(9, 9)), r).error for r in range(8)]
        for r in (1, 3):
            to(shown, "rank r", r)
            assert number(r"Error (?:under )?([\d.]+)%", shown.says) == pytest.approx(100 * errors[r], abs=0.5)
        enough = next((r for r, error in enumerate(errors) if error < 0.05), 0)
        assert shown.says.endswith(f"An error under 5% takes r = {enough}.")

    move(0, 0)
    shown.page.mouse.down()
    move(0, 24)  # a line across
    shown.page.mouse.up()
    drawn[0] = 1
    check()
    shown.press(canvas, "ArrowDown", "ArrowRight", "Space")
    drawn[1, 1] = 0
    assert shown.root.locator(".cell").is_visible()
    check()
    for i in range(7):  # wipe it, line after line
        if drawn[i].any():
            move(i, int(drawn[i].argmax()))
            shown.page.mouse.down()
            move(i, 0), move(i, 24)
            shown.page.mouse.up()
    nothing = "Error 0%. It has no patterns: a higher rank adds nothing. An error under 5% takes r = 0."
    assert nothing in shown.says
    shown.press(shown.root.get_by_role("button", name="Restore"), "Enter")
    to(shown, "rank r", 8)
    assert "Error 0%. It has 7 patterns: a higher rank adds nothing." in shown.says
    to(shown, "rank r", 7)
    assert "adds nothing" not in shown.says
    shown.root.get_by_role("button", name="Clear").click()
    assert nothing in shown.says
    move(3, 5), shown.page.mouse.down(), shown.page.mouse.up()
    assert shown.says.endswith("takes r = 1.")
    shown.choose("matrix", "noise")
    before = shown.picture()
    move(2, 2), shown.page.mouse.down(), shown.page.mouse.up()
    assert shown.picture() == before, "noise is not drawn on"
    shown.choose("matrix", "a word")
    assert shown.says.endswith("takes r = 1."), "and what was drawn before stays"
    assert not shown.errors


def hovered(shown, part, x, y=0.5):
    box = shown.root.locator(part).first.bounding_box()
    shown.page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
    return shown.root.locator(".tip:visible").inner_text()


@pytest.mark.parametrize(("width", "theme"), PAGES)
def test_layer(open_page, width, theme):
    shown = open_page(layer_explorer(), width, theme)
    assert "r = 8, d = 128: 2,048 numbers in A and B for 16,384 in W, 8 times fewer." in shown.says
    low, high = shown.sweep("alpha")
    assert "the update is zero" in low and "At alpha = 16 " in high
    low, high = shown.sweep("rank r")
    assert low.startswith("r = 1, d = 128:") and high.startswith("r = 32, d = 128:")
    low, high = shown.sweep("width d")
    assert low.startswith("r = 8, d = 8:") and high.startswith("r = 8, d = 128:"), "a rank never exceeds the width"
    for d, r, alpha in ((128, 32, 3), (64, 5, 16), (32, 8, 1), (16, 16, 2)):
        for label, value in (("width d", d), ("rank r", r), ("alpha", alpha)):
            to(shown, label, value)
        part = wrapped(d, r, alpha)
        moved = 100 * (part.update.norm() / part.W.norm()).item()
        assert shown.says.startswith(f"r = {r}, d = {d}: {2 * d * r:,} numbers in A and B")
        assert number(r"the update is ([\d.]+)% as long", shown.says) == pytest.approx(moved, abs=0.6)
    assert "512 numbers in A and B, more than the 256 in W." in shown.says
    to(shown, "rank r", 8)
    assert "256 numbers in A and B, as many as in W." in shown.says
    assert not shown.errors


def test_the_corner_of_w_and_the_edges_of_a_and_b_can_be_dragged(open_page):
    shown = open_page(layer_explorer())
    shown.drag(0, right=-60, down=-60)
    assert "d = 88:" in shown.says
    shown.drag(1, right=-6, down=0)
    assert "r = 12, d = 88:" in shown.says
    shown.drag(2, right=0, down=200)
    assert "r = 1, d = 88:" in shown.says
    assert "row 1, column 1: " in hovered(shown, "canvas", 0.001, 0.001)
    assert not shown.errors
