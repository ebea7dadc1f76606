"""The widgets, driven as a hand would: a control moves, and text and picture follow."""

import gc

import pytest
import torch
from matplotlib.figure import Figure

from llm.course.widgets.old_explorer import Explorer, slider


def test_text_is_escaped():
    controls = {"n": slider("n", 1, 1, 3)}
    explorer = Explorer(controls, lambda n: n, lambda n, figure: figure or Figure(), lambda n: f"{n} < 4")
    assert "1 &lt; 4" in explorer.text.value


def test_a_key_waits_for_no_other_thread_and_no_garbage_and_leaves_both_as_they_were():
    def state():
        return torch.get_num_threads(), gc.isenabled()

    before, seen = state(), []

    def numbers(n):
        seen.append(state())
        if n == 3:
            raise ValueError(n)

    controls = {"n": slider("n", 1, 1, 3)}
    Explorer(controls, numbers, lambda _, figure: figure or Figure(), str)
    with pytest.raises(ValueError):
        controls["n"].value = 3
    assert seen == [(1, False)] * 2 and state() == before
