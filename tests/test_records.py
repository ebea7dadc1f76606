"""Sentences and records: what the course adapts to is new to the base, every record parses, and every one fits."""

import json
from itertools import islice

import pytest
import torch

from llm.course.tasks import WIDTH
from llm.loss import IGNORE
from llm.text.examples import ask, pad
from llm.text.records import (
    BASE_SCHEMAS,
    COMMON,
    FACTS,
    NUMBERS,
    TASK,
    VERBS,
    Record,
    as_example,
    drawn_batches,
    make_facts,
    make_records,
    record_batches,
    words,
)
from llm.tokenizer import END_OF_TEXT, decode, encode

TASK_RECORDS = make_records(400, seed=1)
BASE_RECORDS = make_records(1500, seed=1, schemas=BASE_SCHEMAS)


def test_the_tasks_verb_keys_and_order_are_in_none_of_the_bases_schemas():
    assert TASK not in BASE_SCHEMAS
    assert TASK.verb not in {schema.verb for schema in BASE_SCHEMAS}
    assert not set(TASK.order) & {key for schema in BASE_SCHEMAS for key in schema.order}


def test_every_schema_orders_exactly_the_keys_that_it_has_and_says_each_once():
    for schema in (*BASE_SCHEMAS, TASK):
        assert sorted(schema.order) == sorted([schema.object, *(key for _, key in schema.clauses)])
        assert len(set(schema.order)) == len(schema.order)
        assert len({begins for begins, _ in schema.clauses}) == len(schema.clauses)


def test_the_base_learns_one_schema_a_verb_and_they_are_the_same_each_time():
    assert [schema.verb for schema in BASE_SCHEMAS] == VERBS and len(set(VERBS)) == len(VERBS)
    assert len({schema.order for schema in BASE_SCHEMAS}) > len(VERBS) * 0.9


def test_every_record_parses_and_says_what_its_sentence_says():
    for record in TASK_RECORDS + BASE_RECORDS:
        found = json.loads(record.answer)
        schema = next(s for s in (TASK, *BASE_SCHEMAS) if s.verb == record.sentence.split()[0])
        assert tuple(found) == schema.order and "\n" not in record.answer + record.sentence, record
        assert record.sentence.startswith(f'{schema.verb} "{found[schema.object]}" '), record
        assert record.sentence.endswith("."), record
        for begins, key in schema.clauses:
            assert f" {begins} {json.dumps(found[key])}" in record.sentence, record
            assert isinstance(found[key], int if begins in NUMBERS else str), record


def test_clauses_come_in_any_order_and_the_record_does_not():
    beginnings = {r.sentence.split('" ', 1)[1].split()[0] for r in TASK_RECORDS}
    assert beginnings == {"from", "to", "at"}
    assert {tuple(json.loads(r.answer)) for r in TASK_RECORDS} == {TASK.order}


def test_records_repeat_by_seed():
    assert make_records(5, seed=3) == make_records(5, seed=3) != make_records(5, seed=4)
    assert len({r.sentence for r in TASK_RECORDS}) == len(TASK_RECORDS)


@pytest.mark.parametrize("common", [False, True])
def test_every_word_is_one_token_at_the_beginning_and_inside_a_text(common):
    for word in words(common):
        assert len(encode(word)) == len(encode(" " + word)) == 1 and len(word) >= 3 and word.isascii()
        assert not common or encode(" " + word)[0] < COMMON


def test_the_base_draws_from_the_whole_vocabulary_and_the_task_from_common_words():
    assert set(words(True)) < set(words()) and len(words()) > 5000 and len(words(True)) > 500
    values = {v for r in TASK_RECORDS for v in json.loads(r.answer).values() if isinstance(v, str)}
    assert values <= set(words(True)) and len(values) > 300
    rare = {v for r in BASE_RECORDS for v in json.loads(r.answer).values() if isinstance(v, str)}
    assert len(rare - set(words(True))) > 2000


def row(record, width):
    return [t[0] for t in pad([as_example(record)], END_OF_TEXT, width)]


