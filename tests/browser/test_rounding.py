"""The rounding explorer in a bare page, by key and by mouse, against the package's own numbers."""

import pytest

from llm.course.four_bits import BLOCKS, rounded
from llm.course.toy_matrices import noise
from llm.course.widgets.rounding_explorer import rounding_explorer
from llm.quantize import FORMATS

LAYERS = {"one": noise(64, 128), "two": noise(128, 64, seed=1)}
TITLES = {"nf4": "NF4", "fp4": "FP4", "int4": "int4"}


def begins(layer, format, block, double):
    part = rounded(LAYERS[layer], format, block, double)
    twice = " with double quantization" if double else ""
    return (
        f"{TITLES[format]} in blocks of {block:,}{twice}: {part.bits:.3f} bits per weight, error {part.error:.1%}; "
        f"entropy of the levels {part.entropy:.2f} bits. "
    )


@pytest.mark.parametrize(("width", "theme"), [(360, "dark"), (760, "light"), (1280, "dark")])
def test_rounding(open_page, width, theme):
    shown = open_page(rounding_explorer(LAYERS), width, theme)
    assert shown.says.startswith(begins("one", "nf4", 64, False))
    height = shown.root.bounding_box()["height"]
    low, high = shown.sweep("block size")
    assert low.startswith(begins("one", "nf4", 16, False)) and high.startswith(begins("one", "nf4", 1024, False))
    double = shown.root.get_by_role("checkbox", name="double quantization")
    for layer in LAYERS:
        shown.choose("layer", layer)
        for format, title in TITLES.items():
            shown.choose("format", title)
            for twice in (True, False):
                shown.press(double, "Space")
                assert double.is_checked() == twice
                assert shown.says.startswith(begins(layer, format, 1024, twice)), "what is chosen is what is told"
                assert not (found := shown.collisions()), found
                assert shown.root.bounding_box()["height"] == height, "the layout jumps"
    assert not shown.errors


def test_what_is_better_on_both_counts_is_named(open_page):
    shown = open_page(rounding_explorer(LAYERS))
    parts = [rounded(LAYERS["one"], f, b, d) for f in FORMATS for b in BLOCKS for d in (False, True)]
    for title, format in (("NF4", "nf4"), ("int4", "int4")):
        shown.choose("format", title)
        for at, block in enumerate(BLOCKS):
            shown.press(shown.slider("block size"), "Home", *["ArrowRight"] * at)
            now = rounded(LAYERS["one"], format, block, False)
            better = [p for p in parts if p.bits <= now.bits and p.error < now.error]
            if better:
                best = min(better, key=lambda part: part.error)
                name = f"{TITLES[best.format]} in blocks of {best.block:,}{' with double quantization' * best.double}"
                assert shown.says.endswith(f" bits. Better: {name}, with {best.bits:.3f} bits and {best.error:.1%}.")
            else:
                assert shown.says.endswith("No other scheme has a smaller error for as few bits.")


def test_the_ring_is_dragged_to_any_scheme_and_places_tell_their_values(open_page):
    shown = open_page(rounding_explorer(LAYERS))
    before = shown.picture()
    shown.drag(0, right=400, down=400)  # beyond the corner: the most bits, the least error
    assert shown.says.startswith(begins("one", "nf4", 16, False)) and shown.picture() != before
    shown.drag(0, right=-400, down=-400)
    assert " with double quantization: 4.0" in shown.says
    shown.root.locator("svg").nth(1).locator("circle[style*=pointer]").first.click()
    assert shown.says.startswith(begins("one", "nf4", 16, False)), "a place that is clicked is chosen"
    part = rounded(LAYERS["one"])
    shown.choose("format", "NF4")
    assert shown.value_at(0.58, 0.5, svg=0).startswith("level ")
    assert " bits, " in shown.value_at(0.5, 0.5, svg=1)
    assert f"level {part.levels[-1]:.4f}" in shown.value_at(0.93, 0.5, svg=0)
    assert not shown.errors
