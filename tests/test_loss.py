"""The loss from hidden states: equal to plain cross-entropy, and never in possession of all the logits."""

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from llm import loss
from llm.errors import SettingError
from llm.lora import LoraLinear
from llm.loss import CHUNK, IGNORE, PRECISIONS, TILE, chunked_loss, head_loss, multiplies_bfloat16, tiled_loss

D, VOCAB = 16, 97
CPU = torch.device("cpu")


def problem(tokens, vocab=VOCAB, masked=0, seed=0):
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, D, generator=g).requires_grad_(True)
    weight = torch.randn(vocab, D, generator=g).requires_grad_(True)
    targets = torch.randint(vocab, (tokens,), generator=g)
    targets[torch.randperm(tokens, generator=g)[:masked]] = IGNORE
    return hidden, weight, targets


def plain(hidden, weight, targets):
    return F.cross_entropy((hidden @ weight.T).flatten(0, -2), targets.flatten(), ignore_index=IGNORE)


def assert_same_loss_and_gradients(hidden, weight, targets):
    found = tiled_loss(hidden, weight, targets)
    mine = torch.autograd.grad(3 * found, (hidden, weight))  # a factor, for a loss that is not the end of the graph
    expected = plain(hidden, weight, targets)
    theirs = torch.autograd.grad(3 * expected, (hidden, weight))
    assert found.shape == () and abs(found - expected) < 1e-5
    for one, other in zip(mine, theirs):
        assert (one - other).abs().max() < 1e-5


@pytest.mark.skipif(not hasattr(F, "linear_cross_entropy"), reason="this torch has no linear_cross_entropy")
def test_loss_and_gradients_are_those_of_torchs_own_function():
    hidden, weight, targets = problem(600)
    mine = tiled_loss(hidden, weight, targets)
    theirs = F.linear_cross_entropy(hidden, weight, targets)
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)
    for one, other in zip(*(torch.autograd.grad(found, (hidden, weight)) for found in (mine, theirs))):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize("level", [-1e4, -79.0, 0.0, 69.0, 79.0, 87.0, 1e4])
@pytest.mark.parametrize("frozen", [True, False])
def test_equal_logits_of_any_size_make_the_loss_of_a_guess_and_finite_gradients(level, frozen):
    vocab = 5000  # a sum of so many exponentials is infinite long before one of them is
    hidden = torch.full((9, D), 2.0, requires_grad=True)
    weight = torch.full((vocab, D), level / (2 * D), requires_grad=not frozen)
    targets = torch.arange(9)
    live = [hidden] if frozen else [hidden, weight]
    value, expected = tiled_loss(hidden, weight, targets), plain(hidden, weight, targets)
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=0)  # of 10,000 float32 keeps a thousandth
    for one, other in zip(torch.autograd.grad(value, live), torch.autograd.grad(expected, live)):
        torch.testing.assert_close(one, other, rtol=2e-3, atol=1e-6 * (1 + abs(level)))


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_tiny_states_and_huge_weights_or_the_other_way_round_keep_their_gradients(scale):
    hidden, weight, targets = problem(60)
    hidden, weight = ((t.detach() * by).requires_grad_(True) for t, by in ((hidden, scale), (weight, 10 / scale)))
    ours, expected = tiled_loss(hidden, weight, targets), plain(hidden, weight, targets)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=0)
    for one, other in zip(*(torch.autograd.grad(value, (hidden, weight)) for value in (ours, expected))):
        assert (one - other).norm() <= 1e-4 * other.norm()


@pytest.mark.parametrize("frozen", [True, False])
def test_a_row_s_largest_logit_may_stand_in_any_tile(frozen):
    words = TILE[1]
    vocab = 2 * words + 7
    hidden, weight, _ = problem(6, vocab=vocab)
    places = torch.tensor([0, words - 1, words, 2 * words - 1, 2 * words, vocab - 1])
    with torch.no_grad():
        weight[places] = 30 * hidden  # exp of what the first tile has is nothing beside it
    weight.requires_grad_(not frozen)
    live = [hidden] if frozen else [hidden, weight]
    for targets in (places, places.roll(1)):
        value, expected = tiled_loss(hidden, weight, targets), plain(hidden, weight, targets)
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
        for one, other in zip(torch.autograd.grad(value, live), torch.autograd.grad(expected, live)):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [30.0, 1e3, 1e5])
