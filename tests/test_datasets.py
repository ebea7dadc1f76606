"""A learner's text becomes windows or rows; what cannot be used is one sentence that says where and what to do."""

import json
from itertools import islice
from unicodedata import normalize

import pytest
import torch

from llm.__main__ import main
from llm.bases import Base
from llm.errors import TextError
from llm.loss import IGNORE
from llm.text import corpora, download, examples, records
from llm.text.batches import UNSEEN
from llm.text.chat import with_template
from llm.text.corpora import Corpus
from llm.text.dataset import HELD, load_dataset, names
from llm.text.examples import BREAK
from llm.text.txt import check_text, unreadable
from llm.tokenizer import END_OF_TEXT, GPT2, Tokenizer, decode, encode

BYTES = Tokenizer("bytes", lambda text: list(text.encode()), lambda ids: bytes(ids).decode(), 256)
PLAIN = Tokenizer("plain", lambda text: list(map(ord, text)), lambda ids: "".join(map(chr, ids)), 0x110000)


def tokenizer_with(change, **fields):
    """A tokenizer of characters that changes a text before it encodes it."""
    return Tokenizer("changed", lambda text: PLAIN.encode(change(text)), PLAIN.decode, PLAIN.end, **fields)


ONE_LINE = tokenizer_with(lambda text: " ".join(text.split()))  # as XGLM's and T5's
PROSE = "".join(f"Line {i} of a text that is long enough to be cut into windows.\n" for i in range(80))


def rows(n, start=0):
    return [{"prompt": f"{i} plus one", "completion": f"is {i + 1}"} for i in range(start, start + n)]