def test_every_record_fits_its_row():
    assert max(len(encode(ask(r.sentence))) + len(encode(r.answer)) + 1 for r in TASK_RECORDS) <= WIDTH + 1
    assert max(len(encode(ask(r.sentence))) + len(encode(r.answer)) + 1 for r in BASE_RECORDS) <= 64 + 1


def test_a_row_is_the_sentence_then_the_record_and_only_the_record_counts():
    for record in TASK_RECORDS[:20]:
        x, y = row(record, WIDTH)
        assert x.shape == y.shape == (WIDTH,)
        prompt, counted = len(encode(ask(record.sentence))), y != IGNORE
        assert decode(x[:prompt]) == record.sentence + "\n"
        assert decode(y[counted]) == record.answer + "<|endoftext|>"
        first = counted.nonzero()[0].item()
        assert first == prompt - 1  # the line break is where the answer's first token is asked for
        assert torch.equal(y[counted][:-1], x[prompt : prompt + counted.sum() - 1])  # one on, as in any text
        assert (x[prompt + counted.sum() - 1 :] == END_OF_TEXT).all() and (y[first + counted.sum() :] == IGNORE).all()


def test_a_record_exactly_as_wide_as_its_row_fits_and_one_token_more_is_one_sentence():
    record = TASK_RECORDS[0]
    ids = encode(ask(record.sentence)) + encode(record.answer) + [END_OF_TEXT]
    x, y = row(record, len(ids) - 1)
    assert x.tolist() == ids[:-1] and y[-1] == END_OF_TEXT
    with pytest.raises(ValueError, match=f"a row of {len(ids) - 1} tokens does not fit a context of {len(ids) - 2}"):
        row(record, len(ids) - 2)
    with pytest.raises(ValueError, match="does not fit"):
        row(Record("word " * 99, "{}"), 64)


def test_batches_are_fresh_records_that_repeat_by_seed_and_resume_at_start():
    whole = list(islice(record_batches(3, WIDTH, seed=2), 4))
    assert all(x.shape == y.shape == (3, WIDTH) for x, y in whole)
    resumed = list(islice(record_batches(3, WIDTH, seed=2, start=2), 2))
    assert all(torch.equal(a, b) for one, other in zip(whole[2:], resumed) for a, b in zip(one, other))
    assert not torch.equal(whole[0][0], whole[1][0])
    assert not torch.equal(whole[0][0], next(record_batches(3, WIDTH, seed=3))[0])


def test_batches_hold_the_records_of_the_schemas_that_were_asked_for():
    verbs = set()
    for x, _ in islice(record_batches(32, 64, schemas=BASE_SCHEMAS), 8):
        verbs |= {decode(ids).split()[0] for ids in x}
    assert verbs <= set(VERBS) and len(verbs) > 0.9 * len(VERBS)
    assert {decode(ids).split()[0] for ids in next(record_batches(32, WIDTH))[0]} == {TASK.verb}


def test_facts_are_drawn_once_each_word_has_one_and_neither_verb_nor_key_is_the_bases():
    facts = make_facts()
    assert facts == make_facts() and len({fact.sentence for fact in facts}) == len(facts) == FACTS
    assert not {fact.sentence.split()[0] for fact in facts} & {*VERBS, TASK.verb}
    assert not {key for fact in facts for key in json.loads(fact.answer)} & {
        k for s in (TASK, *BASE_SCHEMAS) for k in s.order
    }
    assert sum(json.loads(fact.answer)["found"] in fact.sentence for fact in facts) < FACTS / 20  # nothing to copy


def test_drawn_batches_have_these_records_alone_and_repeat_by_their_seed():
    records = make_facts(5)
    rows, known = next(drawn_batches(records, 64, seed=3)), {record.sentence for record in records}
    assert all(torch.equal(a, b) for a, b in zip(rows, next(drawn_batches(records, 64, seed=3))))
    assert not torch.equal(rows[0], next(drawn_batches(records, 64, seed=4))[0])
    assert {decode(x.tolist()).split("\n")[0] for x in rows[0]} == known
