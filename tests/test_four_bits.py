"""Numbers about rounded weights: shares, errors, and the share of an update that survives a second rounding."""

import pytest
import torch

from llm.course.four_bits import four_bit, relative_error, rounded, survival
from llm.course.toy_matrices import noise
from llm.quantize import FORMATS


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("name", FORMATS)
def test_a_matrix_is_rounded_as_its_layer_is(name, double):
    W = noise(24, 64)
    part, layer = rounded(W, name, 32, double), four_bit(W, name, 32, double)
    assert (
        part.error
        == relative_error(W, name, 32, double)
        == pytest.approx(((layer.weight - W).norm() / W.norm()).item())
    )
    assert part.shares.sum().item() == pytest.approx(1) and part.shape.sum() == W.numel()
    assert len(part.levels) == len(part.shares) == (16 if name == "nf4" else 15) and part.levels.diff().min() > 0


def test_the_shape_counts_weights_by_their_size_over_their_blocks_absmax():
    W = noise(24, 64)
    scaled = W.view(-1, 32) / W.view(-1, 32).abs().amax(1, keepdim=True)
    part = rounded(W, block=32)
    assert torch.equal(part.shape, torch.histc(scaled, 101, -1, 1))
    assert part.shape[0] == (scaled < -1 + 2 / 101).sum() > 0, "the largest weight of a block becomes -1"


def test_the_entropy_is_four_bits_where_all_sixteen_levels_are_used_equally():
    part = rounded(FORMATS["nf4"]().repeat(4)[None], block=64)
    assert part.entropy == pytest.approx(4) and part.error == 0


def test_the_matrix_is_left_as_it_was():
    W = noise(24, 64)
    kept = W.clone()
    rounded(W), survival(four_bit(W), 0.1 * W)
    assert torch.equal(W, kept) and not W.requires_grad


def test_of_a_tiny_update_nothing_survives_and_of_a_large_one_nearly_all():
    layer, update = four_bit(noise(64, 128)), noise(64, 128, seed=1)
    tiny, large = survival(layer, 0.005 * update), survival(layer, update)
    assert tiny.same > 0.99 and tiny.survives < 0.1 and tiny.size == pytest.approx(0.005, rel=0.05)
    assert large.same < 0.3 and large.survives > 0.95 and large.error < 0.2
    assert torch.allclose(large.wanted * layer.weight.std(), update.flatten(), atol=1e-5)
