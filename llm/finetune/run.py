"""One fine-tune of any base on any text, by LoRA or a relative, as a generator of steps that saves as it goes.

The adapter's folder holds the adapter of the best step measured so far (in PEFT's format), `run.json`, `log.jsonl` with
one line a step and, until the run has finished, `resume.pt`: settings, factors of the current and the best step,
optimizer state, step. All randomness depends only on (seed, step, process), so there is no other state to save.
"""

import hashlib
import json
import math
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
from llm.finetune.settings import COURSE_RATE, OTHER_RATE, RATE_FACTORS, STEPS, Settings
from llm.finetune.target_words import targets_of
from llm.finetune.torchrun import ALONE, Group, guarded
from llm.model import GPTConfig
from llm.paths import user_path
from llm.quantize import four_bit_layers
from llm.relatives import METHODS, layers_of
from llm.text.chat import with_template
from llm.text.dataset import Dataset, load_dataset, names
from llm.text.examples import JOIN
from llm.text.formats import read_map
from llm.training import Step, evaluate, make_optimizer, train

RESUME, REPORT, LOG = "resume.pt", "run.json", "log.jsonl"
# Shares of a run after which the held-out loss is measured; two come early, because many losses turn early. Measuring
# takes about as long as a step, so a run of fewer than SHORT steps measures every FEW steps.
SHARES, FEW, SHORT = (0.02, 0.05, *(i / 10 for i in range(1, 11))), 5, 50
WARMUP = 10  # steps
Factors = dict[str, list[torch.Tensor]]