def write(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def jsonl(path, made):
    return write(path, "".join(json.dumps(row) + "\n" for row in made))


# a text


def test_of_a_conversation_every_second_part_is_graded_and_its_row_ends_in_padding():
    row, short = ([1, 2], [3, 4], [5], [6]), ([7], [8])
    (x, _), (y, _) = examples.pad([row, short], 0)
    assert x.tolist() == [1, 2, 3, 4, 5] and y.tolist() == [IGNORE, 3, 4, IGNORE, 6]
    assert examples.targets(row) == [IGNORE, IGNORE, 3, 4, IGNORE, 6] and examples.length(row) == 5
    x, y = examples.pad([short, row], 0)
    assert x[0].tolist() == [7, 0, 0, 0, 0] and y[0].tolist() == [8] + 4 * [IGNORE]


def padded(record, width):
    return [t[0] for t in examples.pad([records.as_example(record)], END_OF_TEXT, width)]


def test_a_text_becomes_windows_of_its_own_tokens_and_the_targets_are_one_token_on(tmp_path):
    data = load_dataset(write(tmp_path / "a.txt", PROSE), block=16)
    x, y = next(data.batches(5, 0, 0))
    assert x.shape == y.shape == (5, 16) and torch.equal(x[:, 1:], y[:, :-1]) and not data.completes
    assert all(decode(row) in PROSE for row in x)


def test_what_is_held_out_of_a_text_is_its_end_and_no_training_window_reaches_into_it(tmp_path):
    text = "".join(chr(33 + i % 90) + str(i) for i in range(300))  # no two windows of it are alike
    data = load_dataset(write(tmp_path / "a.txt", text), BYTES, block=8)
    held = [bytes(row).decode() for x, _ in data.heldout for row in x.tolist()]
    begins = min(text.index(row) for row in held)
    assert begins > len(text) * 0.85
    seen = [bytes(row).decode() for x, _ in islice(data.batches(50, 0, 0), 40) for row in x.tolist()]
    assert len(set(seen)) > 500 and all(text.index(row) + 8 <= begins for row in seen)


def test_a_batch_depends_on_seed_and_index_alone(tmp_path):
    for path in (write(tmp_path / "a.txt", PROSE), jsonl(tmp_path / "a.jsonl", rows(30)), "records"):
        data = load_dataset(path)
        third = list(islice(data.batches(3, 7, 0), 4))[3]
        assert all(torch.equal(a, b) for a, b in zip(third, next(data.batches(3, 7, 3))))
        assert not torch.equal(third[0], next(data.batches(3, 8, 3))[0])


def test_a_windows_and_line_ends_mark_and_a_byte_order_mark_are_not_text(tmp_path):
    plain = load_dataset(write(tmp_path / "a.txt", PROSE))
    windows = load_dataset(write(tmp_path / "b.txt", b"\xef\xbb\xbf" + PROSE.replace("\n", "\r\n").encode()))
    assert torch.equal(next(plain.batches(4, 0, 0))[0], next(windows.batches(4, 0, 0))[0])


def test_a_window_is_64_tokens_or_the_context_or_what_is_asked_for(tmp_path):
    path = write(tmp_path / "a.txt", PROSE)
    for options, width in (({}, 64), ({"context": 2048}, 64), ({"context": 20}, 20), ({"block": 9}, 9)):
        assert next(load_dataset(path, **options).batches(2, 0, 0))[0].size(1) == width
    for block in (0, 65):
        with pytest.raises(ValueError, match=f"^--block {block} does not fit this base: its context takes 1 to 64"):
            load_dataset(path, block=block)


def test_any_tokenizer_will_do_and_its_end_ends_the_text(tmp_path):
    data = load_dataset(write(tmp_path / "a.txt", PROSE), BYTES, block=32)
    assert data.heldout[-1][1][-1, -1] == BYTES.end and next(data.batches(2, 0, 0))[0].max() <= BYTES.end


def test_a_corpus_by_name_comes_in_the_bases_tokens_with_its_own_split(monkeypatch):
    asked = []

    def load(name, tokenizer):
        asked.append((name, tokenizer))
        return Corpus(name, torch.full((500,), 3), torch.full((500,), 4))

    monkeypatch.setattr(corpora, "load", load)
    monkeypatch.setattr(corpora, "documents", lambda name: {"a play": "HAMLET:\nTo be\n"})
    assert any("cannot write 2 characters" in note for note in load_dataset("shakespeare", ONE_LINE).notes)
    asked.clear()
    data = load_dataset("shakespeare", BYTES)
    assert asked == [("shakespeare", BYTES)] and data.digest == download.sources()["shakespeare"]["sha256"]
    assert next(data.batches(2, 0, 0))[0].unique() == 3 and data.heldout[0][0].unique() == 4


# rows


def test_only_the_completion_and_the_end_count_and_a_line_break_stands_before_them(tmp_path):
    made = rows(3) + [{"prompt": "a longer prompt that sets the width of this batch", "completion": "yes"}]
    data = load_dataset(jsonl(tmp_path / "a.jsonl", [*made, made[0]]))
    x, y = next(data.batches(16, 0, 0))
    assert data.completes and x.shape == y.shape
    for inputs, targets in zip(x.tolist(), y.tolist()):
        counted = [t for t in targets if t != IGNORE]
        first = targets.index(counted[0])
        assert counted[-1] == GPT2.end and all(t != IGNORE for t in targets[first : first + len(counted)])
        found = {"prompt": decode(inputs[: first + 1]), "completion": decode(counted[:-1])}
        assert found["prompt"].endswith(BREAK) and found | {"prompt": found["prompt"][:-1]} in made


def test_every_tenth_row_is_held_out_or_else_the_last(tmp_path):
    def answers(batches):
        return {decode([t for t in row if t not in (IGNORE, GPT2.end)]) for _, y in batches for row in y.tolist()}

    for n, held in ((2, {"is 2"}), (9, {"is 9"}), (10, {"is 10"}), (35, {"is 10", "is 20", "is 30"})):
        data = load_dataset(jsonl(tmp_path / f"{n}.jsonl", rows(n)))
        assert answers(data.heldout) == held
        assert answers(islice(data.batches(40, 0, 0), 10)) == {f"is {i + 1}" for i in range(n)} - held


def test_the_records_are_those_of_the_task_and_what_is_held_out_no_training_run_reads():
    data = load_dataset("records")
    x, y = next(data.batches(6, 2, 5))
    made = records.make_records(6, 2 * 1_000_003 + 5)
    for inputs, targets, record in zip(x, y, made):
        expected_x, expected_y = padded(record, x.size(1))
        assert torch.equal(inputs, expected_x) and torch.equal(targets, expected_y)
    unseen = [padded(r, data.heldout[0][0].size(1))[0] for r in records.make_records(HELD, UNSEEN * 1_000_003)]
    assert torch.equal(data.heldout[0][0], torch.stack(unseen))


def sides(data, n=400):
    """The completions that are held out and those that are trained on."""
    held = {decode([t for t in row if t not in (IGNORE, GPT2.end)]) for _, y in data.heldout for row in y.tolist()}
    _, y = next(data.batches(n, 0, 0))
    return held, {decode([t for t in row if t not in (IGNORE, GPT2.end)]) for row in y.tolist()}


@pytest.mark.parametrize("copies", [2, 3, 7])
def test_copies_of_a_row_are_all_held_out_or_all_trained_on(tmp_path, copies):
    for made in (rows(15) * copies, [row for row in rows(15) for _ in range(copies)], rows(25) + rows(copies, 7)):
        data = load_dataset(jsonl(tmp_path / "a.jsonl", made))
        held, trained = sides(data)
        assert not held & trained and held == {"is 10"} | ({"is 20"} if len(made) == 25 + copies else set())
        n = len(made) - len({row["prompt"] for row in made})
        assert any(note.startswith(f"copies of rows: {n};") for note in data.notes)
        left = len(made) - len(data.rows)  # the sum closes
        assert (f"of the copies that are held out one counts, and {left} are left out" in data.notes) == (left > 0)


def test_prompts_without_the_template_of_a_chat_model_say_so_and_how_they_become_chats(tmp_path):
    path, chatty = jsonl(tmp_path / "a.jsonl", rows(12)), with_template(GPT2, "chatml")
    (note,) = load_dataset(path, chatty, 99).notes
    assert "without this base's chat template" in note
    names = dict(pair.split("=") for pair in note.split("--map ")[1].split()[0].split(","))
    assert load_dataset(path, chatty, 99, fields=names).chat and load_dataset(path).notes == ()


def test_rows_that_differ_are_split_as_ever_and_nothing_is_said_of_them(tmp_path):
    data = load_dataset(jsonl(tmp_path / "a.jsonl", rows(40)))
    assert sides(data)[0] == {f"is {n}" for n in (10, 20, 30, 40)} and data.notes == ()


def test_rows_that_are_all_the_same_say_that_the_held_out_loss_is_of_a_row_that_is_trained_on(tmp_path):
    data = load_dataset(jsonl(tmp_path / "a.jsonl", rows(1) * 12))
    assert any(note.startswith("all rows are the same, so the held-out loss says nothing") for note in data.notes)
    assert sides(data)[0] == sides(data)[1] == {"is 1"}


def test_a_held_out_prompt_that_is_trained_on_with_another_completion_is_counted(tmp_path):
    made = rows(30)
    made[9]["prompt"] = made[3]["prompt"]
    (note,) = load_dataset(jsonl(tmp_path / "a.jsonl", made)).notes
    assert note.startswith("held-out rows whose prompt is trained on as well: 1;")


# what a text loses on its way into tokens


def assert_told(notes, *parts):
    assert any(all(part in note for part in parts) for note in notes), notes
    assert all("\n" not in note for note in notes)


def test_characters_that_the_tokenizer_cannot_write_are_counted_in_a_text_and_in_rows_with_what_joins_them(tmp_path):
    text = load_dataset(write(tmp_path / "a.txt", PROSE), ONE_LINE, block=16)
    assert_told(text.notes, "this base's tokenizer cannot write 80 characters of the text", r"'\n': 80")
    made = [row | {"completion": f"- {i}\n- b"} for i, row in enumerate(rows(20))]
    data = load_dataset(jsonl(tmp_path / "a.jsonl", made), ONE_LINE)
    assert_told(data.notes, "cannot write 40 characters of the text", r"'\n': 40")
    assert_told(
        load_dataset("records", tokenizer_with(lambda text: text.replace("{", "")), 200).notes, "write 32 ", "'{'"
    )


@pytest.mark.parametrize(
    ("change", "lost"),
    [
        (str.lower, "'T': 2"),
        (lambda text: text.replace("\U0001f600", "<unk>"), "'\U0001f600': 1"),
        (lambda text: text.replace("<", "<unk>"), "'<': 1"),
        (lambda text: text.replace("\t", " "), r"'\t': 1"),
        (lambda text: text.replace("    ", " "), "' ': 3"),
        (lambda text: normalize("NFD", text).encode("ascii", "ignore").decode(), "'\u00e9': 1"),
    ],
)
def test_every_kind_of_loss_is_told_with_an_example(change, lost):
    text = "To\tbe <b>, \U0001f600 caf\u00e9\n    That is"
    assert_told(unreadable([text], tokenizer_with(change, special=("<unk>",))), "cannot write", lost)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text,
        lambda text: " " + text,
        lambda text: text.removeprefix(" "),
        lambda text: normalize("NFD", text),
        lambda text: normalize("NFKC", text),
        lambda text: text.replace(",", " , "),
    ],
)
def test_a_tokenizer_that_only_writes_the_same_in_another_way_raises_no_alarm(change):
    texts = [" caf\u00e9, \ufb01ve\u00a0\u2026", " And cafe\u0301, \uff41\n", "", "\u1e9b\u0323"]
    assert unreadable(texts, tokenizer_with(change)) == unreadable(texts, GPT2) == ()


