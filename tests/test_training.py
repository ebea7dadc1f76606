"""The loop belongs to the caller, moves only what trains, repeats itself by seed, and never leaves a spoilt model."""

import math
from dataclasses import replace
from itertools import islice, repeat

import pytest
import torch
import torch.nn as nn

from llm.errors import SettingError, TrainingError
from llm.lora import LoraLinear, apply_lora
from llm.loss import PRECISIONS, multiplies_bfloat16
from llm.model import GPT, GPTConfig
from llm.relatives import METHODS
from llm.text.batches import batches
from llm.training import best_device, evaluate, make_optimizer, own_loss, schedule, train

TINY = GPTConfig(vocab_size=97, block_size=16, n_layer=2, n_head=2, n_embd=16)
TOKENS = torch.randint(97, (4000,), generator=torch.Generator().manual_seed(0)).cumsum(0) % 97


def tiny(**changes):
    torch.manual_seed(0)
    return GPT(replace(TINY, **changes))


def stream(seed=0, start=0):
    return batches(TOKENS, rows=4, block=16, seed=seed, start=start)


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def moved(model, before):
    return {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}


# what a run is


def test_each_step_says_its_index_loss_rate_time_and_tokens():
    steps = list(train(tiny(), stream(), steps=12, lr=1e-2))
    assert [s.index for s in steps] == list(range(12)) and {s.tokens for s in steps} == {4 * 16}
    assert [s.lr for s in steps] == [pytest.approx(1e-2 * schedule(i, 12)) for i in range(12)]
    assert all(s.seconds > 0 for s in steps) and steps[0].loss == pytest.approx(math.log(97), abs=0.2)


def test_training_learns():
    model = tiny()
    *_, last = train(model, repeat(next(stream())), steps=60, lr=1e-2)
    assert last.loss < 2


def test_the_loss_of_a_step_is_that_of_the_batch_before_the_step():
    model, batch = tiny(), next(stream())
    _, expected = model(*batch)
    assert next(iter(train(model, [batch], steps=1, lr=1e-2))).loss == expected.item()


def test_same_seed_same_numbers_and_another_seed_other_numbers():
    def losses(seed):
        torch.manual_seed(seed)  # dropout draws from the global generator
        model = apply_lora(tiny(dropout=0.1), r=2)
        torch.manual_seed(seed)
        return [s.loss for s in train(model, stream(seed), steps=5, lr=1e-2)], weights(model)

    (one, state), (again, same), (other, _) = losses(0), losses(0), losses(1)
    assert one == again and one != other
    assert all(torch.equal(state[name], same[name]) for name in state)


def test_no_batch_is_read_that_is_not_trained_on():
    supply = stream()
    list(train(tiny(), supply, steps=3, lr=1e-3))
    expected = next(islice(stream(), 3, None))
    assert torch.equal(next(supply)[0], expected[0])


@pytest.mark.parametrize("start, supply", [(0, 2), (0, 0), (4, 2)])
def test_batches_that_end_too_early_are_told_after_the_steps_that_they_were_enough_for(start, supply):
    model, done = tiny(), []
    with pytest.raises(TrainingError, match=f"{supply} came, and {9 - start} steps were asked for") as caught:
        for step in train(model, list(islice(stream(), supply)), steps=9, lr=1e-3, start=start):
            done.append(step.index)
            before = weights(model)
    assert done == list(range(start, start + supply)) and "\n" not in str(caught.value)
    assert not done or not moved(model, before)


def test_as_many_batches_as_steps_are_enough_and_no_steps_need_none():
    assert len(list(train(tiny(), islice(stream(), 2), steps=2, lr=1e-3))) == 2
    assert list(train(tiny(), [], steps=0, lr=1e-3)) == list(train(tiny(), [], steps=3, start=3, lr=1e-3)) == []


