"""What the curves are given; tests/browser moves them."""

import pytest

from llm.course.widgets.footprint_and_savings import Footprint, Savings


def test_savings_start_at_this_courses_model():
    assert (Savings().data["r"], Savings().data["d"]) == (8, 128)


def test_the_footprint_has_the_bytes_it_is_given_and_refuses_what_has_no_place_on_the_axis():
    assert Footprint(model=54.7e6, adapter=266_935).data == dict(model=54.7e6, adapter=266_935, n=10)
    for wrong in (dict(model=0, adapter=1), dict(model=1, adapter=-1), dict(model=1, adapter=1, n=0)):
        with pytest.raises(ValueError):
            Footprint(**wrong)


def test_a_reader_without_scripts_sees_a_sentence_in_its_place():
    made = Footprint(1, 1)
    assert repr(made) == f"({made.about})" and made.about in made._repr_html_()
