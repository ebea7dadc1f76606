"""What the rank and the layer explorer send to the page."""

import base64

import numpy as np
import pytest
import torch

from llm.course.toy_matrices import MATRICES, THICKEST, WIDEST, approximate, wrapped
from llm.course.widgets.explorer import BUNDLE, packed
from llm.course.widgets.rank_explorer import layer_explorer, rank_explorer


def unpacked(sent):
    bits = next(bits for bits in (8, 16) if f"int{bits}" in sent)
    levels = np.frombuffer(base64.b64decode(sent[f"int{bits}"]), dtype=f"<i{bits // 8}").astype(np.float32)
    return torch.from_numpy(levels).reshape(sent["shape"]) * sent["scale"]


@pytest.mark.parametrize("bits, levels", [(8, 127), (16, 32767)])
def test_a_packed_matrix_is_off_by_half_a_step_at_most(bits, levels):
    matrix = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    sent = packed(matrix, bits=bits)
    assert sent["scale"] == pytest.approx(matrix.abs().max().item() / levels, rel=1e-5)
    assert (unpacked(sent) - matrix).abs().max() < 0.51 * sent["scale"]


DRAWN, *SENT = rank_explorer().data["matrices"]


@pytest.mark.parametrize("sent", SENT, ids=lambda sent: sent["name"])
def test_the_patterns_add_up_to_the_matrix_and_each_rank_is_the_best_copy(sent):
    target, U, V = MATRICES[sent["name"]](), unpacked(sent["U"]), unpacked(sent["V"])
    most = target.abs().max()
    assert (U @ V - target).abs().max() < 2e-3 * most
    squares = torch.tensor(sent["sizes"], dtype=torch.float64).square()
    for r in (1, 2, 7, 32, 63):
        best = approximate(target, r)
        assert (U[:, :r] @ V[:r] - best.A @ best.B).abs().max() < 2e-3 * most
        assert (squares[r:].sum() / squares.sum()).sqrt().item() == pytest.approx(best.error, abs=1e-9)


def test_noise_sends_all_of_its_patterns_and_a_smooth_surface_a_few():
    held = {sent["name"]: sent["U"]["shape"][1] for sent in SENT}
    assert held["noise"] == 63 and held["a smooth surface"] < 32


def test_the_word_is_sent_as_pixels_for_a_hand_to_draw_on():
    block = torch.ones(DRAWN["block"], DRAWN["block"])
    assert torch.equal(torch.kron(torch.tensor(DRAWN["pixels"]), block), MATRICES[DRAWN["name"]]())


def test_the_layers_parts_are_those_that_the_notebook_shows():
    data, part = layer_explorer().data, wrapped(WIDEST, THICKEST, 1)
    for name in "WAB":
        matrix = getattr(part, name)
        assert (unpacked(data[name]) - matrix).abs().max() < 0.51 * data[name]["scale"] < 0.01 * matrix.abs().max()


@pytest.mark.parametrize("explorer", [rank_explorer(), layer_explorer()], ids=lambda explorer: explorer.kind)
def test_the_page_gets_less_than_100_kb_beside_the_bundle(explorer):
    assert len(explorer._repr_html_()) - BUNDLE.stat().st_size < 100_000
