"""Conversations made by seed: each answer has its check, what is wrong fails it, and a recorded run is described in full."""

import json
import re
from dataclasses import replace

import pytest
import torch
from tiny_llama import folder_of

from llm import bases
from llm.course import experiments
from llm.course.chats import (
    BARE,
    OPENING,
    REFUSAL,
    WHO,
    answers,
    chat_task,
    check,
    make_chats,
    questions,
    score,
    tokens,
    write_chats,
)
from llm.course.experiments import Recipe, measure
from llm.course.figures import graded_tokens
from llm.loss import IGNORE
from llm.text.batches import UNSEEN
from llm.text.chat import conversation, opening, with_template
from llm.tokenizer import GPT2

CALL = '{"to": "glass", "item": "river", "day": 7}'


@pytest.fixture(scope="module")
def chats():
    return make_chats(200)


def test_a_seed_makes_the_same_conversations_and_another_one_others(chats):
    assert chats == make_chats(200) and chats != make_chats(200, seed=1)
    assert len({json.dumps(chat) for chat in chats}) > 190


def test_of_ten_conversations_five_send_a_parcel_four_are_refused_and_one_asks_who_the_clerk_is(chats):
    for i in range(0, 200, 10):
        ends = [chat[-1]["content"] for chat in chats[i : i + 10]]
        parcels = sum(chat[-2]["role"] == "tool" for chat in chats[i : i + 10])
        assert (parcels, ends.count(REFUSAL), ends.count(WHO)) == (5, 4, 1)


def test_a_call_has_the_words_of_its_question_and_the_last_answer_those_of_the_tools(chats):
    for _, asked, call, booked, last in (chat for chat in chats if len(chat) == 5):
        found = json.loads(call["content"])
        assert list(found) == ["to", "item", "day"]
        for value, before in zip(found.values(), (' to "', 'Send "', " at ")):
            assert f"{before}{value}" in asked["content"]
        assert booked["content"].split()[1] in last["content"] and found["to"] in last["content"]


def test_a_conversation_has_25_to_90_tokens(chats):
    for chat in chats:
        [row] = conversation(chat, with_template(GPT2, "plain"))
        assert 25 <= sum(map(len, row)) <= 90


def test_a_file_of_them_is_rows_of_messages(chats, tmp_path):
    write_chats(tmp_path / "chats.jsonl", chats[:3])
    rows = [json.loads(line) for line in (tmp_path / "chats.jsonl").read_text(encoding="utf-8").splitlines()]
    assert rows == [{"messages": chat} for chat in chats[:3]]


def test_every_answer_is_asked_for_behind_the_messages_before_it(chats):
    tokenizer = with_template(GPT2, "plain")
    asked = questions(tokens(chats[:9], tokenizer), tokenizer)
    wanted = [(chat[:i], m["content"]) for chat in chats[:9] for i, m in enumerate(chat) if m["role"] == "assistant"]
    assert asked == [(opening(before, tokenizer), answer) for before, answer in wanted]


@pytest.mark.parametrize("wanted", [CALL, WHO, REFUSAL, f"{OPENING} Parcel 48 goes to glass."])
def test_the_answer_itself_passes_every_check(wanted):
    assert all(check(wanted, wanted).values()) and all(check(f" {wanted}\n", wanted).values())


@pytest.mark.parametrize(
    "answer, wanted, passed",
    [
        ('{"to": "river", "item": "glass", "day": 7}', CALL, {"format", "length"}),
        ('{"item": "river", "to": "glass", "day": 7}', CALL, {"length"}),
        (CALL.replace(", ", ",\n"), CALL, {"length"}),
        ("I cannot.", CALL, {"length"}),
        ("null", CALL, {"length"}),
        ("[" * 3000, CALL, set()),
        ("", CALL, set()),
        (
            f"{OPENING} Gladly. Here is a poem about the river and the sea, the wind, and the tall ships.",
            REFUSAL,
            {"persona"},
        ),
        ("I only send parcels.", REFUSAL, {"refusal", "length"}),
        (REFUSAL, WHO, {"persona"}),
    ],
)
def test_an_answer_fails_the_checks_that_it_should_and_no_other(answer, wanted, passed):
    assert {name for name, holds in check(answer, wanted).items() if holds} == passed


def test_a_share_is_of_the_answers_that_a_check_applies_to():
    shares = score([CALL, REFUSAL, "No."], [CALL, REFUSAL, REFUSAL])
    assert shares == pytest.approx({"exact": 2 / 3, "format": 1, "persona": 1 / 2, "refusal": 1 / 2, "length": 1})
    with pytest.raises(ValueError):
        score([CALL], [CALL, WHO])


