"""The two tasks and the arms: what trains, what is graded, and answers that do not depend on their company."""

import json
from itertools import islice

import pytest
import torch

from llm.course import tasks
from llm.course.tasks import ARMS, WIDTH, answers, load_task, score
from llm.loss import IGNORE
from llm.model import GPT, GPTConfig
from llm.text import corpora
from llm.text.batches import UNSEEN
from llm.text.examples import ask
from llm.text.records import Record, make_facts, make_records
from llm.tokenizer import END_OF_TEXT, decode, encode

SMALL = GPTConfig(block_size=64, n_layer=2, n_head=2, n_embd=16)  # the real vocabulary: answers are text
RECORDS = make_records(12, seed=1)


@pytest.fixture
def toy_text(monkeypatch):
    """Two corpora of numbers, each register in a range of its own."""
    made = {
        "shakespeare": corpora.Corpus("shakespeare", torch.arange(1000, 2000), torch.arange(3000, 4000)),
        "speeches": corpora.Corpus("speeches", torch.arange(5000, 6000), torch.arange(7000, 8000)),
    }
    monkeypatch.setattr(corpora, "load", lambda name, tokenizer=None: made[name])


# the arms


def test_the_arms_train_all_65_536_and_256_parameters():
    counts = {}
    for name, arm in ARMS.items():
        model = GPT()
        assert arm.prepare(model) is model
        counts[name] = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert counts == {"full": 13_665_280, "lora": 65_536, "norm": 256}


def test_the_lora_arm_has_scale_1_and_every_arm_starts_as_its_base():
    idx = torch.arange(8)[None]
    for arm in ARMS.values():
        torch.manual_seed(0)
        model = GPT(SMALL)
        before = model(idx)
        assert torch.equal(arm.prepare(model)(idx), before)
    assert next(m for m in ARMS["lora"].prepare(GPT(SMALL)).modules() if hasattr(m, "scale")).scale == 1.0


def test_the_control_trains_the_final_norm_whatever_trained_before():
    for ready in (True, False):
        model = ARMS["norm"].prepare(GPT(SMALL).requires_grad_(ready))
        names = [name for name, p in model.named_parameters() if p.requires_grad]
        assert names == ["transformer.ln_f.weight", "transformer.ln_f.bias"]


def test_the_full_arm_trains_everything_also_on_a_frozen_model():
    assert all(p.requires_grad for p in ARMS["full"].prepare(GPT(SMALL).requires_grad_(False)).parameters())


# the tasks


def test_no_training_run_reads_a_record_that_is_held_out():
    task = load_task("records", limit=2)
    assert task.name == "records" and [x.shape for x, _ in task.heldout] == [(32, WIDTH)] * 2
    graded = {decode(x).split("\n")[0] for batch, _ in task.heldout for x in batch}
    unseen = {r.sentence for r in make_records(100, seed=UNSEEN)}
    assert len(graded) == 64 and len(unseen) == 100
    for seed in (0, 1, 2):
        read = {decode(x).split("\n")[0] for batch, _ in islice(task.batches(seed), 20) for x in batch}
        assert len(read) == 640 and not read & (graded | unseen)


def test_a_task_gives_the_same_batches_by_seed(toy_text):
    for name in ("records", "shakespeare"):
        task = load_task(name, limit=1)
        one, same, other = (next(task.batches(seed))[0] for seed in (4, 4, 5))
        assert torch.equal(one, same) and not torch.equal(one, other)
        assert all(torch.equal(a[0], b[0]) for a, b in zip(task.heldout, load_task(name, limit=1).heldout))


def test_the_plays_train_on_every_token_of_their_training_part(toy_text):
    x, y = next(load_task("shakespeare").batches(0))
    assert x.shape == (16, 64) and torch.equal(x + 1, y) and x.min() >= 1000 and y.max() < 2000


def test_the_plays_are_graded_on_held_out_text_after_the_opening_of_a_held_out_speech(toy_text):
    for x, y in load_task("shakespeare", limit=2).heldout:
        speech, play = x[:, :32], x[:, 32:]
        assert speech.min() >= 7000 and ((play >= 3000) & (play < 4000)).all()
        assert (y[:, :32] == IGNORE).all() and torch.equal(y[:, 32:], play + 1)


def test_forgetting_is_measured_on_held_out_speeches(toy_text):
    batches = tasks.speeches(2)
    assert batches and all(x.min() >= 7000 for x, _ in batches)


def test_a_task_of_few_examples_trains_on_these_alone_and_its_held_out_text_is_the_same(toy_text):
    for name in ("records", "shakespeare"):
        few = load_task(name, limit=1, examples=5)
        read = {tuple(row.tolist()) for batch, _ in islice(few.batches(0), 4) for row in batch}
        other = {tuple(row.tolist()) for batch, _ in islice(few.batches(1), 4) for row in batch}
        assert len(read) == 5 and len(other) == 5 and not read & other
        assert all(torch.equal(a[0], b[0]) for a, b in zip(few.heldout, load_task(name, limit=1).heldout))


