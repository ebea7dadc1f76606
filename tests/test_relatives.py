"""LoRA's relatives: PEFT's own answers and gradients, a start at the base, a way back, and one sentence for what cannot be."""

import copy

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from peft import IA3Config, LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from peft.optimizers import create_lorafa_optimizer, create_loraplus_optimizer
from test_adapters import IDX, TINY, base
from test_peft import llama
from transformers import GPT2Config, GPT2LMHeadModel

from llm.adapters import fingerprint
from llm.lora import LoraLinear, apply_lora, lora_disabled, lora_layers, merge_lora, remove_lora
from llm.model import GPT, GPTConfig
from llm.quantize import four_bit_layers, quantize
from llm.relatives import (
    METHODS,
    OPTIONS,
    DoraLinear,
    Ia3Linear,
    LoraFaLinear,
    PissaLinear,
    disabled,
    layers_of,
    merge,
    method_of,
    remove,
)
from llm.training import evaluate, make_optimizer, train

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft", "ignore::FutureWarning:transformers")

EXACT = ["lora", "rslora", "lora+", "lora-fa", "dora", "ia3", "bitfit", "norm", "full"]  # the first output, bit for bit
VIRTUAL = ["prefix", "prompt"]
CONFIG = GPTConfig(**vars(TINY) | dict(bias=True))
C, L, V = TINY.n_embd, TINY.n_layer, TINY.vocab_size
TARGETS = ["c_attn", "c_proj", "c_fc"]


def prepared(name, r=2, alpha=3.0, model=None, seed=0, **options):
    model = base(config=CONFIG) if model is None else model
    torch.manual_seed(seed)
    return METHODS[name].prepare(model, r, alpha, **options)


def shaken(model, seed=0):
    """All that trains is moved, as after training."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.2 * torch.randn(p.shape, generator=generator))
    return model


def learned(model, steps=6, lr=0.02):
    """Some steps on one small batch, and the loss of each."""
    batch = IDX[:, :-1], IDX[:, 1:]
    losses = [step.loss for step in train(model, (batch for _ in range(steps)), steps=steps, lr=lr, warmup=1)]
    return model.eval(), losses


def graded(model):
    """Logits, and the gradients of what trains, by name, after one backward pass."""
    out = model(IDX)
    logits = out if torch.is_tensor(out) else out.logits
    model.zero_grad()
    F.cross_entropy(logits[:, :-1].flatten(0, 1), IDX[:, 1:].flatten()).backward()
    return logits.detach(), {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def close(a, b, atol=1e-5):
    torch.testing.assert_close(a, b, rtol=1e-4, atol=atol)


def alike(grad, expected):
    """Two gradients that differ by rounding alone, as seen from the largest of their numbers."""
    assert grad.shape == expected.shape
    assert (grad - expected).abs().max() <= 1e-4 * expected.abs().max(), (
        grad - expected
    ).abs().max() / expected.abs().max()


# parity with PEFT: the same weights in, the same answers and gradients out


def theirs_of(ours, make=lambda: base(config=CONFIG), **options):
    """PEFT's model of the same kind, with our factors in it."""
    theirs = get_peft_model(make(), LoraConfig(r=2, lora_alpha=3, **dict(target_modules=TARGETS) | options))
    with torch.no_grad():
        for path, layer in lora_layers(ours).items():
            other = theirs.base_model.model.get_submodule(path)
            other.lora_A["default"].weight.copy_(layer.A.T)
            other.lora_B["default"].weight.copy_(layer.B.T)
            if isinstance(layer, DoraLinear):
                other.lora_magnitude_vector["default"].weight.copy_(layer.magnitude)
    return theirs


def assert_same(ours, theirs, trains=("A", "B")):
    logits, grads = graded(ours)
    expected, their_grads = graded(theirs)
    close(logits, expected)
    names = {
        "A": "lora_A.default.weight",
        "B": "lora_B.default.weight",
        "magnitude": "lora_magnitude_vector.default.weight",
    }
    for path in lora_layers(ours):
        for name in trains:
            theirs_is = their_grads[f"base_model.model.{path}.{names[name]}"]
            alike(grads[f"{path}.{name}"], theirs_is.T if theirs_is.ndim > 1 else theirs_is)
    assert len(grads) == len(trains) * len(lora_layers(ours))


KIN = {"lora": {}, "rslora": dict(use_rslora=True), "lora+": {}, "dora": dict(use_dora=True)}


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("name", KIN)
def test_answers_and_gradients_are_pefts(name, trained):
    ours = shaken(prepared(name)) if trained else prepared(name)
    if name == "rslora":
        assert {layer.scale for layer in lora_layers(ours).values()} == {3 / 2**0.5}
    assert_same(ours, theirs_of(ours, **KIN[name]), ("A", "B", "magnitude") if name == "dora" else ("A", "B"))


