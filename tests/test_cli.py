"""The command line: help that fits, JSON that parses, errors in one sentence, Ctrl-C that loses nothing."""

import importlib.metadata
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.main import get_command

from llm import bases
from llm.__main__ import main
from llm.adapters.folder import CONFIG, TENSORS
from llm.bases import smollm2
from llm.cli import data, doctor, export, finetune, maintenance, use_adapter  # noqa: F401 (the commands are on the app then)
from llm.cli.app import app
from llm.cli.interrupts import asked_to_stop
from llm.errors import AdapterError, BaseError, SettingError
from llm.finetune import run as runs
from llm.finetune.resume import resume
from llm.finetune.run import RESUME
from llm.finetune.settings import Settings
from llm.text import chat, corpora, download

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = get_command(app).commands
TEXT = "The cat sat on the mat, and the dog sat on the log. " * 40
QUICK = ["--rank", "2", "--alpha", "4", "--rows", "3", "--block", "8", "--seed", "5"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A folder of its own with a text in it, as a learner would have."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(TEXT)


def lay_peft_adapter(capsys, tiny, folder, base):
    """An adapter as PEFT writes it for the tiny base: its config names `base`, and no fingerprint says which it is."""
    assert main(["finetune", "text.txt", "--base", str(tiny), "--out", folder, "--steps", "1", *QUICK]) == 0
    (Path(folder) / "run.json").unlink()
    config = json.loads((Path(folder) / CONFIG).read_text())
    (Path(folder) / CONFIG).write_text(json.dumps(config | {"base_model_name_or_path": base}))
    save_file(load_file(f"{folder}/{TENSORS}"), f"{folder}/{TENSORS}", {"format": "pt"})
    capsys.readouterr()


def said(capsys, *argv):
    """Exit code, stdout and stderr of a command."""
    code = main([str(a) for a in argv])
    return code, *capsys.readouterr()


def interrupt_in_the_first_step(monkeypatch):
    """Ctrl-C, as it comes while the first step of a run is at work."""
    train = runs.train

    def interrupted(*args, **options):
        signal.raise_signal(signal.SIGINT)
        yield from train(*args, **options)

    monkeypatch.setattr(runs, "train", interrupted)


def lines(out):
    return [json.loads(line) for line in out.splitlines()]


def start(*argv, **options):
    """A command in a process of its own."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "llm", *map(str, argv)]
    return subprocess.Popen(command, env=env, stdout=-1, stderr=-1, text=True, **options)


@pytest.fixture
def made(tiny, capsys):
    """An adapter made by the command line, in the folder "made"."""
    assert main(["finetune", "text.txt", "--base", tiny, "--out", "made", "--steps", "3", "--lr", "0.5", *QUICK]) == 0
    capsys.readouterr()
    return "made"


# consoles


CONSOLES = [dict(PYTHONIOENCODING="cp1252"), dict(PYTHONIOENCODING="ascii:strict"), dict(LC_ALL="C", PYTHONUTF8="0")]


@pytest.mark.parametrize("console", CONSOLES, ids=lambda env: " ".join(env.values()))
def test_what_a_console_cannot_show_costs_no_run_and_no_text(tiny, monkeypatch, console):
    for name, value in (dict(PYTHONCOERCECLOCALE="0") | console).items():
        monkeypatch.setenv(name, value)
    run = ["finetune", "text.txt", "--base", tiny, "--out", "Модель", "--steps", "2", *QUICK]
    script = "import json, sys; from llm.__main__ import main; print([main(argv) for argv in json.loads(sys.argv[1])])"
    argvs = json.dumps([run, ["adapters", "Модель", "--json"], ["adapters", "Модель"]], ensure_ascii=False)
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script, argvs], env=env, capture_output=True, text=True)
    out = done.stdout.splitlines()
    assert done.returncode == 0 and out[-1] == "[0, 0, 0]" and "the adapter is in " in done.stdout, done.stderr
    assert (Path("Модель") / TENSORS).is_file()
    (shown,) = [json.loads(line) for line in out if line.startswith("{")]
    assert os.fsencode(shown["adapters"][0]["folder"]) == "Модель".encode()
    assert any("rank 2" in line for line in out)


@pytest.mark.parametrize("to", [">/dev/full", "| true", ">&- 2>&-"])
def test_a_run_whose_output_nobody_takes_trains_to_its_end(tiny, to):
    argv = ["finetune", "text.txt", "--base", tiny, "--out", "out", "--steps", "4", "--json", *QUICK]
    command = shlex.join([sys.executable, "-m", "llm", *argv])
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command} {to}"], env=env, capture_output=True, text=True)
    assert done.returncode == 0 and (Path("out") / TENSORS).exists() and not (Path("out") / RESUME).exists(), (
        done.stderr
    )


# help


@pytest.mark.parametrize("name", [None, *COMMANDS])
def test_help_fits_a_screen_and_has_an_example_that_holds(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = said(capsys, *([name] if name else []), "--help")
    shown = out.rstrip().splitlines()
    assert code == 0 and not err and len(shown) <= 40 and max(map(len, shown)) <= 80, out
    assert not re.search("[^\n -~]", out)  # readable everywhere
    if name:
        (example,) = re.findall(r"^  Example: python -m llm (.*)$", out, re.M)
        command, *argv = shlex.split(example)
        assert command == name and COMMANDS[name].make_context(name, argv)
        assert all(option.help for option in COMMANDS[name].params if option.param_type_name == "option")


def test_help_names_every_command_and_no_sentence_is_cut_short(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = said(capsys, "--help")
    shown = out.partition("Commands:\n")[2]
    listed = re.findall(r"^  ([\w-]+)  +[A-Z].*\.$", shown, re.M)
    assert sorted(listed) == sorted(COMMANDS) and "..." not in shown
    assert max(map(listed.index, ("data", "finetune", "generate", "export", "merge"))) < listed.index("doctor")
    bare = said(capsys)
    assert bare[0] in (0, 2) and "Usage" in bare[1] + bare[2]  # 0 before click 8.2


def test_help_does_not_wait_for_torch():
    script = (
        "import sys; from llm.__main__ import main; main(['finetune', '--help']); assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.DEVNULL).returncode == 0


# finetune


def test_finetune_says_what_trains_what_it_does_to_the_loss_and_where_the_adapter_is(tiny, capsys):
    code, out, err = said(capsys, "finetune", "text.txt", "--base", tiny, "--out", "out", "--steps", "3", *QUICK)
    assert code == 0 and (Path("out") / TENSORS).exists()
    first, last, meaning = out.splitlines()
    assert meaning.startswith("the held-out loss hardly moved, from 10.") and "; try " in meaning
    assert re.fullmatch(r"512 of 1,613,008 parameters train; held-out loss 10\.\d{4}", first), first
    assert re.fullmatch(r"held-out loss 10\.\d{4}; the adapter is in out", last)
    assert "3/3" in err and "loss 10." in err


def test_finetune_in_json_is_a_line_for_the_start_each_step_and_the_end_and_nothing_else(tiny, capsys):
    argv = ["finetune", "text.txt", "--base", tiny, "--out", "out", "--steps", "3", "--json", *QUICK]
    code, out, _ = said(capsys, *argv)
    first, *steps, last = lines(out)
    assert code == 0 and [row["event"] for row in (first, *steps, last)] == ["start", "step", "step", "step", "end"]
    assert (first["done"], first["steps"], first["trainable"]) == (0, 3, 512) and last["adapter"] == "out"
    assert [row["step"] for row in steps] == [1, 2, 3] and all(row["tokens"] == 24 for row in steps)
    assert {"loss", "lr", "seconds"} <= steps[0].keys() and last["heldout"] != first["heldout"]
    curve = [[0, first["heldout"]], *([row["step"], row["heldout"]] for row in steps if "heldout" in row)]
    assert last["curve"] == curve and len(curve) == 2 and [last["best"], last["heldout"]] in curve[1:]
    assert last["verdict"].keys() == {"kind", "sentence", "try_next"} and last["verdict"]["kind"] == "too cold"


def of_a_run(tiny, capsys, monkeypatch, heldout, *options):
    """What is said of a run of three steps whose held-out losses, the base's first, are these."""
    losses = iter(heldout)
    monkeypatch.setattr(runs, "evaluate", lambda *_, **__: next(losses))
    argv = ["finetune", "text.txt", "--base", tiny, "--out", "out", "--steps", "3", "--measure", "1", *QUICK]
    code, out, err = said(capsys, *argv, *options)
    return code, out.splitlines(), err.splitlines()[-1]


def test_finetune_says_which_step_is_kept_and_what_the_last_one_had(tiny, capsys, monkeypatch):
    _, (_, kept, meaning), _ = of_a_run(tiny, capsys, monkeypatch, (5.0, 4.5, 3.0, 3.5))
    best = "at step 2, the best of 3 measured (3.5000 at the last, step 3)"
    assert kept == f"held-out loss 3.0000 {best}; the adapter is in out" and meaning.startswith(
        "the held-out loss rose"
    )


def test_finetune_says_when_no_step_was_better_than_the_base(tiny, capsys, monkeypatch):
    _, (_, kept, plainly, _), _ = of_a_run(tiny, capsys, monkeypatch, (5.0, 6.0, 5.5, 7.0))
    assert kept.startswith("held-out loss 5.5000 at step 2")
    assert plainly == "no step was better than the base, whose held-out loss is 5.0000"


def test_finetune_says_when_its_patience_is_over_and_in_json_which_step_is_kept(tiny, capsys, monkeypatch):
    code, (_, over, kept, _), _ = of_a_run(tiny, capsys, monkeypatch, (5.0, 4.0, 4.5), "--patience", "1")
    assert code == 0 and over == "ended after step 2 of 3: 1 measurement behind the best step brought no better one"
    assert kept.startswith("held-out loss 4.0000 at step 1")
    options = "--patience", "1", "--json", "--out", "again"
    _, rows, _ = of_a_run(tiny, capsys, monkeypatch, (5.0, 4.0, 4.5), *options)
    *_, last = map(json.loads, rows)
    assert [last[key] for key in ("event", "done", "steps", "best", "heldout")] == ["end", 2, 3, 1, 4.0]


def test_a_stopped_run_says_whose_adapter_the_folder_has(tiny, capsys, monkeypatch):
    interrupt_in_the_first_step(monkeypatch)
    code, _, end = of_a_run(tiny, capsys, monkeypatch, (5.0, 4.0))
    assert code == 130 and end.endswith("--out out`; the adapter is that of step 1, the best so far")


def test_what_a_base_cannot_read_of_a_chat_template_is_said_once(tiny, capsys, monkeypatch):
    def notes(tokenizer, model=None, tools=False):
        return ["known without the base"] + ["this base was never trained on it"] * (model is not None)

    monkeypatch.setattr(chat, "template_notes", notes)
    turns = [dict(role=role, content="Hi") for role in ("user", "assistant")]
    Path("chat.jsonl").write_text("".join(json.dumps(dict(messages=turns * n)) + "\n" for n in (1, 2)))
    _, out, _ = said(capsys, "finetune", "chat.jsonl", "--base", tiny, "--steps", "1", "--rank", "2", "--json")
    told = lines(out)[0]["notes"]
    assert told.count("known without the base") == told.count("this base was never trained on it") == 1


def test_epochs_instead_of_steps_or_a_sentence(tiny, capsys):
    argv = ["finetune", "text.txt", "--base", tiny, "--out", "out", *QUICK, "--epochs", "0.1", "--json"]
    code, out, _ = said(capsys, *argv)
    assert code == 0 and lines(out)[0]["steps"] == round(0.1 * 67 / 3) == lines(out)[-1]["done"]
    code, out, err = said(capsys, "finetune", "records", "--steps", 5, "--epochs", 2)
    assert (code, out) == (1, "") and err.startswith("error: --steps 5 and --epochs 2 are the same twice")


def scalars(folder):
    """What the event files of a folder say, read without TensorBoard: (tag, step, value), where nothing purged it later."""
    event_pb2, found = pytest.importorskip("tensorboardX.proto.event_pb2"), []
    for path in sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns):
        left = path.read_bytes()
        while left:  # a record is its length in 8 bytes, 4 of a checksum, itself, 4 of a checksum
            end = 12 + int.from_bytes(left[:8], "little")
            event, left = event_pb2.Event.FromString(left[12:end]), left[end + 4 :]
            if event.session_log.status == event.session_log.START:
                found = [row for row in found if row[1] < event.step]
            found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
    return found


