"""`python -m llm data`: what a run would read of a file, shown before it trains, with the base's tokenizer alone."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from llm import bases
from llm.__main__ import main
from llm.bases import loading
from llm.bases.loading import load_tokenizer
from llm.cli.data import BARS, _histogram
from llm.model import GPTConfig
from llm.text.dataset import load_dataset
from llm.tokenizer import GPT2


def chat(i, extra=""):
    said = [("user", f"{i} plus one{extra}"), ("assistant", f"is {i + 1}")]
    return dict(messages=[dict(role=role, content=content) for role, content in said])


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [*map(chat, range(11)), chat(11, " please" * 60), dict(messages=[dict(role="user", content="hi")])]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return "chat.jsonl"


def said(capsys, *argv):
    code = main(["data", *argv])
    return code, *capsys.readouterr()


def test_it_shows_format_rows_grades_lengths_and_what_is_left_out(file, capsys):
    code, out, err = said(capsys, file)
    assert code == 0 and not err and out.startswith("chat.jsonl: messages, 10 rows to train on, 1 held out\n")
    assert (
        "row 1, 12 tokens, 3 of them graded, marked «like this»:\nUser: 0 plus one\nAssistant:« is 1<|endoftext|>»\n\nrow 2,"
        in out
    )
    assert out.count("«") == 2 * 3 and "2 plus one" in out and "3 plus one" not in out
    bars = out[out.index("of which 64 fit:\n") :].split("\n\n")[0].splitlines()[1:]
    assert sum(int(bar.split()[-1]) for bar in bars[:-1]) == 11 and re.match(r"more than 64  1, up to \d+$", bars[-1])
    assert "\ntoo long, so that a run needs --skip-long: 1 (chat.jsonl, line 12)\n" in out
    assert "\nrows with nothing to grade are left out: 1 (chat.jsonl, line 13)\n" in out
    assert out.endswith("\nto train on it: python -m llm finetune chat.jsonl --skip-long\n")


def test_its_last_line_is_the_command_that_trains_on_what_it_has_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("my rows.csv").write_text("q,a\n" + "".join(f"{i},is {i}\n" for i in range(12)))
    out = said(capsys, "my rows.csv", "--map", "prompt=q,completion=a", "--train-on", "all")[1]
    line = out.splitlines()[-1].removeprefix("to train on it: python -m llm ")
    argv = [*shlex.split(line), "--steps", "1", "--rows", "2", "--block", "16", "--out", "out"]
    assert main(argv) == 0 and json.loads(Path("out/run.json").read_text())["train_on"] == "all"


def test_json_says_what_a_run_would_train_on(file, capsys):
    code, out, _ = said(capsys, file, "--json", "--train-on", "last")
    found, data = json.loads(out), load_dataset(file, skip_long=True, train_on="last")
    assert code == 0 and found["format"] == data.kind and [found["train"], found["heldout"]] == [data.size, 1]
    assert (
        found["limit"] == 64 and found["long"] == ["chat.jsonl, line 12"] and found["bare"] == ["chat.jsonl, line 13"]
    )
    parts = [[(part["text"], part["graded"]) for part in row] for row in found["rows"]]
    assert parts == [[(GPT2.decode(p), bool(i % 2)) for i, p in enumerate(row)] for row in data.rows[:3]]
    assert len(found["lengths"]) == 12 and max(found["lengths"]) > 64


def test_a_file_whose_rows_are_all_too_long_is_shown_and_then_refused_as_by_a_run(file, capsys):
    code, out, err = said(capsys, file, "--block", "5")
    assert (
        code == 1
        and "has no row besides 12 that are too long and 1 that have nothing to grade: give" in err
        and "to train on it" not in out
    )
    assert "messages, 0 rows to train on, 0 held out" in out
    assert "needs --skip-long: 12 (chat.jsonl, lines 1, 2, 3, 4, 5, 6, 7, 8 and 4 more)" in out


def test_a_corpus_of_the_course_is_named_as_one(capsys):
    code, _, err = said(capsys, "records")
    assert code == 1 and "records is a corpus of the course, not a file: train on it with" in err


def test_on_a_terminal_what_is_graded_is_reversed_and_no_text_gives_it_orders(tmp_path, monkeypatch, capsys):
    rows = [chat(i, "\x1b[31m\x07") for i in range(2)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    out = said(capsys, str(tmp_path / "a.jsonl"))[1]
    assert "0 plus one\\x1b[31m\\x07\nAssistant:\033[7m is 1<|endoftext|>\033[0m" in out and "«" not in out
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\033" not in said(capsys, str(tmp_path / "a.jsonl"))[1]


def test_a_long_part_is_shown_by_its_ends(tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text(
        json.dumps(dict(prompt="b" * 2000, completion="c")) + "\n" + '{"prompt":"a","completion":"b"}'
    )
    out = said(capsys, str(tmp_path / "a.jsonl"), "--base", "gpt2")[1]
    assert f"{'b' * 300} ... 1,401 characters ... {'b' * 299}\n«c<|endoftext|>»" in out and "b" * 301 not in out


def test_a_text_is_shown_as_windows(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("A line of text that goes on.\n" * 60)
    out = said(capsys, str(tmp_path / "a.txt"), "--block", "16")[1]
    assert re.match(r".*a\.txt: text, \d+ windows of 16 tokens to train on, the end held out\n", out)
    assert "row 3, 17 tokens, 16 of them graded" in out


def test_a_map_and_what_is_wrong_are_said_in_a_sentence(tmp_path, capsys):
    (tmp_path / "a.csv").write_text("question,answer\na,b\nc,d\n")
    path = str(tmp_path / "a.csv")
    code, out, err = said(capsys, path)
    assert code == 1 and not out and "as in --map prompt=question,completion=answer" in err and err.count("\n") == 1
    assert "prompt/completion, 1 rows" in said(capsys, path, "--map", "prompt=question,completion=answer")[1]
    assert "begin with one of messages, conversations" in said(capsys, path, "--map", "x=y")[2]
    assert "--block 65 does not fit this base" in said(capsys, path, "--block", "65")[2]
    assert "there is no base called 'x'" in said(capsys, path, "--base", "x")[2]
    assert "there is no file nowhere.csv" in said(capsys, "nowhere.csv")[2]


@pytest.mark.parametrize("lengths", [[1], [5, 5], [0, 9, 10], [3, 9000], [1000, 1001], list(range(1, 65))])
def test_a_histogram_has_ten_bars_at_most_and_counts_every_row(lengths):
    bars = [re.match(r" *([\d,]+) to +([\d,]+)  #* ?([\d,]+)", line) for line in _histogram(lengths, 10_000)]
    edges = [tuple(int(n.replace(",", "")) for n in bar.groups()) for bar in bars]
    assert len(edges) <= BARS and [n for *_, n in edges] == [sum(a <= x <= b for x in lengths) for a, b, _ in edges]
    assert sum(n for *_, n in edges) == len(lengths) and all(b + 1 == a for (_, b, _), (a, *_) in zip(edges, edges[1:]))


def test_a_row_that_does_not_fit_leaves_the_bars_of_the_others_as_they_are():
    assert list(_histogram([3, 4, 9000], 64)) == [*_histogram([3, 4], 64), "more than 64  1, up to 9,000"]


def test_the_tokenizer_comes_without_the_weights(tmp_path, tiny, monkeypatch):
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models

    words = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "<e>": 1}, "a")), eos_token="<e>"
    )
    sizes = dict(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, max_position_embeddings=48))
    for part in (model, words):
        part.save_pretrained(tmp_path)
    (whole, context), read = load_tokenizer(tmp_path), bases.load(tmp_path)
    assert (whole.digest, context) == (read.tokenizer.digest, read.context) == (whole.digest, 48)
    (tmp_path / "model.safetensors").unlink()
    assert load_tokenizer(tmp_path)[0].digest == whole.digest
    assert load_tokenizer(tiny) == (GPT2, 64)
    monkeypatch.setattr(loading, "load", None)
    monkeypatch.setattr(loading, "fetch_smollm2", lambda: tmp_path)
    assert load_tokenizer("course") == (GPT2, GPTConfig().block_size) and load_tokenizer("gpt2") == (GPT2, 1024)
    assert load_tokenizer("smollm2")[1] == 48