def test_a_character_that_comes_late_in_a_long_text_is_not_overlooked():
    texts = ["a" * 150_000 + "\U0001f600", *["b"] * 2000, "\u00e9"]
    notes = unreadable(texts, tokenizer_with(lambda text: text.replace("\U0001f600", "").replace("\u00e9", "")))
    assert_told(notes, "cannot write 2 characters", "'\U0001f600': 1", "'\u00e9': 1")


def test_special_tokens_that_are_spelled_out_in_a_text_are_counted_and_named(tmp_path):
    data = load_dataset(write(tmp_path / "a.txt", PROSE.replace(".\n", ".<|endoftext|>\n")), block=16)
    assert data.notes == (
        "the text spells out 80 special tokens of this base, which are read as ordinary text: '<|endoftext|>': 80",
    )
    chat = tokenizer_with(str, special=("<|im_start|>", "<|im_end|>", "</s>"))
    made = [{"prompt": f"<|im_start|>{i}<|im_end|>", "completion": "ho<|im_end|>"} for i in range(20)]
    assert_told(
        load_dataset(jsonl(tmp_path / "a.jsonl", made), chat).notes, "60 special", "'<|im_end|>': 40", "art|>': 20"
    )
    assert load_dataset(jsonl(tmp_path / "a.jsonl", made)).notes == ()


