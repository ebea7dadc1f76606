"""One LoRA fine-tune of any base on any text, as a generator of steps: saved as it goes, resumed bit for bit.

The adapter's folder holds the adapter in PEFT's format and, until the run is through, `resume.pt`: settings, factors,
optimizer state, step. What is random at a step depends on (seed, step, process) alone, so there is no other state.
"""

import hashlib
import json
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path

import torch

from llm import bases, datasets, files
from llm.adapter_files import CONFIG
from llm.adapters import fingerprint, save_adapter
from llm.bases import Base
from llm.corpora import CorpusError
from llm.datasets import Dataset
from llm.distributed import ALONE, Group, guarded
from llm.lora import apply_lora, lora_layers
from llm.model import GPTConfig
from llm.pretrained import BaseError
from llm.settings import Settings, dtype_of, targets_of
from llm.tasks import ARMS
from llm.training import Step, evaluate, make_optimizer, train

RESUME, REPORT = "resume.pt", "run.json"


class RunError(Exception):
    """A run cannot begin or go on; the message says what to do."""


@dataclass
class Run:
    """A run that is ready to train; `done` counts the steps that are behind it."""

    settings: Settings
    out: Path
    base: Base
    data: Dataset
    optimizer: torch.optim.Optimizer
    group: Group
    digests: dict[str, str]  # of the text and of the base, to resume with the same
    done: int = 0

    def steps(self, every: int = 50, stop: Callable[[], bool] = lambda: False) -> Iterator[Step]:
        """Train on; the loss of each step is the whole batch's. Saves every `every` steps, at the end, and when `stop`
        says so after a step, which then was the last.

        Raises TrainingError as `train` does, PeerError when another process is gone, OSError when the disk is full;
        what was saved last can be resumed.
        """
        s, model = self.settings, self.base.model
        if every < 1:
            raise ValueError(f"--every {every} makes no sense: save every so many steps, from 1 up")
        if not self.done:
            self.save()  # a folder that takes no file is found before the first step, not after the last
        loss = guarded(self.group.loss, model, self.base.loss)
        options = dict(steps=s.steps, lr=s.lr, optimizer=self.optimizer, start=self.done, loss=loss)
        with closing(train(model, self._batches(), **options)) as training:
            while step := guarded(next, training, None):
                self.done = step.index + 1
                whole, stopping = guarded(self.group.agree, step.loss, stop())
                if self.done % every == 0 or self.done == s.steps or stopping:
                    self.save()
                yield replace(step, loss=whole)
                if stopping:
                    break
        if self.done == s.steps and self.group.rank == 0:
            (self.out / RESUME).unlink(missing_ok=True)

    def counts(self) -> tuple[int, int]:
        """Parameters that train, and all there are with the adapter's."""
        sizes = [(p.numel(), p.requires_grad) for p in self.base.model.parameters()]
        return sum(n for n, trains in sizes if trains), sum(n for n, _ in sizes)

    def heldout(self) -> float:
        """Mean loss in nats a token on text that is not trained on."""
        return evaluate(self.base.model, self.data.heldout, loss=self.base.loss)

    def save(self) -> None:
        """Write what a resumed run needs, then the adapter; a kill leaves each as it was or as it is."""
        if self.group.rank:
            return
        factors = {path: [t.detach().cpu() for t in (x.A, x.B)] for path, x in lora_layers(self.base.model).items()}
        state = dict(settings=asdict(self.settings), digests=self.digests, step=self.done, factors=factors)
        state |= dict(optimizer=self.optimizer.state_dict())
        files.replace(self.out / RESUME, partial(torch.save, state))
        save_adapter(self.base.model, self.out)
        report = asdict(self.settings) | dict(done=self.done, completes=self.data.completes)
        files.replace(self.out / REPORT, lambda path: path.write_text(json.dumps(report, indent=2) + "\n", "utf-8"))

    def _batches(self):
        for i, batch in enumerate(self.data.batches(self.settings.rows, self.settings.seed, self.done), self.done):
            said = f"{self.settings.seed} {i} {self.group.rank}"
            torch.manual_seed(int.from_bytes(hashlib.sha256(said.encode()).digest()[:7], "big"))  # for dropout
            yield batch


def begin(settings: Settings, out: Path, device: str = "cpu", group: Group = ALONE) -> Run:
    """A new run, its model loaded and wrapped; nothing is written yet.

    Raises RunError when `out` is in use, BaseError, CorpusError and ValueError for what is wrong in the settings.
    """
    if (out / RESUME).exists():
        raise RunError(f"{out} holds a run that was stopped: add --resume to go on, or choose another --out")
    if (out / CONFIG).exists():
        raise RunError(f"{out} holds an adapter already: choose another --out, or move it away")
    if out.exists() and not out.is_dir():
        raise RunError(f"{out} is a file: choose another --out")
    return _prepare(settings, out, device, group)


