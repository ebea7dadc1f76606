"""The settings explorer in a bare page, by key and by mouse, against the recorded runs."""

from statistics import median

import pytest

from llm.course.widgets.settings_explorer import settings_explorer
from llm.files import read_csv
from llm.lora import SCALING
from llm.paths import RESULTS

ROWS = read_csv(RESULTS / "alphas.csv")
FULL = [row for row in read_csv(RESULTS / "rates.csv") if row["method"] == "full" and row["steps"] == 30]
FULL = [row for row in FULL if row["task"] == "shakespeare"]
SIGNS = {"alpha": "alpha", "alpha/r": "alpha/r", "alpha/sqrt(r)": "alpha/√r"}


def losses(start, scaling, r):
    """Rate -> losses, sorted."""
    here = [row for row in ROWS if (row["start"], row["scaling"], row["r"]) == (start, scaling, r)]
    return {lr: sorted(row["after"] for row in here if row["lr"] == lr) for lr in sorted({row["lr"] for row in here})}


@pytest.mark.parametrize(("width", "theme"), [(360, "dark"), (760, "light"), (1280, "dark")])
def test_settings(open_page, width, theme):
    shown = open_page(settings_explorer(ROWS + FULL), width, theme)
    assert shown.says.startswith("Scale 16, rate 0.001: loss 4.99 (seeds 4.98 to 5.01), best rate 0.0003.")
    low, high = shown.sweep("learning rate")
    assert "rate 0.0001:" in low and "rate 0.1:" in high and "above the base" in high
    height = shown.root.bounding_box()["height"]
    for along in ("scale × rate", "first step", "rate"):
        shown.choose("horizontal axis", along)
        assert not (found := shown.collisions()), (along, found)
        for start in ("paper", "chapter"):
            shown.choose("start of A", start)
            for scaling, sign in SIGNS.items():
                shown.choose("scale", sign)
                for r in (4, 64):
                    shown.choose("rank r", str(r))
                    assert not (found := shown.collisions()), (along, start, scaling, r, found)
                    assert shown.root.bounding_box()["height"] == height, "the layout jumps"
    shown.press(shown.slider("learning rate"), "Home")
    assert not shown.errors


def test_each_place_tells_its_runs(open_page):
    shown = open_page(settings_explorer(ROWS + FULL))
    slider = shown.slider("learning rate")
    for start in ("chapter", "paper"):
        shown.choose("start of A", start)
        for scaling, sign in SIGNS.items():
            shown.choose("scale", sign)
            for r in (4, 64):
                shown.choose("rank r", str(r))
                found = losses(start, scaling, r)
                best = min(found, key=lambda lr: median(found[lr]))
                shown.press(slider, "Home")
                for i, (lr, (low, middle, high)) in enumerate(found.items()):
                    if i:
                        shown.press(slider, "ArrowRight")
                    scale = f"{SCALING[scaling](16, r):g}"
                    rate = f"{lr:g}"
                    assert shown.says.startswith(
                        f"Scale {scale}, rate {rate}: loss {middle:.2f} (seeds {low:.2f} to {high:.2f}), "
                    )
                    assert ("the best rate of this curve" in shown.says) == (lr == best)
                    assert ("above the base" in shown.says) == (middle > ROWS[0]["before"] and lr != best)


def test_the_axes_bring_the_best_rates_together(open_page):
    shown = open_page(settings_explorer(ROWS + FULL))
    curves = settings_explorer(ROWS).data["curves"]
    best = [min(curve["points"], key=lambda point: point[1]) for curve in curves]
    for along, of in (
        ("rate", lambda c: 1),
        ("scale × rate", lambda c: c["scale"]),
        ("first step", lambda c: c["scale"] * c["r"] * c["spread"]),
    ):
        shown.choose("horizontal axis", along)
        places = [point[0] * of(curve) for point, curve in zip(best, curves)]
        assert f"a factor of {float(f'{max(places) / min(places):.2g}'):g}" in shown.says
    for r in (4, 64):
        ends = [point[1] for point, curve in zip(best, curves) if curve["r"] == r]
        assert f"at {min(ends):.2f} to {max(ends):.2f}" in shown.says


def test_the_point_is_dragged_along_its_curve_and_places_tell_their_values(open_page):
    shown = open_page(settings_explorer(ROWS + FULL))
    for along in ("rate", "first step"):
        shown.choose("horizontal axis", along)
        shown.drag(0, right=-700, down=0)
        assert "rate 0.0001:" in shown.says
        shown.drag(0, right=700, down=0)
        assert "rate 0.1:" in shown.says
    curves = settings_explorer(ROWS).data["curves"]
    assert curves[-1]["start"] == "paper"
    shown.root.locator("circle[style*=pointer]").last.click()
    best = min(curves[-1]["points"], key=lambda point: point[1])
    scale = f"Scale {curves[-1]['scale']:g}, rate {best[0]:g}: loss {best[1]:.2f}"
    assert shown.says.startswith(scale) and "the best rate of this curve" in shown.says
    dot = shown.root.locator("[data-dot]").bounding_box()
    shown.drag(0, right=-700, down=0)
    moved = shown.root.locator("[data-dot]").bounding_box()
    assert moved != dot
    picture = shown.root.locator("svg").bounding_box()
    x, y = (moved["x"] + 7 - picture["x"]) / picture["width"], (moved["y"] + 7 - picture["y"]) / picture["height"]
    assert shown.value_at(x, y).startswith("r = ") and not shown.errors