def test_keys_of_rows_that_are_not_read_are_named_with_their_counts(tmp_path):
    made = [row | {"system": "Answer in French."} | ({"weight": 0} if i % 2 else {}) for i, row in enumerate(rows(20))]
    (note,) = load_dataset(jsonl(tmp_path / "a.jsonl", made)).notes
    assert note == "keys of rows that have no effect, 30 in all: 'system': 20, 'weight': 10"


def test_the_command_line_tells_what_is_lost_once_at_the_start_and_in_json(tmp_path, tiny, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = jsonl(tmp_path / "a.jsonl", [row | {"id": 7} for row in rows(12)])
    few = ["--base", tiny, "--rank", "1", "--steps", "1", "--rows", "2"]
    note = "keys of rows that have no effect, 12 in all: 'id': 12"
    assert main(["finetune", path, *few, "--out", "a"]) == 0 and capsys.readouterr().out.count(note) == 1
    assert main(["finetune", path, *few, "--out", "b", "--json"]) == 0
    start = json.loads(capsys.readouterr().out.splitlines()[0])
    assert start["notes"] == [note] and start["skipped"] == 0


# what goes wrong


def assert_refused(path, *parts, **options):
    with pytest.raises(TextError) as caught:
        load_dataset(str(path), **options)
    said = str(caught.value)
    assert all(part in said for part in parts) and "\n" not in said and len(said) < 400, said


@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "is empty: put some text into it"),
        (b" \n\r\n\t", "is empty: put some text into it"),
        (b"\x7fELF\x02\0\0\1" * 99, "is not text (it is binary, or UTF-16): save it as UTF-8 text"),
        ("Grüße".encode("utf-16"), "is not text (it is binary, or UTF-16): save it as UTF-8 text"),
        ("one\ntwo\nGr\u00fc\u00dfe".encode("latin-1"), "is not UTF-8 (line 3, byte 0xfc): save it as UTF-8"),
    ],
)
def test_a_file_that_holds_no_text_is_one_sentence(tmp_path, suffix, raw, says):
    path = tmp_path / f"mine{suffix}"
    path.write_bytes(raw)
    assert_refused(path, f"{path} {says}")


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_rows_are_read_whatever_ends_their_lines_and_marks_may_stand_before_any_line(tmp_path, end):
    lines = [
        json.dumps({"prompt": f"a\u2028{i}\u0085", "completion": "b\u2029\0"}, ensure_ascii=False) for i in range(12)
    ]
    lines = [line.replace("\0", "\\u0000") for line in lines]
    lines[0], lines[6] = "\ufeff" + lines[0], "\ufeff" + lines[6]
    x, y = load_dataset(write(tmp_path / "a.jsonl", end.join(lines) + end)).heldout[0]
    assert decode(x[0]).startswith("a\u20289\u0085\nb") and "\0" not in decode(x[0])[:3]
    text = load_dataset(write(tmp_path / "a.txt", PROSE.replace("\n", end)))
    plain = load_dataset(write(tmp_path / "b.txt", PROSE))
    assert torch.equal(next(text.batches(4, 0, 0))[0], next(plain.batches(4, 0, 0))[0])