def test_curves_for_tensorboard_are_those_of_the_log_also_after_a_stop(tiny, capsys, monkeypatch):
    pytest.importorskip("tensorboardX")
    options = "--steps", "3", "--measure", "2", "--log", "tensorboard"
    with monkeypatch.context() as patched:
        interrupt_in_the_first_step(patched)
        assert said(capsys, "finetune", "text.txt", "--base", tiny, "--out", "out", *options, *QUICK)[0] == 130
    (first,) = Path("out/tensorboard").iterdir()  # its name is the second, and the test may not take one
    first.rename(first.with_name("events.out.tfevents.1.before"))
    assert said(capsys, "finetune", "--resume", "--out", "out", "--log", "tensorboard")[0] == 0
    rows, tags = (
        lines(Path("out/log.jsonl").read_text()),
        dict(loss="loss/training", heldout="loss/held-out", lr="rate"),
    )
    wanted = {(tags[key], row["step"]): row[key] for row in rows for key in tags if key in row}
    drawn = scalars(Path("out/tensorboard"))
    assert {(tag, step): value for tag, step, value in drawn} == pytest.approx(wanted) and len(drawn) == len(
        wanted
    ) == 9


def test_without_tensorboardx_the_log_is_one_sentence_that_says_how_to_get_it(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    code, out, err = said(capsys, "finetune", "records", "--log", "tensorboard")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("error: --log tensorboard needs") and "pip install -e '.[data]'" in err


def test_every_option_reaches_the_run(tiny, monkeypatch):
    asked = []
    monkeypatch.setattr(runs, "begin", lambda *args: asked.append(args) or (_ for _ in ()).throw(SettingError("x")))
    given = dict(rank=3, alpha=5.0, scaling="alpha/sqrt(r)", targets="mlp", steps=7, lr=0.25, rows=9, block=11, seed=13)
    given |= dict(start="paper", dropout=0.5, quantize="nf4", method="dora", epochs=2.5, measure=4, patience=6)
    given |= dict(map="prompt=a", train_on="last", template="chatml")
    options = [part for key, value in given.items() for part in (f"--{key.replace('_', '-')}", str(value))]
    assert main(["finetune", "text.txt", "--base", tiny, "--out", "o", "--dtype", "bfloat16", *options]) == 1
    [(settings, out, device, group)] = asked
    assert settings == Settings("text.txt", tiny, dtype="bfloat16", **given)
    assert (out, device, group.size) == (Path("o"), torch.device("cpu"), 1)
    assert main(["finetune", "records"]) == 1 and asked[1][0] == Settings("records")  # the defaults are the same


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda s: s.name)
def test_ctrl_c_saves_what_there_is_and_the_run_goes_on_bit_for_bit(tiny, capsys, number):
    argv = ["finetune", "text.txt", "--base", tiny, "--steps", "5000", "--every", "5000", *QUICK]
    run = start(*argv, "--out", "stopped", "--json")
    seen = [json.loads(run.stdout.readline()) for _ in range(4)]  # the start, then three steps
    assert seen[-1]["step"] == 3
    run.send_signal(number)
    out, err = run.communicate(timeout=1200)  # against a hang
    assert run.returncode == 128 + number
    done = lines(out)[-1]["done"]
    assert lines(out)[-1] == dict(event="stopped", done=done, steps=5000, adapter="stopped", best=None)
    assert "stopping after this step" in err
    again = "go on with `python -m llm finetune --resume --out stopped`"
    assert err.splitlines()[-1] == f"stopped after step {done} of 5000, and saved: {again}"
    settings = Settings("text.txt", tiny, rank=2, alpha=4.0, rows=3, block=8, seed=5, steps=5000)
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the other process: the order of a sum is part of its bits
    try:
        whole = runs.begin(settings, Path("whole"))
        list(whole.steps(stop=lambda: whole.done == done + 2))
        more = resume(Path("stopped"))
        list(more.steps(stop=lambda: more.done == done + 2))
    finally:
        torch.set_num_threads(before)
    one, other = (load_file(f"{name}/{TENSORS}") for name in ("whole", "stopped"))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_resume_needs_no_more_than_the_folder_and_refuses_what_differs(tiny, capsys, monkeypatch):
    argv = ["finetune", "text.txt", "--base", tiny, "--out", "out", "--steps", "4", *QUICK]
    with monkeypatch.context() as patched:  # somebody stops it after the first step
        interrupt_in_the_first_step(patched)
        code, out, err = said(capsys, *argv)
    assert code == 130 and "stopped after step 1 of 4, and saved" in err and len(out.splitlines()) == 1
    code, _, err = said(capsys, "finetune", "--resume", "--out", "out", "--rank", "8")
    assert code == 1 and "--rank 8 is not what the run in out began with (2)" in err
    code, out, _ = said(capsys, "finetune", "--resume", "--out", "out", "--rank", "2", "--json")
    assert code == 0 and [row["step"] for row in lines(out)[1:-1]] == [2, 3, 4] and lines(out)[0]["done"] == 1