@dataclass
class Run:
    """A run that is ready to train; `done` counts its finished steps.

    curve: measured held-out losses, (step, nats per token), the base's first. best: the lowest point after the base's.
    kept: what the layers had learned by then. log: the rows of `log.jsonl`, one a step.
    """

    settings: Settings
    out: Path
    base: Base
    data: Dataset
    optimizer: torch.optim.Optimizer
    group: Group
    digests: dict[str, str]  # of the text, the base and its tokenizer; a resumed run needs the same
    done: int = 0
    finished: bool = False
    curve: list[tuple[int, float]] = field(default_factory=list)
    best: tuple[int, float] | None = None
    kept: Factors = field(default_factory=dict)
    log: list[dict] = field(default_factory=list)

    @property
    def losses(self) -> list[float]:
        """The training loss of each step."""
        return [row["loss"] for row in self.log if "loss" in row]

    def steps(self, every: int = 50, stop: Callable[[], bool] = lambda: False) -> Iterator[Step]:
        """Train, yielding each step with the loss of the whole batch. Saves every `every` steps and at the end.

        If `stop` returns true after a step, the run saves and ends. A finished run has its best step in the model.
        Raises TrainingError as `train` does, PeerError when another process is gone, AdapterError when the adapter
        cannot be saved, and OSError when the disk is full; the last save can then be resumed.
        """
        s, loss, main = self.settings, self.group.loss(self.base.loss), self.group.rank == 0
        gap = s.measure or (FEW if s.steps < SHORT else None)
        measured = range(gap, s.steps, gap) if gap else [round(s.steps * x) for x in SHARES]
        measured = {*measured, s.steps}
        options = dict(optimizer=self.optimizer, start=self.done, precision=s.precision, accumulate=s.accumulate)
        options |= dict(warmup=min(WARMUP, s.steps // 2))  # otherwise a run of ten steps would never reach its rate
        with closing(train(self.base.model, self._batches(), steps=s.steps, lr=s.lr, loss=loss, **options)) as training:
            self.heldout()
            if not self.done:
                self.save()  # an unwritable folder must fail before the first step, not after the last
            self.finished = self.done == s.steps or self._in_vain()
            with self._opened_log() as log:
                while not self.finished and (step := guarded(next, training, None)):
                    self.done = step.index + 1
                    point = dict(heldout=self._measure()) if main and self.done in measured else {}
                    wishes = stop(), main and self._in_vain()
                    whole, stopping, in_vain = guarded(self.group.agree, step.loss, *wishes)
                    row = dict(step=self.done, loss=whole, lr=step.lr, seconds=step.seconds, tokens=step.tokens) | point
                    self.log.append(row)
                    log.write(json.dumps(row) + "\n")
                    self.finished = self.done == s.steps or in_vain
                    if self.done % every == 0 or self.finished or stopping:
                        self.save()
                    yield replace(step, loss=whole)
                    if stopping:
                        break
            if self.finished and main:
                put(self.base.model, self.kept)
                (self.out / RESUME).unlink(missing_ok=True)

    def counts(self) -> tuple[int, int]:
        """The numbers of trainable parameters and of all parameters, including the adapter's and four-bit ones."""
        sizes = [(p.numel(), p.requires_grad) for p in self.base.model.parameters()]
        packed = sum(x.in_features * x.out_features for x in four_bit_layers(self.base.model).values())
        return sum(n for n, trains in sizes if trains), sum(n for n, _ in sizes) + packed

    def heldout(self) -> float | None:
        """The last measured held-out loss in nats per token; None in other processes than rank 0, which measures it."""
        if not self.log and self.group.rank == 0:
            self.log.append(dict(step=0, heldout=self._measure()))
        return self.curve[-1][1] if self.curve else None

    def _measure(self):
        loss = evaluate(self.base.model, self.data.heldout, loss=self.base.loss)
        self.curve.append((self.done, loss))
        if self.done and loss < (self.best or (0, math.inf))[1]:
            self.best, self.kept = (self.done, loss), _copied(self.base.model)
        return loss

    def _in_vain(self):
        """Whether the last `patience` measurements have brought no new best."""
        late = self.curve[-(self.settings.patience or 0) :]
        return bool(self.settings.patience and late and late[0][0] > (self.best or (0,))[0])

    def _opened_log(self):
        """Open `log.jsonl`, with its finished steps, for appending line by line; ranks other than 0 write nowhere."""
        if self.group.rank:
            return open(os.devnull, "w")
        files.replace(self.out / LOG, lambda to: to.write_text("".join(json.dumps(row) + "\n" for row in self.log)))
        return open(self.out / LOG, "a", buffering=1)

    def save(self) -> None:
        """Write the adapter and the state to resume from; a failed save or a kill leaves a folder that can be resumed.

        The adapter is the best step's, or the current one's if none was measured yet. It is written first, because that
        may fail; a run that is killed between the two repeats a few steps.
        """
        if self.group.rank:
            return
        s, data, running = self.settings, self.data, _copied(self.base.model)
        state = dict(settings=asdict(s), digests=self.digests, step=self.done, factors=running, kept=self.kept)
        state |= dict(optimizer=self.optimizer.state_dict(), curve=self.curve, best=self.best, log=self.log)
        report = asdict(s) | dict(base=_portable(s.base, self.out), data=Path(s.data).name, digest=data.digest)
        report |= dict(done=self.done, curve=self.curve, best=self.best and dict(zip(("step", "heldout"), self.best)))
        report |= dict(completes=data.completes, join=JOIN) | (dict(chat=True) if data.chat else {})
        report["counts"] = dict(training=data.size, heldout=sum(len(x) for x, _ in data.heldout), skipped=data.skipped)

        def write(path):
            torch.save(state, path)
            put(self.base.model, self.kept)
            try:
                save_adapter(self.base.model, self.out, self.base.origin)
            finally:
                put(self.base.model, running)
            files.replace(self.out / REPORT, lambda to: to.write_text(json.dumps(report, indent=2) + "\n", "utf-8"))

        files.replace(self.out / RESUME, write)

    def _batches(self):
        for i, batch in enumerate(self.data.batches(self.settings.rows, self.settings.seed, self.done), self.done):
            drawn = f"{self.settings.seed} {i} {self.group.rank}"
            torch.manual_seed(int.from_bytes(hashlib.sha256(drawn.encode()).digest()[:7], "big"))  # for dropout
            yield batch


def learned(model: torch.nn.Module) -> dict[str, list[torch.nn.Parameter]]:
    """The parameters that each layer adds to its base, by module path: A and B, or whatever a relative has."""
    return {path: list(layer.parameters(recurse=False)) for path, layer in layers_of(model).items()}


def _copied(model) -> Factors:
    return {path: [p.detach().to("cpu", copy=True) for p in layer] for path, layer in learned(model).items()}


@torch.no_grad()
def put(model: torch.nn.Module, factors: Factors) -> None:
    """Copy `factors` back into the layers."""
    layers = learned(model)
    for path, copies in factors.items():
        for p, copy in zip(layers[path], copies):
            p.copy_(copy)


def begin(settings: Settings, out: Path, device: str = "cpu", group: Group = ALONE) -> Run:
    """Start a new run: load and wrap its model. Nothing is written yet.

    Raises RunError when `out` holds a run or an adapter, and another CourseError when the settings, the text or the
    base cannot be used.
    """
    if (out / RESUME).exists():
        raise RunError(f"{out} holds a run that was stopped: add --resume to go on, or choose another --out")
    if (out / CONFIG).exists():
        raise RunError(f"{out} holds an adapter already: choose another --out, or move it away")
    if None not in (settings.steps, settings.epochs):
        raise SettingError(
            f"--steps {settings.steps} and --epochs {settings.epochs:g} are the same twice: give one of them"
        )
    return prepare(settings, out, device, group)


@contextmanager
def together(make: Callable[[], Run], out: Path, group: Group = ALONE) -> Iterator[Run]:
    """Yield the run that `make` returns, once every process of the group has the same; `out` is locked meanwhile.

    Raises RunError when another run is using `out`, and in all processes when one of them has no run or they differ.
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
    """A digest of A and B, which each process initializes itself, as they are not sent."""
    factors = [p.detach().cpu().numpy().tobytes() for layer in learned(run.base.model).values() for p in layer]
    return hashlib.sha256(b"".join(factors)).hexdigest()


def prepare(settings: Settings, out: Path, device: str = "cpu", group: Group = ALONE) -> Run:
    """Load base and text and wrap the model: a run at its first step. Raises what `begin` raises."""
    settings.check()
    if settings.rows < group.size:
        raise SettingError(f"--rows {settings.rows} is less than a row for each of {group.size} processes: give more")
    base = bases.load(settings.base, getattr(torch, settings.dtype), device, settings.quantize)
    if settings.template is not None:
        base = replace(base, tokenizer=with_template(base.tokenizer, settings.template))
        settings = replace(settings, template=base.tokenizer.template)  # the file's text in place of its name
    reading = settings.block, settings.skip_long, read_map(settings.map), settings.train_on
    data = load_dataset(settings.data, base.tokenizer, base.context, *reading)
    if settings.steps is None:
        if settings.epochs is not None and data.size is None:
            raise SettingError(f"--epochs has no meaning for {settings.data}, which has no last row: give --steps")
        steps = STEPS if settings.epochs is None else max(1, round(settings.epochs * data.size / settings.rows))
        settings = replace(settings, steps=steps)
    if settings.checkpointing:
        base.model.gradient_checkpointing_enable()
    digests = {"data": data.digest, "base": fingerprint(base.model), "tokenizer": base.tokenizer.digest}
    for name, ours in (("base", bases.NAMES), ("data", names())):  # absolute, so a run can resume from any folder
        if (value := getattr(settings, name)) not in ours:
            settings = replace(settings, **{name: os.path.abspath(user_path(value))})
    if settings.lr is None:
        small = getattr(base.model, "config", None) == GPTConfig()
        settings = replace(settings, lr=RATE_FACTORS.get(settings.method, 1) * (COURSE_RATE if small else OTHER_RATE))
    torch.manual_seed(settings.seed)
    method, chosen = METHODS[settings.method], dict(start=settings.start, dropout=settings.dropout)
    targets = targets_of(settings.targets)
    try:
        method.prepare(base.model, settings.rank, settings.alpha, settings.scaling, targets=targets, **chosen)
    except ValueError as error:  # `lora.py` knows none of our error types
        raise SettingError(str(error)) from None
    return Run(settings, out, base, data, make_optimizer(base.model, method.rates(settings.lr)), group, digests)


def _portable(base, out):
    """A base's name, or its folder relative to the adapter's, which reveals nothing about this machine."""
    if base in bases.NAMES:
        return base
    try:
        way = Path(os.path.relpath(base, os.path.realpath(out))).as_posix()
    except ValueError:  # on Windows, if they are on different drives
        way = Path(base).name
    return f"./{way}" if way in bases.NAMES else way


def read_report(folder: Path | None) -> dict:
    """Read `run.json` in the folder of an adapter or a merged base; empty if there is none.

    base: a name in `bases.NAMES`, or the absolute path of a folder; the file has it relative to its own folder.
    """
    try:
        report = dict(json.loads((user_path(folder) / REPORT).read_text(encoding="utf-8")))
        if (base := report.get("base", "course")) not in bases.NAMES:
            report["base"] = os.path.normpath(os.path.join(os.path.realpath(user_path(folder)), base))
    except (OSError, ValueError, TypeError, RecursionError):
        return {}
    return report
