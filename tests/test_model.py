"""The model's contract, its equality with transformers' GPT-2 by name, and generation."""

import re
import warnings
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from llm.errors import BaseError, SettingError
from llm.generation import check_sampling, sample, window
from llm.model import GPT, GPTConfig

TINY = GPTConfig(vocab_size=97, block_size=16, n_layer=2, n_head=2, n_embd=16)
IDX = torch.arange(12).view(2, 6)


def tiny(seed=0, **changes):
    """A model whose weights are large enough that every part of it shows in the logits."""
    torch.manual_seed(seed)
    model = GPT(replace(TINY, **changes)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.2)
    return model


# the contract


def test_idx_gives_logits_and_idx_with_targets_gives_none_and_a_loss():
    model = tiny()
    logits = model(IDX)
    assert logits.shape == (2, 6, 97)
    nothing, loss = model(IDX, IDX + 1)
    assert nothing is None and loss.shape == ()
    assert abs(loss - F.cross_entropy(logits.flatten(0, 1), (IDX + 1).flatten())) < 1e-5


def test_a_target_of_minus_100_does_not_count():
    model, targets = tiny(), IDX + 1
    targets[:, :4] = -100
    expected = F.cross_entropy(model(IDX)[:, 4:].flatten(0, 1), (IDX + 1)[:, 4:].flatten())
    assert abs(model(IDX, targets)[1] - expected) < 1e-5


def test_no_position_sees_what_comes_after_it():
    model, changed = tiny(), IDX.clone()
    changed[:, 4:] = 50
    before, after = model(IDX), model(changed)
    assert torch.allclose(before[:, :4], after[:, :4], atol=1e-6)
    assert not torch.allclose(before[:, 4], after[:, 4], atol=1e-2)


def test_a_sequence_as_long_as_the_context_fits_and_one_more_token_does_not():
    model = tiny()
    assert model(torch.zeros(1, 16, dtype=torch.long)).shape == (1, 16, 97)
    with pytest.raises(ValueError, match="17 tokens do not fit a context of 16"):
        model(torch.zeros(1, 17, dtype=torch.long))


def test_a_width_the_heads_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="n_embd=16 must be a multiple of n_head=3"):
        replace(TINY, n_head=3)


def test_the_defaults_are_the_chapter_12_model():
    assert GPTConfig() == GPTConfig(50257, 64, 4, 4, 128, 4, 0.0, False, False)


@pytest.mark.parametrize("bias", [False, True])
def test_bias_is_for_the_attentions_linears_alone(bias):
    names = dict(tiny(bias=bias).named_parameters())
    for linear in ("attn.c_attn", "attn.c_proj"):
        assert (f"transformer.h.0.{linear}.bias" in names) is bias
    assert "transformer.h.0.mlp.c_fc.bias" in names and "transformer.h.0.mlp.c_proj.bias" in names
    assert "lm_head.bias" not in names


@pytest.mark.parametrize("tied", [False, True])
def test_a_tied_head_is_the_embeddings_own_tensor_and_an_untied_one_its_own(tied):
    model = GPT(replace(TINY, tied_lm_head=tied))
    assert (model.lm_head.weight is model.transformer.wte.weight) is tied


def test_dropout_works_in_training_and_never_in_evaluation():
    model = tiny(dropout=0.5)
    assert torch.equal(model(IDX), model(IDX))
    model.train()
    assert not torch.allclose(model(IDX), model(IDX), atol=1e-3)


def test_a_model_starts_close_to_knowing_nothing():
    torch.manual_seed(0)
    _, loss = GPT(TINY)(IDX, IDX + 1)
    assert abs(loss - torch.tensor(97.0).log()) < 0.1