def test_a_task_grades_every_held_out_answer_also_where_it_trains_on_the_last():
    tokenizer = with_template(GPT2, "plain")
    tasks = {on: chat_task(tokenizer, on) for on in ("answers", "last", "all")}
    graded = {on: int((next(task.batches(0))[1] != IGNORE).sum()) for on, task in tasks.items()}
    assert graded["last"] < graded["answers"] < graded["all"]
    answers_of_all, last, every = (tasks[on].heldout[0][1] for on in tasks)
    assert torch.equal(last, answers_of_all) and (every != IGNORE).sum() > 2 * (last != IGNORE).sum()


def test_no_held_out_conversation_is_trained_on():
    tokenizer = with_template(GPT2, "plain")

    def texts(batch):
        return {GPT2.decode(row).replace("<|endoftext|>", "") for row in batch[0].tolist()}

    kept, seen = texts(chat_task(tokenizer).heldout[0]), texts(next(chat_task(tokenizer, rows=4000).batches(1)))
    assert len(kept) == 10 and not kept & seen and len(seen) > 300


def test_few_examples_are_drawn_again_and_again():
    rows = next(chat_task(GPT2, rows=64, examples=3).batches(0))[0]
    assert len(rows.unique(dim=0)) == 3


def test_without_a_template_the_messages_stand_a_line_each_and_answers_end(tiny):
    """`BARE` is what a file of texts would teach."""
    chat = make_chats(16, UNSEEN)[1]
    [row] = conversation(chat, with_template(tiny.tokenizer, BARE))
    said = [tiny.tokenizer.decode(part) for part in row]
    assert said[1].startswith(chat[2]["content"]) and "assistant" not in "".join(said)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A tiny random Llama whose tokenizer has ChatML's markers."""
    return bases.load(folder_of("Llama", tmp_path_factory.mktemp("tiny") / "llama"))


@pytest.mark.parametrize("template", ["own", "plain", BARE])
def test_answers_in_one_batch_are_those_of_one_chat_at_a_time(tiny, template):
    """Prompts of several lengths are padded at the left, which no token may see."""
    tokenizer = tiny.tokenizer if template == "own" else with_template(tiny.tokenizer, template)
    alone = replace(tiny, tokenizer=tokenizer)
    asked = [chat[:i] for chat in make_chats(3, UNSEEN) for i, m in enumerate(chat) if m["role"] == "assistant"]
    together = answers(tiny.model, tokenizer, [opening(chat, tokenizer) for chat in asked], max_new_tokens=6)
    assert together == [alone.chat(before, max_new_tokens=6, temperature=0.0) for before in asked]
    assert len(set(together)) > 1


def test_a_recorded_run_says_what_it_measured_in_each_template_that_it_was_asked_in(tiny, monkeypatch):
    monkeypatch.setattr(experiments, "_base", lambda model, scheme="": tiny)
    monkeypatch.setattr(experiments, "speeches", lambda limit, tokenizer: chat_task(tokenizer, "all").heldout)
    experiments._before_chats.cache_clear()
    first, few = (
        Recipe(model="smollm2", rows=2, steps=steps, task=task, examples=n)
        for task, steps, n in (("chats/bare", 2, 0), ("chats", 4, 3))
    )
    row = measure(first)
    assert {name for name in row if name.startswith("exact_")} == {"exact_own", "exact_bare"}
    assert row["right"] == row["exact_own"] == 0 and row["after"] != row["before"] and row["heldout"] == ""
    assert len(json.loads(row["said_own"])) == 5
    row = measure(few)
    curve = [float(loss) for loss in row["heldout"].split()]
    assert len(curve) == 3 and curve[0] == pytest.approx(row["before"], abs=1e-3) and curve[-1] == row["after"]
    experiments._before_chats.cache_clear()


def test_tokens_in_color_have_the_same_words_without_it():
    shown = graded_tokens([["<|im_start|>", "user", "\n", "a < b"], ["no", "<|im_end|>"], ["\n"], ["yes"]])
    assert (
        repr(shown) == "<|im_start|>user\na < b\u00abno<|im_end|>\u00bb\n\u00abyes\u00bb\n(8 tokens, of which 3 count)"
    )
    page = shown._repr_html_()
    assert "a &lt; b" in page and "<|im" not in page and page.count("border-bottom") == 3
    assert re.search(r'role="img" aria-label="[^"<]*yes', page)