@pytest.mark.parametrize(
    "options",
    [
        *(dict(accumulate=n) for n in (0, -1, 1.5)),
        *(dict(steps=n) for n in (-1, 2.5, None)),
        *(dict(warmup=n) for n in (-1, 0.1)),
        *(dict(lr=x) for x in (float("nan"), float("inf"), -1e-3, lambda name: -1.0 if "ln_f" in name else 1e-3)),
        *(dict(weight_decay=x) for x in (float("nan"), float("inf"), -0.1)),
        *(dict(clip=x) for x in (float("nan"), 0.0, -1.0)),
        dict(precision="tf32"),
        dict(start=-1),
    ],
    ids=lambda options: next(iter(options)),
)
def test_an_argument_that_makes_no_sense_is_refused_when_train_is_called(options):
    with pytest.raises(SettingError) as caught:
        train(tiny(), stream(), **dict(steps=3, lr=1e-3) | options)
    assert "\n" not in str(caught.value)


def test_a_model_that_is_all_frozen_is_refused_when_train_is_called():
    with pytest.raises(TrainingError, match="every parameter is frozen"):
        train(tiny().requires_grad_(False), stream(), steps=3, lr=1e-3)


def test_a_run_that_is_resumed_ends_where_one_that_was_not_does():
    whole, halves = tiny(), tiny()
    list(train(whole, stream(), steps=8, lr=1e-2))
    optimizer = make_optimizer(halves, 1e-2)
    list(islice(train(halves, stream(), steps=8, lr=1e-2, optimizer=optimizer), 3))
    rest = list(train(halves, stream(start=3), steps=8, lr=1e-2, optimizer=optimizer, start=3))
    assert [s.index for s in rest] == [3, 4, 5, 6, 7]
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), halves.parameters()))


# what trains


def test_only_A_and_B_move_and_the_base_keeps_its_bits():
    model = apply_lora(tiny(), r=2, targets=["c_attn", "c_fc"])
    before = weights(model)
    list(train(model, stream(), steps=3, lr=1e-2, weight_decay=0.1))
    assert moved(model, before) == {name for name in before if name.endswith((".A", ".B"))}


def test_whatever_requires_a_gradient_moves_and_nothing_else():
    model = tiny().requires_grad_(False)
    model.transformer.ln_f.requires_grad_(True)
    before = weights(model)
    list(train(model, stream(), steps=2, lr=1e-2, weight_decay=0.5))
    assert moved(model, before) == {"transformer.ln_f.weight", "transformer.ln_f.bias"}
    assert all(p.grad is None for name, p in model.named_parameters() if "ln_f" not in name)


def test_a_model_that_is_all_frozen_is_one_sentence():
    with pytest.raises(TrainingError, match="nothing to train: every parameter is frozen .*apply_lora"):
        train(tiny().requires_grad_(False), stream(), steps=1, lr=1e-2)


def test_decay_touches_matrices_that_multiply_and_never_embeddings_norms_or_biases():
    model = tiny(bias=True)
    optimizer = make_optimizer(model, 1e-3, weight_decay=0.1)
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    names = {name for name, p in model.named_parameters() if id(p) in decayed}
    expected = {name for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    assert names == {f"{name}.weight" for name in expected}


def test_a_tied_head_counts_as_an_embedding_and_is_not_decayed():
    model = tiny(tied_lm_head=True)
    optimizer = make_optimizer(model, 1e-3, weight_decay=0.1)
    decayed = [p for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]]
    assert decayed and not any(p is model.lm_head.weight for p in decayed)


def test_a_rate_may_depend_on_the_parameters_name():
    model = tiny()
    before = weights(model)
    list(train(model, stream(), steps=1, warmup=1, lr=lambda name: 0.1 if "wte" in name else 0.0))
    assert moved(model, before) == {"transformer.wte.weight"}


def test_an_optimizer_of_the_callers_own_follows_the_schedule_too():
    model = apply_lora(tiny(), r=2)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    rates = [s.lr for s in train(model, stream(), steps=12, lr=1.0, optimizer=optimizer)]
    assert rates == [pytest.approx(0.5 * schedule(i, 12)) for i in range(12)]


def test_the_gradient_is_clipped_to_the_norm_that_was_asked_for():
    model = tiny()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = weights(model)
    list(train(model, stream(), steps=1, lr=1.0, warmup=1, clip=0.01, optimizer=optimizer))
    step = torch.cat([(p - before[name]).flatten() for name, p in model.named_parameters()])
    assert step.norm().item() == pytest.approx(0.01, rel=1e-3)


# the schedule