@pytest.mark.parametrize("name", ["dora", "rslora"])
def test_on_a_transformers_model_too(name):
    ours = shaken(prepared(name, model=llama(), targets=["q_proj", "down_proj"]))
    theirs = theirs_of(ours, llama, target_modules=["q_proj", "down_proj"], **KIN[name])
    assert_same(ours, theirs, ("A", "B", "magnitude") if name == "dora" else ("A", "B"))


def test_dora_starts_at_pefts_lengths():
    ours = prepared("dora")
    fresh = get_peft_model(base(config=CONFIG), LoraConfig(r=2, use_dora=True, target_modules=TARGETS))
    for path, layer in lora_layers(ours).items():
        other = fresh.base_model.model.get_submodule(path)
        close(layer.magnitude, other.lora_magnitude_vector["default"].weight)


def test_doras_norm_is_a_constant_in_the_gradient():
    linear, x = nn.Linear(6, 5), torch.randn(3, 6)
    layer = shaken(DoraLinear(linear, 2, 3.0))
    layer(x).square().sum().backward()
    V = linear.weight + 3.0 * (layer.A @ layer.B).T
    for norm, same in ((V.norm(dim=1).detach(), True), (V.norm(dim=1), False)):
        y = x @ (layer.magnitude[:, None] * V / norm[:, None]).T + linear.bias
        (A, B) = torch.autograd.grad(y.square().sum(), (layer.A, layer.B), retain_graph=True)
        assert torch.allclose(A, layer.A.grad, atol=1e-4) is same and torch.allclose(B, layer.B.grad, atol=1e-4) is same


def test_pissa_starts_at_pefts_factors_and_residual_and_goes_on_with_its_gradients():
    ours = prepared("pissa")
    theirs = get_peft_model(
        base(config=CONFIG), LoraConfig(r=2, lora_alpha=3, init_lora_weights="pissa", target_modules=TARGETS)
    )
    for path, layer in lora_layers(ours).items():
        other = theirs.base_model.model.get_submodule(path)
        close(layer.residual, other.base_layer.weight.data)
        close(layer.A @ layer.B, (other.lora_B["default"].weight @ other.lora_A["default"].weight).T)
        with torch.no_grad():  # a pair of singular vectors may come with the other sign
            other.lora_A["default"].weight.copy_(layer.A.T), other.lora_B["default"].weight.copy_(layer.B.T)
    assert_same(ours, theirs)
    shaken(ours)
    for path, layer in lora_layers(ours).items():
        other = theirs.base_model.model.get_submodule(path)
        with torch.no_grad():
            other.lora_A["default"].weight.copy_(layer.A.T), other.lora_B["default"].weight.copy_(layer.B.T)
    assert_same(ours, theirs)


def test_loraplus_steps_as_pefts_optimizer_does():
    def double():  # Adam makes whole steps of the rounding of a gradient that is nearly zero
        return base(config=CONFIG).double()

    ours, lr = prepared("lora+", model=double()), 0.01
    theirs = theirs_of(ours, double)
    optimizer = create_loraplus_optimizer(theirs, torch.optim.AdamW, lr=lr, loraplus_lr_ratio=16, betas=(0.9, 0.95))
    mine = make_optimizer(ours, METHODS["lora+"].rates(lr))
    assert sorted({group["lr"] for group in mine.param_groups}) == [lr, 16 * lr]
    for _ in range(3):
        graded(ours), graded(theirs)
        mine.step(), optimizer.step()
    for path, layer in lora_layers(ours).items():
        other = theirs.base_model.model.get_submodule(path)
        close(layer.A, other.lora_A["default"].weight.T), close(layer.B, other.lora_B["default"].weight.T)


def test_lora_fa_trains_what_pefts_trains_with_its_gradients():
    ours = shaken(prepared("lora-fa"))
    theirs = theirs_of(ours)
    create_lorafa_optimizer(theirs, r=2, lora_alpha=3, lr=0.1)
    assert {n for n, p in theirs.named_parameters() if p.requires_grad} == {
        f"base_model.model.{path}.lora_B.default.weight" for path in lora_layers(ours)
    }
    assert_same(ours, theirs, ("B",))