def test_the_first_signal_is_a_wish_the_second_one_stops_at_once_but_not_under_torchrun(capfd, monkeypatch):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), asked_to_stop() as signals:
        assert not signals
        signal.raise_signal(signal.SIGINT)
        assert signals == [signal.SIGINT]
        signal.raise_signal(signal.SIGINT)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    with asked_to_stop() as signals:
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)
        assert signals[-1] == signal.SIGTERM
    assert signal.getsignal(signal.SIGINT) is before and capfd.readouterr().err.count("stopping after this step") == 2


@pytest.mark.parametrize("moment", ["typer", "llm.cli.maintenance", "torch", "tiktoken", "the end"])
def test_ctrl_c_while_the_command_imports_or_ends_is_no_traceback(moment):
    script = """
import atexit, runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that starts the tests behind & has it ignored
moment = sys.argv.pop(1)
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == moment:
            signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
if moment == "the end":
    atexit.register(signal.raise_signal, signal.SIGINT)
runpy.run_module("llm", run_name="__main__", alter_sys=True)
"""
    command = [sys.executable, "-c", script, moment, "doctor"]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    ended = (-signal.SIGINT, "") if moment == "the end" else (130, "stopped\n")
    assert (done.returncode, done.stderr) == ended


@pytest.mark.parametrize("rank", ["", "x", "0", None])
def test_what_a_cluster_sets_for_itself_is_no_crash_of_a_sentence(monkeypatch, capsys, rank):
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    code, _, err = said(capsys, "adapters", "nowhere")
    process = "process x: " if rank == "x" else ""
    assert code == 1 and err.startswith(f"error: {process}nowhere does not exist") and err.count("\n") == 1