def test_logits_that_exp_could_not_take_make_the_same_loss(size):
    hidden, weight, targets = problem(200)
    hidden = (hidden.detach() * size).requires_grad_(True)
    found, expected = tiled_loss(hidden, weight, targets), plain(hidden, weight, targets)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    assert size < 1e3 or (hidden @ weight.T).max() > 88  # exp of it is infinity
    for one, other in zip(*(torch.autograd.grad(value, (hidden, weight)) for value in (found, expected))):
        assert (one - other).norm() <= 1e-4 * other.norm()


def test_where_asking_is_waiting_masked_positions_are_zeros_in_every_sum(monkeypatch):
    hidden, weight, targets = problem(300, masked=40)
    expected = plain(hidden, weight, targets)
    theirs = torch.autograd.grad(expected, (hidden, weight))
    monkeypatch.setattr(loss, "_waits", lambda device: True)
    spoilt = hidden.detach().clone()
    spoilt[targets == IGNORE] = float("nan")
    found = tiled_loss(spoilt.requires_grad_(True), weight, targets)
    torch.testing.assert_close(found, expected)
    for one, other in zip(torch.autograd.grad(found, (spoilt, weight)), theirs):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    assert tiled_loss(hidden, weight, torch.full_like(targets, IGNORE)).isnan()


@pytest.mark.parametrize("frozen", [True, False])
def test_in_bfloat16_loss_and_gradients_keep_to_their_bounds(frozen):
    """Products rounded to 8 bits, sums not: a thousandth of the loss, half a hundredth of the gradient."""
    g = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(700, 128, generator=g), torch.randn(1009, 128, generator=g) * 0.1
    targets = torch.randint(1009, (700,), generator=g)
    wanted = [hidden.requires_grad_(True)] + ([] if frozen else [weight.requires_grad_(True)])
    found = tiled_loss(hidden, weight, targets, "bfloat16")
    mine = torch.autograd.grad(found, wanted)
    expected = plain(hidden, weight, targets)
    theirs = torch.autograd.grad(expected, wanted)
    assert found.dtype == torch.float32
    assert 0 < abs(found - expected) < 1e-3 * expected
    assert all((one - other).norm() < 5e-3 * other.norm() for one, other in zip(mine, theirs))


@pytest.fixture(params=[True, False], ids=["multiplies bfloat16", "does not"])
def able(request, monkeypatch):
    """Whether the processor multiplies bfloat16: one that does, and one that does not."""
    monkeypatch.setattr(loss, "multiplies_bfloat16", lambda device: request.param)
    return request.param


@pytest.mark.parametrize("frozen", [True, False])
def test_auto_takes_bfloat16_for_a_frozen_head_where_the_processor_multiplies_it(able, frozen):
    hidden, weight, targets = problem(30)
    weight.requires_grad_(not frozen)
    by_name = {name: tiled_loss(hidden, weight, targets, name) for name in PRECISIONS}
    assert by_name["float32"] != by_name["bfloat16"]
    assert by_name["auto"] == by_name["bfloat16" if able and frozen else "float32"]
    assert tiled_loss(hidden, weight, targets) == by_name["float32"]  # where nothing is said


@pytest.mark.parametrize("name", PRECISIONS)
def test_a_head_in_16_bits_keeps_them_under_every_precision(able, name):
    hidden, weight, targets = problem(30)
    weight = weight.detach().half()
    assert tiled_loss(hidden, weight, targets, name) == tiled_loss(hidden, weight, targets)


def test_what_the_processor_multiplies_is_known_on_every_torch_that_the_course_admits():
    assert multiplies_bfloat16(CPU) in (True, False)
    assert not multiplies_bfloat16(torch.device("mps"))


def test_under_autocast_its_dtype_is_the_one():
    hidden, weight, targets = problem(30)
    with torch.autocast("cpu", torch.bfloat16):
        found = tiled_loss(hidden, weight, targets)
    assert found == tiled_loss(hidden, weight, targets, "bfloat16")


