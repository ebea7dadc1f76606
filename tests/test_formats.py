"""A learner's rows, of whatever format and in whatever file, as the model reads them; and a sentence for what is no row."""

import csv
import json
import sys

import pytest
import torch

from llm.errors import SettingError, TextError
from llm.loss import IGNORE
from llm.model import GPT, GPTConfig
from llm.text.dataset import load_dataset
from llm.text.examples import example, length, pad, targets
from llm.text.formats import read_map
from llm.text.rows import SUFFIXES
from llm.text.tables import read_table
from llm.tokenizer import GPT2, Tokenizer
from llm.training import own_loss

BYTES = Tokenizer("bytes", lambda text: list(text.encode()), lambda ids: bytes(ids).decode(), 0)
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 2}}}
TOOL = {"type": "function", "function": {"name": "add", "description": "", "parameters": {}}}


def chat(i):
    """A system message, two questions, two answers."""
    said = [("system", "Be brief."), ("user", f"{i} plus one"), ("assistant", f"is {i + 1}"), ("user", "sure?")]
    return [dict(role=role, content=content) for role, content in [*said, ("assistant", f"yes, {i}")]]


OTHERS = dict(system="system", user="human", assistant="gpt")
# a row of each format that says what `chat` does, and which messages of it are graded
ROWS = {
    "messages": lambda i: dict(messages=chat(i)),
    "ShareGPT": lambda i: dict(
        system="Be brief.", conversations=[{"from": OTHERS[m["role"]], "value": m["content"]} for m in chat(i)[1:]]
    ),
    "Alpaca": lambda i: dict(
        instruction="sure?",
        input="",
        output=f"yes, {i}",
        system="Be brief.",
        history=[[f"{i} plus one", f"is {i + 1}"]],
    ),
    "prompt/completion of messages": lambda i: dict(prompt=chat(i)[:4], completion=chat(i)[4:]),
    "prompt/completion": lambda i: dict(prompt=f"{i} plus one", completion=f"is {i + 1}"),
    "text": lambda i: dict(text=f"{i} plus one\nis {i + 1}"),
}


def as_jsonl(path, rows):
    path.with_suffix(".jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path.with_suffix(".jsonl")


def as_json(path, rows, key=None):
    path.with_suffix(".json").write_text(json.dumps({key: rows} if key else rows, indent=1))
    return path.with_suffix(".json")


def as_table(path, rows, mark=",", suffix=".csv"):
    cells = [{k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()} for row in rows]
    with open(path.with_suffix(suffix), "w", newline="") as f:
        writer = csv.DictWriter(f, list(rows[0]), delimiter=mark)
        writer.writeheader()
        writer.writerows(cells)
    return path.with_suffix(suffix)


def as_parquet(path, rows):
    from pyarrow import Table, parquet

    parquet.write_table(Table.from_pylist(rows), path.with_suffix(".parquet"))
    return path.with_suffix(".parquet")


def as_folder(path, rows):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(rows).save_to_disk(str(path))
    return path


CONTAINERS = {
    "json": as_json,
    "json in one key": lambda path, rows: as_json(path, rows, "data"),
    "json lines called json": lambda path, rows: as_jsonl(path, rows).rename(path.with_suffix(".json")),
    "array called jsonl": lambda path, rows: as_json(path, rows).rename(path.with_suffix(".jsonl")),
    "csv": as_table,
    "csv of a country with decimal commas": lambda path, rows: as_table(path, rows, ";"),
    "tsv": lambda path, rows: as_table(path, rows, "\t", ".tsv"),
    "parquet": as_parquet,
    "folder": as_folder,
}


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("container", CONTAINERS)
def test_a_row_is_the_same_row_in_whatever_file_it_lies(tmp_path, name, container):
    rows = [ROWS[name](i) for i in range(20)]
    plain = load_dataset(str(as_jsonl(tmp_path / "a", rows)), context=200)
    other = load_dataset(str(CONTAINERS[container](tmp_path / "b", rows)), context=200)
    assert other.kind == plain.kind == name and other.rows == plain.rows and len(plain.rows) == 20
    assert other.size == 18 and other.notes == plain.notes


# the row as the model reads it

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}{{ '<|im_end|>' }}"
    "{% endgeneration %}{% else %}{{ m.content + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
