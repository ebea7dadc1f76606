"""The blind comparison in a bare page, by mouse and by keyboard: what it hides, counts and tells."""

import re
from math import sqrt
from statistics import NormalDist

import pytest
from conftest import SHOTS

from llm.course.widgets.explorer import bundle
from llm.course.widgets.prefer import prefer

# the two differ in length and by a word that no page shows else, so that a test knows whose answer stands where
PAIRS = [
    (f"Question {i}: what is <b>bold</b> & why?", f"plain{i} " + "word " * i, f"tuned{i} <img src=x> " + "w" * 9 * i)
    for i in range(12)
]


class Comparison:
    """A comparison in a page: where the adapter's answer stands, and buttons by their names."""

    def __init__(self, shown):
        self.shown, self.root = shown, shown.root

    def button(self, name):
        return self.root.get_by_role("button", name=name)

    def answer(self, side):
        return self.root.get_by_role("group", name=f"{side} answer").inner_text()

    @property
    def adapter(self):
        return "left" if self.answer("left").startswith("tuned") else "right"

    def give(self, side, by="mouse"):
        if by == "mouse":
            self.button({"left": "1: left", "right": "2: right", "tie": "0: tie"}[side]).click()
        else:
            self.shown.page.keyboard.press({"left": "1", "right": "2", "tie": "0"}[side])


@pytest.fixture
def compare(open_page):
    return lambda pairs=PAIRS, width=760, theme="light", **more: Comparison(
        open_page(prefer(pairs, **more), width, theme)
    )


def interval(wins, n):
    """Every share that a test at 5% would not reject for `wins` of `n`: found by halving, not by the formula."""
    z, shares = NormalDist().inv_cdf(0.975), []
    for inside, outside in ((wins / n, 0.0), (wins / n, 1.0)):
        for _ in range(60):
            middle = (inside + outside) / 2
            fits = abs(wins / n - middle) <= z * sqrt(middle * (1 - middle) / n)
            inside, outside = (middle, outside) if fits else (inside, middle)
        shares.append(inside)
    return shares