@pytest.mark.parametrize("make", [lambda: base(config=CONFIG), llama], ids=["gpt", "llama"])
def test_ia3_answers_and_gradients_are_pefts(make):
    ours = shaken(prepared("ia3", model=make()))
    gpt = isinstance(ours, GPT)
    inward = ["mlp.c_proj"] if gpt else ["down_proj"]
    outward = ["c_attn"] if gpt else ["k_proj", "v_proj"]
    theirs = get_peft_model(make(), IA3Config(target_modules=outward + inward, feedforward_modules=inward))
    their_layers = {
        p.removesuffix(".ia3_l.default").removeprefix("base_model.model."): t for p, t in theirs.named_parameters()
    }
    with torch.no_grad():
        for path, layer in layers_of(ours).items():
            their_layers[path].copy_(layer.factors().view_as(their_layers[path]))
    logits, grads = graded(ours)
    expected, their_grads = graded(theirs)
    close(logits, expected)
    assert len(grads) == len(their_grads) == (4 if gpt else 6)
    for path, layer in layers_of(ours).items():
        expected = their_grads[f"base_model.model.{path}.ia3_l.default"].flatten()
        alike(grads[f"{path}.l"], expected[layer.first :])


def gpt2_behind(length):
    """transformers' GPT-2 with `base`'s weights, whose text's positions begin where ours do, behind `length` rows of zeros."""
    config = GPT2Config(
        vocab_size=V, n_positions=CONFIG.block_size + length, n_layer=L, n_head=CONFIG.n_head, n_embd=C, bos_token_id=0,
        eos_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    linears = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    weights = {n: w.T if n.endswith(linears) else w for n, w in base(config=CONFIG).state_dict().items()}
    weights["transformer.wpe.weight"] = torch.cat((torch.zeros(length, C), weights["transformer.wpe.weight"]))
    model.load_state_dict(weights)
    return model.eval()


def test_prefix_tuning_is_pefts_behind_positions_that_nobody_has():
    ours, length = shaken(prepared("prefix", r=3)), 3
    theirs = get_peft_model(gpt2_behind(length), PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=length))
    table = theirs.prompt_encoder["default"].embedding.weight  # (length, layers * 2 * C)
    prefix = ours.prefix
    both = torch.stack((prefix.keys, prefix.values), 1)  # (layers, 2, heads, length, C / heads)

    def flat(t):
        return t.permute(3, 0, 1, 2, 4).reshape(length, -1)

    with torch.no_grad():
        table.copy_(flat(both))
    logits, grads = graded(ours)
    expected, _ = graded(theirs.eval())
    close(logits, expected)
    assert grads.keys() == {"prefix.keys", "prefix.values"}
    alike(flat(torch.stack((grads["prefix.keys"], grads["prefix.values"]), 1)), table.grad)


def test_prompt_tuning_is_pefts_behind_positions_that_nobody_has():
    ours, length = shaken(prepared("prompt", r=3)), 3
    theirs = get_peft_model(gpt2_behind(length), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=length))
    table = theirs.prompt_encoder["default"].embedding.weight
    with torch.no_grad():
        table.copy_(ours.prefix.p)
    logits, grads = graded(ours)
    expected = theirs.eval()(input_ids=IDX).logits[:, length:]
    close(logits, expected)
    F.cross_entropy(expected[:, :-1].flatten(0, 1), IDX[:, 1:].flatten()).backward()
    assert grads.keys() == {"prefix.p"}
    alike(grads["prefix.p"], table.grad)


def test_bitfits_gradients_are_those_of_a_full_fine_tune():
    _, grads = graded(prepared("bitfit"))
    _, whole = graded(prepared("full"))
    assert grads.keys() == {name for name in whole if name.endswith("bias")}
    assert all(torch.equal(grad, whole[name]) for name, grad in grads.items())


# the start, what trains, and the way back


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", EXACT)
def test_the_first_output_is_the_bases_bit_for_bit(name, dtype):
    plain = base(config=CONFIG).to(dtype)
    assert torch.equal(prepared(name, model=base(config=CONFIG).to(dtype))(IDX), plain(IDX))


def test_pissas_first_output_is_the_bases_up_to_rounding_though_its_update_is_not_zero():
    model = prepared("pissa")
    assert not torch.equal(model(IDX), base(config=CONFIG)(IDX))
    close(model(IDX), base(config=CONFIG)(IDX), atol=1e-6)
    assert all((layer.A @ layer.B).abs().max() > 1e-2 for layer in lora_layers(model).values())
    assert all(layer.update().abs().max() < 1e-6 for layer in lora_layers(model).values())


def test_pissas_factors_are_the_largest_singular_parts():
    linear = nn.Linear(9, 7)
    layer = PissaLinear(linear, 3, 2.0, "alpha/r")
    U, S, Vh = torch.linalg.svd(linear.weight)
    close(layer.scale * (layer.A @ layer.B).T, (U[:, :3] * S[:3]) @ Vh[:3])
    close(torch.linalg.svdvals(layer.residual)[:4], S[3:7], atol=1e-5)
    close(layer.A.norm(dim=0), layer.B.norm(dim=1))  # the root of S on each side


