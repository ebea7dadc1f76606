"""The widgets, driven as a hand would: a control moves, and text and picture follow."""

import io

import matplotlib.pyplot as plt
import pytest
from matplotlib.figure import Figure

from llm.matrices import noise
from llm.widgets import Explorer, delta_explorer, rank_explorer, slider


def size(png):
    return plt.imread(io.BytesIO(png)).shape


def test_moving_the_slider_changes_picture_and_text():
    explorer = rank_explorer()
    picture, text = explorer.image.value, explorer.text.value
    explorer.controls["r"].value = 5
    assert explorer.image.value != picture and size(explorer.image.value) == size(picture)
    assert text != explorer.text.value and "rank 5" in explorer.text.value
    explorer.controls["r"].value = 2
    assert explorer.image.value == picture and explorer.text.value == text, "the same value, the same picture"


def test_choosing_another_matrix_changes_both_too():
    explorer = rank_explorer()
    seen = set()
    for name in explorer.controls["which"].options:
        explorer.controls["which"].value = name
        seen.add((explorer.image.value, explorer.text.value))
    assert len(seen) == 3


@pytest.mark.parametrize("r", [1, 32])
def test_both_ends_of_the_slider_draw(r):
    explorer = rank_explorer()
    explorer.controls["r"].value = r
    assert f"rank {r}:" in explorer.text.value and f"{r * (63 + 225):,} numbers" in explorer.text.value


def test_the_slider_starts_where_it_says_and_is_not_clamped():
    control = rank_explorer().controls["r"]
    assert control.min <= control.value == 2 <= control.max


def test_no_figure_stays_open_to_be_shown_a_second_time():
    rank_explorer()
    assert not plt.get_fignums()


def test_text_is_escaped():
    controls = {"n": slider("n", 1, 1, 3)}
    explorer = Explorer(controls, lambda n: n, lambda n, figure: figure or Figure(), lambda n: f"{n} < 4")
    assert "1 &lt; 4" in explorer.text.value


def test_the_delta_explorer_follows_layer_and_rank():
    deltas = {"records": {f"transformer.h.{i}.attn.c_attn.weight": noise(24, 16, seed=i) for i in range(2)}}
    explorer = delta_explorer(deltas)
    seen = {explorer.image.value}
    explorer.controls["r"].value = 16
    assert "rank 16 of 16: 100% of the energy" in explorer.text.value
    seen.add(explorer.image.value)
    explorer.controls["layer"].value = explorer.controls["layer"].options[1][1]
    seen.add(explorer.image.value)
    assert len(seen) == 3


def test_a_rank_above_the_layers_size_still_draws():
    explorer = delta_explorer({"records": {"transformer.h.0.attn.c_attn.weight": noise(24, 16)}})
    explorer.controls["r"].value = 64
    assert "100% of the energy" in explorer.text.value