def test_ctrl_c_before_the_first_step_is_one_word(tiny, capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(bases, "load", interrupt)
    assert said(capsys, "finetune", "text.txt", "--base", tiny) == (130, "", "stopped\n")


def test_the_courses_own_base_and_a_corpus_by_name(capsys):
    argv = ["finetune", "records", "--steps", "2", "--rows", "2", "--out", "out", "--json"]
    code, out, _ = said(capsys, *argv)
    assert code == 0 and lines(out)[0]["trainable"] == 65_536
    code, out, _ = said(capsys, "generate", 'Send "river" from "Angel".', "--adapter", "out", "--temperature", 0)
    assert code == 0 and out.startswith("{")  # the base writes records after a sentence and a line break


# generate, adapters, merge


def test_generate_repeats_itself_by_seed_and_an_adapter_changes_what_it_says(tiny, made, capsys):
    base = ["generate", "The cat", "--base", tiny, "--max-new-tokens", "12", "--seed", "1"]
    texts = [said(capsys, *base)[1], said(capsys, *base)[1], said(capsys, *base, "--adapter", made)[1]]
    assert texts[0] == texts[1] != texts[2]
    code, out, err = said(capsys, *base, "--json")
    assert code == 0 and not err and json.loads(out)["text"] + "\n" == texts[0] and json.loads(out)["seed"] == 1


def test_generate_takes_the_base_that_the_adapter_was_made_on(tiny, made, capsys):
    found = [said(capsys, "generate", "The", "--adapter", made, "--seed", 1, *more) for more in ([], ["--base", tiny])]
    assert found[0] == found[1] and found[0][0] == 0


def test_a_name_of_ours_is_that_base_whatever_lies_here_and_a_folder_of_that_name_is_a_path(tiny, capsys):
    ask = ["generate", "To be", "--max-new-tokens", "8", "--temperature", "0"]
    plain = said(capsys, *ask)
    shutil.copytree(tiny, "course")
    assert said(capsys, *ask) == said(capsys, *ask, "--base", "course") == plain and plain[0] == 0
    for there in ("./course", "course/", Path("course").absolute()):
        assert said(capsys, *ask, "--base", there) == said(capsys, *ask, "--base", tiny) != plain
    assert bases.load("course").origin is None and bases.load(Path("course")).origin == "course"
    assert bases.load(tiny).origin == "tiny"


def test_a_merged_base_is_asked_as_its_adapter_was(tiny, tmp_path, capsys):
    """Rows end their prompts with a line break, which a person does not type."""
    Path("rows.jsonl").write_text('{"prompt": "The", "completion": "end"}\n{"prompt": "An", "completion": "ox"}\n')
    options = ["--base", tiny, "--steps", "4", "--rows", "2", "--lr", "0.1", "--out", "learned"]
    assert said(capsys, "finetune", "rows.jsonl", *options)[0] == 0
    ask = ["generate", "The", "--max-new-tokens", "8", "--temperature", "0"]
    adapted, plain = said(capsys, *ask, "--adapter", "learned"), said(capsys, *ask, "--base", tiny)
    assert said(capsys, "merge", "learned", "--out", "whole")[0] == 0
    assert said(capsys, *ask, "--base", "whole") == adapted != plain
    assert str(tmp_path) not in Path("whole/run.json").read_text()


def test_merge_says_how_to_call_what_it_wrote(tiny, made, capsys):
    for out, name in (("course", "./course"), ("a b", "'a b'"), ("gpt2", "./gpt2"), ("whole", "whole")):
        code, text, _ = said(capsys, "merge", made, "--out", out)
        assert code == 0 and text.endswith(f" --base {name}\n")


def test_without_a_base_the_adapters_config_names_it_and_else_a_sentence_does(tiny, capsys):
    shutil.copytree(tiny, "right")
    lay_peft_adapter(capsys, tiny, "a", "right")
    ask = ["generate", "The", "--adapter", "a", "--max-new-tokens", "4", "--temperature", "0"]
    assert (
        said(capsys, *ask)
        == said(capsys, *ask, "--base", "right")
        == said(capsys, *ask, "--base", tiny)[:0]
        + (
            0,
            said(capsys, *ask, "--base", "./right/")[1],
            "",
        )
    )
    assert said(capsys, "merge", "a", "--out", "whole")[0] == 0
    shutil.rmtree("right")
    for argv in (ask, ["merge", "a", "--out", "other"]):
        code, out, err = said(capsys, *argv)
        assert (code, out) == (1, "")
        assert err == "error: the base of a, 'right', is not here: give the folder of that model with --base\n"


def test_another_base_than_the_config_names_is_said_where_no_fingerprint_can_decide(tiny, stranger, capsys):
    lay_peft_adapter(capsys, tiny, "a", "models/right")
    shutil.copytree(stranger, "wrong")
    ask = ["--base", "wrong", "--max-new-tokens", "2"]
    code, _, err = said(capsys, "generate", "The", "--adapter", "a", *ask)
    assert code == 0 and "'models/right'" in err and err.count("\n") == 1
    code, out, _ = said(capsys, "adapters", "a", "--base", "wrong")
    assert code == 0 and out.splitlines()[-1] == "fits wrong, but its config names another base, 'models/right'"
    (row,) = json.loads(said(capsys, "adapters", "a", "--base", "wrong", "--json")[1])["adapters"]
    assert row["fits"] and "'models/right'" in row["note"]
    for place in ("right", "else/where/right"):
        shutil.copytree(tiny, place)
        assert said(capsys, "generate", "The", "--adapter", "a", "--base", place)[2] == ""
    os.symlink("right", "link")
    assert said(capsys, "merge", "a", "--base", "link", "--out", "whole")[2] == ""


@pytest.mark.parametrize(("ours", "theirs"), bases.loading.HUB.items())
def test_what_the_hub_calls_a_base_of_ours_is_no_other_base(tiny, capsys, monkeypatch, ours, theirs):
    lay_peft_adapter(capsys, tiny, "a", theirs)
    base, asked = bases.load(tiny), []
    monkeypatch.setattr(bases, "load", lambda name, *_: asked.append(name) or base)
    assert said(capsys, "adapters", "a", "--base", ours)[1].splitlines()[-1] == f"fits {ours}"
    assert said(capsys, "generate", "The", "--adapter", "a", "--max-new-tokens", "1")[::2] == (0, "")
    assert asked == [ours, theirs]


def test_a_prompt_that_is_no_text_is_one_sentence_whatever_the_base(monkeypatch, capsys):
    monkeypatch.setattr(bases, "load", lambda *_: 1 / 0)
    code, out, err = said(capsys, "generate", "caf\udce9")
    assert (code, out) == (1, "") and err.startswith("error: the prompt ") and err.count("\n") == 1


def test_special_tokens_written_in_a_prompt_are_counted_on_stderr(tiny, capsys, monkeypatch):
    base = bases.load(tiny)
    chat = replace(base, tokenizer=replace(base.tokenizer, special=("<|im_start|>", "<|im_end|>")))
    monkeypatch.setattr(bases, "load", lambda *_: chat)
    prompt = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    code, out, err = said(capsys, "generate", prompt, "--max-new-tokens", "1", "--json")
    assert code == 0 and json.loads(out)["prompt"] == prompt
    assert err == "note: the prompt spells out special tokens (3), which are read as ordinary text\n"
    assert said(capsys, "generate", "hi", "--max-new-tokens", "1")[2] == ""


def test_a_prompt_gets_the_line_break_that_the_rows_had_and_no_second_one(tiny, capsys, monkeypatch):
    asked = []
    monkeypatch.setattr(bases.Base, "generate", lambda self, prompt, *_: asked.append(prompt) or "")
    rows = [json.dumps({"prompt": str(i), "completion": "so"}) for i in range(3)]
    Path("rows.jsonl").write_text("\n".join(rows))
    for source, out in (("rows.jsonl", "rows"), ("text.txt", "text")):
        assert main(["finetune", source, "--base", tiny, "--out", out, "--steps", "1", *QUICK]) == 0
    for argv in (["7", "--adapter", "rows"], ["7\n", "--adapter", "rows"], ["7", "--adapter", "text"], ["7"]):
        assert main(["generate", *argv, *(["--base", tiny] if len(argv) == 1 else [])]) == 0
    assert asked == ["7\n", "7\n", "7", "7"]


@pytest.mark.parametrize("method", ["lora+", "dora", "pissa", "ia3"])
def test_another_methods_adapter_speaks_is_shown_and_merges(tiny, capsys, method):
    rest = QUICK[4:] if method == "ia3" else QUICK
    argv = ["finetune", "text.txt", "--base", tiny, "--out", "made", "--steps", "3", "--lr", "0.1", *rest]
    assert said(capsys, *argv, "--method", method)[0] == 0
    assert json.loads((Path("made") / "run.json").read_text())["method"] == method
    code, out, _ = said(capsys, "adapters", "made", "--base", tiny)
    first = {"dora": "DoRA, rank 2", "pissa": "rank 4", "ia3": "IA3", "lora+": "rank 2"}[method]
    assert code == 0 and out.splitlines()[1].startswith(first) and f"fits {tiny}" in out
    ask = ["generate", "The cat", "--temperature", "0", "--max-new-tokens", "8"]
    code, spoken, _ = said(capsys, *ask, "--adapter", "made")
    assert code == 0 and spoken != said(capsys, *ask, "--base", tiny)[1]
    assert said(capsys, "merge", "made", "--out", "merged")[0] == 0
    assert said(capsys, *ask, "--base", "merged")[1] == spoken


def test_adapters_shows_each_and_whether_it_fits(tiny, stranger, made, capsys):
    code, out, err = said(capsys, "adapters", made)
    assert code == 0 and not err and "rank 2, alpha 4, scale alpha/r = 2" in out and "512 parameters" in out
    assert "fits" not in out
    other = ["finetune", "text.txt", "--base", tiny, "--out", "other", "--steps", "1", "--block", "8", "--rank", "3"]
    assert said(capsys, *other)[0] == 0
    code, out, err = said(capsys, "adapters", made, "other", made, "--base", tiny)  # each on the plain base
    assert code == 0 and out.count(f"fits {tiny}") == 3
    code, out, err = said(capsys, "adapters", made, "--base", stranger)
    assert code == 1 and "rank 2" in out and "fits" not in out and err.startswith("error: made was trained on another")


def test_adapters_in_json_is_one_object_that_says_the_same_also_of_what_is_damaged(tiny, made, capsys):
    (Path("bad") / "x").mkdir(parents=True)
    code, out, err = said(capsys, "adapters", made, "bad", "--base", tiny, "--json")
    good, bad = json.loads(out)["adapters"]
    assert code == 1 and not err
    assert (good["folder"], good["r"], good["alpha"], good["parameters"], good["fits"]) == ("made", 2, 4, 512, True)
    assert good["error"] is None and len(good["targets"]) == 4 and good["fingerprint"] and good["bytes"] > 2048
    assert bad["folder"] == "bad" and bad["fits"] is None and "has no adapter_model.safetensors" in bad["error"]


def test_merge_writes_a_base_that_says_what_base_and_adapter_said(tiny, made, capsys):
    asked = ["--temperature", "0", "--max-new-tokens", "9", "--json"]
    before = json.loads(said(capsys, "generate", "The cat", "--adapter", made, *asked)[1])["text"]
    code, out, _ = said(capsys, "merge", made, "--out", "whole", "--json")
    assert code == 0 and json.loads(out) == {"base": tiny, "adapter": "made", "out": "whole"}
    assert json.loads(said(capsys, "generate", "The cat", "--base", "whole", *asked)[1])["text"] == before
    plain = json.loads(said(capsys, "generate", "The cat", "--base", tiny, *asked)[1])["text"]
    assert plain != before  # the adapter does something
    code, _, err = said(capsys, "merge", made, "--out", "whole")
    assert (
        code == 1
        and err == "error: whole is there already and is not an empty folder: choose another --out, or move it away\n"
    )


@pytest.mark.parametrize("method", ["lora", "dora", "ia3"])
def test_an_adapter_over_four_bits_is_made_used_and_merged_over_the_same_four_bits(tiny, made, capsys, method):
    rest = QUICK[4:] if method == "ia3" else QUICK
    argv = ["finetune", "text.txt", "--base", tiny, "--steps", "3", "--lr", "0.5", *rest, "--method", method]
    assert said(capsys, *argv, "--out", "small", "--quantize", "nf4-double")[0] == 0
    assert json.loads(Path("small/run.json").read_text())["quantize"] == "nf4-double"
    code, out, err = said(capsys, "adapters", "small", made, "small", "--base", tiny)  # each over its own
    assert code == 0 and not err and out.count(f"fits {tiny}") == 3 and out.count("quantized to nf4-double") == 2
    asked = ["generate", "The cat", "--temperature", "0", "--max-new-tokens", "9"]
    one = said(capsys, *asked, "--adapter", "small")
    assert one[0] == 0 and one == said(capsys, *asked, "--adapter", "small", "--base", tiny)
    Path("small/run.json").unlink()  # the adapter says it by itself
    assert one == said(capsys, *asked, "--adapter", "small", "--base", tiny)
    assert said(capsys, "merge", "small", "--base", tiny, "--out", "whole")[0] == 0
    assert said(capsys, *asked, "--base", "whole") == one
    whole = load_file("whole/model.safetensors")
    assert whole["transformer.h.0.mlp.c_fc.weight"].dtype == torch.float32


def test_another_base_than_the_adapters_is_named_and_an_empty_answer_is_noted(tiny, capsys, monkeypatch):
    assert said(capsys, "finetune", "text.txt", "--base", tiny, "--out", "out", "--steps", "1", *QUICK)[0] == 0
    code, _, err = said(capsys, "generate", "Hi", "--adapter", "out", "--base", "course")
    assert code == 1 and "out was trained on" in err and err.rstrip().endswith("leave --base out")
    for text, noted in (("\n", True), (" x", False)):  # what `generate` returns is new text alone
        monkeypatch.setattr("llm.bases.Base.generate", lambda self, *_, text=text: text)
        code, out, err = said(capsys, "generate", "a prompt that is longer than its answer", "--adapter", "out")
        assert (code, out) == (0, f"{text}\n")
        assert err.startswith("note: the model ended its text at once") == noted and bool(err) == noted


def test_a_run_that_diverges_says_where_a_new_one_can_go(tiny, capsys):
    code, _, err = said(
        capsys, "finetune", "text.txt", "--base", tiny, "--out", "out", "--steps", "9", "--lr", "1e30", *QUICK
    )
    assert code == 1 and "lower the learning rate" in err and err.rstrip().endswith("a new one needs another --out")


def test_a_stopped_run_over_four_bits_goes_on_over_four_bits(tiny, capsys, monkeypatch):
    argv = ["finetune", "text.txt", "--base", tiny, "--out", "out", "--steps", "3", "--quantize", "nf4", *QUICK]
    with monkeypatch.context() as patched:
        interrupt_in_the_first_step(patched)
        assert said(capsys, *argv)[0] == 130
    assert said(capsys, "finetune", "--resume", "--out", "out")[0] == 0
    assert said(capsys, *argv[:4], "--out", "whole", *argv[6:])[0] == 0
    one, other = (load_file(f"{name}/{TENSORS}") for name in ("whole", "out"))
    assert all(torch.equal(one[key], other[key]) for key in one)


# errors


BAD = [
    (["finetune", "no.txt"], "there is no file no.txt: choose one of speeches"),
    (["finetune", "records", "--base", "nowhere"], "there is no base called 'nowhere': choose one of course"),
    (["finetune", "records", "--device", "tpu"], "there is no device 'tpu' here: choose one of cpu"),
    (["finetune", "records", "--device", "cpu:x"], "there is no device 'cpu:x' here"),
    (["finetune", "records", "--dtype", "int8"], "there is no --dtype int8 here: choose one of float32, bfloat16"),
    (
        ["finetune", "records", "--quantize", "nf5"],
        "course cannot be quantized: there is no scheme 'nf5': choose one of nf4",
    ),
    (["finetune", "records", "--quantize", ""], "course cannot be quantized: there is no scheme '': choose one of nf4"),
    (
        ["finetune", "records", "--method", "qlora"],
        "QLoRA is LoRA over a base of four bits: give --method lora --quantize",
    ),
    (
        ["finetune", "records", "--targets", "foo"],
        "no nn.Linear matches the target 'foo', skipped ones aside: this model's linear layers are called c_attn, c_fc",
    ),
    (["finetune", "records", "--rank", "0"], "--rank 0 makes no sense: give a number from 1 up"),
    (
        ["finetune", "records", "--rank", str(2**31)],
        f"--rank {2**31} makes no sense: give a number from 1 to {2**31 - 1}",
    ),
    (["finetune", "records", "--lr", "0"], "--lr 0.0 makes no sense: give a number above 0"),
    (["finetune", "--resume", "--out", "nowhere"], "there is nothing to resume in nowhere"),
    (["finetune", "records", "--out", "text.txt"], "could not write text.txt ("),
    (["generate", "x", "--adapter", "nowhere"], "nowhere does not exist: give the folder"),
    (["adapters", "nowhere"], "nowhere does not exist: give the folder"),
    (["merge", "nowhere", "--out", "o"], "nowhere does not exist: give the folder"),
]


NUMBERS = [
    ("generate x", "--temperature", ("nan", "inf", "-0.1", "1e30")),
    ("generate x", "--max-new-tokens", ("0", "-1", str(10**12))),
    ("generate x", "--top-k", ("0", "-1", str(10**30))),
    ("generate x", "--seed", ("-1", "12345678901234567890")),
    ("finetune records", "--seed", ("-1", "12345678901234567890")),
    *(("finetune records", f"--{name}", ("0", "-1")) for name in ("every", "steps", "rank", "block", "accumulate")),
    *(("finetune records", f"--{name}", ("0", "-1")) for name in ("measure", "patience", "epochs")),
    ("finetune records", "--rows", ("0", "1" + "0" * 400)),
    ("finetune records", "--alpha", ("0", "nan", "inf")),
    ("finetune records", "--lr", ("0", "-1", "nan", "1e300")),
    ("finetune records", "--dropout", ("-0.1", "1", "nan")),
    ("pretrain", "--seed", ("-1", "12345678901234567890")),
    ("pretrain", "--steps", ("0", "-1")),
]


@pytest.mark.parametrize(("command", "option", "values"), NUMBERS, ids=lambda x: x if isinstance(x, str) else "")
def test_a_number_that_makes_no_sense_is_one_sentence_before_anything_is_loaded(
    monkeypatch, capsys, command, option, values
):
    def load(*_, **__):
        raise AssertionError("something was loaded")

    monkeypatch.setattr(bases, "load", load)
    monkeypatch.setattr(corpora, "load", load)
    for value in values:
        code, out, err = said(capsys, *command.split(), f"{option}={value}")
        assert (code, out) == (1, "") and err.startswith(f"error: {option} "), err
        assert err.count("\n") == 1 and "makes no sense: give a number " in err


def test_a_temperature_as_good_as_none_takes_the_likeliest_token(tiny, capsys):
    texts = [said(capsys, "generate", "The", "--base", tiny, f"--temperature={t}") for t in (0, 1e-40, 1e-320)]
    assert texts[0] == texts[1] == texts[2] and texts[0][0] == 0


LONG = "a" * 5000
PLACES = [
    ["generate", "x", "--base"],
    ["generate", "x", "--adapter"],
    ["adapters"],
    ["adapters", "made", "--base"],
    ["merge", "--out=o"],
    ["merge", "made", "--out=o", "--base"],
    ["merge", "made", "--out"],
    ["finetune", "--steps=1"],
    ["finetune", "text.txt", "--steps=1", "--out"],
    ["finetune", "text.txt", "--steps=1", "--base"],
    ["finetune", "--resume", "--out"],
    ["pretrain", "--out"],
]


@pytest.mark.parametrize("place", PLACES, ids=" ".join)
def test_a_name_that_nothing_has_is_one_sentence_wherever_it_stands(tiny, made, capsys, monkeypatch, place):
    before = sorted(Path().iterdir())
    for name in ("", LONG, f"{LONG}/x", "text.txt/x", "n\udce9"):
        option = place[-1] in ("--base", "--adapter", "--out")
        code, out, err = said(capsys, *place[:-1], *([f"{place[-1]}={name}"] if option else [place[-1], name]))
        assert code == 1 and err.splitlines()[-1].startswith("error: ") and "Traceback" not in err, (name, err)
    assert sorted(Path().iterdir()) == before


@pytest.mark.parametrize("name", ["no\nsuch", "no\\such", "nosuch/", "~nosuch", "~nosuch/x", "n\udce9"], ids=ascii)
def test_a_name_that_is_not_there_is_one_line(capsys, made, name):
    for argv in (["generate", "x", "--base"], ["generate", "x", "--adapter"], ["adapters"], ["finetune"]):
        code, out, err = said(capsys, *argv, name)
        assert code == 1 and not out and err.startswith("error: ") and err.count("\n") == 1, err


@pytest.mark.parametrize("name", ["~x", "a b", "a\nb", "-x", "a\\b", "b/", "é"], ids=ascii)
def test_what_a_file_system_takes_is_a_name_for_all_that_is_written_and_read(tiny, capsys, name):
    argv = ["finetune", "text.txt", "--base", tiny, f"--out={name}", "--steps", "1", *QUICK]
    assert said(capsys, *argv)[0] == 0
    assert said(capsys, "adapters", "--json", "--", name)[0] == 0
    assert said(capsys, "generate", "x", f"--adapter={name}", "--max-new-tokens=1")[0] == 0
    assert said(capsys, "merge", f"--out={name}.whole", "--", name)[0] == 0
    assert said(capsys, "generate", "x", f"--base={name}.whole", "--max-new-tokens=1")[0] == 0


@pytest.mark.parametrize(("argv", "says"), BAD, ids=lambda x: " ".join(x) if isinstance(x, list) else "")
def test_what_is_wrong_is_one_sentence_on_stderr_and_exit_code_1(argv, says, capsys):
    before = sorted(Path().iterdir())
    code, out, err = said(capsys, *argv)
    assert code == 1 and not out and err.startswith(f"error: {says}") and err.count("\n") == 1, err
    assert sorted(Path().iterdir()) == before


USAGE = [["finetune"], ["finetune", "records", "--rank", "two"], ["finetune", "records", "--scaling", "beta"]]


@pytest.mark.parametrize("argv", [*USAGE, ["sing"], ["generate"], ["merge", "x"], ["fetch", "--no"]], ids=" ".join)
def test_what_is_no_command_is_exit_code_2_and_says_how_it_is_used(argv, capsys):
    code, out, err = said(capsys, *argv)
    assert code == 2 and not out and "Usage: python -m llm" in err and "Error" in err


def torchs_own():
    torch.empty(2**60)


def pythons_own():
    raise MemoryError


def gpus_own():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has a total capacity of ...")


@pytest.mark.parametrize("full", [torchs_own, pythons_own, gpus_own])
def test_out_of_memory_is_one_sentence_and_the_last_checkpoint_can_be_gone_on_with(tiny, capsys, monkeypatch, full):
    def run_out(*_, **__):
        full()
        yield

    monkeypatch.setattr(runs, "train", run_out)
    code, _, err = said(capsys, "finetune", "text.txt", "--base", tiny, "--out", "out", *QUICK)
    assert code == 1 and err.splitlines()[-1].startswith("error: out of memory: give fewer --rows")
    assert resume(Path("out")).done == 0


def test_a_defect_is_not_dressed_up_as_a_mistake_of_the_learners(capsys, monkeypatch):
    def broken(*_):
        raise RuntimeError("a defect")

    monkeypatch.setattr(bases, "load", broken)
    with pytest.raises(RuntimeError, match="a defect"):
        main(["generate", "x"])


@pytest.mark.parametrize(
    "argv", [["generate", "x"], ["finetune", "records"], ["merge", "made", "--out", "o"]], ids=" ".join
)
def test_a_value_error_that_is_not_ours_is_a_defect_and_keeps_its_traceback(made, monkeypatch, argv):
    def broken(*_, **__):
        raise ValueError("not ours")

    monkeypatch.setattr(bases, "load", broken)
    with pytest.raises(ValueError, match="not ours"):
        main(argv)


def test_debug_shows_where_an_error_of_ours_came_from_wherever_it_stands_but_not_behind_two_dashes(capsys):
    for argv in (["--debug", "adapters", "nowhere"], ["--debug", "adapters", "nowhere", "--debug"]):
        main(argv)  # the command itself says what is wrong with each of several
    for argv in (
        ["--debug", "generate", "x", "--adapter", "nowhere"],
        ["generate", "x", "--adapter", "nowhere", "--debug"],
    ):
        with pytest.raises(AdapterError, match="nowhere does not exist"):
            main(argv)
    capsys.readouterr()
    code, out, err = said(capsys, "generate", "--adapter", "nowhere", "--", "--debug")
    assert (code, out) == (1, "") and err.startswith("error: nowhere does not exist")


def test_without_torch_the_commands_point_to_the_doctor_and_the_doctor_says_what_is_missing():
    script = "import sys; sys.modules['torch'] = None; from llm.__main__ import main; sys.exit(main(sys.argv[1:]))"
    run = [sys.executable, "-c", script]
    done = subprocess.run([*run, "generate", "x"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: torch is missing or does not load (") and done.stderr.count("\n") == 1
    assert "`python -m llm doctor` says how to get it" in done.stderr and "--no-deps" not in done.stderr
    done = subprocess.run([*run, "doctor"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "device             unknown: torch does not load" in done.stdout
    assert "base model, for every notebook: cannot be looked at without torch: install that first" in done.stdout


@pytest.mark.parametrize("package", ["tiktoken", "safetensors"])
def test_a_package_that_is_there_and_does_not_load_is_one_sentence_with_what_it_said(tmp_path, package):
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text("raise ImportError('DLL load failed')")
    env = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "llm", "finetune", "text.txt", "--out", "a"]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    said = f"error: {package} does not load (DLL load failed): "
    assert (
        done.stderr.startswith(said)
        and done.stderr.count("\n") == 1
        and f"reinstall --no-deps {package}" in done.stderr
    )


def test_an_import_of_ours_that_fails_is_a_defect_and_keeps_its_traceback(monkeypatch, capsys):
    def broken(*args, **options):
        raise ImportError("cannot import name 'x' from 'llm.errors'", name="llm.errors")

    monkeypatch.setattr(bases, "load", broken)
    with pytest.raises(ImportError):
        main(["generate", "x"])


# doctor


def test_the_doctor_finds_all_that_this_environment_has(capsys):
    code, out, err = said(capsys, "doctor", "--json")
    found = json.loads(out)
    assert code == 0 and found["ok"] and not err
    names = {check["name"] for check in found["checks"]}
    assert {"python", "torch", "transformers", "peft", "gguf", "ipywidgets", "tokenizer", "base model"} <= names
    assert {f"corpus {name}" for name in download.sources()} | {"model smollm2"} <= names
    assert {"device", "cores", "memory", "disk"} <= found["machine"].keys()
    assert all(check["found"] for check in found["checks"] if check["needed"] == "every notebook")
    assert said(capsys, "doctor")[1].splitlines()[-1] == "all that every notebook needs is here"


def lacking(monkeypatch, package, version=None):
    real = importlib.metadata.version

    def found(name):
        if name != package:
            return real(name)
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(importlib.metadata, "version", found)


DRY = [
    ("peft", None, 0, 'peft, for notebook 07: make real, or pip install -e ".[real]"'),
    ("transformers", "4.9.1", 0, "transformers, for notebook 07: a version >=5.1 is needed"),
    ("jupyterlab", None, 0, 'jupyterlab, for JupyterLab: pip install -e ".[lab]"'),
    ("tqdm", None, 1, "tqdm, for every notebook: pip install -e ."),
    ("torch", "2.5.1+cu124", 1, "torch, for every notebook: a version >=2.6 is needed: pip install -e ."),
]


@pytest.mark.parametrize(("package", "version", "code", "says"), DRY)
def test_the_doctor_names_what_is_missing_or_too_old_and_how_to_get_it(
    capsys, monkeypatch, package, version, code, says
):
    lacking(monkeypatch, package, version)
    found, out, _ = said(capsys, "doctor")
    assert found == code and says in out and re.search(rf"^LACK {package} ", out, re.M)
    found, out, _ = said(capsys, "doctor", "--json")
    (check,) = [check for check in json.loads(out)["checks"] if not check["ok"]]
    assert json.loads(out)["ok"] == (code == 0) and check["name"] == package and check["found"] == version


def test_the_doctor_looks_into_the_caches(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(download, "CACHE", tmp_path)
    monkeypatch.setattr(smollm2, "CACHE", tmp_path)
    code, out, _ = said(capsys, "doctor")
    assert code == 1 and "corpus speeches, for every notebook: not fetched yet: python -m llm fetch\n" in out
    assert "model smollm2, for notebook 07: not fetched yet: make real" in out
    assert out.splitlines()[-1] == "the course cannot run yet"


def test_the_doctor_finds_a_damaged_base_and_tells_of_a_checkpoint_of_the_learners_own(capsys, monkeypatch, tmp_path):
    def damaged():
        raise BaseError("model.safetensors is damaged: restore it")

    monkeypatch.setattr(bases, "load_base", damaged)
    code, out, _ = said(capsys, "doctor")
    assert code == 1 and "base model, for every notebook: model.safetensors is damaged: restore it" in out
    monkeypatch.setattr(bases, "load_base", lambda: None)
    monkeypatch.setattr(doctor, "CHECKPOINT", tmp_path / "text.txt")
    assert f"your own {tmp_path / 'text.txt'}" in said(capsys, "doctor")[1]


# fetch


def test_fetch_brings_the_corpora_and_the_real_model_only_when_asked(capsys, monkeypatch, tmp_path):
    corpus = corpora.Corpus("x", torch.zeros(1000), torch.zeros(100))
    monkeypatch.setattr(corpora, "load", lambda name: corpus)
    asked = []
    monkeypatch.setattr(bases, "fetch_smollm2", lambda: asked.append(1) or tmp_path)
    code, out, _ = said(capsys, "fetch")
    assert code == 0 and out.count("1,000 tokens to train on") == 3 and not asked
    code, out, _ = said(capsys, "fetch", "--real")
    assert code == 0 and asked and out.splitlines()[-1].startswith("smollm2") and str(tmp_path) in out


def test_a_tilde_is_the_home_folder_wherever_a_path_is_given(tiny, capsys, monkeypatch, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    (home / "text.txt").write_text(TEXT)
    before = sorted(Path().iterdir())
    argv = ["finetune", "~/text.txt", "--base", tiny, "--out=~/a", "--steps", "1", *QUICK]
    assert main(argv) == 0 and (home / "a" / TENSORS).is_file()
    assert main(["adapters", "~/a"]) == 0
    assert main(["merge", "~/a", "--out=~/merged"]) == 0 and (home / "merged").is_dir()
    assert main(["generate", "x", "--adapter=~/a", "--max-new-tokens", "1"]) == 0
    assert main(["generate", "x", "--base=~/merged", "--max-new-tokens", "1"]) == 0
    assert sorted(Path().iterdir()) == before


def test_no_file_of_an_adapter_is_left_out(made):
    assert {path.name for path in Path(made).iterdir()} == {CONFIG, TENSORS, "log.jsonl", "run.json"}