# GPT-2


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_the_same_weights_by_name_give_the_logits_of_transformers_gpt2(bias, tied):
    from transformers import GPT2Config, GPT2LMHeadModel

    ours = tiny(bias=bias, tied_lm_head=tied)
    config = GPT2Config(
        vocab_size=97,
        n_positions=16,
        n_embd=16,
        n_layer=2,
        n_head=2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        tie_word_embeddings=tied,
        bos_token_id=0,
        eos_token_id=0,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        theirs = GPT2LMHeadModel(config).eval()
    state = {}
    for name, p in ours.state_dict().items():
        linear = name.endswith("weight") and any(part in name for part in ("c_attn", "c_proj", "c_fc"))
        state[name] = p.T if linear else p  # their Conv1D holds (in, out)
    lacking = theirs.load_state_dict(state, strict=False)
    assert not lacking.unexpected_keys
    attention = {f"transformer.h.{i}.attn.{linear}.bias" for i in (0, 1) for linear in ("c_attn", "c_proj")}
    assert set(lacking.missing_keys) == (set() if bias else attention)
    with torch.no_grad():
        for name in lacking.missing_keys:  # a bias that we do not have is a zero of theirs
            theirs.get_parameter(name).zero_()
        idx = torch.randint(97, (3, 16), generator=torch.Generator().manual_seed(1))
        assert (ours(idx) - theirs(idx).logits).abs().max() < 1e-5
    assert (theirs.lm_head.weight is theirs.transformer.wte.weight) is tied


# keys and values kept


@pytest.mark.parametrize("cut", [1, 3, 5])
def test_hidden_states_come_out_the_same_in_one_go_and_in_pieces(cut):
    model = tiny()
    whole, _ = model.hidden(IDX)
    first, past = model.hidden(IDX[:, :cut])
    second, past = model.hidden(IDX[:, cut:], past)
    assert (torch.cat((first, second), dim=1) - whole).abs().max() < 1e-5
    assert len(past) == 2 and past[0][0].shape == (2, 2, 6, 8)  # B, heads, T, C / heads


def test_kept_keys_count_towards_the_context():
    model = tiny()
    _, past = model.hidden(torch.zeros(1, 16, dtype=torch.long))
    with pytest.raises(ValueError, match="17 tokens do not fit"):
        model.hidden(IDX[:1, :1], past)


@pytest.mark.parametrize("options", [dict(temperature=0.0), dict(seed=3), dict(seed=3, temperature=0.7, top_k=5)])
@pytest.mark.parametrize("length", [1, 6, 15, 16, 30])
def test_the_cache_changes_nothing_within_the_context_or_beyond_it(length, options):
    model = tiny()
    prompt = torch.randint(97, (2, length), generator=torch.Generator().manual_seed(0))
    cached = model.generate(prompt, 24, **options)
    assert torch.equal(cached, model.generate(prompt, 24, use_cache=False, **options))
    assert cached.shape == (2, length + 24) and torch.equal(cached[:, :length], prompt)


def test_with_the_cache_a_step_inside_the_context_reads_one_token():
    model, widths = tiny(), []
    hook = model.transformer.ln_f.register_forward_hook(lambda module, args, out: widths.append(out.size(1)))
    model.generate(IDX, 5)
    hook.remove()
    assert widths == [6, 1, 1, 1, 1]


# generation


def test_temperature_0_takes_the_likeliest_token_each_time():
    model, idx = tiny(), IDX
    for _ in range(4):
        idx = torch.cat((idx, model(idx)[:, -1].argmax(-1, keepdim=True)), dim=1)
    assert torch.equal(model.generate(IDX, 4, temperature=0.0), idx)


def test_a_seed_makes_the_draw_repeatable_and_leaves_the_global_generator_alone():
    model = tiny()
    torch.manual_seed(5)
    first, after = model.generate(IDX, 8, seed=1), torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))
    assert torch.equal(first, model.generate(IDX, 8, seed=1))
    assert not torch.equal(first, model.generate(IDX, 8, seed=2))


def test_top_1_is_the_likeliest_token_at_any_temperature():
    model = tiny()
    assert torch.equal(model.generate(IDX, 6, temperature=5.0, top_k=1), model.generate(IDX, 6, temperature=0.0))


def test_top_k_draws_from_the_k_likeliest_and_from_all_of_them():
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.9, -1.0]]).expand(300, 5)
    drawn = sample(logits, 1.0, top_k=2, generator=torch.Generator().manual_seed(0))
    assert set(drawn.tolist()) == {1, 3}
    assert set(sample(logits, 9.0, top_k=99, generator=torch.Generator().manual_seed(0)).tolist()) == set(range(5))


def test_temperature_divides_the_logits():
    logits = torch.tensor([[0.0, 1.0, 2.0]]).expand(20_000, 3)
    for temperature in (0.5, 1.0, 3.0):
        drawn = sample(logits, temperature, generator=torch.Generator().manual_seed(0)).bincount() / len(logits)
        assert (drawn - F.softmax(logits[0] / temperature, -1)).abs().max() < 0.015


@pytest.mark.parametrize("top_k", [0, -1])
def test_a_top_k_that_keeps_nothing_is_refused(top_k):
    with pytest.raises(ValueError, match=f"top_k={top_k} keeps no token: use 1 or more"):
        tiny().generate(IDX, 1, top_k=top_k)


@pytest.mark.parametrize("temperature", [1e-6, 1e-40, 1e-50, 5e-324])
@pytest.mark.parametrize("top_k", [None, 3])
def test_a_temperature_close_to_0_takes_the_likeliest_token(temperature, top_k):
    logits = torch.tensor([[0.0, 1e4, 3e4, float("-inf")], [5.0, 1.0, 2.0, -3e4]])
    assert sample(logits, temperature, top_k).tolist() == [2, 0]


def test_a_high_temperature_draws_from_everything_that_is_allowed():
    logits = torch.tensor([[0.0, 9.0, float("-inf")]]).expand(200, 3)
    for temperature in (1e6, 1e38, 1e300):
        assert set(sample(logits, temperature, generator=torch.Generator().manual_seed(0)).tolist()) == {0, 1}