def test_a_byte_that_is_not_utf8_is_named_with_its_line_behind_a_byte_order_mark_too(tmp_path):
    path = write(tmp_path / "a.txt", b"\xef\xbb\xbfone\r\ntwo\r\nGr\xfc\xdfe")
    assert_refused(path, "is not UTF-8 (line 3, byte 0xfc): save it as UTF-8")


@pytest.mark.parametrize("text", ["\udce9t\udce9", "\ud83d", "a\ude00"])
def test_half_a_character_is_refused_wherever_a_text_comes_from(text):
    with pytest.raises(TextError, match="^the prompt holds half of a character"):
        check_text(text, "the prompt")
    check_text("\U0001f600 \u00e9 \0 \ufffd", "the prompt")


def test_a_missing_file_a_folder_and_another_kind_of_file_are_one_sentence_each(tmp_path):
    kinds = ".txt, .jsonl, .json, .csv, .tsv or .parquet file"
    known = f"choose one of {', '.join(names())}, or give a {kinds}"
    assert_refused(tmp_path / "no.txt", f"there is no file {tmp_path / 'no.txt'}: {known}")
    assert_refused("shakespear", f"there is no corpus called 'shakespear': {known}")
    assert_refused(tmp_path, f"is a folder: give one {kinds} in it, or a folder that datasets")
    assert_refused(write(tmp_path / "a.docx", "a,b"), f"a.docx is no {kinds}: {known}")
    assert_refused(
        write(tmp_path / "a.jsonl.gz", b"\x1f\x8b"), f"a.jsonl.gz is packed: unpack it, then give the {kinds}"
    )


@pytest.mark.parametrize("suffix", [".TXT", ".Jsonl"])
def test_the_ending_of_a_name_may_be_in_capitals(tmp_path, suffix):
    rows = "\n".join(json.dumps({"prompt": f"say {i}", "completion": str(i)}) for i in range(9))
    data = load_dataset(str(write(tmp_path / f"mine{suffix}", rows if suffix == ".Jsonl" else PROSE)))
    assert data.completes == (suffix == ".Jsonl")


def test_a_file_that_may_not_be_read_is_one_sentence(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    write(path, PROSE)

    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(path), "read_bytes", refuse)
    assert_refused(path, "cannot be read (Permission denied)")