@pytest.mark.parametrize("name", VIRTUAL)
def test_virtual_tokens_start_as_common_tokens_read_before_the_text_and_not_at_the_base(name):
    model = prepared(name, r=3)
    assert (model(IDX) - base(config=CONFIG)(IDX)).abs().max() > 1e-3
    torch.manual_seed(0)
    ids = torch.randint(V, (3,))
    plain = base(config=CONFIG)
    past = plain.transformer.wte(ids)[None]
    kept = []
    for block in plain.transformer.h:
        past, present = block(past)
        kept.append(tuple(t.expand(2, -1, -1, -1) for t in present))
    x = plain.transformer.wte(IDX) + plain.transformer.wpe.weight[: IDX.size(1)]
    for block, present in zip(plain.transformer.h, kept):
        x, _ = block(x, present)
    close(model(IDX), plain.lm_head(plain.transformer.ln_f(x)))


def test_a_prefix_of_zeros_is_no_start_at_the_base_either():
    model = prepared("prefix")
    with torch.no_grad():
        model.prefix.keys.zero_(), model.prefix.values.zero_()
    assert (model(IDX) - base(config=CONFIG)(IDX)).abs().max() > 1e-3


@pytest.mark.parametrize("name", VIRTUAL)
def test_the_context_stays_as_long_and_a_cached_token_is_as_good_as_one_read_anew(name):
    model = shaken(prepared(name, r=5))
    idx = torch.arange(CONFIG.block_size)[None]
    assert model(idx).shape == (1, CONFIG.block_size, V)
    for length in (1, 6, 20):
        cached = model.generate(IDX, length, temperature=0.0)
        assert torch.equal(cached, model.generate(IDX, length, temperature=0.0, use_cache=False))
    assert not torch.equal(cached, base(config=CONFIG).generate(IDX, length, temperature=0.0))


@pytest.mark.parametrize("name", VIRTUAL)
def test_checkpointed_activations_give_the_same_gradients(name):
    models = [prepared(name).train() for _ in range(2)]
    models[1].gradient_checkpointing_enable()
    (_, plain), (_, spared) = map(graded, models)
    assert plain.keys() == spared.keys() and all(torch.equal(plain[n], spared[n]) for n in plain)


R = 2
BOTH = C + 3 * C, C + C, C + 4 * C, 4 * C + C  # in + out of a block's four linears
COUNTS = {
    "lora": L * R * sum(BOTH),
    "rslora": L * R * sum(BOTH),
    "lora+": L * R * sum(BOTH),
    "lora-fa": L * R * (3 * C + C + 4 * C + C),
    "dora": L * (R * sum(BOTH) + 3 * C + C + 4 * C + C),
    "pissa": L * R * sum(BOTH),
    "ia3": L * (2 * C + 4 * C),
    "prefix": 2 * L * R * C,
    "prompt": R * C,
    "bitfit": L * ((3 * C + C) + (4 * C + C) + (C + C)) + C,
    "norm": 2 * C,
    "full": sum(p.numel() for p in GPT(CONFIG).parameters()),
}


@pytest.mark.parametrize("name", METHODS)
def test_what_trains_is_what_the_formula_says_and_only_that_gets_a_gradient_and_moves(name):
    model = prepared(name)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    trains = {n for n, p in model.named_parameters() if p.requires_grad}
    assert sum(before[n].numel() for n in trains) == COUNTS[name]
    learned(model)
    assert {n for n, p in model.named_parameters() if p.grad is not None} == trains
    assert {n for n, p in model.named_parameters() if not torch.equal(p, before[n])} == trains


def test_the_courses_model_at_rank_8():
    counted = {}
    for name in ("lora", "lora-fa", "dora", "ia3", "prefix", "prompt", "bitfit", "norm"):
        model = METHODS[name].prepare(GPT(GPTConfig(vocab_size=1000)), 8)  # the head and the embedding stay frozen
        counted[name] = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert counted == {"lora": 65_536, "lora-fa": 36_864, "dora": 70_144, "ia3": 3_072} | {
        "prefix": 8_192,
        "prompt": 1_024,
        "bitfit": 3_712,
        "norm": 256,
    }


def lively():
    """A base whose weights are large enough for a frozen head to say something."""
    model = base(config=CONFIG)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(10 if p.ndim > 1 else 1)
    return model


FITS = {  # a rate, and the loss of a batch of ten tokens, 4.8 at the start; with the head frozen none comes below 2
    **dict.fromkeys(("lora", "rslora", "lora-fa", "dora", "pissa"), (0.03, 2.1)),
    **{"lora+": (0.01, 2.1), "ia3": (0.3, 2.4), "prefix": (0.3, 2.7), "prompt": (0.1, 4.1), "bitfit": (0.1, 2.7)},
    **{"norm": (0.3, 3.1), "full": (0.03, 0.1)},
}


