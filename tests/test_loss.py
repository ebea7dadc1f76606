"""The loss from hidden states: equal to plain cross-entropy, and never in possession of all the logits."""

import pytest
import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

from llm import loss
from llm.errors import SettingError
from llm.loss import CHUNK, IGNORE, head_precision, multiplies_bfloat16, next_token_loss

D, VOCAB = 16, 97
CPU = torch.device("cpu")


@pytest.fixture(params=["calm", "shifted"], autouse=True)
def path(request, monkeypatch):
    """Both ways to the softmax: of logits as they are, and less each row's largest, as large ones and a GPU's are."""
    if request.param == "shifted":
        monkeypatch.setattr(loss, "_calm", lambda *_: False)
    return request.param


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
    found = next_token_loss(hidden, weight, targets)
    mine = torch.autograd.grad(3 * found, (hidden, weight))  # a factor, for a loss that is not the end of the graph
    expected = plain(hidden, weight, targets)
    theirs = torch.autograd.grad(3 * expected, (hidden, weight))
    assert found.shape == () and abs(found - expected) < 1e-5
    for one, other in zip(mine, theirs):
        assert (one - other).abs().max() < 1e-5


@pytest.mark.skipif(not hasattr(F, "linear_cross_entropy"), reason="this torch has no linear_cross_entropy")
def test_loss_and_gradients_are_those_of_torchs_own_function():
    hidden, weight, targets = problem(600)
    mine = next_token_loss(hidden, weight, targets)
    theirs = F.linear_cross_entropy(hidden, weight, targets)
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)
    for one, other in zip(*(torch.autograd.grad(found, (hidden, weight)) for found in (mine, theirs))):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [30.0, 1e3, 1e5])
def test_logits_that_exp_could_not_take_make_the_same_loss(monkeypatch, size):
    monkeypatch.undo()
    hidden, weight, targets = problem(200)
    hidden = (hidden.detach() * size).requires_grad_(True)
    found, expected = next_token_loss(hidden, weight, targets), plain(hidden, weight, targets)
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
    found = next_token_loss(spoilt.requires_grad_(True), weight, targets)
    torch.testing.assert_close(found, expected)
    for one, other in zip(torch.autograd.grad(found, (spoilt, weight)), theirs):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    assert next_token_loss(hidden, weight, torch.full_like(targets, IGNORE)).isnan()


@pytest.mark.parametrize("frozen", [True, False])
def test_in_bfloat16_loss_and_gradients_keep_to_their_bounds(frozen):
    """Products rounded to 8 bits, sums not: a thousandth of the loss, half a hundredth of the gradient."""
    g = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(700, 128, generator=g), torch.randn(1009, 128, generator=g) * 0.1
    targets = torch.randint(1009, (700,), generator=g)
    wanted = [hidden.requires_grad_(True)] + ([] if frozen else [weight.requires_grad_(True)])
    with head_precision("bfloat16"):
        found = next_token_loss(hidden, weight, targets)
        mine = torch.autograd.grad(found, wanted)
    expected = plain(hidden, weight, targets)
    theirs = torch.autograd.grad(expected, wanted)
    assert found.dtype == torch.float32
    assert 0 < abs(found - expected) < 1e-3 * expected
    assert all((one - other).norm() < 5e-3 * other.norm() for one, other in zip(mine, theirs))


def used(weight, monkeypatch):
    """The dtype in which the head is multiplied."""
    seen = []
    monkeypatch.setattr(loss._Chunked, "apply", lambda h, w, t, c, products, training: seen.append(products))
    next_token_loss(torch.randn(3, D), weight, torch.tensor([1, 2, 3]))
    return seen[0]