def test_a_text_of_one_line_says_how_much_is_needed_and_just_enough_will_do(tmp_path):
    path = write(tmp_path / "a.txt", "One line alone.")
    n = len(encode("One line alone.")) + 1
    assert_refused(path, f"is too short: {n} tokens, and windows of 64 need 130", "or a smaller --block")
    enough = write(tmp_path / "b.txt", "x" * 17)
    assert load_dataset(enough, BYTES, block=8).heldout  # 18 tokens, with the end: nine to train on, nine held out
    assert_refused(write(tmp_path / "c.txt", "x" * 16), "17 tokens, and windows of 8 need 18", block=8, tokenizer=BYTES)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("not json", "is not JSON (Expecting value at column 1)"),
        ('{"prompt": "a", "completion": "b"', "is not JSON"),
        ('["a", "b"]', "is not an object"),
        ("7", "is not an object"),
        ("null", "is not an object"),
        ('{"prompt": "a"}', "has no 'completion', unlike the rows before it, it has 'prompt': correct this row"),
        (
            '{"instruction": "a", "response": "b"}',
            "has no 'prompt', unlike the rows before it, it has 'instruction', 'response'",
        ),
        ('{"q": "a", "a": "b"}', "it has no 'prompt', unlike the rows before it, it has 'q', 'a'"),
        ("{}", "has no 'prompt', unlike the rows before it, it has nothing"),
        ('{"prompt": "a", "prompt": "b", "completion": "c"}', "the key 'prompt' stands twice: give each once"),
        ('{"prompt": "a", "completion": "c", "id": {"x": 1, "x": 2}}', "the key 'x' stands twice"),
        ('{"prompt": "a", "completion": "c", "id": ' + "1" * 5000 + "}", "holds a number that is too long"),
        ('{"completion": "a"}', "has no 'prompt'"),
        ('{"prompt": "a", "completion": 7}', "its completion is not a text"),
        ('{"prompt": null, "completion": "a"}', "its prompt is empty: fill it in, or take the row out"),
        ('{"prompt": "a", "completion": " "}', "its completion is empty: fill it in, or take the row out"),
        ('{"prompt": "\\ud800", "completion": "a"}', "its prompt holds half of a character"),
        ('{"prompt": "a", "completion": "b\\udfff"}', "its completion holds half of a character"),
        ('[{"prompt": "a", "completion": "b"}]', "is not an object: give each row of the array a line of its own"),
        ("[", "is not JSON (Expecting value at column 2): give each row of the array a line of its own"),
        ('[{"prompt": "a", "completion": "b"},', "give each row of the array a line of its own, as `jq -c '.[]'` does"),
        ('{"prompt": "a", "completion": "b"} , ', "remove the comma after each row"),
        ("{'prompt': 'a', 'completion': 'b'}", "write straight double quotes"),
        ("{\u201cprompt\u201d: \u201ca\u201d}", "write straight double quotes"),
        ('{"prompt": "a", "comp', "the row is cut off, or takes several lines"),
        ('{"prompt": "a",', "the row is cut off, or takes several lines"),
        ("{", "give each row one line, as `jq -c .` does"),
        ('{"instruction": "a", "input": "b", "output": "c"}', "it is Alpaca, and"),
        ('{"messages": [{"role": "user", "content": "hi"}]}', "line 1 is prompt/completion: give each format a file"),
        (
            '{"prompt": [{"role": "user", "content": "a"}], "completion": []}',
            "it is prompt/completion of messages, and",
        ),
        ('{"prompt": "a", "chosen": "b", "rejected": "c"}', "it is a preference, of which no run here learns both"),
        ('{"text": "just a text"}', "it is text, and"),
        ("[" * 100_000, "is nested too deeply"),
    ],
)
def test_a_row_that_cannot_be_used_names_its_line(tmp_path, line, says):
    good = json.dumps(rows(1)[0])
    path = write(tmp_path / "a.jsonl", f"{good}\n\n{line}\n{good}\n")
    assert_refused(path, f"{path}, line 3", says)


