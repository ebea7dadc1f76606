"""Two processes take the steps of one; when one of them dies the run ends with a sentence and nothing is lost."""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.profiler import ProfilerActivity, profile

from llm.__main__ import main
from llm.adapters import inspect_adapter
from llm.adapters.folder import TENSORS
from llm.errors import PeerError, RunError, TrainingError
from llm.finetune import run as runs
from llm.finetune import torchrun
from llm.finetune.resume import resume
from llm.finetune.run import RESUME, begin, together
from llm.finetune.settings import Settings
from llm.finetune.torchrun import ALONE, Group, guarded, join
from llm.lora import apply_lora, lora_layers
from llm.loss import IGNORE
from llm.model import GPT, GPTConfig
from llm.training import own_loss, pieces, train

ROOT = Path(__file__).resolve().parent.parent
ROWS = [{"prompt": f"number {i}", "completion": "so " * (1 + i % 11)} for i in range(40)]  # of very different lengths
# five rows: three in one process, two in the other, which has less of them than pieces
OPTIONS = dict(rank=2, alpha=4.0, rows=5, seed=3, lr=0.01, accumulate=3)
LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
NEVER = 100_000  # steps of a run that a test ends
pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="this PyTorch has no gloo")


class Pair:
    """`finetune` in two processes, under torchrun or started by hand; `events` are read as they are printed."""

    def __init__(self, *argv, by_hand=False):
        env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": LOOPBACK}
        command = ["-m", "llm", "finetune", *map(str, argv), "--json"]
        if by_hand:
            with socket.create_server(("127.0.0.1", 0)) as free:
                env |= dict(WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free.getsockname()[1]))
            both = 'RANK=1 "$@" & RANK=0 exec "$@"'  # the second process is a child of the first
            command = ["bash", "-c", both, "bash", sys.executable, *command]
        else:
            torchrun = ["torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", "2"]
            command = [sys.executable, "-m", *torchrun, *command]
        self.process = subprocess.Popen(command, env=env, stdout=-1, stderr=-1, text=True, start_new_session=True)
        self.events, self.err = [], []
        self._errors = threading.Thread(target=lambda: self.err.extend(self.process.stderr), daemon=True)
        self._errors.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)  # the session that this test began
        self.process.wait()
        self._errors.join()

    def until(self, step):
        """Read on until step number `step` is through."""
        while not self.events or self.events[-1].get("step", -1) < step:
            self.read()

    def read(self):
        line = self.process.stdout.readline()
        assert line, "".join(self.err)
        self.events.append(json.loads(line))

    def end(self):
        """The exit code; all that was printed is then in `events` and `err`."""
        self.events += [json.loads(line) for line in self.process.stdout]
        code = self.process.wait(timeout=1200)  # against a hang
        self._errors.join()
        return code

    def kill(self, rank):
        """SIGKILL for one of the two."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        (pid,) = [c for c in children if f"RANK={rank}" in Path(f"/proc/{c}/environ").read_text().split("\0")]
        os.kill(int(pid), signal.SIGKILL)


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(path)


def argv(data, base, out, steps):
    options = [part for key, value in OPTIONS.items() for part in (f"--{key}", value)]
    return [data, "--base", base, "--out", out, "--steps", steps, *options]


def alone(data, base, out, steps, until=None):
    """The same run in one process, this one; the losses of its steps."""
    run = begin(Settings(data, base, steps=steps, **OPTIONS), out)
    return [step.loss for step in run.steps(stop=lambda: run.done == until)]


def furthest(one, other):
    """How far two adapters are apart, and how far the first moved: B starts at zero."""
    one, other = load_file(one / TENSORS), load_file(other / TENSORS)
    assert one.keys() == other.keys()
    moved = min(one[key].abs().max().item() for key in one if "lora_B" in key)
    return max((one[key] - other[key]).abs().max().item() for key in one), moved


def test_two_processes_give_the_adapter_of_one_on_the_same_batches_and_one_of_them_speaks(data, tiny, tmp_path):
    with Pair(*argv(data, tiny, tmp_path / "two", 12)) as run:
        assert run.end() == 0, "".join(run.err)
    losses = alone(data, tiny, tmp_path / "one", 12)
    apart, moved = furthest(tmp_path / "one", tmp_path / "two")
    assert apart < 1e-5 < 0.01 < moved
    assert [event["event"] for event in run.events] == ["start", *["step"] * 12, "end"]  # each said once
    assert [event["loss"] for event in run.events[1:-1]] == pytest.approx(losses, abs=1e-5)
    assert "".join(run.err).count(" 0/12 ") == 1  # one bar
    assert sorted(p.name for p in (tmp_path / "two").iterdir()) == sorted(p.name for p in (tmp_path / "one").iterdir())


@pytest.fixture
def group(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_only_the_gradients_of_A_and_B_and_the_loss_travel_once_a_step_whatever_a_process_grades(
    group, accumulate, rank
):
    model = apply_lora(GPT(GPTConfig(vocab_size=97, block_size=16, n_layer=1, n_head=2, n_embd=16)), r=2)
    model.register_buffer("rotary", torch.ones(1000))
    factors = sum(p.numel() for p in model.parameters() if p.requires_grad)
    x = torch.randint(97, (4, 8))
    odd = torch.where(torch.arange(4)[:, None] % 2 == 0, x, IGNORE)  # where rank 1 has nothing to grade
    loss = Group(rank, 2).loss(own_loss)
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as seen:
        list(train(model, [(x, x), (x, odd), (x[:1], x[:1])], steps=3, lr=0.0, loss=loss, accumulate=accumulate))
    sent = [(e.name, sum(map(math.prod, e.input_shapes))) for e in seen.events() if e.name.startswith("gloo:")]
    assert sent == [("gloo:all_reduce", factors + 1)] * 3


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds its processes in /proc")
def test_when_one_process_is_killed_the_run_says_so_and_goes_on_from_the_last_checkpoint(data, tiny, tmp_path):
    with Pair(*argv(data, tiny, tmp_path / "two", NEVER), "--every", 2, by_hand=True) as run:
        run.until(5)
        run.kill(rank=1)
        assert run.end() not in (0, None)
    said = [line for line in "".join(run.err).splitlines() if line.startswith("error: ")]
    assert said == [
        "error: another process of this run has ended or cannot be reached: look at what it said, then start all of "
        "them again, with --resume from the last checkpoint"
    ]
    inspect_adapter(tmp_path / "two")
    saved = torch.load(tmp_path / "two" / RESUME, weights_only=True)["step"]
    last = run.events[-1]["step"]
    assert saved >= 4 and saved % 2 == 0 and last - 1 <= saved <= last + 2

    with Pair("--resume", "--out", tmp_path / "two") as run:
        run.until(saved + 3)
        os.killpg(run.process.pid, signal.SIGINT)  # what Ctrl-C does: it reaches torchrun and both processes
        assert run.end() not in (0, None)
    first, *_, last = run.events
    assert first["done"] == saved and last["event"] == "stopped" and last["done"] >= saved + 3
    (said,) = [line for line in "".join(run.err).splitlines() if line.startswith("stopped after step")]
    assert said.startswith(f"stopped after step {last['done']} of {NEVER}, and saved: go on with")
    assert resume(tmp_path / "two").done == last["done"]
    alone(data, tiny, tmp_path / "one", NEVER, until=last["done"])
    apart, moved = furthest(tmp_path / "one", tmp_path / "two")
    assert apart < 1e-5 < 0.01 < moved


# each part by itself


@pytest.mark.parametrize("accumulate", [1, 2, 7])
@pytest.mark.parametrize(("size", "rows"), [(2, 2), (2, 5), (3, 4), (3, 1)])
def test_the_processes_gradients_add_up_to_the_whole_batchs_however_the_tokens_lie(size, rows, accumulate):
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=97, block_size=8, n_layer=1, n_head=2, n_embd=16))
    x = torch.randint(97, (rows, 8))
    y = torch.where(torch.arange(8) < torch.randint(0, 8, (rows, 1)), x, IGNORE)  # of some rows no token counts
    y[0, 0] = x[0, 0]
    whole = own_loss(model, x, y)
    whole.backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    parts = [part for rank in range(size) for part in pieces(x, y, accumulate, rank, size)]
    losses = [share * own_loss(model, x_, y_) for x_, y_, share in parts]
    sum(losses).backward()
    assert sum(losses).item() == pytest.approx(whole.item(), rel=1e-6)
    assert all(torch.allclose(p.grad, g, atol=1e-7) for p, g in zip(model.parameters(), expected))


def test_where_no_token_of_a_batch_counts_every_process_says_so():
    x = torch.randint(97, (3, 8))
    for rank in range(3):
        for x_, _, share in pieces(x, torch.full_like(x, IGNORE), 2, rank, 3):
            assert len(x_) == 3 and share == 1


def test_when_one_process_wants_to_stop_all_do_and_the_loss_is_that_of_the_whole_batch(monkeypatch):
    monkeypatch.setattr(dist, "get_backend", lambda: "gloo")
    for theirs, mine, agreed in ((1.0, False, True), (0.0, True, True), (0.0, False, False)):
        monkeypatch.setattr(dist, "all_reduce", lambda both, n=theirs: both.add_(torch.tensor([0.75, n])))
        assert Group(0, 2).agree(2.5, mine) == (2.0, agreed)
    monkeypatch.setattr(dist, "all_reduce", lambda sums: sums.add_(torch.tensor([0.75, 0.0, 1.0])))
    assert Group(0, 2).agree(2.5, False, False) == (2.0, False, True)
    assert ALONE.agree(2.5, True, False) == (2.5, True, False)


def test_a_process_that_does_not_measure_ends_with_the_one_whose_patience_is_over(data, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(Group, "loss", lambda self, loss: loss)
    monkeypatch.setattr(runs, "evaluate", lambda *_, **__: pytest.fail("rank 0 measures"))
    monkeypatch.setattr(Group, "agree", lambda self, loss, *wishes: (loss, wishes[0], run.done == 2))
    run = begin(Settings(data, tiny, patience=1, measure=1, steps=9, **OPTIONS), tmp_path / "out", group=Group(1, 2))
    assert [step.index for step in run.steps()] == [0, 1] and run.finished and not (tmp_path / "out").exists()


def heard(monkeypatch, *others):
    """Two processes or more, of which this is the first and the others say `others`."""
    monkeypatch.setattr(Group, "gather", lambda self, value: [value, *(other(value) for other in others)])
    return Group(0, 1 + len(others))


def test_processes_that_differ_in_settings_text_base_or_step_do_not_begin(data, tiny, tmp_path, monkeypatch):
    def make():
        return begin(Settings(data, tiny, **OPTIONS), tmp_path / "out", group=group)

    def changed(change):
        def other(value):
            settings, digests, done, drawn = value[1]
            return None, change(dict(settings), dict(digests), done, drawn)

        return other

    group = heard(monkeypatch, changed(lambda s, d, n, f: (s, d, n, f)))
    with together(make, tmp_path / "out", group) as run:
        assert run.done == 0
    for change in (
        lambda s, d, n, f: (s | dict(lr=0.5), d, n, f),
        lambda s, d, n, f: (s, d | dict(data="another"), n, f),
        lambda s, d, n, f: (s, d | dict(base="another"), n, f),
        lambda s, d, n, f: (s, d, n + 1, f),
        lambda s, d, n, f: (s, d, n, "another A"),
    ):
        group = heard(monkeypatch, changed(change))
        differ = "^the processes differ in settings, text or base: start all of them with"
        with pytest.raises(RunError, match=differ), together(make, tmp_path / "out", group):
            pass


def test_processes_that_drew_another_A_do_not_begin(data, tiny, tmp_path, monkeypatch):
    said = []

    def make():
        run = begin(Settings(data, tiny, **OPTIONS), tmp_path / "out", group=group)
        if said:
            next(iter(lora_layers(run.base.model).values())).A.data[0, 0] += 1e-3
        return run

    group = heard(monkeypatch, lambda value: said.append(value) or said[0])
    with together(make, tmp_path / "out", group):
        pass
    with pytest.raises(RunError, match="^the processes differ"), together(make, tmp_path / "out", group):
        pass


def test_what_only_another_process_lacks_is_said_with_its_number(data, tiny, tmp_path, monkeypatch):
    group = heard(monkeypatch, lambda value: value, lambda value: ("there is no file rows.jsonl: bring it", None))
    out = tmp_path / "out"
    with pytest.raises(RunError, match="^process 2: there is no file rows.jsonl: bring it$"):
        with together(lambda: begin(Settings(data, tiny, **OPTIONS), out, group=group), out, group):
            pass


def test_fewer_rows_than_processes_is_one_sentence(data, tiny, tmp_path):
    with pytest.raises(ValueError, match="^--rows 5 is less than a row for each of 6 processes: give more$"):
        begin(Settings(data, tiny, **OPTIONS), tmp_path / "out", group=Group(0, 6))


def test_only_the_first_process_writes(data, tiny, tmp_path):
    begin(Settings(data, tiny, **OPTIONS), tmp_path / "out", group=Group(1, 2)).save()
    assert not (tmp_path / "out").exists()


def test_a_lost_connection_is_one_sentence_and_a_defect_stays_a_defect():
    def raises(error):
        raise error

    lost = [
        RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:4"),
        RuntimeError("NCCL communicator was aborted on rank 0."),
        dist.DistBackendError("anything"),
        dist.DistNetworkError("anything"),
    ]
    for error in lost:
        with pytest.raises(PeerError, match="^another process of this run has ended or cannot be reached: look at"):
            guarded(raises, error)
    for error in (RuntimeError("a defect"), TrainingError("the loss is nan")):
        with pytest.raises(type(error), match=str(error)):
            guarded(raises, error)


def environment(monkeypatch, **values):
    for name in (*PROCESS, "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in values.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    "values",
    [
        {},
        dict(WORLD_SIZE="1"),
        dict(WORLD_SIZE="1", RANK="0", LOCAL_RANK="0"),
        dict(WORLD_SIZE="", RANK=""),
        dict(LOCAL_RANK=""),
        dict(RANK="3", LOCAL_RANK="x"),
        dict(SLURM_PROCID="1", SLURM_NTASKS="4"),
    ],
    ids=str,
)
def test_without_torchrun_or_with_one_process_there_is_no_group(monkeypatch, values):
    environment(monkeypatch, **values)
    assert join("cpu") == (torch.device("cpu"), ALONE) and not dist.is_initialized()


PROCESS = dict(WORLD_SIZE="2", RANK="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="29500")  # what `env://` needs


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, value) for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") for value in (None, "")),
        *(("WORLD_SIZE", value) for value in ("auto", "-2", "2.0", "0")),
        *(("RANK", value) for value in ("x", "-1", "2")),
        *(("LOCAL_RANK", "x"), ("MASTER_PORT", "x"), ("MASTER_PORT", "0"), ("MASTER_PORT", "99999")),
    ],
)
def test_of_several_processes_one_that_lacks_a_variable_is_told_which(monkeypatch, name, value):
    environment(monkeypatch, **PROCESS | {name: value or ""})
    what = f"{name} says {value}" if value else f"{name} is not set"
    before = "" if name == "WORLD_SIZE" else "WORLD_SIZE says 2, but "
    with pytest.raises(RunError, match=f"^{before}{what}: use torchrun, or set it right, or unset WORLD_SIZE$"):
        join("cpu")


def test_each_process_takes_the_gpu_of_its_number(monkeypatch):
    environment(monkeypatch, **PROCESS, LOCAL_RANK="1")
    begun = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", begun.append)
    monkeypatch.setattr(dist, "init_process_group", begun.append)
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    for device in ("auto", "cuda"):
        assert join(device) == (torch.device("cuda:1"), Group(1, 2))
    assert begun == [torch.device("cuda:1"), "nccl"] * 2


@pytest.mark.parametrize("rank", [0, 1])
def test_what_is_wrong_in_every_process_is_said_by_the_first_one_alone(data, tiny, tmp_path, monkeypatch, capsys, rank):
    monkeypatch.setattr(torchrun, "join", lambda device: (torch.device(device), Group(rank, 2)))
    monkeypatch.setattr(Group, "gather", lambda self, value: [value] * 2)
    wrong = [*argv(data, tiny, tmp_path / "two", 3), "--targets", "nothing", "--device", "cpu"]
    assert main(["finetune", *map(str, wrong)]) == 1
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == (rank == 0) and not (tmp_path / "two").exists()
    assert rank or err.startswith("error: no nn.Linear matches the target 'nothing'")