def test_auto_takes_bfloat16_for_a_frozen_head_where_the_processor_multiplies_it(monkeypatch):
    frozen, trained = torch.randn(VOCAB, D), torch.randn(VOCAB, D, requires_grad=True)
    assert used(frozen, monkeypatch) == torch.float32  # nothing was said
    for there in (True, False):
        monkeypatch.setattr(loss, "multiplies_bfloat16", lambda device, there=there: there)
        with head_precision("auto"):
            assert used(frozen, monkeypatch) == (torch.bfloat16 if there else torch.float32)
            assert used(trained, monkeypatch) == torch.float32
            assert used(frozen.half(), monkeypatch) == torch.float16
        with head_precision("float32"):
            assert used(frozen, monkeypatch) == torch.float32
        with head_precision("bfloat16"):
            assert used(trained, monkeypatch) == torch.bfloat16
        assert used(frozen, monkeypatch) == torch.float32


def test_what_the_processor_multiplies_is_known_on_every_torch_that_the_course_admits():
    assert multiplies_bfloat16(CPU) in (True, False)
    assert not multiplies_bfloat16(torch.device("mps"))


def test_under_autocast_its_dtype_is_the_one(monkeypatch):
    with torch.autocast("cpu", torch.bfloat16):
        assert used(torch.randn(VOCAB, D), monkeypatch) == torch.bfloat16


