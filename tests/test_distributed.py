"""Two processes take the steps of one; when one of them dies the run ends with a sentence and nothing is lost."""

import json
import math
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.profiler import ProfilerActivity, profile

from llm.adapters import inspect_adapter
from llm.adapters.folder import TENSORS
from llm.errors import PeerError, RunError, TrainingError
from llm.finetune import torchrun
from llm.finetune.resume import resume
from llm.finetune.run import RESUME, begin, together
from llm.finetune.settings import Settings
from llm.finetune.torchrun import ALONE, Group, guarded, join
from llm.lora import apply_lora, lora_layers
from llm.loss import IGNORE
from llm.model import GPT, GPTConfig
from llm.training import own_loss

ROOT = Path(__file__).resolve().parent.parent
ROWS = [{"prompt": f"number {i}", "completion": "so " * (1 + i % 11)} for i in range(40)]  # of very different lengths
OPTIONS = dict(rank=2, alpha=4.0, rows=5, seed=3, lr=0.01)  # five rows: three in one process, two in the other
LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
NEVER = 100_000  # steps of a run that a test ends
pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="this PyTorch has no gloo")


class Torchrun:
    """`finetune` under torchrun in two processes; `steps` is read as it is printed."""

    def __init__(self, *argv):
        env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": LOOPBACK}
        torchrun = ["torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", "2"]
        command = [sys.executable, "-m", *torchrun, "-m", "llm", "finetune", *map(str, argv), "--json"]
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
        (found,) = [c for c in children if f"\0RANK={rank}\0" in Path(f"/proc/{c}/environ").read_text()]
        os.kill(int(found), signal.SIGKILL)


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
    with Torchrun(*argv(data, tiny, tmp_path / "two", 12)) as run:
        assert run.end() == 0, "".join(run.err)
    losses = alone(data, tiny, tmp_path / "one", 12)
    apart, moved = furthest(tmp_path / "one", tmp_path / "two")
    assert apart < 1e-5 < 0.01 < moved
    assert [event["event"] for event in run.events] == ["start", *["step"] * 12, "end"]  # each said once
    assert [event["loss"] for event in run.events[1:-1]] == pytest.approx(losses, abs=1e-5)
    assert "".join(run.err).count(" 0/12 ") == 1  # one bar
    assert sorted(p.name for p in (tmp_path / "two").iterdir()) == sorted(p.name for p in (tmp_path / "one").iterdir())


def test_only_the_gradients_of_A_and_B_travel(tmp_path):
    model = apply_lora(GPT(GPTConfig(vocab_size=97, block_size=16, n_layer=1, n_head=2, n_embd=16)), r=2)
    model.register_buffer("rotary", torch.ones(1000))
    factors = sum(p.numel() for p in model.parameters() if p.requires_grad)
    x = torch.randint(97, (4, 8))
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as seen:
            loss = Group(0, 2).loss(model, own_loss)
            for _ in range(3):
                loss(model, x, x).backward()
    finally:
        dist.destroy_process_group()
    sent = [(e.name, sum(map(math.prod, e.input_shapes))) for e in seen.events() if e.name.startswith("gloo:")]
    assert sum(n for name, n in sent if name == "gloo:broadcast") < 16  # DDP's notes on its buckets
    assert sum(n for name, n in sent if name == "gloo:all_reduce") == 3 * factors


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds its processes in /proc")
def test_when_one_process_is_killed_the_run_says_so_and_goes_on_from_the_last_checkpoint(data, tiny, tmp_path):
    with Torchrun(*argv(data, tiny, tmp_path / "two", NEVER), "--every", 2) as run:
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

    with Torchrun("--resume", "--out", tmp_path / "two") as run:
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


@pytest.mark.parametrize(("size", "rows"), [(2, 2), (2, 5), (3, 4)])
def test_the_processes_gradients_average_to_the_whole_batchs_however_the_tokens_lie(monkeypatch, size, rows):
    monkeypatch.setattr(torchrun, "DistributedDataParallel", lambda module, **options: module)
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=97, block_size=8, n_layer=1, n_head=2, n_embd=16))
    x = torch.randint(97, (rows, 8))
    y = torch.where(torch.arange(8) < torch.randint(1, 8, (rows, 1)), x, IGNORE)
    weight = model.transformer.h[0].mlp.c_fc.weight
    (whole,) = torch.autograd.grad(own_loss(model, x, y), weight)
    shares = [Group(rank, size).loss(model, own_loss)(model, x, y) for rank in range(size)]
    average = sum(torch.autograd.grad(share, weight)[0] for share in shares) / size
    assert torch.allclose(average, whole, atol=1e-7)
    assert sum(share.item() for share in shares) / size == pytest.approx(own_loss(model, x, y).item(), rel=1e-6)


def test_when_one_process_wants_to_stop_all_do_and_the_loss_is_that_of_the_whole_batch(monkeypatch):
    monkeypatch.setattr(dist, "get_backend", lambda: "gloo")
    for theirs, mine, agreed in ((1.0, False, True), (0.0, True, True), (0.0, False, False)):
        monkeypatch.setattr(dist, "all_reduce", lambda both, n=theirs: both.add_(torch.tensor([0.75, n])))
        assert Group(0, 2).agree(2.5, mine) == (2.0, agreed)
    assert ALONE.agree(2.5, True) == (2.5, True)


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
    assert together(make, group).done == 0
    for change in (
        lambda s, d, n, f: (s | dict(lr=0.5), d, n, f),
        lambda s, d, n, f: (s, d | dict(data="another"), n, f),
        lambda s, d, n, f: (s, d | dict(base="another"), n, f),
        lambda s, d, n, f: (s, d, n + 1, f),
        lambda s, d, n, f: (s, d, n, "another A"),
    ):
        group = heard(monkeypatch, changed(change))
        with pytest.raises(RunError, match="^the processes differ in settings, text or base: start all of them with"):
            together(make, group)


def test_processes_that_drew_another_A_do_not_begin(data, tiny, tmp_path, monkeypatch):
    said = []

    def make():
        run = begin(Settings(data, tiny, **OPTIONS), tmp_path / "out", group=group)
        if said:
            next(iter(lora_layers(run.base.model).values())).A.data[0, 0] += 1e-3
        return run

    group = heard(monkeypatch, lambda value: said.append(value) or said[0])
    together(make, group)
    with pytest.raises(RunError, match="^the processes differ"):
        together(make, group)


def test_what_only_another_process_lacks_is_said_with_its_number(data, tiny, tmp_path, monkeypatch):
    group = heard(monkeypatch, lambda value: value, lambda value: ("there is no file rows.jsonl: bring it", None))
    with pytest.raises(RunError, match="^process 2: there is no file rows.jsonl: bring it$"):
        together(lambda: begin(Settings(data, tiny, **OPTIONS), tmp_path / "out", group=group), group)


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


def test_without_torchrun_or_with_one_process_there_is_no_group(monkeypatch):
    assert join(torch.device("cpu")) is ALONE
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert join(torch.device("cpu")) is ALONE and not dist.is_initialized()


def test_what_is_wrong_is_said_once(data, tiny, tmp_path):
    with Torchrun(*argv(data, tiny, tmp_path / "two", 3), "--targets", "nothing") as run:
        assert run.end() not in (0, None)
    said = [line for line in "".join(run.err).splitlines() if line.startswith("error: ")]
    assert (
        said
        == [
            "error: no nn.Linear matches the target 'nothing', skipped ones aside: this model's linear layers are called "
            "c_attn, c_fc, c_proj, lm_head"
        ]
        and not run.events
    )
    assert not (tmp_path / "two").exists()