def test_a_row_that_does_not_fit_the_context_names_its_line_and_one_that_just_fits_is_kept(tmp_path):
    fits = {"prompt": "p", "completion": "c" * 6}  # p, line break, six: eight inputs, the end is only a target
    assert next(load_dataset(jsonl(tmp_path / "a.jsonl", [fits, fits]), BYTES, 8).batches(1, 0, 0))[0].size(1) == 8
    path = jsonl(tmp_path / "b.jsonl", [fits, fits | {"completion": "c" * 7}])
    assert_refused(path, f"{path}, line 2 is too long: up to 9 tokens, and 8 fit", tokenizer=BYTES, context=8)
    assert_refused(path, "lines 1, 2 are too long: up to 9 tokens, and 7 fit", tokenizer=BYTES, context=8, block=7)


def test_all_rows_that_are_too_long_are_named_at_once_or_left_out_and_counted(tmp_path):
    fits, long = ({"prompt": "p", "completion": "c" * n} for n in (6, 9))
    path = jsonl(tmp_path / "a.jsonl", [fits, long] * 20)
    assert_refused(
        path, "lines 2, 4, 6, 8, 10, 12, 14, 16 and 12 more are too long", "--skip-long", tokenizer=BYTES, context=8
    )
    data = load_dataset(path, BYTES, 8, skip_long=True)
    assert data.skipped == 20 and next(data.batches(30, 0, 0))[0].size(1) == 8
    assert load_dataset(jsonl(tmp_path / "b.jsonl", [fits] * 3), BYTES, 8, skip_long=True).skipped == 0
    for made, says in (([long] * 3, "no row besides 3 that are too long"), ([fits, long], "one row besides 1 that")):
        path = jsonl(tmp_path / "c.jsonl", made)
        assert_refused(path, says, tokenizer=BYTES, context=8, skip_long=True)


def test_a_single_row_is_one_sentence(tmp_path):
    assert_refused(jsonl(tmp_path / "a.jsonl", rows(1)), "has one row: give at least two")


def test_a_context_too_small_for_a_record_is_one_sentence():
    with pytest.raises(ValueError, match=r"^a record of \d+ tokens does not fit: a row may have 8 here$"):
        load_dataset("records", context=8)


# the way in which prompt and completion are joined


def test_a_prompt_that_ends_in_a_line_break_gets_no_other_in_training_and_when_it_is_asked(tmp_path):
    for prompt in ("a", "a\n", "a\n\n###\n\n"):
        path = jsonl(tmp_path / "a.jsonl", [{"prompt": prompt, "completion": "b"}] * 2)
        x, y = next(load_dataset(path).batches(1, 0, 0))
        assert decode(x[0][: list(y[0]).index(encode("b")[0]) + 1]) == examples.ask(prompt)
        assert examples.ask(prompt) == prompt.removesuffix("\n") + "\n"


def test_an_older_run_is_asked_as_it_was_trained_with_one_line_break_more():
    assert [examples.ask(prompt, None) for prompt in ("a", "a\n")] == ["a\n", "a\n\n"]
    assert examples.ask("a\n", examples.JOIN) == "a\n"


def test_a_run_records_how_it_joins_and_the_command_line_asks_in_the_same_way(tmp_path, tiny, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = jsonl(tmp_path / "a.jsonl", [{"prompt": "p\n", "completion": "c" * n} for n in (1, 1, 1, 999, 999)])
    few = ["--base", tiny, "--rank", "1", "--steps", "1", "--rows", "2", "--out", "made"]
    assert main(["finetune", path, *few]) == 1 and "lines 4, 5 are too long" in capsys.readouterr().err
    assert main(["finetune", path, *few, "--skip-long"]) == 0
    assert "rows that are too long are left out: 2" in capsys.readouterr().out
    report, asked = tmp_path / "made" / "run.json", []
    assert json.loads(report.read_text())["join"] == examples.JOIN
    monkeypatch.setattr(Base, "generate", lambda self, prompt, *rest: asked.append(prompt) or "")
    assert main(["generate", "p\n", "--adapter", "made"]) == main(["generate", "p", "--adapter", "made"]) == 0
    report.write_text(json.dumps({k: v for k, v in json.loads(report.read_text()).items() if k != "join"}))
    assert main(["generate", "p\n", "--adapter", "made"]) == 0 and asked == ["p\n", "p\n", "p\n\n"]