@pytest.mark.parametrize(
    "options",
    [dict(temperature=x) for x in (float("nan"), float("inf"), -1.0, "0.8", True, None)]
    + [dict(top_k=x) for x in (0, -1, 2.5, True, "4")]
    + [dict(seed=x) for x in (-1, 2**63, 1.0, True, "1")]
    + [dict(max_new_tokens=x) for x in (-1, 2.0, True, None)],
    ids=str,
)
def test_an_option_that_makes_no_sense_is_one_sentence_before_anything_is_computed(options):
    (name, value), model = *options.items(), tiny()
    model.transformer.ln_f.register_forward_hook(lambda *args: pytest.fail("it was computed"))
    for call in (check_sampling, lambda **options: model.generate(IDX, **options)):
        with pytest.raises(SettingError, match=f"^{re.escape(f'{name}={value} ')}") as caught:
            call(**dict(max_new_tokens=2) | options)
        assert "\n" not in str(caught.value)


def test_the_least_and_the_largest_options_are_taken():
    for options in (dict(seed=0), dict(seed=2**63 - 1), dict(top_k=1), dict(temperature=0), dict(temperature=5)):
        check_sampling(0, **options)
        assert tiny().generate(IDX, 1, **options).shape == (2, 7)


@pytest.mark.parametrize("temperature", [0, 1])
def test_a_model_that_computes_nan_is_one_sentence(temperature):
    with pytest.raises(BaseError, match="computes NaN: use float32"):
        sample(torch.tensor([[1.0, float("nan")]]), temperature)


@pytest.mark.parametrize("length", [16, 17, 40])
def test_a_prompt_as_long_as_the_context_or_longer_is_read_from_its_end(length):
    model = tiny()
    prompt = torch.randint(97, (1, length), generator=torch.Generator().manual_seed(0))
    out = model.generate(prompt, 3, temperature=0.0)
    assert torch.equal(out[:, :length], prompt)  # nothing of it is lost from what comes back
    assert torch.equal(out[:, length:], model.generate(prompt[:, -16:], 3, temperature=0.0)[:, 16:])


def test_rows_of_a_batch_go_their_own_way():
    model = tiny()
    both = model.generate(IDX, 14, temperature=0.0)
    alone = torch.cat([model.generate(row[None], 14, temperature=0.0) for row in IDX])
    assert torch.equal(both, alone)


def test_a_row_that_stops_is_filled_while_others_go_on_and_all_stopped_is_the_end():
    model = tiny()
    for seed in range(100):
        one, other = free = model.generate(IDX, 9, seed=seed)[:, 6:].tolist()
        found = [t for t in one if t in other and other.index(t) > one.index(t) + 1 and other.index(t) < 8]
        if found:
            break
    stop = found[0]
    out = model.generate(IDX, 9, seed=seed, stop=stop)[:, 6:].tolist()
    first, last = one.index(stop), other.index(stop)
    assert out == [free[0][:first] + [stop] * (last + 1 - first), free[1][: last + 1]]


def test_a_row_that_never_stops_goes_to_the_end():
    model = tiny()
    free = model.generate(IDX, 9, temperature=0.0)
    unused = next(t for t in range(97) if t not in free[:, 6:])
    assert torch.equal(model.generate(IDX, 9, temperature=0.0, stop=unused), free)


def test_no_new_tokens_is_the_prompt_and_an_empty_prompt_is_one_sentence():
    assert torch.equal(tiny().generate(IDX, 0), IDX)
    with pytest.raises(ValueError, match="the prompt is empty: give at least one token"):
        tiny().generate(torch.zeros(1, 0, dtype=torch.long), 3)


def test_a_window_that_slides_keeps_the_ids_in_front_of_it():
    idx = torch.arange(40).view(2, 20)
    assert torch.equal(window(idx, 20, keep=2), idx)
    assert window(idx, 6, keep=2).tolist() == [[0, 1, 16, 17, 18, 19], [20, 21, 36, 37, 38, 39]]
    assert window(idx, 6).tolist() == idx[:, -6:].tolist()
    model = tiny()
    logits = model(window(idx, 16, keep=2))[:, -1]
    assert torch.equal(model.generate(idx, 1, temperature=0, keep=2)[:, -1], logits.argmax(-1))


@pytest.mark.parametrize("mode", [True, False])
def test_generating_is_done_in_evaluation_and_puts_the_mode_back_after_an_error_too(mode):
    model = tiny(dropout=0.5).train(mode)
    assert torch.equal(model.generate(IDX, 6, temperature=0.0), model.generate(IDX, 6, temperature=0.0))
    assert model.training is mode
    with pytest.raises(ValueError):
        model.generate(IDX, 1, top_k=0)
    assert model.training is mode


def test_generating_leaves_no_gradient_behind():
    model = tiny()
    assert not model.generate(IDX, 3).requires_grad and all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("keep", [0, 1, 3, 4, 9])
def test_a_window_is_as_long_as_the_context_whatever_is_kept_before_it(keep):
    x = window(torch.arange(10)[None], 4, keep)
    assert x.shape == (1, 4) and x[0, -1] == 9 and x[0, : min(keep, 3)].tolist() == list(range(min(keep, 3)))