def test_the_rate_climbs_in_a_line_then_falls_along_half_a_cosine_to_a_tenth():
    shares = [schedule(i, 110) for i in range(111)]
    assert shares[:10] == [pytest.approx((i + 1) / 10) for i in range(10)]
    assert shares[10] == 1.0 and shares[60] == pytest.approx(0.55) and shares[110] == pytest.approx(0.1)
    assert all(a > b for a, b in zip(shares[10:], shares[11:]))


@pytest.mark.parametrize("steps", [1, 5, 10, 11])
def test_a_run_no_longer_than_its_warm_up_is_no_error(steps):
    assert all(0 < schedule(i, steps) <= 1 for i in range(steps))
    assert schedule(3, 20, warmup=0, final=0.5) > 0.5


# what goes wrong


class Reader(nn.Module):
    """Reads numbers, not ids, so that the data themselves can hold NaN."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = LoraLinear(nn.Linear(4, 4), r=2)

    def forward(self, x, y):
        return None, (self.linear(x) - y).square().mean()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_in_the_data_is_one_sentence_and_the_weights_are_those_of_the_last_good_step(value):
    x, y = torch.randn(8, 4), torch.randn(8, 4)
    bad = x.clone()
    bad[0, 0] = value
    model, seen = Reader(), []
    with pytest.raises(TrainingError) as caught:
        for step in train(model, [(x, y), (x, y), (bad, y), (x, y)], steps=4, lr=1e-2):
            seen.append((step, weights(model)))
    said = str(caught.value)
    assert "at step 2: lower the learning rate or look for bad values in the data" in said and "\n" not in said
    assert len(seen) == 2 and not moved(model, seen[-1][1])
    assert math.isfinite(model(x, y)[1].item())
    assert len(list(train(model, [(x, y)], steps=1, lr=1e-2))) == 1  # and training can go on


def test_nan_in_a_weight_is_noticed_before_it_spreads():
    model = apply_lora(tiny(), r=2)
    model.transformer.ln_f.weight.data[0] = float("nan")
    before = weights(model)
    with pytest.raises(TrainingError, match="^the loss is nan at step 0"):
        list(train(model, stream(), steps=3, lr=1e-2))
    assert moved(model, before) == {"transformer.ln_f.weight"}  # NaN is not equal to itself; all else is as it was


def test_a_gradient_that_is_not_finite_is_noticed_though_the_loss_is():
    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(2))

        def forward(self, x, y):
            return None, (self.w * x).abs().sqrt().sum()  # the slope of a root at zero

    model = Root()
    with pytest.raises(
        TrainingError, match="^the norm of the gradient is (nan|inf) at step 0: lower the learning rate"
    ):
        list(train(model, [(torch.ones(2), torch.ones(2))], steps=1, lr=1e-2))
    assert not model.w.any()


def test_a_batch_with_every_target_masked_is_one_sentence_and_moves_nothing():
    model, (x, y) = tiny(), next(stream())
    before = weights(model)
    with pytest.raises(ValueError, match="every target is masked"):
        list(train(model, [(x, torch.full_like(y, -100))], steps=1, lr=1e-2))
    assert not moved(model, before)


@pytest.mark.parametrize("where", ["between steps", "in the batches", "in the forward", "in the backward"])
def test_an_interrupt_leaves_a_usable_model_in_the_mode_it_was_in(where):
    model, calls = apply_lora(tiny(), r=2).eval(), []

    def interrupt(*_):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    def interrupted():
        for batch in stream():
            interrupt()
            yield batch

    hooked = model.transformer.ln_f
    if where == "in the forward":
        hook = hooked.register_forward_pre_hook(interrupt)
    elif where == "in the backward":
        hook = model.transformer.h[1].mlp.c_fc.B.register_hook(interrupt)
    before = weights(model)
    with pytest.raises(KeyboardInterrupt):
        for _ in train(model, interrupted() if where == "in the batches" else stream(), steps=9, lr=1e-2):
            if where == "between steps":
                interrupt()
    if where.startswith("in the ") and "batches" not in where:
        hook.remove()
    assert not model.training
    changed = moved(model, before)
    assert changed and all(name.endswith((".A", ".B")) for name in changed)
    assert model(next(stream())[0]).isfinite().all()
    assert len(list(train(model, stream(), steps=2, lr=1e-2))) == 2


@pytest.mark.parametrize("mode", [True, False])
def test_training_runs_in_training_mode_and_puts_back_what_it_found_also_on_a_break(mode):
    model = tiny().train(mode)
    for _ in train(model, stream(), steps=5, lr=1e-3):
        assert model.training
        break
    assert model.training is mode


# evaluation


def test_evaluation_is_the_mean_over_counted_tokens_not_over_batches():
    model, (x, y) = tiny().eval(), next(stream())
    few = y.clone()
    few[:, 1:] = -100
    losses = [model(x, y)[1].item(), model(x, few)[1].item()]
    expected = (losses[0] * y.numel() + losses[1] * 4) / (y.numel() + 4)
    assert evaluate(model, [(x, y), (x, few)]) == pytest.approx(expected, rel=1e-6)


def test_evaluation_passes_over_a_batch_in_which_nothing_counts():
    model, (x, y) = tiny(), next(stream())
    assert evaluate(model, [(x, torch.full_like(y, -100)), (x, y)]) == evaluate(model, [(x, y)])


@pytest.mark.parametrize("held", [[], iter([]), [(torch.zeros(1, 4).long(), torch.full((1, 4), -100))]])
def test_evaluating_on_nothing_is_one_sentence(held):
    with pytest.raises(ValueError, match="^nothing to evaluate: .* no token that counts"):
        evaluate(tiny(), held)


@pytest.mark.parametrize("mode", [True, False])
def test_evaluation_has_no_dropout_no_gradients_and_leaves_the_model_as_it_was(mode):
    model, held = tiny(dropout=0.5).train(mode), list(islice(stream(), 2))
    before = weights(model)
    assert evaluate(model, held) == evaluate(model, held)
    assert model.training is mode and not moved(model, before) and all(p.grad is None for p in model.parameters())


MACHINES = [(2, True, "cuda:0"), (0, True, "mps"), (0, False, "cpu")]


@pytest.mark.parametrize("gpus, mps, best", MACHINES)
def test_the_best_device_is_the_first_there_is_of_cuda_mps_and_cpu(monkeypatch, gpus, mps, best):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert best_device() == torch.device(best) and best_device("cpu") == torch.device("cpu")


def test_of_several_processes_each_takes_the_gpu_of_its_number_and_one_too_many_is_one_sentence(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert best_device(number=0) == torch.device("cpu"), "processes cannot share MPS"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert best_device(number=1) == best_device("cuda", 1) == torch.device("cuda:1")
    assert best_device("cuda:0", 1) == torch.device("cuda:0")
    for name in ("auto", "cuda"):  # on the CPU it would wait for the others for ever
        with pytest.raises(SettingError, match="^process 2 of this machine has no GPU .* --nproc-per-node 2"):
            best_device(name, 2)
    assert best_device("cpu", 2) == torch.device("cpu")


@pytest.mark.parametrize(
    "env", [dict(WORLD_SIZE="auto"), dict(WORLD_SIZE="2"), dict(WORLD_SIZE=""), dict(LOCAL_RANK="")]
)
def test_the_best_device_does_not_ask_the_environment(monkeypatch, env):
    expected = best_device()
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert best_device() == expected


@pytest.mark.parametrize("said", ["cuda", "cuda:0", "cuda:x", "mps", "tpu", "", "cpu:1"])
def test_a_device_that_the_machine_has_not_is_one_sentence_with_those_it_has(monkeypatch, said):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(SettingError, match=f"^there is no device '{said}' here: choose one of cpu$"):
        best_device(said)


def masked_stream():
    """Batches of five rows in which rows differ in how many tokens count; one row has none."""
    g = torch.Generator().manual_seed(1)
    while True:
        x, y = torch.randint(97, (5, 16), generator=g), torch.randint(97, (5, 16), generator=g)
        for row, kept in enumerate((16, 3, 0, 9, 1)):
            y[row, kept:] = -100
        yield x, y


@pytest.mark.parametrize("pieces", [2, 3, 5, 50])
def test_a_batch_read_in_pieces_gives_the_same_steps(pieces):
    one, other = tiny(), tiny()
    options = dict(steps=4, lr=1e-3, precision="float32")
    expected = [step.loss for step in train(one, masked_stream(), **options)]
    read = []
    loss = lambda model, x, y: read.append(len(x)) or model(x, y)[1]  # noqa: E731
    found = [step.loss for step in train(other, masked_stream(), accumulate=pieces, loss=loss, **options)]
    assert found == pytest.approx(expected, abs=1e-5)
    for name, p in one.named_parameters():
        torch.testing.assert_close(other.get_parameter(name), p, rtol=0, atol=2e-5)
    assert max(read) < 5, "no piece is the whole batch"


def test_pieces_of_a_batch_of_which_nothing_counts_say_so():
    x, y = next(masked_stream())
    with pytest.raises(SettingError, match="every target is masked"):
        next(train(tiny(), [(x, torch.full_like(y, -100))], steps=1, lr=1e-3, accumulate=2))


@pytest.mark.parametrize("name", PRECISIONS)
def test_precision_is_the_losss_while_training_and_never_an_evaluations(name):
    asked = []

    def loss(model, x, y, precision="float32"):
        asked.append(precision)
        return own_loss(model, x, y, precision)

    model = tiny()
    for _ in train(model, stream(), steps=2, lr=1e-3, loss=loss, precision=name):
        evaluate(model, [next(stream())], loss=loss)
    assert asked == [name, "float32"] * 2


def test_the_courses_model_has_a_steps_loss_in_the_precision_that_was_asked_for():
    losses = {
        name: next(train(apply_lora(tiny()), stream(), steps=1, lr=0.0, precision=name)).loss for name in PRECISIONS
    }
    assert losses["float32"] != losses["bfloat16"] == pytest.approx(losses["float32"], rel=1e-2)
    assert losses["auto"] == losses["bfloat16" if multiplies_bfloat16(torch.device("cpu")) else "float32"]


def test_a_compiled_model_has_its_loss_in_the_precision_that_was_asked_for():
    model = tiny().requires_grad_(False)
    x, y = next(stream())
    eager = {name: own_loss(model, x, y, name).item() for name in ("float32", "bfloat16")}
    compiled = torch.compile(model, backend="eager")
    assert {name: own_loss(compiled, x, y, name).item() for name in eager} == pytest.approx(eager, abs=1e-6)
    assert eager["float32"] != eager["bfloat16"]


def test_a_precision_that_there_is_not_is_refused_at_once():
    with pytest.raises(SettingError, match="there is no precision 'tf32'"):
        train(tiny(), stream(), steps=1, lr=1e-3, precision="tf32")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_under_every_precision_the_same_seed_gives_the_same_bits(precision):
    def run():
        return [step.loss for step in train(apply_lora(tiny()), stream(), steps=3, lr=1e-2, precision=precision)]

    torch.manual_seed(0)
    first = run()
    torch.manual_seed(0)
    assert run() == first


def test_gradient_checkpointing_gives_the_same_gradients_and_keeps_less():
    def gradients(model):
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
            _, value = model(*next(stream()))
        value.backward()
        return [p.grad for p in model.parameters()], sum(kept)

    plain, spared = tiny(dropout=0.1), tiny(dropout=0.1)
    spared.gradient_checkpointing_enable()
    torch.manual_seed(1)
    expected, all_kept = gradients(plain)
    torch.manual_seed(1)
    found, kept = gradients(spared)
    assert all(torch.equal(one, other) for one, other in zip(found, expected))
    assert kept < all_kept / 2
    assert gradients(spared.eval())[1] == gradients(plain.eval())[1], "an answer is not worked out twice"


def test_a_step_whose_update_is_not_finite_is_never_told_as_good_and_is_taken_back():
    model = tiny().half()  # AdamW's eps is 0 in float16
    before = weights(model)
    with pytest.raises(TrainingError, match="step 0 is not finite.*float32; the weights are those of the step before$"):
        next(train(model, stream(), steps=4, lr=1e-3, optimizer=torch.optim.AdamW(model.parameters(), fused=False)))
    assert not moved(model, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_lora_trains_on_a_16_bit_base(dtype):
    model = apply_lora(tiny().to(dtype), r=2)
    assert len(list(train(model, stream(), steps=4, lr=1e-3))) == 4
    assert all(p.isfinite().all() for p in model.parameters())


def state_of(optimizer):
    return [t.clone() for values in optimizer.state.values() for t in values.values()]


OVERFLOWS = {
    "the rate": lambda model: make_optimizer(model, 1e39),
    "the rate of one group": lambda model: make_optimizer(model, lambda name: 1e39 if "c_fc" in name else 1e-3),
    "the decay": lambda model: make_optimizer(model, 1e-3, weight_decay=1e300),
    "another optimizer's rate": lambda model: torch.optim.SGD(trained(model), lr=1e300),
    "an eps of 0": lambda model: torch.optim.AdamW(trained(model), eps=0.0),
}


def trained(model):
    return [p for p in model.parameters() if p.requires_grad]


@pytest.mark.parametrize("case", OVERFLOWS)
@pytest.mark.parametrize("method", ["lora", "dora", "full"])
def test_an_update_that_overflows_float32_is_refused_with_weights_and_optimizer_as_they_were(case, method):
    torch.manual_seed(0)
    model = METHODS[method].prepare(tiny(), r=2)
    if case == "an eps of 0":
        model.requires_grad_(False)
        model.register_parameter("unused", nn.Parameter(torch.ones(2)))  # whose update is 0 / 0
        model.register_forward_hook(lambda m, _, out: (out[0], out[1] + 0 * m.unused.sum()))
    optimizer = OVERFLOWS[case](model)
    if (
        case != "an eps of 0" and type(optimizer) is torch.optim.AdamW
    ):  # two good steps, so that there is a state to lose
        good = make_optimizer(model, 1e-2)
        list(train(model, stream(), steps=2, lr=1e-2, optimizer=good))
        optimizer.state.update(good.state)
    before, state = weights(model), state_of(optimizer)
    with pytest.raises(
        TrainingError, match="^the update of step 2 is not finite.*the weights are those of the step before$"
    ):
        list(train(model, stream(), steps=9, start=2, lr=1e-2, optimizer=optimizer))
    now = state_of(optimizer)
    assert not moved(model, before)
    assert len(now) == len(state) and all(torch.equal(a, b) for a, b in zip(now, state))


def test_after_a_refused_step_a_run_goes_on_as_if_it_had_not_been_tried():
    one, other = apply_lora(tiny(), r=2), apply_lora(tiny(), r=2)
    other.load_state_dict(one.state_dict())
    optimizers = [make_optimizer(model, 1e-2) for model in (one, other)]
    for model, optimizer in zip((one, other), optimizers):
        list(train(model, stream(), steps=2, lr=1e-2, optimizer=optimizer))
    optimizers[0].param_groups[0]["peak_lr"] = 1e39
    with pytest.raises(TrainingError, match="update of step 2"):
        next(train(one, stream(start=2), steps=9, start=2, lr=1e-2, optimizer=optimizers[0]))
    optimizers[0].param_groups[0]["peak_lr"] = 1e-2
    for model, optimizer in zip((one, other), optimizers):
        list(train(model, stream(start=2), steps=4, start=2, lr=1e-2, optimizer=optimizer))
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters()))


def test_an_optimizer_whose_state_is_spoilt_is_refused_before_it_spoils_the_weights():
    model = apply_lora(tiny(), r=2)
    optimizer = make_optimizer(model, 1e-2)
    list(train(model, stream(), steps=2, lr=1e-2, optimizer=optimizer))
    next(iter(optimizer.state.values()))["exp_avg"][0] = float("nan")
    with pytest.raises(TrainingError, match="optimizer's state holds NaN or infinity"):
        train(model, stream(), steps=4, start=2, lr=1e-2, optimizer=optimizer)


def test_an_ordinary_step_copies_no_weights():
    model = tiny()
    steps = train(model, stream(), steps=3, lr=1e-3, weight_decay=0.1)
    next(steps)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as seen:
        next(steps)
    whole = [list(p.shape) for p in model.parameters() if len(p) == 97]
    copies = [e for e in seen.events() if e.name == "aten::clone" and e.input_shapes[:1] == whole[:1]]
    assert whole and not copies
