"""The curves drawn in the browser, as far as Python holds them; tests/browser moves them."""

import re

import pytest
from traitlets import TraitError

from llm.course.figures.palette import COLOURS
from llm.course.widgets.footprint_and_savings import Footprint, Savings


def test_savings_start_at_this_courses_model():
    assert (Savings().data["r"], Savings().data["d"]) == (8, 128)


def test_its_colours_are_the_palettes_and_the_script_has_none_of_its_own():
    state = Footprint(1, 1).get_state()
    assert state["colours"] == COLOURS and not re.search(r"#[0-9a-fA-F]{3,8}\b", state["_esm"])
    assert set(re.findall(r'colour: "(\w+)"', state["_esm"])) <= {"lora", "full"} <= COLOURS.keys()


def test_the_footprint_has_the_bytes_it_is_given_and_refuses_what_has_no_place_on_the_axis():
    state = Footprint(model=54.7e6, adapter=266_935).get_state()
    assert (state["curve"], state["model"], state["adapter"], state["n"]) == ("footprint", 54.7e6, 266_935, 10)
    for wrong in (dict(model=0, adapter=1), dict(model=1, adapter=-1), dict(model=1, adapter=1, n=0)):
        with pytest.raises(TraitError):
            Footprint(**wrong)


def test_a_reader_without_a_kernel_sees_a_line_in_its_place():
    assert repr(Footprint(1, 1)) == "(an interactive curve: run this cell to move it)"