@pytest.mark.parametrize("wrapped", [True, False])
def test_another_precision_is_refused_for_any_head(wrapped):
    head = heads()["with an adapter" if wrapped else "plain"]
    with pytest.raises(SettingError, match="^there is no precision 'int4': choose one of auto, float32, bfloat16$"):
        head_loss(torch.zeros(3, D), head, torch.tensor([1, 2, 3]), "int4")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_loss_is_float32_or_finer_and_its_gradients_are_as_what_they_are_of(dtype):
    exact = [t.detach().to(dtype) for t in problem(600, masked=40)]
    hidden, weight = exact[0].requires_grad_(True), exact[1].requires_grad_(True)
    targets = exact[2].long()
    found = tiled_loss(hidden, weight, targets)
    mine = torch.autograd.grad(found, (hidden, weight))
    assert found.dtype == torch.promote_types(dtype, torch.float32)
    assert [g.dtype for g in mine] == [dtype, dtype]
    truth = plain(hidden.double(), weight.double(), targets)
    theirs = torch.autograd.grad(truth, (hidden, weight))
    # logits are products in the dtype: what is lost is theirs, not the mean's
    assert abs(found.item() - truth.item()) < {2: 2e-3, 4: 1e-5, 8: 1e-12}[dtype.itemsize]
    for one, other in zip(mine, theirs):
        bound = {2: 2e-2, 4: 1e-5, 8: 1e-12}[dtype.itemsize]
        assert (one.double() - other.double()).norm() <= bound * other.double().norm()


def test_a_second_derivative_is_refused_and_not_wrong():
    hidden, weight, targets = problem(20)
    (first,) = torch.autograd.grad(tiled_loss(hidden, weight, targets) ** 2, hidden, create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(first.sum(), weight)


def test_without_gradients_none_are_worked_out():
    hidden, weight, targets = problem(8 * CHUNK, vocab=1009)

    def products():
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            tiled_loss(hidden, weight, targets)
        return sum(event.name.startswith(("aten::mm", "aten::addmm")) for event in seen.events())

    with_gradients = products()
    with torch.no_grad():
        assert products() == 8 * CHUNK // TILE[0] < with_gradients  # 1,009 words are one tile wide


@pytest.mark.parametrize("tokens", [1, 7, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 13])
def test_loss_and_gradients_are_those_of_plain_cross_entropy(tokens):
    assert_same_loss_and_gradients(*problem(tokens))


@pytest.mark.parametrize(("tokens", "masked"), [(9, 1), (600, 300), (600, 599)])
def test_masked_targets_count_neither_in_the_loss_nor_in_the_gradients(tokens, masked):
    hidden, weight, targets = problem(tokens, masked=masked)
    assert_same_loss_and_gradients(hidden, weight, targets)
    (grad,) = torch.autograd.grad(tiled_loss(hidden, weight, targets), hidden)
    assert not grad[targets == IGNORE].any() and grad[targets != IGNORE].any(dim=1).all()


def test_what_stands_at_a_masked_position_does_not_matter_even_nan():
    hidden, weight, targets = problem(20, masked=5)
    expected = tiled_loss(hidden, weight, targets)
    spoilt = hidden.detach().clone()
    spoilt[targets == IGNORE] = float("nan")
    assert torch.equal(tiled_loss(spoilt, weight, targets), expected)


def heads():
    """Output layers with the weight and bias that they stand for in eval mode."""
    torch.manual_seed(0)
    plain_head, biased = nn.Linear(D, VOCAB, bias=False), nn.Linear(D, VOCAB)
    wrapped = LoraLinear(nn.Linear(D, VOCAB), r=2)
    nn.init.normal_(wrapped.B)
    return {"plain": plain_head, "with a bias": biased, "with an adapter": wrapped}


@pytest.mark.parametrize("name", heads())
@pytest.mark.parametrize("masked", [0, 70])
def test_a_head_s_loss_and_gradients_are_those_of_its_logits(name, masked):
    head = heads()[name]
    hidden, _, targets = problem(2 * CHUNK + 13, masked=masked)
    live = [hidden, *(p for p in head.parameters() if p.requires_grad)]
    value, expected = head_loss(hidden, head, targets), F.cross_entropy(head(hidden), targets, ignore_index=IGNORE)
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=0)
    for one, other in zip(*(torch.autograd.grad(result, live) for result in (value, expected))):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_a_head_that_is_called_keeps_the_precision_of_float64_states():
    hidden, head, targets = torch.randn(5, 4).double(), nn.Linear(4, 9).double(), torch.arange(5)
    torch.testing.assert_close(head_loss(hidden, head, targets), F.cross_entropy(head(hidden), targets))


