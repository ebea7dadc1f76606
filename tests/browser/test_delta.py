"""The explorer of an update in a bare page: what is kept at rank r, by keyboard and by mouse."""

import re

import pytest

from llm import spectra
from llm.course.toy_matrices import noise
from llm.course.widgets.spectrum_explorer import delta_explorer

SHAPES = {"transformer.h.0.attn.c_attn.weight": (384, 128), "transformer.h.1.mlp.c_fc.weight": (90, 70)}


def fading(rows, columns, seed):
    """A matrix whose singular values fall."""
    return noise(rows, 8, seed=seed) @ noise(8, columns, seed=seed + 1) / 8 + 0.3 * noise(rows, columns, seed=seed + 2)


DELTAS = {
    task: {name: fading(*shape, seed=10 * i + j) for j, (name, shape) in enumerate(SHAPES.items())}
    for i, task in enumerate(("records", "plays"))
}


def expected(task, name, r):
    s = spectra.singular_values(DELTAS[task][name])
    [held] = spectra.energy(s, [r])
    return f"rank {r} of {len(s)}:", round(100 * held), round(100 * (1 - held) ** 0.5), spectra.rank_for(s)


def said(words):
    [(rank, held, error, needs)] = re.findall(
        r"(rank \d+ of \d+:) ([\d.]+)% .* error ([\d.]+)% .* needs rank (\d+)\.", words
    )
    return rank, round(float(held)), round(float(error)), int(needs)


@pytest.mark.parametrize(("width", "theme"), [(360, "dark"), (760, "light"), (1280, "dark")])
def test_delta(open_page, width, theme):
    first, second = SHAPES
    shown = open_page(delta_explorer(DELTAS), width, theme)
    assert said(shown.says) == expected("records", first, 8)
    assert "4,096 numbers for 49,152" in shown.says
    low, high = shown.sweep("rank r")
    assert (said(low), said(high)) == (expected("records", first, 1), expected("records", first, 64))
    before, words = shown.picture(), shown.says
    shown.choose("task", "plays")
    assert said(shown.says) == expected("plays", first, 64) and shown.picture() != before
    shown.choose("layer", "h.1.mlp.c_fc")
    assert said(shown.says) == expected("plays", second, 64)
    shown.press(shown.slider("rank r"), "Home", "ArrowRight")
    assert said(shown.says) == expected("plays", second, 2) and not shown.collisions()
    for dot in (0, 1):  # the cut in the bars, and the point on the curve
        words, height = shown.says, shown.root.bounding_box()["height"]
        shown.drag(dot, right=60, down=3)
        assert shown.says != words and shown.root.bounding_box()["height"] == height
        shown.drag(dot, right=2000, down=0)
        assert said(shown.says) == expected("plays", second, 64), "a hand beyond the end stays at the end"
        shown.drag(dot, right=-2000, down=0)
        assert said(shown.says) == expected("plays", second, 1)
    assert not shown.errors


def test_every_place_tells_its_value(open_page):
    name, matrix = next(iter(DELTAS["records"].items()))
    shown = open_page(delta_explorer(DELTAS))
    tip = shown.root.locator(".tip:visible")
    best = spectra.decompose(matrix).best(8)
    for canvas, wanted in zip(shown.root.locator("canvas").all(), (matrix, best, matrix - best), strict=True):
        side = canvas.bounding_box()["width"] / 16
        for row, column in ((0, 0), (3, 9), (11, 2), (15, 15)):
            canvas.hover(position={"x": side * (column + 0.5), "y": side * (row + 0.5)})
            where, value = tip.inner_text().split(": ")
            assert where == f"row {row + 1}, column {column + 1}"
            assert float(value) == pytest.approx(wanted[row, column].item(), abs=0.05 * matrix.std().item())
    for plot, word in zip(shown.root.locator("svg").all(), ("of the energy", "rank"), strict=True):
        plot.hover(position={"x": 150, "y": 100})
        assert word in tip.inner_text()
    assert not shown.errors


def test_the_dot_lies_on_the_last_bar_that_is_kept(open_page):
    shown = open_page(delta_explorer(DELTAS))
    for r in (8, 9):
        dot = shown.root.locator("[data-dot]").first.bounding_box()
        bar = shown.root.locator("svg").first.locator("g rect").nth(r - 1).bounding_box()
        assert dot["x"] + dot["width"] / 2 == pytest.approx(bar["x"] + bar["width"] / 2, abs=0.5)
        assert dot["y"] + dot["height"] / 2 == pytest.approx(bar["y"], abs=0.5)
        shown.press(shown.slider("rank r"), "ArrowRight")


def test_a_small_layer_and_one_that_did_not_move(open_page):
    deltas = {"records": {"transformer.h.0.attn.c_attn.weight": noise(24, 16), "still": noise(24, 16) * 0}}
    shown = open_page(delta_explorer(deltas))
    shown.press(shown.slider("rank r"), "End")
    assert shown.says.startswith("rank 16 of 16: 100% of the update's energy")
    shown.choose("layer", "still")
    assert "NaN" not in shown.says and not shown.errors and not shown.collisions()
