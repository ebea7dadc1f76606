"""The explorer of targets in a bare page: what trains, by row, by rank, and by other ways to prepare the model."""

import pytest

from llm.course.widgets.target_explorer import targets_explorer

KINDS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj", "lm_head")


def half(model):
    """As the chapter's code does: the embeddings go on training."""
    for path, p in model.named_parameters():
        p.requires_grad = "wte" in path
    return model


WAYS = {"a part of the base": half, "full fine-tuning": lambda model: model.requires_grad_(True)}


@pytest.mark.parametrize(("width", "theme"), [(360, "dark"), (760, "light"), (1280, "dark")])
def test_targets(open_page, width, theme):
    shown = open_page(targets_explorer(WAYS), width, theme)
    assert shown.says == (
        "65,536 parameters train, 208.5 times fewer than the base has. mlp.c_fc has 31% of them. "
        "The adapter: 262,144 bytes in float32."
    )
    height = shown.root.bounding_box()["height"]
    low, high = shown.sweep("rank r")
    assert low.startswith("8,192 parameters") and high.startswith("524,288 parameters")
    shown.press(shown.slider("rank r"), "Home")
    head = shown.root.get_by_role("checkbox", name="lm_head")
    shown.press(head, "Space")
    assert shown.says.startswith("58,577 parameters train, 233.3") and "lm_head has 86% of them" in shown.says
    assert "50,385 of 6,483,281 train" in shown.root.locator(".modules").text_content()
    for name in KINDS:
        shown.root.get_by_role("checkbox", name=name).click()
    assert shown.says == "nothing trains: choose a target"
    shown.root.locator(".bar").last.click()  # a row's bar does what its box does
    assert head.is_checked() and shown.says.startswith("50,385 parameters train")
    shown.choose("way", "a part of the base")
    assert shown.says.startswith("6,432,896 parameters train, 2.1 times fewer") and "trained tensors:" in shown.says
    assert head.is_disabled() and shown.slider("rank r").is_disabled()
    shown.choose("way", "full fine-tuning")
    assert shown.says.startswith("13,665,280 parameters train, all that the base has")
    shown.choose("way", "apply_lora, with these targets")
    assert shown.says.startswith("50,385 parameters train") and head.is_enabled()
    assert shown.root.bounding_box()["height"] == height
    assert shown.page.evaluate("document.documentElement.scrollWidth") <= width
    assert not shown.errors


def test_every_bar_tells_what_stands_behind_it(open_page):
    shown = open_page(targets_explorer({}))
    tips = []
    for bar in shown.root.locator(".bar").all():
        bar.hover()
        tips.append(shown.root.locator(".tip:visible").inner_text())
    assert "query, key, and value: 4 times 128 to 384, A 128 x 8, B 8 x 384" in tips
    assert "output head: 128 to 50,257" in tips and "token embedding: 6,432,896" in tips


def test_a_longer_bar_has_more_numbers(open_page):
    shown = open_page(targets_explorer({}))
    wide = [bar.bounding_box()["width"] for bar in shown.root.locator(".bar i").all()]
    counts = [row["parameters"] for row in targets_explorer({}).data["kinds"]]
    assert [wide.index(w) for w in sorted(wide)] == [counts.index(n) for n in sorted(counts)]