@pytest.mark.parametrize("masked", [0, 70])
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("vocab", [VOCAB, 2 * TILE[1] + 7])
def test_the_plain_loss_and_the_fast_one_agree_in_value_and_gradients(vocab, frozen, masked):
    hidden, weight, targets = problem(TILE[0] + CHUNK + 13, vocab, masked)
    head = nn.Linear(D, vocab, bias=False)
    head.weight = nn.Parameter(weight.detach(), requires_grad=not frozen)
    live = [hidden] if frozen else [hidden, head.weight]
    slow, fast = chunked_loss(hidden, head, targets), tiled_loss(hidden, head.weight, targets)
    torch.testing.assert_close(fast, slow, rtol=1e-6, atol=0)
    for one, other in zip(*(torch.autograd.grad(value, live) for value in (fast, slow))):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


def test_what_a_head_does_beside_its_weight_reaches_the_loss():
    """Dropout while training, for one: with all of the update's inputs but few left out, the loss is another."""
    head = heads()["with an adapter"]
    hidden, _, targets = problem(300)
    plain_loss = head_loss(hidden, head, targets)
    head.dropout = 0.5
    assert not torch.allclose(head_loss(hidden, head, targets), plain_loss, rtol=1e-3)
    torch.manual_seed(1)
    dropped = head_loss(hidden, head, targets)
    torch.manual_seed(1)
    assert torch.equal(head_loss(hidden, head, targets), dropped)
    assert torch.allclose(head_loss(hidden, head.eval(), targets), plain_loss)


def test_a_head_with_an_adapter_never_has_all_logits_either():
    head = LoraLinear(nn.Linear(D, 1009, bias=False), r=2)
    hidden, _, targets = problem(8 * CHUNK, vocab=1009)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        head_loss(hidden, head, targets).backward()
    assert max(event.cpu_memory_usage for event in seen.events()) <= 3 * CHUNK * 1009 * 4


def test_every_target_masked_is_one_sentence_for_any_head():
    hidden, _, _ = problem(6)
    for head in heads().values():
        with pytest.raises(SettingError, match="^no position counts towards the loss"):
            head_loss(hidden, head, torch.full((6,), IGNORE))


def test_rows_and_positions_are_flattened_in_the_same_order():
    hidden, weight, targets = problem(24, masked=3)
    shaped = tiled_loss(hidden.view(2, 3, 4, D), weight, targets.view(2, 3, 4))
    assert torch.equal(shaped, tiled_loss(hidden, weight, targets))


def test_hidden_states_that_are_not_contiguous_are_no_problem():
    hidden, weight, targets = problem(24)
    turned = hidden.view(4, 6, D).transpose(0, 1)
    assert_same_loss_and_gradients(hidden, weight, targets)
    found = tiled_loss(turned, weight, targets.view(4, 6).T)
    assert abs(found - plain(hidden, weight, targets)) < 1e-5


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_either_side_may_be_frozen(frozen):
    hidden, weight, targets = problem(300, masked=20)
    live = weight if frozen == "hidden" else hidden
    (hidden if frozen == "hidden" else weight).requires_grad_(False)
    (mine,) = torch.autograd.grad(tiled_loss(hidden, weight, targets), live)
    (theirs,) = torch.autograd.grad(plain(hidden, weight, targets), live)
    assert (mine - theirs).abs().max() < 1e-5


def test_gradients_reach_what_the_weight_was_made_of():
    hidden, weight, targets = problem(300)
    A, B = torch.randn(D, 2, requires_grad=True), torch.randn(2, VOCAB, requires_grad=True)
    mine = torch.autograd.grad(tiled_loss(hidden, weight + (A @ B).T, targets), (A, B))
    theirs = torch.autograd.grad(plain(hidden, weight + (A @ B).T, targets), (A, B))
    assert all((one - other).abs().max() < 1e-5 for one, other in zip(mine, theirs))


