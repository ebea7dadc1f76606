"""The footprint's curves in a bare page, by key and by mouse."""

import pytest

from llm.course.widgets.footprint_and_savings import Footprint


@pytest.mark.parametrize(("width", "theme"), [(360, "dark"), (760, "light"), (1280, "dark")])
def test_footprint(open_page, width, theme):
    shown = open_page(Footprint(model=54.7e6, adapter=266_935), width, theme)
    assert shown.says == (
        "10 fine-tunes: 547 MB with a checkpoint each, 57.4 MB with one base and an adapter each. "
        "The adapters weigh 0.0488 times as much as the base."
    )
    low, high = shown.sweep("fine-tunes kept")
    assert low.startswith("1 fine-tune: 54.7 MB with a checkpoint each, 55 MB")
    assert high.startswith("10,000 fine-tunes: 547 GB with a checkpoint each, 2.72 GB") and "weigh 48.8 times" in high
    shown.press(shown.slider("fine-tunes kept"), "Home", *["ArrowRight"] * 17)
    assert shown.says.startswith("100 fine-tunes: 5.47 GB")
    for dot, right in ((0, -60), (1, 40)):  # either point by mouse, and both follow
        before = shown.says, shown.picture()
        shown.drag(dot, right=right, down=0)
        assert shown.says != before[0] and shown.picture() != before[1]
    assert shown.value_at(0.4, 0.5).endswith(" MB") and not shown.errors


@pytest.mark.parametrize(("model", "adapter"), [(54.7e6, 266_935), (1, 1), (1e12, 1e3), (1e3, 1e9)])
def test_sizes_of_every_kind_have_axes_without_collisions(open_page, model, adapter):
    shown = open_page(Footprint(model, adapter, n=10_000), 360)
    assert "10,000 fine-tunes" in shown.says and not shown.collisions() and not shown.errors