@pytest.mark.parametrize("name", METHODS)
def test_each_fits_a_tiny_batch_as_far_as_it_reaches(name):
    lr, below = FITS[name]
    model = prepared(name, r=4, alpha=4.0, model=lively())
    _, losses = learned(model, steps=60, lr=METHODS[name].rates(lr))
    assert losses[0] > 4.7 and losses[-1] < below, losses[::10]


@pytest.mark.parametrize("name", [name for name in METHODS if name != "full"])
def test_removed_the_base_is_as_it_was_and_may_be_prepared_again(name):
    plain = base(config=CONFIG)
    model, _ = learned(prepared(name))
    assert (model(IDX) - plain(IDX)).abs().max() > 1e-4 and method_of(model) == name
    assert remove(model) is model and method_of(model) is None
    assert torch.equal(model(IDX), plain(IDX)) and not any(p.requires_grad for p in model.parameters())
    assert {n: p.shape for n, p in model.named_parameters()} == {n: p.shape for n, p in plain.named_parameters()}
    assert fingerprint(model) == fingerprint(plain)
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
    prepared("dora", model=model)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "full"])
def test_disabled_it_answers_as_the_base_and_then_as_before(name):
    model, _ = learned(prepared(name))
    answer = model(IDX)
    with disabled(model) as same:
        assert same is model and torch.equal(model(IDX), base(config=CONFIG)(IDX))
        with disabled(model):
            pass
        assert torch.equal(model(IDX), base(config=CONFIG)(IDX))
    assert torch.equal(model(IDX), answer) and method_of(model) == name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", [name for name in METHODS if METHODS[name].merges])
def test_merged_a_plain_model_says_the_same(name, dtype):
    model = shaken(prepared(name, model=base(config=CONFIG).to(dtype)))
    answer = model(IDX)
    assert merge(model) is model and method_of(model) is None
    close(model(IDX), answer, atol=1e-5 if dtype == torch.float32 else 1e-12)
    assert [type(m) for m in model.modules()] == [type(m) for m in base(config=CONFIG).modules()]
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("name", ["dora", "pissa"])
def test_loras_own_functions_know_its_kin(name):
    model, _ = learned(prepared(name))
    answer, plain = model(IDX), base(config=CONFIG)
    for layer in lora_layers(model).values():
        x = torch.randn(3, layer.in_features)
        close(F.linear(x, layer.weight, layer.bias), layer(x))
    with lora_disabled(model):
        assert torch.equal(model(IDX), plain(IDX))
        assert all(layer.weight is layer.base.weight for layer in lora_layers(model).values())
    assert fingerprint(model) == fingerprint(plain)
    merged = merge_lora(copy.deepcopy(model))
    close(merged(IDX), answer)
    assert torch.equal(remove_lora(model)(IDX), plain(IDX)) and method_of(model) is None


@pytest.mark.parametrize("r", [1, 3, 4, 6])
@pytest.mark.parametrize("shape", [(9, 7), (7, 9)])
def test_a_trained_pissa_is_a_plain_lora_of_twice_the_rank_on_the_original_base(shape, r):
    linear, x = nn.Linear(*shape), torch.randn(5, shape[0])
    layer = shaken(PissaLinear(linear, r, 2.0, "alpha/r"))
    A, B = layer.plain()
    assert A.size(1) == B.size(0) == min(2 * r, 7)
    close(linear(x) + layer.scale * (x @ A @ B), layer(x))


def test_pissas_factors_on_the_original_base_count_the_largest_parts_twice():
    layer = PissaLinear(nn.Linear(9, 7), 3, 3.0, "alpha/r")
    plain = LoraLinear(layer.base, 3, 3.0, "alpha/r")
    with torch.no_grad():
        plain.A.copy_(layer.A), plain.B.copy_(layer.B)
    S, doubled = torch.linalg.svdvals(layer.base.weight), torch.linalg.svdvals(plain.weight)
    close(doubled[:3], 2 * S[:3])


@pytest.mark.parametrize("kind", [LoraLinear, DoraLinear, PissaLinear])
def test_over_sixteen_bits_what_trains_is_float32(kind):
    layer = kind(nn.Linear(8, 6).bfloat16(), 2, 4.0)
    assert {p.dtype for p in layer.parameters(recurse=False)} == {torch.float32}
    assert layer(torch.randn(3, 8).bfloat16()).dtype == layer.weight.dtype == torch.bfloat16


