"""One fine-tune, by LoRA or a relative, of any base on any text, as a generator of steps: saved as it goes.

The adapter's folder holds the adapter in PEFT's format and, until the run has finished, `resume.pt`: settings, factors,
optimizer state, step. What is random at a step depends on (seed, step, process) alone, so there is no other state.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch

from llm import bases, files
from llm.adapters import fingerprint, save_adapter
from llm.adapters.folder import CONFIG
from llm.bases import Base
from llm.errors import CourseError, RunError, SettingError
from llm.finetune.settings import COURSE_RATE, OTHER_RATE, TIMES, Settings
from llm.finetune.target_words import targets_of
from llm.finetune.torchrun import ALONE, Group, guarded
from llm.model import GPTConfig
from llm.paths import user_path
from llm.quantize import four_bit_layers
from llm.relatives import METHODS, layers_of
from llm.text.dataset import Dataset, load_dataset, names
from llm.text.examples import JOIN
from llm.training import Step, evaluate, make_optimizer, train

RESUME, REPORT = "resume.pt", "run.json"


@dataclass
class Run:
    """A run that is ready to train; `done` counts the steps that are behind it.

    curve: held-out losses where they were measured, (step, nats per token), the base's first. losses: of each step.
    """

    settings: Settings
    out: Path
    base: Base
    data: Dataset
    optimizer: torch.optim.Optimizer
    group: Group
    digests: dict[str, str]  # of the text, the base and its tokenizer, to resume with the same
    done: int = 0
    curve: list[tuple[int, float]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def steps(self, every: int = 50, stop: Callable[[], bool] = lambda: False) -> Iterator[Step]:
        """Train on; the loss of each step is the whole batch's. Saves every `every` steps, at the end, and when `stop`
        says so after a step, which then was the last.

        Raises TrainingError as `train` does, PeerError when another process is gone, AdapterError when the adapter cannot
        be saved, OSError when the disk is full; what was saved last can be resumed.
        """
        s, loss = self.settings, self.group.loss(self.base.loss)
        options = dict(optimizer=self.optimizer, start=self.done, precision=s.precision, accumulate=s.accumulate)
        with closing(train(self.base.model, self._batches(), steps=s.steps, lr=s.lr, loss=loss, **options)) as training:
            if not self.done:
                self.save()  # a folder that takes no file is found before the first step, not after the last
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
        """Mean loss in nats per token on text that is not trained on; measured once a step, and kept in `curve`."""
        if not self.curve or self.curve[-1][0] != self.done:
            self.curve.append((self.done, evaluate(self.base.model, self.data.heldout, loss=self.base.loss)))
        return self.curve[-1][1]

    def save(self) -> None:
        """Write the adapter and what a resumed run needs; a refusal, a full disk or a kill leaves what can be resumed.

        The adapter goes first, as it may refuse: a run that is killed between the two does a few steps again.
        """
        if self.group.rank:
            return
        factors = {path: [t.detach().cpu() for t in layer] for path, layer in learned(self.base.model).items()}
        state = dict(settings=asdict(self.settings), digests=self.digests, step=self.done, factors=factors)
        state |= dict(optimizer=self.optimizer.state_dict(), curve=self.curve, losses=self.losses)
        report = asdict(self.settings) | dict(done=self.done, completes=self.data.completes, join=JOIN)
        report |= dict(base=_portable(self.settings.base, self.out), data=Path(self.settings.data).name)

        def write(path):
            torch.save(state, path)
            save_adapter(self.base.model, self.out, self.base.origin)
            files.replace(self.out / REPORT, lambda to: to.write_text(json.dumps(report, indent=2) + "\n", "utf-8"))

        files.replace(self.out / RESUME, write)

    def _batches(self):
        for i, batch in enumerate(self.data.batches(self.settings.rows, self.settings.seed, self.done), self.done):
            drawn = f"{self.settings.seed} {i} {self.group.rank}"
            torch.manual_seed(int.from_bytes(hashlib.sha256(drawn.encode()).digest()[:7], "big"))  # for dropout
            yield batch


def learned(model: torch.nn.Module) -> dict[str, list[torch.nn.Parameter]]:
    """What each layer has beside its base, by module path: A and B, and whatever a relative has."""
    return {path: list(layer.parameters(recurse=False)) for path, layer in layers_of(model).items()}


def begin(settings: Settings, out: Path, device: str = "cpu", group: Group = ALONE) -> Run:
    """A new run, its model loaded and wrapped; nothing is written yet.

    Raises RunError when `out` holds a run or an adapter, and the CourseError of whatever is wrong in the settings, the
    text or the base.
    """
    if (out / RESUME).exists():
        raise RunError(f"{out} holds a run that was stopped: add --resume to go on, or choose another --out")
    if (out / CONFIG).exists():
        raise RunError(f"{out} holds an adapter already: choose another --out, or move it away")
    return prepare(settings, out, device, group)


@contextmanager
def together(make: Callable[[], Run], out: Path, group: Group = ALONE) -> Iterator[Run]:
    """The run that `make` returns, once every process of the group has the same; the group has `out` to itself meanwhile.

    Raises RunError when another run is at work in `out`, and in all processes when one has no run or they differ.
    """
    run = problem = None
    with ExitStack() as claim:
        try:
            if group.rank == 0:
                claim.enter_context(files.claim(out))
            run = make()
        except (CourseError, OSError) as error:
            if group.size == 1:
                raise
            problem = str(error)
        if group.size > 1:
            mine = run and (asdict(run.settings) | dict(data="", base=""), run.digests, run.done, _drawn(run))
            problems, runs = zip(*guarded(group.gather, (problem, mine)))
            refusals = [f"process {rank}: " * (rank > 0) + text for rank, text in enumerate(problems) if text]
            if any(other != runs[0] for other in runs):
                refusals.append("the processes differ in settings, text or base: start all of them with the same")
            if refusals:
                raise RunError(refusals[0])
        yield run


def _drawn(run):
    """A digest of A and B: each process draws them by itself, and they are not sent."""
    factors = [p.detach().cpu().numpy().tobytes() for layer in learned(run.base.model).values() for p in layer]
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
    digests = {"data": data.digest, "base": fingerprint(base.model), "tokenizer": base.tokenizer.digest}
    for name, ours in (("base", bases.NAMES), ("data", names())):  # a run goes on from any folder
        if (value := getattr(settings, name)) not in ours:
            settings = replace(settings, **{name: os.path.abspath(user_path(value))})
    if settings.lr is None:
        small = getattr(base.model, "config", None) == GPTConfig()
        settings = replace(settings, lr=TIMES.get(settings.method, 1) * (COURSE_RATE if small else OTHER_RATE))
    torch.manual_seed(settings.seed)
    method, chosen = METHODS[settings.method], dict(start=settings.start, dropout=settings.dropout)
    targets = targets_of(settings.targets)
    try:
        method.prepare(base.model, settings.rank, settings.alpha, settings.scaling, targets=targets, **chosen)
    except ValueError as error:  # `lora.py` knows none of our errors
        raise SettingError(str(error)) from None
    return Run(settings, out, base, data, make_optimizer(base.model, method.rates(settings.lr)), group, digests)


def _portable(base, out):
    """A base's name, or the way to its folder from the adapter's, which says nothing of the machine."""
    if base in bases.NAMES:
        return base
    try:
        way = Path(os.path.relpath(base, os.path.realpath(out))).as_posix()
    except ValueError:  # on Windows, from one drive to another
        way = Path(base).name
    return f"./{way}" if way in bases.NAMES else way


def read_report(folder: Path | None) -> dict:
    """What `run.json` in the folder of an adapter or a merged base says of the run; empty where there is none.

    base: a name of `bases.NAMES`, or the absolute path of a folder, which the file names as seen from the adapter's.
    """
    try:
        report = dict(json.loads((user_path(folder) / REPORT).read_text(encoding="utf-8")))
        if (base := report.get("base", "course")) not in bases.NAMES:
            report["base"] = os.path.normpath(os.path.join(os.path.realpath(user_path(folder)), base))
    except (OSError, ValueError, TypeError, RecursionError):
        return {}
    return report
