"""`llm.matrices`: what the first notebook shows, and that no better rank-r part exists."""

import pytest
import torch

from llm.course.toy_matrices import MATRICES, approximate, noise, word, wrapped


@pytest.mark.parametrize("make", MATRICES.values(), ids=MATRICES)
def test_every_matrix_has_one_shape_so_that_the_explorer_can_swap_them(make):
    assert make().shape == (63, 225) and torch.equal(make(), make())


def test_a_word_has_a_row_of_pixels_a_rank_and_no_more():
    assert torch.linalg.matrix_rank(word()) == 7
    assert approximate(word(), 7).error < 1e-12 < 0.05 < approximate(word(), 6).error


@pytest.mark.parametrize("make", MATRICES.values(), ids=MATRICES)
@pytest.mark.parametrize("r", [0, 1, 5])
def test_the_factors_are_thin_and_their_product_is_off_by_what_is_said(make, r):
    target = make()
    part = approximate(target, r)
    assert part.A.shape == (63, r) and part.B.shape == (r, 225) and part.numbers == r * (63 + 225)
    left = ((target - part.A @ part.B).norm() / target.norm()).item()
    assert left == pytest.approx(part.error, abs=1e-5)


def test_no_least_squares_fit_from_any_start_beats_it():
    target, generator = noise(20, 30), torch.Generator().manual_seed(1)
    best = approximate(target, 3).error
    A = torch.randn(20, 3, generator=generator)
    for _ in range(50):  # alternating least squares
        B = torch.linalg.lstsq(A, target).solution
        A = torch.linalg.lstsq(B.T, target.T).solution.T
    assert best - 1e-6 <= ((target - A @ B).norm() / target.norm()).item() < best + 0.02


def test_a_wrapped_layer_has_the_rank_and_the_scale_it_is_given():
    part = wrapped(d=64, r=5, alpha=3)
    assert torch.linalg.matrix_rank(part.update) == 5
    assert torch.allclose(part.update, 3 * wrapped(d=64, r=5, alpha=1).update)
    assert not wrapped(d=64, r=5, alpha=0).update.any()


def test_a_higher_rank_adds_patterns_and_a_wider_layer_adds_rows_and_columns():
    part = wrapped(d=64, r=5, alpha=1)
    assert torch.equal(part.W, wrapped(128, 5, 1).W[:64, :64])
    assert torch.equal(part.A, wrapped(64, 32, 1).A[:, :5]) and torch.equal(part.B, wrapped(64, 32, 1).B[:5])


@pytest.mark.parametrize("d, r", [(128, 0), (128, 33), (16, 17), (129, 1)])
def test_a_rank_or_width_that_cannot_be_is_refused(d, r):
    with pytest.raises(ValueError, match="use 1 <= r"):
        wrapped(d, r, 1)
