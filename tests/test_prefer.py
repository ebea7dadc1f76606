"""What the blind comparison is given; tests/browser plays it."""

import pytest

from llm.course.widgets.prefer import prefer
from llm.errors import SettingError

PAIRS = [(f"prompt {i}", f"base {i}", f"adapter {i}") for i in range(12)]


def test_pairs_whose_answers_are_the_same_are_counted_and_not_shown():
    data = prefer([*PAIRS, ("same", "yes", " yes\n")]).data
    assert data["pairs"] == [list(pair) for pair in PAIRS] and data["same"] == 1
    assert data["names"] == ["base", "adapter"] and data["least"] == 5
    assert prefer(PAIRS[:3]).data["least"] == 3


def test_a_prompt_of_messages_is_shown_with_its_roles():
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    assert prefer([(asked, "a", "b")]).data["pairs"] == [["system: Be brief.\nuser: Why?", "a", "b"]]


@pytest.mark.parametrize(
    ("pairs", "names", "says"),
    [
        ([], ("a", "b"), "nothing to compare"),
        ([("p", "x", "x")], ("a", "b"), "nothing to compare"),
        ([("p", "x")], ("a", "b"), "pair 0 is"),
        ([("p", "x", None)], ("a", "b"), "pair 0 is"),
        (PAIRS, ("a", "a"), "two that differ"),
        (PAIRS, ("a", "b", "c"), "two that differ"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_a_sentence(pairs, names, says):
    with pytest.raises(SettingError, match=says):
        prefer(pairs, names)
