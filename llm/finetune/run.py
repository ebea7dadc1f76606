"""One fine-tune, by LoRA or a relative, of any base on any text, as a generator of steps: saved as it goes.

The adapter's folder holds the adapter in PEFT's format and, until the run is through, `resume.pt`: settings, factors,
optimizer state, step. What is random at a step depends on (seed, step, process) alone, so there is no other state.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import torch

from llm import bases, files
from llm.adapters import fingerprint, save_adapter
from llm.adapters.folder import CONFIG
from llm.bases import Base
from llm.errors import CourseError, RunError, SettingError
from llm.finetune.settings import COURSE_RATE, OTHER_RATE, TIMES, Settings
from llm.finetune.targets import targets_of
from llm.finetune.torchrun import ALONE, Group, guarded
from llm.model import GPTConfig
from llm.quantize import four_bit_layers
from llm.relatives import METHODS, layers_of
from llm.text.dataset import Dataset, load_dataset
from llm.text.examples import JOIN
from llm.training import Step, evaluate, make_optimizer, train

RESUME, REPORT = "resume.pt", "run.json"
VERSION = 3  # of what RESUME holds: 2 has a version, the curve, and the settings of `resume.NEW_IN_2`, 3 NEW_IN_3


@dataclass
class Run:
    """A run that is ready to train; `done` counts the steps that are behind it.

    curve: held-out losses where they were measured, (step, nats a token), the base's first. losses: of each step.
    """

    settings: Settings
    out: Path
    base: Base
    data: Dataset
    optimizer: torch.optim.Optimizer
    group: Group
    digests: dict[str, str]  # of the text and of the base, to resume with the same
    done: int = 0
    curve: list[tuple[int, float]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def steps(self, every: int = 50, stop: Callable[[], bool] = lambda: False) -> Iterator[Step]:
        """Train on; the loss of each step is the whole batch's. Saves every `every` steps, at the end, and when `stop`
        says so after a step, which then was the last.

        Raises TrainingError as `train` does, PeerError when another process is gone, OSError when the disk is full;
        what was saved last can be resumed.
        """
        s, model = self.settings, self.base.model
        if every < 1:
            raise SettingError(f"--every {every} makes no sense: save every so many steps, from 1 up")
        if not self.done:
            self.save()  # a folder that takes no file is found before the first step, not after the last
        loss = guarded(self.group.loss, model, self.base.loss)
        options = dict(steps=s.steps, lr=s.lr, optimizer=self.optimizer, start=self.done, loss=loss)
        options |= dict(precision=s.precision, accumulate=s.accumulate)
        with closing(train(model, self._batches(), **options)) as training:
            while step := guarded(next, training, None):
                self.done = step.index + 1
                whole, stopping = guarded(self.group.agree, step.loss, stop())
                self.losses.append(whole)
                if self.done % every == 0 or self.done == s.steps or stopping:
                    self.save()
                yield replace(step, loss=whole)
                if stopping:
                    break
        if self.done == s.steps and self.group.rank == 0:
            (self.out / RESUME).unlink(missing_ok=True)

    def counts(self) -> tuple[int, int]:
        """Parameters that train, and all there are with the adapter's, those in four bits among them."""
        sizes = [(p.numel(), p.requires_grad) for p in self.base.model.parameters()]
        packed = sum(x.in_features * x.out_features for x in four_bit_layers(self.base.model).values())
        return sum(n for n, trains in sizes if trains), sum(n for n, _ in sizes) + packed

    def heldout(self) -> float:
        """Mean loss in nats a token on text that is not trained on; measured once a step, and kept in `curve`."""
        if not self.curve or self.curve[-1][0] != self.done:
            self.curve.append((self.done, evaluate(self.base.model, self.data.heldout, loss=self.base.loss)))
        return self.curve[-1][1]

    def save(self) -> None:
        """Write what a resumed run needs, then the adapter; a kill leaves each as it was or as it is."""
        if self.group.rank:
            return
        factors = {path: [t.detach().cpu() for t in own] for path, own in learned(self.base.model).items()}
        state = dict(version=VERSION, settings=asdict(self.settings), digests=self.digests, step=self.done)
        state |= dict(factors=factors, optimizer=self.optimizer.state_dict(), curve=self.curve, losses=self.losses)
        files.replace(self.out / RESUME, partial(torch.save, state))
        save_adapter(self.base.model, self.out)
        report = asdict(self.settings) | dict(done=self.done, completes=self.data.completes, join=JOIN)
        files.replace(self.out / REPORT, lambda path: path.write_text(json.dumps(report, indent=2) + "\n", "utf-8"))

    def _batches(self):
        for i, batch in enumerate(self.data.batches(self.settings.rows, self.settings.seed, self.done), self.done):
            said = f"{self.settings.seed} {i} {self.group.rank}"
            torch.manual_seed(int.from_bytes(hashlib.sha256(said.encode()).digest()[:7], "big"))  # for dropout
            yield batch