def test_ia3_scales_keys_values_and_the_mlps_activations_and_leaves_queries_alone():
    found = {path: (layer.side, layer.first, layer.l.numel()) for path, layer in layers_of(prepared("ia3")).items()}
    block = {"attn.c_attn": ("out", C, 2 * C), "mlp.c_proj": ("in", 0, 4 * C)}
    assert found == {f"transformer.h.{i}.{path}": what for i in range(L) for path, what in block.items()}
    layer = shaken(Ia3Linear(nn.Linear(4, 6), "out", first=2))
    x = torch.randn(3, 4)
    assert torch.equal(layer(x)[:, :2], layer.base(x)[:, :2]) and not torch.equal(layer(x)[:, 2:], layer.base(x)[:, 2:])
    close(F.linear(x, layer.weight, layer.bias), layer(x))


def kept_for_the_backward(layer, x):
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(tuple(t.shape)) or t, lambda t: t):
        layer(x)
    return kept


def test_lora_fa_keeps_no_wide_input_for_the_backward_pass():
    x = torch.randn(7, 16, requires_grad=True)
    lora, fa = (prepared(name, model=nn.Sequential(nn.Linear(16, 20))) for name in ("lora", "lora-fa"))
    assert x.shape in kept_for_the_backward(lora, x) and x.shape not in kept_for_the_backward(fa, x)


def test_dropout_falls_on_the_low_rank_paths_input_alone():
    layer = shaken(DoraLinear(nn.Linear(8, 6), 2, 4.0, dropout=0.5))
    x = torch.randn(4, 8)
    assert not torch.equal(layer(x), layer(x)) and torch.equal(layer.eval()(x), layer(x))


def test_an_output_without_a_direction_is_no_nan():
    linear = nn.Linear(4, 3)
    nn.init.zeros_(linear.weight)
    layer = DoraLinear(linear, 2)
    assert torch.equal(layer(torch.ones(2, 4)), linear(torch.ones(2, 4)))


@pytest.mark.parametrize("name", METHODS)
def test_each_trains_under_autocast_as_it_is_on_a_gpu(name):
    model = prepared(name).train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(IDX[:, :-1], IDX[:, 1:])[1]
    loss.backward()
    assert all(p.grad.isfinite().all() and p.grad.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
    assert abs(loss.item() - evaluate(model, [(IDX[:, :-1], IDX[:, 1:])])) < 0.05


# the registry


def test_every_method_has_a_sentence_of_its_own_and_names_its_paper():
    assert list(METHODS) == [method.name for method in METHODS.values()]
    assert len({method.use for method in METHODS.values()}) == len(METHODS)
    assert all(method.source for name, method in METHODS.items() if name not in ("norm", "full"))
    assert {name for name, method in METHODS.items() if not method.merges} == {"prefix", "prompt"}


def test_only_loraplus_has_two_rates():
    assert {name for name, method in METHODS.items() if method.rates(0.5) != 0.5} == {"lora+"}
    rates = METHODS["lora+"].rates(0.5)
    assert (rates("h.0.c_fc.A"), rates("h.0.c_fc.B"), rates("A"), rates("B")) == (0.5, 8.0, 0.5, 8.0)


@pytest.mark.parametrize("name", METHODS)
def test_a_model_that_comes_trainable_or_frozen_trains_the_same(name):
    counts = []
    for free in (True, False):
        model = prepared(name, model=base(config=CONFIG).requires_grad_(free))
        counts.append({n for n, p in model.named_parameters() if p.requires_grad})
    assert counts[0] == counts[1] and counts[0]


@pytest.mark.parametrize("name", METHODS)
def test_the_same_seed_gives_the_same_start(name):
    one, other = prepared(name, seed=3), prepared(name, seed=3)
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters()))


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", METHODS)
def test_an_option_makes_a_difference_where_it_is_heeded_and_nowhere_else(name, option):
    other = dict(r=3, alpha=5.0, scaling="alpha", targets=["c_fc"], start="paper", dropout=0.5)[option]

    def drawn(**options):
        model = prepared(name, **dict(r=2) | options).train()
        torch.manual_seed(1)
        layers = [getattr(layer, "scale", 0) for layer in layers_of(model).values()]
        shaken(model)
        return [p.shape for p in model.parameters()], layers, model(IDX)

    (shapes, scales, answer), (others, other_scales, other_answer) = drawn(), drawn(**{option: other})
    same = shapes == others and scales == other_scales and torch.equal(answer, other_answer)
    assert same is (option not in METHODS[name].heeds)


def test_lora_by_name_is_apply_lora():
    plain = base(config=CONFIG)
    torch.manual_seed(0)
    by_hand = apply_lora(plain, 2, 3.0, "alpha/r", ["c_fc"], start="paper", dropout=0.5)
    model = prepared("lora", targets=["c_fc"], start="paper", dropout=0.5)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), by_hand.parameters()))
    assert method_of(by_hand) == "lora" == method_of(model)


# over four bits


FOUR = [name for name in METHODS if name not in ("pissa", "full")]