def together(make: Callable[[], Run], group: Group) -> Run:
    """`make()`, once every process of the group has a run, and it is the same one.

    Raises RunError in all of them when one could not make its run, or when they differ.
    """
    if group.size == 1:
        return make()
    run, problem = None, None
    try:
        run = make()
    except (RunError, BaseError, CorpusError, ValueError, OSError) as error:
        problem = str(error)
    mine = problem, run and (asdict(run.settings) | dict(data="", base=""), run.digests, run.done)
    problems, runs = zip(*guarded(group.gather, mine))
    for rank, said in enumerate(problems):
        if said:
            raise RunError(said if rank == 0 else f"process {rank}: {said}")
    if any(other != runs[0] for other in runs):
        raise RunError("the processes differ in settings, text or base: start all of them with the same")
    return run


def _prepare(settings, out, device, group):
    settings.check()
    if settings.rows < group.size:
        raise ValueError(f"--rows {settings.rows} is less than a row for each of {group.size} processes: give more")
    base = bases.load(settings.base, dtype_of(settings.dtype), device)
    data = datasets.load_dataset(settings.data, base.tokenizer, base.context, settings.block)
    digests = {"data": data.digest, "base": fingerprint(base.model)}
    if settings.lr is None:
        small = getattr(base.model, "config", None) == GPTConfig()
        settings = replace(settings, lr=ARMS["lora"].lr if small else 1e-3)  # wider layers start hotter
    torch.manual_seed(settings.seed)
    apply_lora(base.model, settings.rank, settings.alpha, settings.scaling, targets_of(settings.targets))
    return Run(settings, out, base, data, make_optimizer(base.model, settings.lr), group, digests)


def resume(out: Path, given: dict | None = None, device: str = "cpu", group: Group = ALONE) -> Run:
    """The run in `out` where it was stopped. Settings that are `given` again must be the run's own; data and base may
    have moved, but must be the same inside.

    Raises RunError when there is nothing to resume, it is damaged, or a setting differs, and as `begin` does.
    """
    state, given = _read(out), given or {}
    own = Settings(**state["settings"])
    for name, value in given.items():
        if name not in ("data", "base") and value != getattr(own, name):
            raise RunError(
                f"--{name} {value} is not what the run in {out} began with ({getattr(own, name)}): leave it out to go "
                "on, or choose another --out for a new run"
            )
    settings = replace(own, **{name: given[name] for name in ("data", "base") if name in given})
    run = _prepare(settings, out, device, group)
    for name, digest in run.digests.items():
        if digest != state["digests"][name]:
            what = {"data": "text", "base": "base model"}[name]
            raise RunError(
                f"--{name} {getattr(settings, name)} is not the {what} that the run in {out} began with: bring that "
                "back to go on, or choose another --out for a new run"
            )
    layers = lora_layers(run.base.model)
    try:
        with torch.no_grad():
            for path, layer in layers.items():
                for factor, saved in zip((layer.A, layer.B), state["factors"][path], strict=True):
                    factor.copy_(saved.view_as(factor))
        run.optimizer.load_state_dict(state["optimizer"])
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError):
        raise _damaged(out) from None
    run.done = state["step"]
    return run


def _read(out):
    path = out / RESUME
    if not path.is_file():
        why = "the run in it is through" if (out / CONFIG).exists() else "no run was begun there"
        raise RunError(f"there is nothing to resume in {out} ({why}): leave --resume out and choose an --out")
    try:
        with zipfile.ZipFile(path) as archive:  # torch itself checks no checksum
            sound = archive.testzip() is None
        state = torch.load(path, map_location="cpu", weights_only=True)
        types = dict(settings=dict, digests=dict, step=int, factors=dict, optimizer=dict)
        sound = sound and all(type(state[key]) is kind for key, kind in types.items())
        sound = sound and state["settings"].keys() == {field.name for field in fields(Settings)}
        sound = sound and state["digests"].keys() == {"data", "base"} and 0 <= state["step"]
    except Exception:  # torch raises half a dozen kinds here
        sound = False
    if not sound:
        raise _damaged(out)
    return state


def _damaged(out):
    return RunError(
        f"{out / RESUME} is damaged: the adapter beside it may be sound; for a new run choose another --out"
    )


def read_report(folder: Path | None) -> dict:
    """What `run.json` beside an adapter says of the run that made it; empty where there is none."""
    try:
        report = json.loads((folder / REPORT).read_text(encoding="utf-8")) if folder else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return report if isinstance(report, dict) and isinstance(report.get("base"), str) else {}