def test_another_precision_is_refused_and_the_one_before_stays():
    with head_precision("bfloat16"):
        with pytest.raises(SettingError, match="^there is no precision 'int4': choose one of auto, float32, bfloat16$"):
            with head_precision("int4"):
                pass
        assert loss._precision.get() == "bfloat16"
    assert loss._precision.get() == "float32"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_loss_is_float32_or_finer_and_its_gradients_are_as_what_they_are_of(dtype):
    exact = [t.detach().to(dtype) for t in problem(600, masked=40)]
    hidden, weight = exact[0].requires_grad_(True), exact[1].requires_grad_(True)
    targets = exact[2].long()
    found = next_token_loss(hidden, weight, targets)
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
    (first,) = torch.autograd.grad(next_token_loss(hidden, weight, targets) ** 2, hidden, create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(first.sum(), weight)


def test_without_gradients_none_are_worked_out():
    hidden, weight, targets = problem(8 * CHUNK, vocab=1009)

    def products():
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            next_token_loss(hidden, weight, targets)
        return sum(event.name.startswith(("aten::mm", "aten::addmm")) for event in seen.events())

    with_gradients = products()
    with torch.no_grad():
        assert products() == 16 < with_gradients  # half a chunk at a time where the weight is not to learn


@pytest.mark.parametrize("tokens", [1, 7, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 13])
def test_loss_and_gradients_are_those_of_plain_cross_entropy(tokens):
    assert_same_loss_and_gradients(*problem(tokens))


@pytest.mark.parametrize(("tokens", "masked"), [(9, 1), (600, 300), (600, 599)])
def test_masked_targets_count_neither_in_the_loss_nor_in_the_gradients(tokens, masked):
    hidden, weight, targets = problem(tokens, masked=masked)
    assert_same_loss_and_gradients(hidden, weight, targets)
    (grad,) = torch.autograd.grad(next_token_loss(hidden, weight, targets), hidden)
    assert not grad[targets == IGNORE].any() and grad[targets != IGNORE].any(dim=1).all()


def test_what_stands_at_a_masked_position_does_not_matter_even_nan():
    hidden, weight, targets = problem(20, masked=5)
    expected = next_token_loss(hidden, weight, targets)
    spoilt = hidden.detach().clone()
    spoilt[targets == IGNORE] = float("nan")
    assert torch.equal(next_token_loss(spoilt, weight, targets), expected)


def test_rows_and_positions_are_flattened_in_the_same_order():
    hidden, weight, targets = problem(24, masked=3)
    shaped = next_token_loss(hidden.view(2, 3, 4, D), weight, targets.view(2, 3, 4))
    assert torch.equal(shaped, next_token_loss(hidden, weight, targets))


def test_hidden_states_that_are_not_contiguous_are_no_problem():
    hidden, weight, targets = problem(24)
    turned = hidden.view(4, 6, D).transpose(0, 1)
    assert_same_loss_and_gradients(hidden, weight, targets)
    found = next_token_loss(turned, weight, targets.view(4, 6).T)
    assert abs(found - plain(hidden, weight, targets)) < 1e-5


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_either_side_may_be_frozen(frozen):
    hidden, weight, targets = problem(300, masked=20)
    live = weight if frozen == "hidden" else hidden
    (hidden if frozen == "hidden" else weight).requires_grad_(False)
    (mine,) = torch.autograd.grad(next_token_loss(hidden, weight, targets), live)
    (theirs,) = torch.autograd.grad(plain(hidden, weight, targets), live)
    assert (mine - theirs).abs().max() < 1e-5


def test_gradients_reach_what_the_weight_was_made_of():
    hidden, weight, targets = problem(300)
    A, B = torch.randn(D, 2, requires_grad=True), torch.randn(2, VOCAB, requires_grad=True)
    mine = torch.autograd.grad(next_token_loss(hidden, weight + (A @ B).T, targets), (A, B))
    theirs = torch.autograd.grad(plain(hidden, weight + (A @ B).T, targets), (A, B))
    assert all((one - other).abs().max() < 1e-5 for one, other in zip(mine, theirs))


def test_without_gradients_it_is_the_same_number():
    hidden, weight, targets = problem(300, masked=7)
    with torch.no_grad():
        found = next_token_loss(hidden, weight, targets)
    assert not found.requires_grad and abs(found - plain(hidden, weight, targets)) < 1e-5


def test_every_target_masked_is_one_sentence_and_not_nan():
    hidden, weight, _ = problem(6)
    with pytest.raises(ValueError, match="^no position counts towards the loss: every target is masked$"):
        next_token_loss(hidden, weight, torch.full((6,), IGNORE))


def test_no_allocation_comes_near_all_the_logits_forward_or_backward():
    hidden, weight, targets = problem(8 * CHUNK, vocab=1009)
    whole, chunk = 8 * CHUNK * 1009 * 4, CHUNK * 1009 * 4  # bytes

    def largest(function):
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            function(hidden, weight, targets).backward()
        return max(event.cpu_memory_usage for event in seen.events())

    assert largest(plain) >= whole  # the measure sees what it is there to see
    assert largest(next_token_loss) <= 3 * chunk < whole / 2


def test_what_waits_for_the_backward_is_no_logits():
    hidden, weight, targets = problem(8 * CHUNK, vocab=1009)

    def kept(function):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            function(hidden, weight, targets)
        return max(sizes, default=0)

    assert kept(plain) == 8 * CHUNK * 1009
    assert kept(next_token_loss) <= 8 * CHUNK * D


def test_masked_positions_are_dropped_before_they_are_projected(monkeypatch):
    seen, original = [], loss._Chunked.apply
    monkeypatch.setattr(loss._Chunked, "apply", lambda h, *rest: seen.append(len(h)) or original(h, *rest))
    next_token_loss(*problem(50, masked=30))
    assert seen == [20]


def test_a_model_that_is_nearly_sure_sees_its_own_small_error_and_not_the_rounding_of_coarse_products():
    _, weight, targets = problem(64)
    weight = 4 * F.normalize(weight.detach(), dim=1)
    hidden = (2 * weight[targets]).requires_grad_(True)  # every target's logit is far ahead
    exact = next_token_loss(hidden, weight, targets)
    (wanted,) = torch.autograd.grad(exact, hidden)
    with head_precision("bfloat16"):
        coarse = next_token_loss(hidden, weight, targets)
        (found,) = torch.autograd.grad(coarse, hidden)
    assert 0 < exact < 0.02 and 0 < coarse
    assert abs(coarse - exact) < 0.05 * exact
    assert (found - wanted).norm() < 0.05 * wanted.norm()