def test_few_facts_are_trained_on_and_asked(toy_text):
    few = load_task("facts", examples=40)
    x, y = next(few.batches(0))
    held = [decode(row.tolist()).split("\n")[0] for batch, _ in few.heldout for row in batch]
    assert held == [fact.sentence for fact in make_facts(40)]
    assert {decode(row.tolist()).split("\n")[0] for row in x} <= set(held)


def test_an_unknown_task_is_one_sentence_with_the_names_there_are():
    with pytest.raises(
        ValueError, match='^there is no task called \'poems\': choose "records", "facts" or "shakespeare"$'
    ):
        load_task("poems")


# answers


class Scripted:
    """Answers each prompt with what the script has for it; counts the calls."""

    config = SMALL

    def __init__(self, script):
        self.script, self.calls = script, []

    def generate(self, prompts, max_new_tokens, temperature, stop, never, keep):
        assert temperature == 0.0 and stop == END_OF_TEXT and never == [] and keep == 0
        self.calls.append(len(prompts))
        rows = [(*ids, *self.script[decode(ids)][:max_new_tokens]) for ids in prompts.tolist()]
        width = max(map(len, rows))
        return torch.tensor([row + (END_OF_TEXT,) * (width - len(row)) for row in rows])


def test_an_answer_is_what_stands_between_the_sentence_and_the_end_of_the_text():
    script = {decode(encode(ask(r.sentence))): [*encode(r.answer), END_OF_TEXT, *encode(" and more")] for r in RECORDS}
    model = Scripted(script)
    assert answers(model, RECORDS) == [r.answer for r in RECORDS]
    assert len(model.calls) == len({len(encode(ask(r.sentence))) for r in RECORDS}) and sum(model.calls) == len(RECORDS)


def test_an_answer_that_does_not_end_is_cut_at_the_limit():
    script = {decode(encode(ask(r.sentence))): [11] * 99 for r in RECORDS}
    assert answers(Scripted(script), RECORDS, max_new_tokens=7) == ["," * 7] * len(RECORDS)


def test_answers_together_are_those_one_by_one_in_the_order_of_the_records():
    torch.manual_seed(0)
    model = GPT(SMALL).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    # sentences of several lengths, mixed
    odd = [Record(f"Send {'very ' * (i % 3)}{word}", "{}") for i, word in enumerate("one two three four five".split())]
    together = answers(model, RECORDS + odd, max_new_tokens=6)
    assert together == [answers(model, [r], max_new_tokens=6)[0] for r in RECORDS + odd]
    assert len(set(together)) > len(together) / 2  # or the order would not show
    assert answers(model, []) == []


# scores


def swapped(answer):
    return json.dumps(dict(reversed(json.loads(answer).items())))


def wrong(answer):
    return json.dumps(json.loads(answer) | {"day": -1})


def test_right_answers_score_1_and_spaces_do_not_matter():
    found = [r.answer.replace(", ", " ,  ") for r in RECORDS]
    assert score(found, RECORDS) == {"parses": 1, "keys": 1, "right": 1}


@pytest.mark.parametrize(
    ("spoil", "parses", "keys", "right"),
    [
        (lambda answer: answer[:-1], 0, 0, 0),
        (lambda answer: "", 0, 0, 0),
        (lambda answer: answer + " {}", 0, 0, 0),
        (swapped, 1, 0, 0),
        (wrong, 1, 1, 0),
        (lambda answer: "[1, 2]", 1, 0, 0),
        (lambda answer: "7", 1, 0, 0),
        (lambda answer: answer.replace("}", ', "more": 1}'), 1, 0, 0),
    ],
)
def test_an_answer_scores_for_what_it_gets_right_and_no_further(spoil, parses, keys, right):
    found = [spoil(r.answer) for r in RECORDS[:3]] + [r.answer for r in RECORDS[3:]]
    n = len(RECORDS)
    expected = {"parses": (n - 3 + 3 * parses) / n, "keys": (n - 3 + 3 * keys) / n, "right": (n - 3 + 3 * right) / n}
    assert score(found, RECORDS) == pytest.approx(expected)


def test_an_answer_is_held_against_its_own_record():
    assert score([r.answer for r in reversed(RECORDS)], RECORDS)["right"] == 0


def test_json_nested_too_deep_to_read_does_not_parse_and_does_not_crash():
    assert score(["[" * 100_000], RECORDS[:1])["parses"] == 0


def test_null_parses():
    assert score(["null"], RECORDS[:1]) == {"parses": 1, "keys": 0, "right": 0}