@pytest.mark.parametrize("name", FOUR)
def test_over_four_bits_it_starts_at_the_base_trains_what_it_trains_over_floats_and_comes_off(name):
    model = quantize(base(config=CONFIG))
    before, codes = model(IDX), {path: layer.codes.clone() for path, layer in four_bit_layers(model).items()}
    prepared(name, model=model)
    logits, grads = graded(model)
    if name in EXACT:
        assert torch.equal(logits, before)
    held = {name: p.shape for name, p in prepared(name).named_parameters() if p.requires_grad}
    assert {name: grad.shape for name, grad in grads.items()} == held
    waits = "A" if name in KIN or name == "lora-fa" else None  # B is zero as yet, and holds back what A would get
    still = {name.rpartition(".")[2] for name, grad in grads.items() if not grad.any()}
    assert still <= {waits}
    after = shaken(model)(IDX)
    assert (after - before).abs().max() > 1e-2
    with disabled(model):
        assert torch.equal(model(IDX), before)
    assert torch.equal(model(IDX), after)
    assert torch.equal(remove(model)(IDX), before)
    assert all(torch.equal(layer.codes, codes[path]) for path, layer in four_bit_layers(model).items())


@pytest.mark.parametrize("name", [name for name in FOUR if METHODS[name].merges])
def test_merged_over_four_bits_what_was_wrapped_is_dense_and_the_rest_stays_in_four(name):
    model = shaken(prepared(name, model=quantize(base(config=CONFIG))))
    answer, layers, four = model(IDX), layers_of(model).keys(), four_bit_layers(model).keys()
    assert {path.removesuffix(".base") for path in four} >= layers and four
    close(merge(model)(IDX), answer, atol=1e-4)
    assert method_of(model) is None and not any(p.requires_grad for p in model.parameters())
    assert four_bit_layers(model).keys() == {path.removesuffix(".base") for path in four} - layers
    assert all(type(model.get_submodule(path)) is nn.Linear for path in layers)


# refusals: one sentence, and the model as it was


def state(model):
    tensors = dict(model.named_parameters())
    grads = {name: t.requires_grad for name, t in tensors.items()}
    return list(model.modules()), {n: id(t) for n, t in tensors.items()}, grads, [t.clone() for t in tensors.values()]


def assert_refused(model, call, match):
    before = state(model)
    with pytest.raises(ValueError, match=match) as caught:
        call(model)
    assert "\n" not in str(caught.value)
    *same, values = state(model)
    assert same == list(before[:-1])
    assert all(torch.equal(a.nan_to_num(7), b.nan_to_num(7)) for a, b in zip(values, before[-1]))


@pytest.mark.parametrize("second", METHODS)
@pytest.mark.parametrize("first", METHODS)
def test_a_prepared_model_is_refused(first, second):
    said = f"prepared for {first} already: call remove"
    assert_refused(prepared(first), METHODS[second].prepare, said.replace("+", r"\+"))


def test_a_model_wrapped_by_hand_is_refused_too():
    assert_refused(apply_lora(base()), METHODS["dora"].prepare, "prepared for lora already")


def test_a_kind_of_lora_that_no_method_has_is_lora_and_merges():
    class Own(LoraLinear):
        pass

    model = shaken(apply_lora(base(), r=2, alpha=1.0, kind=Own))
    answer = model(IDX)
    assert method_of(model) == "lora"
    close(merge(model)(IDX), answer)


def test_a_merged_or_unwrapped_model_is_a_base_again():
    assert method_of(METHODS["ia3"].prepare(merge_lora(prepared("lora+")))) == "ia3"
    assert method_of(METHODS["bitfit"].prepare(remove_lora(prepared("pissa")))) == "bitfit"


def spoiled():
    model = base(config=CONFIG)
    with torch.no_grad():
        model.transformer.h[1].mlp.c_fc.weight[0, 0] = float("nan")
    return model


