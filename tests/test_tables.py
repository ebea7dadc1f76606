"""Tables: what a person reads in a notebook, and in a terminal."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from llm.course.figures import table
from llm.course.figures.tables import DIGIT, POINT
from llm.errors import SettingError

ROWS = [
    {"arm": "full", "numbers": 13_665_280, "loss (nats)": 4.951, "right": 0.991},
    {"arm": "LoRA", "numbers": 65_536, "loss (nats)": 5.0449, "right": 0.42},
    {"arm": "base", "numbers": 0, "loss (nats)": 7, "right": None},
]


class Cells(HTMLParser):
    """The texts of th and td, and which of them are bold or aligned right."""

    def __init__(self, page):
        super().__init__()
        self.cells, self.bold, self.right, self.open = [], [], [], []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")
            self.bold.append(False)
            self.right.append("text-align: right" in dict(attributes)["style"])
        if tag == "b":
            self.bold[-1] = True

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        if self.open[-1] in ("td", "th", "b"):
            self.cells[-1] += text


def html(*args, **options):
    return Cells(table(*args, **options)._repr_html_())


def test_numbers_have_commas_and_two_decimals_unless_a_format_says_otherwise():
    assert html(ROWS).cells[4:8] == ["full", "13,665,280", "4.95", "0.99"]
    assert html(ROWS, formats={"right": ".0%", "loss (nats)": ".3f"}).cells[4:8] == [
        "full",
        "13,665,280",
        "4.951",
        "99%",
    ]
    assert html([{"change": -0.001}]).cells == ["change", "0.00"]


def test_points_stand_under_points():
    assert html([{"x": 3.25}, {"x": 12}, {"x": 0.5}], formats={"x": "g"}).cells == [
        "x",
        "3.25",
        f"12{POINT}{2 * DIGIT}",
        f"0.5{DIGIT}",
    ]
    lines = repr(table([{"x": 3.25}, {"x": 12}, {"x": 1234.5}], formats={"x": ",g"})).splitlines()
    assert lines == ["       x", "    3.25", "   12", "1,234.5"]


def test_strings_stand_left_and_numbers_right_with_their_headers():
    assert html(ROWS).right == 4 * [False, True, True, True]


def test_the_best_is_bold_in_html_and_starred_in_text():
    best = {"loss (nats)": min, "right": max}
    found = html(ROWS, best=best)
    assert [cell for cell, bold in zip(found.cells, found.bold) if bold] == ["4.95", "0.99"]
    assert str(table(ROWS, best=best)) == (
        "arm      numbers  loss (nats)  right\n"
        "full  13,665,280        4.95*  0.99*\n"
        "LoRA      65,536        5.04   0.42\n"
        "base           0        7"
    )


def test_values_that_read_the_same_are_best_together():
    found = html([{"loss": 1.001}, {"loss": 1.002}, {"loss": 1.2}], best={"loss": min})
    assert found.bold == [False, True, True, False]


def test_numbers_of_torch_and_numpy_are_numbers_and_truths_are_words():
    row = {"a": torch.tensor(2.0), "b": np.float32(0.5), "c": np.int64(1_000), "d": True, "e": None}
    assert html([row]).cells[5:] == ["2.00", "0.50", "1,000", "yes", ""]
    assert html([row]).right[5:] == [True, True, True, False, False]


def test_a_missing_value_is_an_empty_cell_and_a_word_among_numbers_stays_as_it_is():
    found = html([{"a": "x"}, {"a": "y", "time (s)": 1.5}, {"a": "z", "time (s)": "none"}])
    assert found.cells == ["a", "time (s)", "x", "", "y", "1.50", "z", "none"]
    assert repr(table([])) == "" and html([]).cells == []


def test_text_is_escaped_and_nothing_runs_or_changes_between_runs():
    rows = [{"<b>": "a & <script>alert(1)</script>"}]
    page = table(rows)._repr_html_()
    assert page == table(rows)._repr_html_() and "<script" not in page
    assert html(rows).cells == ["<b>", "a & <script>alert(1)</script>"]
    assert not re.search(r"\bid=|<style|class=|color", page)


@pytest.mark.parametrize("wrong", [dict(best={"los": min}), dict(formats={"los": ".3f"})])
def test_a_column_that_does_not_exist_is_named(wrong):
    with pytest.raises(SettingError, match="no column is called 'los': the columns are arm, numbers"):
        table(ROWS, **wrong)