def learned(model: torch.nn.Module) -> dict[str, list[torch.nn.Parameter]]:
    """What each layer has beside its base, by module path: A and B, and whatever a relative has."""
    return {path: list(layer.parameters(recurse=False)) for path, layer in layers_of(model).items()}


def begin(settings: Settings, out: Path, device: str = "cpu", group: Group = ALONE) -> Run:
    """A new run, its model loaded and wrapped; nothing is written yet.

    Raises RunError when `out` is in use, and the CourseError of whatever is wrong in the settings, the text or the base.
    """
    if (out / RESUME).exists():
        raise RunError(f"{out} holds a run that was stopped: add --resume to go on, or choose another --out")
    if (out / CONFIG).exists():
        raise RunError(f"{out} holds an adapter already: choose another --out, or move it away")
    if out.exists() and not out.is_dir():
        raise RunError(f"{out} is a file: choose another --out")
    return prepare(settings, out, device, group)


def together(make: Callable[[], Run], group: Group) -> Run:
    """`make()`, once every process of the group has a run, and it is the same one.

    Raises RunError in all of them when one could not make its run, or when they differ.
    """
    if group.size == 1:
        return make()
    run, problem = None, None
    try:
        run = make()
    except (CourseError, OSError) as error:
        problem = str(error)
    mine = problem, run and (asdict(run.settings) | dict(data="", base=""), run.digests, run.done, _drawn(run))
    problems, runs = zip(*guarded(group.gather, mine))
    for rank, said in enumerate(problems):
        if said:
            raise RunError(said if rank == 0 else f"process {rank}: {said}")
    if any(other != runs[0] for other in runs):
        raise RunError("the processes differ in settings, text or base: start all of them with the same")
    return run


def _drawn(run):
    """A digest of A and B: they are drawn in each process, and are not sent."""
    factors = [p.detach().cpu().numpy().tobytes() for own in learned(run.base.model).values() for p in own]
    return hashlib.sha256(b"".join(factors)).hexdigest()


def prepare(settings: Settings, out: Path, device: str = "cpu", group: Group = ALONE) -> Run:
    """A run at its first step: base and text loaded, the model wrapped. Raises what `begin` raises."""
    settings.check()
    if settings.rows < group.size:
        raise SettingError(f"--rows {settings.rows} is less than a row for each of {group.size} processes: give more")
    base = bases.load(settings.base, getattr(torch, settings.dtype), device, settings.quantize)
    data = load_dataset(settings.data, base.tokenizer, base.context, settings.block, settings.skip_long)
    if settings.checkpointing:
        base.model.gradient_checkpointing_enable()
    digests = {"data": data.digest, "base": fingerprint(base.model)}
    if settings.lr is None:
        small = getattr(base.model, "config", None) == GPTConfig()
        settings = replace(settings, lr=TIMES.get(settings.method, 1) * (COURSE_RATE if small else OTHER_RATE))
    torch.manual_seed(settings.seed)
    try:
        chosen = dict(targets=targets_of(settings.targets), start=settings.start, dropout=settings.dropout)
        method = METHODS[settings.method]
        method.prepare(base.model, settings.rank, settings.alpha, settings.scaling, **chosen)
    except ValueError as error:  # `lora.py` knows none of our errors
        raise SettingError(str(error)) from None
    return Run(settings, out, base, data, make_optimizer(base.model, method.rates(settings.lr)), group, digests)