def test_the_interval_is_wilsons(browser):
    page, cases = browser.new_page(), [(wins, n) for n in (1, 2, 10, 17, 500) for wins in {0, 1, n // 2, n - 1, n}]
    found = page.evaluate(
        """async ([code, cases]) => {
            const { wilson } = await import(URL.createObjectURL(new Blob([code], { type: 'text/javascript' })));
            return cases.map((given) => wilson(...given));
        }""",
        [bundle(), cases],
    )
    page.close()
    assert found == [pytest.approx(interval(*case), abs=1e-9) for case in cases]


@pytest.mark.parametrize(("width", "theme"), [(360, "dark"), (760, "light"), (1280, "dark")])
def test_a_reader_compares_all_pairs_and_sees_the_score(compare, width, theme):
    asked = compare(width=width, theme=theme)
    asked.shown.page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    height, stood, left = asked.root.bounding_box()["height"], 0, 0
    asked.button("1: left").focus()
    given = ["adapter"] * 6 + ["base"] * 3 + ["tie"] * 3
    for i, who in enumerate(given):
        assert asked.shown.says.startswith(f"Pair {i + 1} of 12, {i} judged.")
        where = asked.adapter
        stood += where == "left"
        side = {"adapter": where, "base": {"left": "right", "right": "left"}[where], "tie": "tie"}[who]
        left += side == "left"
        asked.give(side, ("mouse", "keys")[i % 2])
        assert asked.root.bounding_box()["height"] == height, "the layout jumps"
        assert not (found := asked.shown.collisions()), found
        inside = "node => node.scrollWidth <= node.clientWidth + 1"
        assert all(part.evaluate(inside) for part in asked.root.locator(".text").all()), "text wraps"
    low, high = (f"{100 * share:.0f}%" for share in interval(6, 9))
    assert asked.shown.says == (
        f"adapter is preferred in 6 of 9 decided pairs, 67%; 95% interval {low} to {high}. "
        "The interval includes one half: this does not decide. 3 ties stand apart. "
        f"Of the 12 pairs that you judged, adapter stood left in {stood} and base in {12 - stood}; "
        f"you preferred the left answer in {left} of 9."
    )
    assert asked.shown.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    asked.shown.shot(f"prefer-{width}", SHOTS)
    assert not asked.shown.errors


def test_nothing_in_the_page_tells_whose_answer_it_is_before_the_score(compare):
    asked = compare([(p, a.replace("plain", "x"), b.replace("tuned", "x")) for p, a, b in PAIRS])
    pair = asked.root.locator(".answers")
    for _ in range(5):
        parts = [asked.root.get_by_role("group", name=f"{side} answer") for side in ("left", "right")]
        left, right = (part.evaluate("node => node.cloneNode(false).outerHTML") for part in parts)
        assert left.replace("left", "right") == right
        assert "base" not in pair.inner_html() and "adapter" not in pair.inner_html()
        assert not asked.root.locator("svg circle").count(), "no score yet"
        asked.give("tie")
    asked.button("Reveal").click()
    assert sorted(pair.locator("h4").all_inner_texts()) in (
        ["left: adapter", "right: base"],
        ["left: base", "right: adapter"],
    )


def test_the_order_is_the_seeds_and_start_over_draws_anew(compare):
    def sides(asked):
        found = []
        asked.button("0: tie").focus()
        for _ in PAIRS:
            found.append(asked.adapter)
            asked.give("tie", "keys")
        return found

    asked = compare(seed=3)
    first = sides(asked)
    assert set(first) == {"left", "right"} and first == sides(compare(seed=3)) != sides(compare(seed=4))
    asked.button("Start over").click()
    assert asked.shown.says.startswith("Pair 1 of 12, 0 judged.") and not asked.root.locator("svg circle").count()
    assert sides(asked) != first


def test_the_draw_is_even(compare):
    asked = compare([(str(i), "plain", "tuned") for i in range(400)])
    stood = asked.root.evaluate(
        """root => Array.from({ length: 400 }, () => {
            const left = root.querySelector('[aria-label="left answer"]').textContent;
            root.dispatchEvent(new KeyboardEvent('keydown', { key: '0' }));
            return left === 'tuned';
        }).filter(Boolean).length"""
    )
    assert 160 < stood < 240, "within four standard deviations"


def test_the_score_may_come_after_five_and_then_nothing_changes_it(compare):
    asked = compare(names=("small", "large"))
    for i in range(5):
        asked.button("Reveal").click(force=True)  # it says that it is off
        assert asked.shown.says.startswith(f"Pair {i + 1} of 12"), "not before"
        asked.give(asked.adapter)
    asked.button("Reveal").press("Enter")
    says = asked.shown.says
    assert says.startswith("large is preferred in 5 of 5 decided pairs, 100%; 95% interval 57% to 100%.")
    assert "The interval lies above one half: you prefer large. 0 ties stand apart." in says
    asked.button("1: left").press("Enter"), asked.give("right", "keys")
    assert asked.shown.says == says
    asked.button("Back").click()
    assert asked.root.locator(".preferred").inner_text().startswith("tuned4")


def test_an_answer_may_be_changed_until_the_score(compare):
    asked = compare()
    asked.give("left"), asked.button("Back").click()
    assert asked.button("1: left").get_attribute("aria-pressed") == "true"
    first = asked.answer("left")
    asked.give("right")
    assert asked.shown.says.startswith("Pair 2 of 12, 1 judged.") and asked.answer("left") != first
    asked.button("Back").click()
    assert asked.button("2: right").get_attribute("aria-pressed") == "true"
    asked.button("Next").click()
    asked.button("Next").press("Enter")
    assert asked.shown.says.startswith("Pair 2 of 12"), "a pair that is not judged is not passed over"


def test_ties_alone_decide_nothing_and_equal_answers_are_ties(compare):
    asked = compare([*PAIRS[:2], ("p", "same", "same")])
    asked.give("tie"), asked.give("tie")
    assert asked.shown.says == "No pair is decided. 3 ties stand apart, 1 of them with equal answers."


def test_markup_in_a_prompt_or_an_answer_is_text(compare):
    asked = compare([("<script>alert(1)</script>", "</script><h1>x</h1>", "<img src=x onerror=alert(1)>")])
    assert asked.root.get_by_role("group", name="prompt", exact=True).inner_text() == "<script>alert(1)</script>"
    assert {asked.answer("left"), asked.answer("right")} == {"</script><h1>x</h1>", "<img src=x onerror=alert(1)>"}
    assert not asked.root.locator(".text *").count() and not asked.shown.errors


def test_the_keys_are_heard_where_one_has_clicked_and_every_part_shows_its_focus(compare):
    asked = compare()
    asked.root.get_by_role("status").click()
    asked.give("left", "keys")
    assert asked.shown.says.startswith("Pair 2 of 12")
    asked.shown.page.keyboard.press("Control+1")
    assert asked.shown.says.startswith("Pair 2 of 12"), "with a modifier it is the browser's"
    for _ in range(10):
        asked.shown.page.keyboard.press("Tab")
        seen = asked.shown.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert seen != "none" or asked.shown.page.evaluate("document.activeElement === document.body")
    assert re.search("aria-live=.polite", asked.root.inner_html())
