"""The curves drawn in the browser, as far as Python holds them; tests/browser moves them."""

import re

import pytest
from traitlets import TraitError

from llm.course.figures.palette import COLOURS
from llm.course.widgets.footprint_and_savings import Footprint, Savings


def test_it_starts_at_this_courses_model():
    assert (Savings().r, Savings().d) == (8, 128)


@pytest.mark.parametrize("wrong", [dict(r=0), dict(r=257), dict(d=31), dict(d=2**15)])
def test_a_value_beyond_the_sliders_is_refused(wrong):
    with pytest.raises(TraitError):
        Savings(**wrong)


def test_the_page_gets_the_script_and_both_values():
    state = Savings(r=4, d=768).get_state()
    assert (state["r"], state["d"]) == (4, 768)
    assert state["curve"] == "savings" and "export default" in state["_esm"]


def test_its_colours_are_the_palettes_and_the_script_has_none_of_its_own():
    state = Savings().get_state()
    assert state["colours"] == COLOURS and not re.search(r"#[0-9a-fA-F]{3,8}\b", state["_esm"])
    assert set(re.findall(r'colour: "(\w+)"', state["_esm"])) == {"lora", "full"} <= COLOURS.keys()


def test_the_footprint_has_the_bytes_it_is_given_and_refuses_what_has_no_place_on_the_axis():
    state = Footprint(model=54.7e6, adapter=266_935).get_state()
    assert (state["curve"], state["model"], state["adapter"], state["n"]) == ("footprint", 54.7e6, 266_935, 10)
    for wrong in (dict(model=0, adapter=1), dict(model=1, adapter=-1), dict(model=1, adapter=1, n=0)):
        with pytest.raises(TraitError):
            Footprint(**wrong)


def test_a_reader_without_a_kernel_sees_a_line_in_its_place():
    assert repr(Savings()) == "(an interactive curve: run this cell to move it)"