WITH_TOOLS = "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}" + CHATML
LAST_ALONE = (
    CHATML.replace("{{ m.content }}", "{{ m.content if loop.last else m.content | upper }}")
    .replace("{% generation %}", "")
    .replace("{% endgeneration %}", "")
)


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """Makes a tokenizer of bytes with a chat template, as it is read from a folder; and transformers' own."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    from llm.bases.transformers_tokenizers import read_tokenizer

    def make(template=CHATML):
        letters = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        made = Tokenizer(models.BPE(letters, []))
        made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|im_end|>")
        theirs.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
        theirs.chat_template = template
        folder = tmp_path_factory.mktemp("tokenizer")
        theirs.save_pretrained(folder)
        return read_tokenizer(folder), theirs

    return make


def tokens_and_grades(row):
    return [token for part in row for token in part], [int(t != IGNORE) for t in targets(row)]


def transformers_row(theirs, messages, **options):
    made = theirs.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True, **options)
    return made["input_ids"], made["assistant_masks"]


@pytest.mark.parametrize("name", ["messages", "ShareGPT", "Alpaca"])
def test_tokens_and_what_is_graded_are_those_of_transformers(tmp_path, reader, name):
    ours, theirs = reader()
    data = load_dataset(str(as_jsonl(tmp_path / "a", [ROWS[name](i) for i in range(12)])), ours, 500)
    expected = [transformers_row(theirs, chat(i)) for i in range(12)]
    made = [tokens_and_grades(row) for row in data.rows]
    assert (
        sorted(made) == sorted((list(ids), list(mask)) for ids, mask in expected) and data.chat and not data.completes
    )


def test_of_a_prompt_and_a_completion_of_messages_the_completion_alone_is_graded(tmp_path, reader):
    ours, theirs = reader()
    rows = [ROWS["prompt/completion of messages"](i) for i in range(3)]
    data = load_dataset(str(as_jsonl(tmp_path / "a", rows)), ours, 500)
    prompt = theirs.apply_chat_template(chat(0)[:4], add_generation_prompt=True, return_dict=True)["input_ids"]
    whole = theirs.apply_chat_template(chat(0), return_dict=True)["input_ids"]
    read, graded, behind = data.rows[0]  # TRL grades the line break behind the end, too
    assert list(read) == prompt and list(read + graded + behind) == whole and theirs.decode(behind) == "\n"


def test_the_last_answer_or_every_token_can_be_graded(tmp_path, reader):
    ours, _ = reader()
    path = str(as_jsonl(tmp_path / "a", [ROWS["messages"](i) for i in range(2)]))
    answers, last, every = (load_dataset(path, ours, 500, train_on=what).rows[0] for what in ("answers", "last", "all"))
    assert [ours.decode(part) for part in answers[1::2]] == ["is 1<|im_end|>", "yes, 0<|im_end|>"]
    assert [ours.decode(part) for part in last[1::2]] == ["yes, 0<|im_end|>"]
    assert [len(every), len(every[0])] == [2, 1] and {sum(row, ()) for row in (answers, last, every)} == {
        sum(every, ())
    }
    with pytest.raises(SettingError, match="^there is no --train-on first here: choose one of answers, last, all"):
        load_dataset(path, ours, 500, train_on="first")


def test_a_text_is_graded_whole_and_a_long_one_in_pieces_each_token_once(tmp_path):
    texts = ["ab", "abcdefghijklmnopqrstu", " "]
    for begin in ((), (1,)):
        bytes_ = Tokenizer("bytes", BYTES.encode, BYTES.decode, 0, begin=begin)
        data = load_dataset(str(as_jsonl(tmp_path / "a", [dict(text=text) for text in texts])), bytes_, 8)
        graded = [t for row in data.rows for t in targets(row) if t != IGNORE]
        # without a token that begins a text nothing predicts its first one
        assert bytes(graded).decode() == "".join(text[not begin :] + "\0" for text in texts[:2])
        leads, ends = ([row[part][-1] for row in data.rows] for part in (0, 1))
        assert max(map(length, data.rows)) == 8 and leads[2:] == (ends[1:-1] if not begin else [1] * len(leads[2:]))
        assert any(note.startswith("texts of more than 8 tokens are read in pieces: 1 (") for note in data.notes)


def test_a_prompt_and_a_completion_of_plain_text_know_no_template(tmp_path, reader):
    ours, _ = reader()
    data = load_dataset(str(as_jsonl(tmp_path / "a", [ROWS["prompt/completion"](i) for i in range(2)])), ours, 500)
    assert data.completes and not data.chat and data.rows[0] == tuple(map(tuple, example("0 plus one", "is 1", ours)))


def test_tools_and_calls_reach_the_template_however_they_are_written(tmp_path, reader):
    ours, theirs = reader(WITH_TOOLS)
    asked, answer = dict(role="user", content="1 + 2?"), dict(role="tool", content="3")
    messages = [asked, dict(role="assistant", content=None, tool_calls=[CALL]), answer]
    as_text = {
        "type": "function",
        "function": CALL["function"] | {"arguments": json.dumps(CALL["function"]["arguments"])},
    }
    written = [{"from": "human", "value": "1 + 2?"}, {"from": "function_call", "value": json.dumps(CALL["function"])}]
    rows = {
        "messages": dict(messages=messages, tools=[TOOL]),
        "arguments as text": dict(messages=[asked, dict(role="assistant", tool_calls=[as_text]), answer], tools=[TOOL]),
        "tools as text": dict(messages=messages, tools=json.dumps([TOOL])),
        "ShareGPT": dict(conversations=[*written, {"from": "observation", "value": "3"}], tools=json.dumps([TOOL])),
    }
    whole = [asked, dict(role="assistant", content="", tool_calls=[CALL]), answer]
    ids, mask = transformers_row(theirs, whole, tools=[TOOL])
    for name, row in rows.items():
        data = load_dataset(str(as_jsonl(tmp_path / "a", [row] * 2)), ours, 900)
        assert tokens_and_grades(data.rows[0]) == (list(ids), list(mask)), name
        assert not any("tools" in note for note in data.notes)
    path = str(as_jsonl(tmp_path / "a", [dict(messages=chat(1), tools=[TOOL])] * 2))
    assert any(
        note.startswith("the template does not write tools") for note in load_dataset(path, reader()[0], 900).notes
    )


def test_a_call_in_a_table_has_its_own_arguments_and_not_those_of_other_rows(tmp_path, reader):
    ours, _ = reader(WITH_TOOLS)
    calls = [CALL, {"type": "function", "function": {"name": "say", "arguments": {"word": "hi"}}}]
    calls = json.loads(json.dumps(calls, sort_keys=True))  # as older versions of pyarrow order the keys of a column
    asked = dict(role="user", content="go")
    rows = [dict(messages=[asked, dict(role="assistant", content="", tool_calls=[call])]) for call in calls]
    data, table = (load_dataset(str(write(tmp_path / "a", rows)), ours, 500) for write in (as_jsonl, as_parquet))
    assert data.rows == table.rows and "null" not in ours.decode(table.rows[0][1])


def test_content_in_parts_is_joined_and_roles_have_their_usual_names(tmp_path, reader):
    ours, theirs = reader()
    parts = [dict(type="text", text="a"), dict(type="text", text="b")]
    names = [("Human", "user"), ("bot", "assistant"), ("observation", "tool"), ("chatgpt", "assistant")]
    row = dict(conversations=[dict(role=role, content=parts) for role, _ in names])
    data = load_dataset(str(as_jsonl(tmp_path / "a", [row] * 2)), ours, 900)
    ids, _ = transformers_row(theirs, [dict(role=role, content="ab") for _, role in names])
    assert tokens_and_grades(data.rows[0])[0] == list(ids)


def test_an_instruction_and_its_input_are_two_lines_of_one_question(tmp_path):
    rows = [dict(instruction="Say", input="x", output="y")] * 2
    row = load_dataset(str(as_jsonl(tmp_path / "a", rows))).rows[0]
    assert [GPT2.decode(part) for part in row[:2]] == ["User: Say\nx\nAssistant:", " y<|endoftext|>"]


def test_a_conversation_that_an_answer_begins_or_that_asks_twice_is_read(tmp_path):
    says = [dict(role=role, content="x") for role in ("assistant", "user", "user", "assistant", "user")]
    row = load_dataset(str(as_jsonl(tmp_path / "a", [dict(messages=says)] * 2)), context=99).rows[0]
    assert len(row) == 5 and GPT2.decode(row[-1]) == "\nUser: x\n"


def test_names_of_fields_are_mapped_also_those_inside_of_messages(tmp_path):
    rows = [dict(question=f"{i} plus one", prompt="no", answer=f"is {i + 1}") for i in range(4)]
    names = read_map("prompt=question, completion=answer")
    data = load_dataset(str(as_jsonl(tmp_path / "a", rows)), fields=names)
    plain = load_dataset(str(as_jsonl(tmp_path / "b", [ROWS["prompt/completion"](i) for i in range(4)])))
    assert data.rows == plain.rows and data.notes == ("keys of rows that have no effect, 4 in all: 'prompt': 4",)
    rows = [dict(log=[dict(who=m["role"], said=m["content"]) for m in chat(i)]) for i in range(4)]
    data = load_dataset(
        str(as_jsonl(tmp_path / "a", rows)), context=99, fields=read_map("messages=log,role=who,content=said")
    )
    plain = load_dataset(str(as_jsonl(tmp_path / "b", [ROWS["messages"](i) for i in range(4)])), context=99)
    assert data.rows == plain.rows and data.kind == "messages"
    with pytest.raises(TextError, match="line 1: it has no 'prompt' .'q' by --map., it has 'question', 'answer'"):
        rows = [dict(question="a", answer="b")]
        load_dataset(str(as_jsonl(tmp_path / "a", rows)), fields=read_map("prompt=q,completion=answer"))
    for wrong, says in {
        "prompt": "prompt= names no field: give pairs, as in prompt=question,completion=answer",
        "prompt=": "prompt= names no field",
        "promt=a": "promt=a does not begin with a name of the course: begin with one of messages",
        "a=b=c": "a=b=c does not begin with a name of the course: begin with one of messages",
        "my question=prompt,a=completion": "write --map 'prompt=my question,completion=a'$",
    }.items():
        with pytest.raises(SettingError, match=says):
            read_map(wrong)


# splitting, cutting, leaving out


def test_the_split_that_a_folder_has_is_kept_and_a_held_out_row_is_trained_on_nowhere(tmp_path):
    datasets = pytest.importorskip("datasets")
    parts = {"train": range(5), "test": range(4, 6), "extra": range(9)}
    made = {name: datasets.Dataset.from_list([ROWS["messages"](i) for i in some]) for name, some in parts.items()}
    datasets.DatasetDict(made).save_to_disk(str(tmp_path / "a"))
    data = load_dataset(str(tmp_path / "a"), context=99)
    first = [GPT2.decode(row[1]).strip() for row in data.rows]
    assert first == [f"is {n}<|endoftext|>" for n in (1, 2, 3, 4, 5, 6)] and data.size == 4
    datasets.DatasetDict({"one": made["train"]}).save_to_disk(str(tmp_path / "b"))
    assert load_dataset(str(tmp_path / "b"), context=99).size == 4
    datasets.DatasetDict({"one": made["train"], "two": made["test"]}).save_to_disk(str(tmp_path / "c"))
    with pytest.raises(TextError, match="c has no 'train' but one, two: save the split that is to train"):
        load_dataset(str(tmp_path / "c"))


def test_a_conversation_that_becomes_several_rows_lies_on_one_side(tmp_path, reader):
    ours, _ = reader(LAST_ALONE)
    rows = [dict(messages=chat(i)) for i in range(20)]
    data = load_dataset(str(as_jsonl(tmp_path / "a", rows)), ours, 500)
    numbers = [ours.decode(sum(row, ())).partition("user\n")[2].partition(" ")[0] for row in data.rows]
    assert (
        len(data.rows) == 40
        and data.size == 36
        and {*numbers[36:]} == {"9", "19"}
        and not {*numbers[:36]} & {"9", "19"}
    )
    assert all(len([part for part in row[1::2]]) == 1 for row in data.rows)


def test_a_long_conversation_is_cut_behind_the_last_answer_that_fits(tmp_path, reader):
    ours, _ = reader()
    rows = [
        dict(messages=[*chat(i), dict(role="user", content="?" * 300), dict(role="assistant", content="!")])
        for i in (1, 2)
    ]
    path = str(as_jsonl(tmp_path / "a", [*rows, dict(messages=chat(3)), dict(messages=chat(4))]))
    for what in ("answers", "all"):
        data = load_dataset(path, ours, 200, train_on=what)
        whole = [ours.decode(sum(row, ())) for row in data.rows]
        assert whole[0].endswith("yes, 1<|im_end|>") and max(map(length, data.rows)) <= 200 and data.skipped == 0
        note = f"conversations of more than 200 tokens are cut behind the last answer that fits: 2 ({path}, lines 1, 2)"
        assert note in data.notes
    with pytest.raises(TextError, match="lines 1, 2 are too long: up to [0-9]+ tokens, and 200 fit"):
        load_dataset(path, ours, 200, train_on="last")
    with pytest.raises(TextError, match="lines 1, 2, 3, 4 are too long: up to [0-9]+ tokens, and 20 fit"):
        load_dataset(path, ours, 20)
    assert load_dataset(path, ours, 200, train_on="last", skip_long=True).skipped == 2


NOTHING = {
    "no answer": dict(messages=[dict(role="user", content="a")]),
    "an answer of blanks": dict(messages=[dict(role="user", content="a"), dict(role="assistant", content=" \n")]),
}


@pytest.mark.parametrize("name", NOTHING)
def test_a_row_with_nothing_to_grade_is_named_and_left_out(tmp_path, reader, name):
    ours, _ = reader()
    good = [dict(messages=chat(i)) for i in range(11)]
    path = str(as_jsonl(tmp_path / "a", [NOTHING[name], *good, NOTHING[name]]))
    data = load_dataset(path, ours, 500)
    assert data.notes == (f"rows with nothing to grade are left out: 2 ({path}, lines 1, 13)",)
    assert len(data.rows) == 11 and all(
        (y != IGNORE).any(1).all() for _, y in [*data.heldout, next(data.batches(9, 0, 0))]
    )
    with pytest.raises(TextError, match="has no row besides 2 that have nothing to grade: give at least two"):
        load_dataset(str(as_jsonl(tmp_path / "b", [NOTHING[name]] * 2)), ours, 500)


def test_an_instruction_without_an_output_and_an_empty_text_have_nothing_to_grade(tmp_path):
    for good, bare in ((ROWS["Alpaca"](1), dict(instruction="a", output="")), (ROWS["text"](1), dict(text=" "))):
        path = str(as_jsonl(tmp_path / "a", [good, good, bare]))
        assert f"rows with nothing to grade are left out: 1 ({path}, line 3)" in load_dataset(path, context=99).notes


def test_the_loss_of_a_row_does_not_depend_on_its_neighbours_in_the_batch(tmp_path):
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16)).eval()
    path = str(as_jsonl(tmp_path / "a", [dict(messages=chat(i)[: 2 * (1 + i % 2) + 1]) for i in range(6)]))
    rows = load_dataset(path).rows
    alone = [(own_loss(model, x, y) * (y != IGNORE).sum(), (y != IGNORE).sum()) for x, y in (pad([r], 0) for r in rows)]
    total, count = (sum(parts) for parts in zip(*alone))
    assert len({*map(length, rows)}) > 1
    torch.testing.assert_close(own_loss(model, *pad(rows, GPT2.end)), total / count)


def test_keys_by_which_others_leave_messages_out_and_special_tokens_in_messages_are_told(tmp_path, reader):
    ours, _ = reader()
    messages = [
        dict(role="user", content="<|im_start|>user\na<|im_end|>"),
        dict(role="assistant", content="b", weight=0),
    ]
    notes = load_dataset(str(as_jsonl(tmp_path / "a", [dict(messages=messages, id=1)] * 3)), ours, 500).notes
    assert "keys of rows that have no effect, 6 in all: 'id': 3, 'weight of a message': 3" in notes
    assert any(
        n.startswith("messages spell out 6 special tokens of this base, as rows do that a template has") for n in notes
    )


# what goes wrong

ASKED = dict(role="user", content="a")
BAD = [
    (dict(messages="hi"), "its messages is a text that is no JSON list"),
    (dict(messages={}), "its messages is not a list"),
    (dict(messages=[]), "its messages is an empty conversation"),
    (dict(messages=["hi"]), "message 1 of its messages is not an object"),
    (dict(messages=[ASKED, dict(content="b")]), "message 2 of its messages has no role: give one of system, user"),
    (
        dict(messages=[ASKED, dict(role="robot", content="b")]),
        "message 2 of its messages has the role 'robot': give one",
    ),
    (dict(messages=[ASKED, dict(role=7, content="b")]), "has the role '7'"),
    (dict(messages=[dict(role="user", content=7)]), "message 1 of its messages has content that is not a text"),
    (dict(messages=[dict(role="assistant", content=None)]), "message 1 of its messages has no content: add it"),
    (
        dict(messages=[dict(role="user", content="\ud800")]),
        "message 1 of its messages: its content holds half of a char",
    ),
    (
        dict(messages=[dict(role="user", content=[dict(type="image_url", image_url="x")])]),
        "message 1 of its messages has content that is not text ('image_url'): a language model reads text alone",
    ),
    (
        dict(messages=[dict(role="assistant", tool_calls=[{}])]),
        "message 1 of its messages has a tool call without a func",
    ),
    (dict(messages=[dict(role="assistant", tool_calls=7)]), "message 1 of its messages: its tool_calls is not a list"),
    (dict(messages=[ASKED], tools=7), "its tools is not a list"),
    (dict(conversations=[{"from": "x", "value": "b"}]), "message 1 of its conversations has the role 'x'"),
    (dict(conversations=[{"from": "gpt"}]), "message 1 of its conversations has no content: add it"),
    (
        dict(conversations=[{"from": "gpt", "value": "a"}], system=7),
        "its system is not a text",
    ),
    (dict(instruction=7, output="b"), "its instruction is not a text"),
    (dict(instruction="a", output=["b"]), "its output is not a text"),
    (dict(instruction="a", output="b", history=[["q"]]), "its history is not a list of pairs"),
    (dict(prompt=[ASKED], completion="b"), "its prompt is not a text"),
    (dict(prompt=[ASKED], completion=[dict(role="b")]), "message 1 of its completion has the role 'b'"),
    (dict(text=7), "its text is not a text"),
    (
        dict(prompt="a", chosen="b", rejected="c"),
        "it is a preference, of which no run here learns both answers: to train",
    ),
    (dict(prompt="a", chosen="b", rejected="c"), "give --map completion=chosen"),
    (dict(prompt="a", chosen=[ASKED], rejected=[ASKED]), "give --map messages=chosen"),
    (dict(chosen="b", rejected="c"), "give --map text=chosen"),
    (
        dict(instruction="a", context="", response="b"),
        "it has no 'output', it has 'instruction', 'context', 'response'",
    ),
    (dict(question="a", answer="b"), "say which field it is, as in --map prompt=question,completion=answer"),
    (dict(ID=1, Question="a", Answer="b"), "say which field it is, as in --map prompt=Question,completion=Answer"),
    (dict(id=1, left="a", right="b"), "say which field it is, as in --map prompt=left,completion=right"),
]


@pytest.mark.parametrize(("row", "says"), BAD)
def test_a_row_that_no_format_has_is_one_sentence_with_its_place(tmp_path, row, says):
    places = {as_jsonl: "line 1", as_json: "row 1"}
    for write, place in places.items():
        path = write(tmp_path / "a", [row] * 2)
        with pytest.raises(TextError) as caught:
            load_dataset(str(path))
        said = str(caught.value)
        assert said.startswith(f"{path}, {place}: ") and says in said and "\n" not in said and len(said) < 400, said


def test_two_formats_in_one_file_are_one_sentence(tmp_path):
    path = as_jsonl(tmp_path / "a", [ROWS["messages"](1), ROWS["Alpaca"](1)])
    with pytest.raises(
        TextError, match="line 2: it is Alpaca, and .* line 1 is messages: give each format a file of its own"
    ):
        load_dataset(str(path))


def test_what_a_template_refuses_is_one_sentence_with_its_place(tmp_path, reader):
    strict = "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}" + CHATML
    path = as_jsonl(tmp_path / "a", [dict(messages=chat(1)[1:]), dict(messages=chat(2))])
    with pytest.raises(TextError, match="line 2: the chat template cannot write this conversation .no system here."):
        load_dataset(str(path), reader(strict)[0], 500)


FILES = [
    (".json", '[{"text": "a"},\n{"text": "b"', "a.json, line 2: it is not JSON (Expecting"),
    (".json", '{"text": "a"}\n{"text": "b"', "a.json, line 2: it is not JSON"),
    (".json", '{"train": [1, 2]}', "a.json, row 1: it is not an object"),
    (".json", '[{"text": "a", "text": "b"}]', "a.json: the key 'text' stands twice"),
    (".csv", "text,text\na,b\n", "a.csv: the column 'text' stands twice: give each once"),
    (".csv", "text\na,b\n", "a.csv, row 2: it has 2 cells, and the header 1: quote what holds a comma"),
    (".csv", 'text\n"a"b\n', "a.csv, line 2: it is not CSV ("),
    (".csv", 'text,n\na,1\n"b', "a.csv, line 3: it is not CSV (unexpected end of data)"),
    (
        ".csv",
        "prompt,completion\na,b\n\nc\n",
        "a.csv, row 4: it has no 'completion', unlike the rows before it, it has 'prompt'",
    ),
    (".csv", "prompt,completion\n", "a.csv has no row: give at least two"),
    (".csv", "\n", "a.csv is empty"),
    (".parquet", "PAR1 PAR1", "a.parquet cannot be read as a table ("),
    (".json.gz", "x", "a.json.gz is packed: unpack it, then give the .txt"),
    (".xlsx", "x", "a.xlsx is no .txt, .jsonl, .json, .csv, .tsv or .parquet file"),
]


@pytest.mark.parametrize(("suffix", "text", "says"), FILES)
def test_a_file_that_holds_no_rows_is_one_sentence_with_its_place(tmp_path, suffix, text, says):
    path = tmp_path / f"a{suffix}"
    path.write_text(text)
    with pytest.raises(TextError) as caught:
        load_dataset(str(path))
    assert says in str(caught.value) and "\n" not in str(caught.value), caught.value


def test_a_cell_may_hold_lines_and_more_than_the_usual_limit_and_a_number_is_its_text(tmp_path):
    path = as_table(
        tmp_path / "a", [dict(prompt='a\nb, "c"', completion="x" * 200_000), dict(prompt="7", completion="8")]
    )
    data = load_dataset(str(path), BYTES, 10**6)
    assert [BYTES.decode(part) for part in data.rows[0]] == ['a\nb, "c"\n', "x" * 200_000 + "\0"]


@pytest.mark.parametrize(("module", "name"), [("pyarrow", "a.parquet"), ("pyarrow", "a")])
def test_a_package_that_is_missing_is_one_sentence_that_says_how_to_get_it(tmp_path, monkeypatch, module, name):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "state.json").write_text("{}")
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(TextError, match=rf"needs {module} to be read: pip install -e '.\[data\]'"):
        load_dataset(str(tmp_path / name))


def test_a_damaged_folder_is_one_sentence(tmp_path):
    pytest.importorskip("datasets")
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(TextError, match="cannot be read as a table .*: save it again"):
        load_dataset(str(tmp_path))


def test_a_table_knows_what_fits_and_refuses_no_row_for_its_length(tmp_path):
    rows = [dict(prompt="p", completion="c" * n) for n in (1, 2, 9)]
    table = read_table(as_jsonl(tmp_path / "a", rows), BYTES, 8)
    assert (
        table.lengths == [3, 4, 11] and [*table.long.values()] == [11] and len(table.train) == len(table.heldout) == 1
    )
    assert set(SUFFIXES) == {".jsonl", ".json", ".csv", ".tsv", ".parquet"}
