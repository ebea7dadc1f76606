"""The savings curve in a bare page, and what holds for the output of every explorer."""

import json
import re

import pytest

from llm.course.widgets.footprint_and_savings import Savings


@pytest.mark.parametrize(("width", "theme"), [(360, "dark"), (760, "light"), (1280, "dark")])
def test_savings(open_page, width, theme):
    shown = open_page(Savings(), width, theme)
    assert shown.says == "r = 8, d = 128: 2,048 numbers in A and B for 16,384 in W, 8 times fewer"
    low, high = shown.sweep("rank r")
    assert low.endswith("64 times fewer") and high.endswith("4 times more")
    shown.sweep("width d")
    shown.press(shown.slider("rank r"), "Home")
    shown.press(shown.slider("width d"), "Home", *["ArrowRight"] * 4)
    assert "r = 1, d = 512:" in shown.says
    shown.drag(0, right=-60, down=20)
    assert not re.match("r = 1, d = 512:", shown.says)
    assert not shown.errors


def test_data_of_an_explorer_cannot_leave_its_script():
    page = Savings(r="</script><b>")._repr_html_()
    assert (
        "</script><b>" not in page
        and json.loads(page.split('class="llm-data">')[1].split("</script>")[0])["r"] == "</script><b>"
    )
