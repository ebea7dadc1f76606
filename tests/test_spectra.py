"""`llm.spectra` on toy matrices: what a delta's spectrum says, and that truncation is the best one there is."""

import pytest
import torch
import torch.nn as nn

from llm import spectra


def low_rank(m, n, r, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(m, r, generator=g) @ torch.randn(r, n, generator=g)


def test_a_product_of_thin_matrices_keeps_all_its_energy_at_their_rank():
    values = spectra.singular_values(low_rank(40, 30, 3))
    assert spectra.energy(values, [3])[0] == pytest.approx(1, abs=1e-9)
    assert spectra.energy(values, [2])[0] < 0.999
    assert spectra.rank_for(values, 0.9999) == 3


def test_energy_at_rank_0_is_nothing_and_beyond_the_last_rank_everything():
    values = spectra.singular_values(torch.eye(5))
    assert spectra.energy(values, [0, 1, 5, 99]) == pytest.approx([0, 0.2, 1, 1])


def test_a_matrix_of_zeros_has_no_energy_and_no_nan():
    assert spectra.energy(spectra.singular_values(torch.zeros(4, 4)), [1, 4]) == [0, 0]


@pytest.mark.parametrize("shape", [(500, 6), (6, 500)])
def test_the_shortcut_for_tall_matrices_gives_the_same_singular_values(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(spectra.singular_values(matrix), torch.linalg.svdvals(matrix.double()))


def test_truncation_leaves_exactly_the_energy_of_the_tail():
    matrix = torch.randn(20, 30, generator=torch.Generator().manual_seed(2))
    values, cut = spectra.singular_values(matrix), spectra.truncate(matrix, 4)
    assert torch.linalg.matrix_rank(cut) == 4 and cut.dtype == matrix.dtype
    assert (matrix - cut).norm().item() == pytest.approx(values[4:].norm().item(), rel=1e-5)
    torch.testing.assert_close(spectra.truncate(matrix, 20), matrix)
    assert not spectra.truncate(matrix, 0).any()


def test_noise_has_the_shape_and_the_norm_and_none_of_the_structure():
    matrix = low_rank(40, 30, 2)
    noise = spectra.noise_like(matrix, seed=0)
    assert noise.shape == matrix.shape and noise.norm().item() == pytest.approx(matrix.norm().item(), rel=1e-5)
    assert spectra.energy(spectra.singular_values(noise), [2])[0] < 0.4
    assert torch.equal(noise, spectra.noise_like(matrix, seed=0))


def test_a_snapshot_stays_when_the_model_moves_and_base_plus_delta_is_the_tuned_model():
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    before = spectra.snapshot(model)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    moved = spectra.delta(before, spectra.snapshot(model))
    assert all(torch.allclose(d, torch.ones(())) for d in moved.values())
    again = spectra.compose(before, moved)
    assert all(torch.allclose(again[n], p) for n, p in model.state_dict().items())
    assert torch.equal(spectra.compose(before, {"0.bias": moved["0.bias"]})["0.weight"], before["0.weight"])


def test_the_block_matrices_are_what_lora_wraps():
    from llm.lora import apply_lora, lora_layers
    from llm.model import GPT, GPTConfig

    model = GPT(GPTConfig(vocab_size=50, n_layer=2, n_head=2, n_embd=8))
    names = spectra.block_matrices(model)
    assert names == [f"{path}.weight" for path in lora_layers(apply_lora(model, r=1))]


def test_two_models_of_different_shape_are_refused_with_the_first_tensor_that_differs():
    with pytest.raises(ValueError, match="1 tensors, weight first"):
        spectra.delta(nn.Linear(2, 3, bias=False).state_dict(), nn.Linear(2, 4, bias=False).state_dict())


def test_the_overlap_of_two_spans_is_one_for_the_same_zero_for_orthogonal_ones_and_chance_is_the_share_of_the_room():
    Q = torch.linalg.qr(torch.randn(40, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).Q
    leading = Q[:, :3] * torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)
    turned = leading @ low_rank(3, 3, 3).double()  # other columns, the same span
    assert spectra.overlap(leading, turned, 3, 3) == pytest.approx(1)
    assert spectra.overlap(leading, Q[:, 3:9], 3, 6) == pytest.approx(0, abs=1e-12)
    assert spectra.overlap(Q[:, :1], leading, 1, 1) == pytest.approx(1)
    assert spectra.overlap(Q[:, 2:3], leading, 1, 2) == pytest.approx(0, abs=1e-12)
    assert spectra.overlap(Q[:, :1], leading, 1, 3) == pytest.approx(1)  # of the smaller span, all there is
    g = torch.Generator().manual_seed(1)
    noise = [torch.randn(40, 8, generator=g) for _ in range(40)]
    found = [spectra.overlap(a, b, 8, 8) for a, b in zip(noise[::2], noise[1::2])]
    assert sum(found) / len(found) == pytest.approx(8 / 40, abs=0.02)


def test_an_update_amplifies_little_where_the_weight_is_large_and_much_where_it_is_small():
    weight = torch.diag(torch.tensor([8.0, 4.0, 0.5, 0.25]))
    along = torch.zeros(4, 4)
    along[0, 0] = 2.0
    across = torch.zeros(4, 4)
    across[3, 3] = 2.0
    assert spectra.amplification(weight, along, 1) == pytest.approx(2 / 8)
    assert spectra.amplification(weight, across, 1) == pytest.approx(2 / 0.25)
    assert spectra.amplification(weight, along + across, 2) == pytest.approx((8 / (64 + 1 / 16)) ** 0.5)