def test_without_gradients_it_is_the_same_number():
    hidden, weight, targets = problem(300, masked=7)
    with torch.no_grad():
        found = tiled_loss(hidden, weight, targets)
    assert not found.requires_grad and abs(found - plain(hidden, weight, targets)) < 1e-5


def test_every_target_masked_is_one_sentence_and_not_nan():
    hidden, weight, _ = problem(6)
    with pytest.raises(ValueError, match="^no position counts towards the loss: every target is masked$"):
        tiled_loss(hidden, weight, torch.full((6,), IGNORE))


def test_no_allocation_comes_near_all_the_logits_forward_or_backward():
    hidden, weight, targets = problem(8 * CHUNK, vocab=1009)
    whole, chunk = 8 * CHUNK * 1009 * 4, CHUNK * 1009 * 4  # bytes

    def largest(function):
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            function(hidden, weight, targets).backward()
        return max(event.cpu_memory_usage for event in seen.events())

    assert largest(plain) >= whole  # the measure sees what it is there to see
    assert largest(tiled_loss) <= 3 * chunk < whole / 2


def test_what_waits_for_the_backward_is_no_logits():
    hidden, weight, targets = problem(8 * CHUNK, vocab=1009)

    def kept(function):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            function(hidden, weight, targets)
        return max(sizes, default=0)

    assert kept(plain) == 8 * CHUNK * 1009
    assert kept(tiled_loss) <= 8 * CHUNK * D


def test_masked_positions_are_dropped_before_they_are_projected():
    hidden, weight, targets = problem(50, masked=30)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        tiled_loss(hidden, weight, targets)
    assert counter.get_total_flops() == 2 * 20 * D * VOCAB


def test_a_model_that_is_nearly_sure_sees_its_own_small_error_and_not_the_rounding_of_coarse_products():
    _, weight, targets = problem(64)
    weight = 4 * F.normalize(weight.detach(), dim=1)
    hidden = (2 * weight[targets]).requires_grad_(True)  # every target's logit is far ahead
    exact = tiled_loss(hidden, weight, targets)
    (wanted,) = torch.autograd.grad(exact, hidden)
    coarse = tiled_loss(hidden, weight, targets, "bfloat16")
    (found,) = torch.autograd.grad(coarse, hidden)
    assert 0 < exact < 0.02 and 0 < coarse
    assert abs(coarse - exact) < 0.05 * exact
    assert (found - wanted).norm() < 0.05 * wanted.norm()


@pytest.mark.parametrize("level", [1e5, 1e7, 1e30, -1e30])
def test_the_loss_of_equal_logits_is_a_guess_s_however_large_they_are(level):
    head = nn.Linear(D, 5000).requires_grad_(False)
    head.weight.zero_(), head.bias.fill_(level)
    value = head_loss(torch.zeros(7, D), head, torch.arange(7))
    torch.testing.assert_close(value, torch.tensor(5000.0).log(), rtol=1e-4, atol=0)


def test_a_linear_head_that_a_hook_or_weight_norm_changes_is_called():
    torch.manual_seed(0)
    hidden, _, targets = problem(30)
    hooked, before, normed = (nn.Linear(D, VOCAB, bias=False) for _ in range(3))
    hooked.register_forward_hook(lambda layer, inputs, out: out / 2)
    before.register_forward_pre_hook(lambda layer, inputs: (3 * inputs[0],))
    nn.utils.weight_norm(normed)
    with torch.no_grad():
        normed.weight_g.mul_(3)
    for head in (hooked, before, normed):
        expected = F.cross_entropy(head(hidden), targets)
        torch.testing.assert_close(head_loss(hidden, head, targets), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_target_that_is_no_token_and_a_batch_of_none_are_refused(wrapped):
    head = heads()["with an adapter" if wrapped else "plain"]
    with pytest.raises(SettingError, match="^-1 is no target"):
        head_loss(torch.zeros(3, D), head, torch.tensor([1, -1, 2]))
    with pytest.raises(SettingError, match="^no position counts"):
        head_loss(torch.zeros(0, D), head, torch.zeros(0, dtype=torch.long))
