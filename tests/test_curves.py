"""The curves drawn in the browser, as far as Python holds them; tests/browser moves them."""

import pytest
from traitlets import TraitError

from llm.curves import Savings


def test_it_starts_at_this_courses_model():
    assert (Savings().r, Savings().d) == (8, 128)


@pytest.mark.parametrize("wrong", [dict(r=0), dict(r=257), dict(d=31), dict(d=2**15)])
def test_a_value_beyond_the_sliders_is_refused(wrong):
    with pytest.raises(TraitError):
        Savings(**wrong)


def test_the_page_gets_the_script_and_both_values():
    state = Savings(r=4, d=768).get_state()
    assert (state["r"], state["d"]) == (4, 768)
    assert 'model.get("r")' in state["_esm"] and "export default" in state["_esm"]


def test_a_reader_without_a_kernel_sees_a_line_in_its_place():
    assert repr(Savings()) == "(an interactive curve: run this cell to move it)"
