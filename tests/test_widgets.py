"""The widgets, driven as a hand would: a control moves, and text and picture follow."""

import gc

import pytest
import torch
from matplotlib.figure import Figure

from llm.course.toy_matrices import noise
from llm.course.widgets.old_explorer import Explorer, slider
from llm.course.widgets.rounding_explorer import rounding_explorer


def test_text_is_escaped():
    controls = {"n": slider("n", 1, 1, 3)}
    explorer = Explorer(controls, lambda n: n, lambda n, figure: figure or Figure(), lambda n: f"{n} < 4")
    assert "1 &lt; 4" in explorer.text.value


def test_the_rounding_explorer_follows_format_block_and_double_quantisation():
    explorer = rounding_explorer({"one": noise(64, 128), "two": noise(128, 64, seed=1)})
    assert "nf4 in blocks of 64: 4.500 bits a weight" in explorer.text.value
    seen = {explorer.image.value}
    for name, value, says in (
        ("double", True, "absmaxes in 8 bits: 4.127 bits"),
        ("block", 16, "in blocks of 16"),
        ("block", 1024, "in blocks of 1024"),
        ("format", "int4", "int4 in blocks of 1024"),
        ("format", "fp4", "fp4 in blocks of 1024"),
        ("layer", "two", "fp4 in blocks of 1024"),
    ):
        explorer.controls[name].value = value
        assert says in explorer.text.value and explorer.image.value not in seen, name
        seen.add(explorer.image.value)


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