REFUSED = {
    "PiSSA of NaN": (spoiled, lambda m: METHODS["pissa"].prepare(m, 2), "PiSSA needs weights that are finite"),
    "PiSSA without alpha": (base, lambda m: METHODS["pissa"].prepare(m, 2, 0.0), "alpha above 0, which here is 0"),
    "PiSSA over four bits": (
        lambda: quantize(base()),
        lambda m: METHODS["pissa"].prepare(m, 2),
        "PiSSA over four bits would keep a dense residual of each layer: take lora, dora or ia3",
    ),
    "everything over four bits": (
        lambda: quantize(base()),
        METHODS["full"].prepare,
        "full fine-tuning cannot train weights in four bits: load the base as it was, or take lora",
    ),
    "everything, where some of it is in four bits": (
        lambda: quantize(base(), targets="mlp.c_fc"),
        METHODS["full"].prepare,
        "cannot train weights in four bits",
    ),
    "a rank that does not fit": (base, lambda m: METHODS["dora"].prepare(m, 99), "r=99 does not fit"),
    "a scaling": (base, lambda m: METHODS["dora"].prepare(m, 2, scaling="half"), "unknown scaling"),
    "no layer of that name": (
        base,
        lambda m: METHODS["pissa"].prepare(m, 2, targets="nothing"),
        "no nn.Linear matches",
    ),
    "IA3 without names": (
        lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU()),
        METHODS["ia3"].prepare,
        "this model has none of them",
    ),
    "BitFit without biases": (
        lambda: nn.Sequential(nn.Linear(4, 4, bias=False)),
        METHODS["bitfit"].prepare,
        "this method trains biases, and this model has none",
    ),
    "no norm": (
        lambda: nn.Sequential(nn.Linear(4, 4)),
        METHODS["norm"].prepare,
        "trains a norm, and this model has none",
    ),
    "a lone layer": (lambda: nn.Linear(4, 4), METHODS["ia3"].prepare, "single layer"),
    "a prefix for another's model": (llama, METHODS["prefix"].prepare, "is a LlamaForCausalLM: take PEFT"),
    "no virtual tokens": (base, lambda m: METHODS["prompt"].prepare(m, 0), "number of virtual tokens"),
    "merging a prefix": (lambda: prepared("prefix"), merge, "a prefix stands before the text"),
    "removing what was trained whole": (lambda: prepared("full"), remove, "load the base again"),
    "silencing what was trained whole": (
        lambda: prepared("full"),
        lambda m: disabled(m).__enter__(),
        "load the base again",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_makes_no_sense_is_one_sentence_and_the_model_is_as_it_was(case):
    make, call, match = REFUSED[case]
    assert_refused(make(), call, match)


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.layer])
def test_a_wrapped_model_is_not_quantized(name):
    kind = METHODS[name].layer.__name__
    assert_refused(
        prepared(name), quantize, f"^transformer.h.0.attn.c_attn is wrapped already, by {kind}: take the adapter off"
    )


@pytest.mark.parametrize("name", ["dora", "pissa", "ia3"])
def test_what_is_not_finite_is_not_merged(name):
    model = prepared(name)
    with torch.no_grad():
        next(p for p in model.parameters() if p.requires_grad).fill_(float("nan"))
    assert_refused(model, merge, "nothing was merged: train at a lower rate")


def test_evaluate_and_deepcopy_take_any_of_them():
    for name in METHODS:
        model = shaken(prepared(name))
        again = copy.deepcopy(model)
        assert method_of(again) == name and torch.equal(again(IDX), model(IDX))
        assert evaluate(model, [(IDX[:, :-1], IDX[:, 1:])]) > 0


def test_a_model_with_layers_of_lora_fa_says_so_and_keeps_A_frozen_however_it_was_made():
    by_hand = apply_lora(base(), r=2, kind=LoraFaLinear)
    for model in (by_hand, copy.deepcopy(by_hand), prepared("lora-fa")):
        with disabled(model):
            pass
        assert method_of(model) == "lora-fa"
        assert {n.rpartition(".")[2] for n, p in model.named_parameters() if p.requires_grad} == {"B"}


@pytest.mark.parametrize("name", ["dora", "pissa", "ia3"])
def test_what_overflows_the_dtype_is_not_merged(name):
    model = prepared(name, model=base(config=CONFIG).half())
    last = list(layers_of(model).values())[-1]
    with torch.no_grad():
        trained = last.l if name == "ia3" else last.B
        trained.fill_(60_000.0)
        last.base.weight.fill_(2.0) if name == "ia3" else last.A.fill_(60_000.0)
    if name == "dora":
        with torch.no_grad():
            last.magnitude.fill_(1e6)
    assert_refused(model, merge, "nothing was merged: train at a lower rate")


def test_lora_does_not_go_over_ia3():
    assert_refused(prepared("ia3"), apply_lora, "is wrapped already, by Ia3Linear: take the adapter off")


@pytest.mark.parametrize("name", ["ia3", "prefix", "bitfit", "norm", "full", "dora"])
def test_no_method_goes_over_an_adapter_of_pefts(name):
    peft = pytest.importorskip("peft")
    model = GPT(GPTConfig(vocab_size=97, block_size=16, n_layer=1, n_head=2, n_embd=16))
    peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["c_attn"]))
    before = {key: p.requires_grad for key, p in model.named_parameters()}
    with pytest.raises(ValueError, match="c_attn is wrapped already, by Linear: take the adapter off"):
        METHODS[name].prepare(model, 2)
    assert {key: p.requires_grad for key, p in model.named_parameters()} == before
