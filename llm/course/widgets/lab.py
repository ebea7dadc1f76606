"""The live lab: choose, train, stop, compare, listen, save. The kernel trains and answers; the page draws (browser/src/lab.js).

Training runs on the event loop that the click came from and gives way after every step: Stop and other cells need no
thread. JupyterLab may still bring two clicks on two threads, so each run trains a copy of the base, and each answer and
each save makes another: none of them sees half of another. Whether to stop is asked of each run by itself: one that was
removed can end while the next begins.
"""

import asyncio
import copy
import json
import math
import shlex
import threading
import time
import weakref
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from statistics import fmean, median
from typing import Any

import anywidget
import torch
import traitlets

from llm import files
from llm.adapters import inspect_adapter, save_adapter
from llm.bases import load_base
from llm.course.experiments import Recipe
from llm.course.tasks import load_task, respond
from llm.course.widgets.explorer import bundle
from llm.course.widgets.lab_choices import BEGIN, PROMPTS, chosen, setup
from llm.errors import CourseError, SettingError
from llm.finetune.run import REPORT
from llm.finetune.verdict import verdict
from llm.model import GPT
from llm.paths import ROOT, user_path
from llm.relatives import METHODS
from llm.text.examples import JOIN
from llm.training import best_device, evaluate, train

GIVE_WAY = 0.005  # seconds: a click needs several rounds of the loop to arrive, and a step is a hundred times as long
JUDGED = 10  # steps: before, the rate has not reached its height, and a curve means nothing yet
EVERY = 10  # steps between two measurements, each as long as two or three steps
EARLY = (1, 2)  # and after these, where a hot rate shows itself
POINTS = 100  # training losses that the page gets of a run, each a mean of neighbors

_task = cache(load_task)


@dataclass(eq=False)  # each run is itself, however alike two are
class Trial:
    """One run: its settings, what was measured, and the weights of its best step.

    heldout: losses at the steps `at`, the base's at 0; losses, seconds: of each training step; best: the step after the
    base at which the held-out loss was lowest, and what trained, as it was then; meant: its curve in a word.
    """

    number: int
    settings: Recipe
    at: list[int] = field(default_factory=list)
    heldout: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    best: int | None = None
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    meant: str = ""
    ended: str = "training"
    asked: bool = False  # to end after the step that it is in
    folders: dict[str, str] = field(default_factory=dict)  # where it was saved, by the name that was asked for

    @property
    def kept(self) -> float:
        """The held-out loss of the best step."""
        return self.heldout[self.at.index(self.best)]

    def prepared(self, base: GPT) -> GPT:
        """A copy of the base with this run's method on it, as its training begins, or at its best step."""
        run, model = self.settings, copy.deepcopy(base)
        with _DRAWING:
            torch.manual_seed(run.seed)
            try:
                METHODS[run.method].prepare(model, run.r, run.alpha, run.scaling, chosen(run.targets), run.start)
            except ValueError as error:  # `lora.py` knows none of our errors
                raise SettingError(str(error)) from None
        with torch.no_grad():
            for name, value in self.weights.items():
                model.get_parameter(name).copy_(value)
        return model

    def row(self) -> dict[str, Any]:
        """What the page shows of it; JSON has no infinity."""
        each = -(-len(self.losses) // POINTS) or 1
        parts = [self.losses[i : i + each] for i in range(0, len(self.losses), each)]
        return dict(
            asdict(self.settings),
            number=self.number,
            done=len(self.seconds),
            heldout=[[at, _finite(loss)] for at, loss in zip(self.at, self.heldout)],
            training=[[min((i + 1) * each, len(self.losses)), _finite(fmean(part))] for i, part in enumerate(parts)],
            best=self.best,
            kept=self.best and _finite(self.kept),
            seconds=round(median(self.seconds), 3) if self.seconds else None,
            ended=self.ended,
            meant=self.meant,
        )


class Lab(anywidget.AnyWidget):
    """The lab as a widget. `await lab.run()` is what the Train button does; `.trials` holds what has been tried.

    A new lab takes the place of the one before it: two would fight over the processor, and each holds a model.
    `.settings` are the controls; `.says` the sentences beside the buttons, `.voices` the answers by run, to one prompt.
    """

    _esm, _latest = bundle(), None
    view = traitlets.Unicode("lab").tag(sync=True)
    setup = traitlets.Dict().tag(sync=True)  # what there is to choose, and what it costs
    settings = traitlets.Dict().tag(sync=True)
    runs = traitlets.List().tag(sync=True)
    voices = traitlets.Dict().tag(sync=True)
    says = traitlets.Dict().tag(sync=True)
    pace = traitlets.Dict().tag(sync=True)  # by task: the base's loss, seconds of a step and of a measurement

    def __init__(self, base: GPT | None = None, folder: str | Path = "adapters/mine", task: str = "records"):
        self.trials: list[Trial] = []
        self._base, self._count, self._job, self._starting = None, 0, None, threading.Lock()
        if task not in PROMPTS:
            raise SettingError(f'there is no task called "{task}": choose {" or ".join(PROMPTS)}')
        if Lab._latest and (last := Lab._latest()):
            last.close()
        Lab._latest = weakref.ref(self)
        self._base = base or load_base().to(best_device())
        super().__init__(
            setup=setup(self._base, str(folder)) | dict(every=EVERY),
            settings=dict(BEGIN, task=task),
            voices=dict(prompt=PROMPTS[task](), task=task, of={}),
            says=dict(train="ready: choose the settings and press Train"),
        )
        self.on_msg(self._hear)

    def __repr__(self) -> str:  # what a reader without a kernel sees in its place
        return "(the live lab: run this cell to use it)"

    @property
    def base(self) -> GPT:
        """The lab's own base, which no run touches. Raises SettingError when the lab is closed."""
        if self._base is None:
            raise SettingError("a newer lab has taken the place of this one: use that, or run this cell again")
        return self._base

    @property
    def running(self) -> bool:
        return bool(self.trials) and self.trials[-1].ended == "training"

    def start(self) -> None:
        """Train in the background of the kernel; says so, and no more, when a run is under way."""
        if trial := self._new_trial():
            self._in_background(self._run(trial))

    async def run(self) -> None:
        """One run with the settings as they are now; what a person can put right is said beside the button."""
        if trial := self._new_trial():
            await self._run(trial)

    def stop(self) -> None:
        """Ask the run to end after the step that it is in."""
        if not self.running:
            return self._say("train", "nothing is training")
        self.trials[-1].asked = True

    def remove(self, run: int | None = None) -> None:
        """Forget one run, or all of them; what still trains ends after its step."""
        gone = [trial for trial in self.trials if self.base and run in (None, trial.number)]
        for trial in gone:
            trial.asked = True
        self.trials = [trial for trial in self.trials if trial not in gone]
        numbers = {str(trial.number) for trial in gone}
        self.voices = self.voices | dict(of={who: v for who, v in self.voices["of"].items() if who not in numbers})
        if not self.trials:
            self.says = dict(train="ready: choose the settings and press Train")
        self._show()

    def close(self) -> None:
        """Stop, and let go of the model."""
        for trial in self.trials:
            trial.asked = True
        self._base = None
        self.layout.close()
        super().close()

    def answer(self, run: int | None = None, prompt: str | None = None, task: str | None = None) -> None:
        """The base and a run, the latest if none is named, go on from the prompt, with one seed."""
        if prompt is not None and not prompt.strip():
            return self._say("ask", "the prompt is empty: type a few words")
        self._asked(task or self.settings["task"], prompt)
        trial = self._named(run)
        self._hear_voice(trial, trial.prepared(self.base) if trial else None)
        self._say("ask", _warning(trial) if trial else "this is the base: no run has an adapter yet")

    def save(self, run: int | None = None, folder: str | None = None) -> None:
        """Write a run's best step into the folder, or beside it when the folder holds another run's adapter."""
        base, trial, asked = self.base, self._named(run), (self.setup["folder"] if folder is None else folder).strip()
        if not asked:
            return self._say("save", "name a folder for the adapter")
        if not trial:
            return self._say("save", "there is no adapter yet: train one first")
        place = trial.folders.get(asked) or _free(asked)
        try:
            save_adapter(trial.prepared(base), place)
            report = dict(completes=trial.settings.task == "records", join=JOIN)  # how `generate` has to ask
            files.replace(user_path(place) / REPORT, lambda to: to.write_text(json.dumps(report) + "\n", "utf-8"))
        except (CourseError, OSError) as error:
            return self._say("save", str(error))
        info, trial.folders[asked] = inspect_adapter(place), place
        beside = "" if place == asked else f"{asked} is taken: "
        size = f"{info.parameters:,} numbers, {info.bytes:,} bytes"
        said = f"{beside}saved run {trial.number}, step {trial.best}, to {place} ({size}){_warning(trial, '. ')}"
        self.says = self.says | dict(save=said, line=self._line(trial, place))

    def _line(self, trial, place):
        """What uses a saved adapter, typed where the course lies."""
        full = user_path(place).resolve()
        where = full.relative_to(ROOT).as_posix() if full.is_relative_to(ROOT) else str(full)
        likeliest = " --temperature 0" if trial.settings.task == "records" else ""
        own = self.voices["task"] == trial.settings.task
        prompt = shlex.quote(self.voices["prompt"] if own else PROMPTS[trial.settings.task]())
        return f"python -m llm generate {prompt} --adapter {shlex.quote(where)}{likeliest}"

    def _hear(self, _widget, said, _buffers):
        """A message of the page: what to do, with the controls as they stand when it trains."""
        given = {name: value for name, value in said.items() if name != "do"}
        if said["do"] in ("train", "estimate"):
            prompt = given.pop("prompt", "")
            self.settings, given = given, {}
            if said["do"] == "train":
                self._asked(self.settings["task"], prompt)
        acts = dict(train=self.start, estimate=self.estimate, stop=self.stop)
        acts |= dict(remove=self.remove, ask=self.answer, save=self.save)
        acts[said["do"]](**given)

    def estimate(self) -> None:
        """Measure the base and a step, unless that is done: the page asks for it when the lab comes into sight."""
        if not self.running and self.settings["task"] not in self.pace:
            self._in_background(self._estimate(Trial(0, self._recipe())))

    async def _estimate(self, trial):
        try:
            await self._measured(trial)
        except CourseError as error:
            self._say("train", str(error))

    def _in_background(self, work):
        self._job = asyncio.get_running_loop().create_task(work)
        self._job.add_done_callback(lambda job: job.cancelled() or job.result())  # a defect shows its traceback

    def _named(self, run):
        """The run of that number, or the latest, among those that have an adapter."""
        return next((t for t in reversed(self.trials) if t.weights and run in (None, t.number)), None)

    def _recipe(self):
        return Recipe(**{name: self.settings[name] for name in (*BEGIN, "task")})

    def _new_trial(self):
        with self._starting:
            if self.base and self.running:
                return self._say("train", "a run is under way: stop it first, or wait for its end")
            self._asked(self.settings["task"])
            self._count += 1
            self.trials.append(Trial(self._count, self._recipe()))
        self._say("train", "reading the text and measuring the base")
        self._show()
        return self.trials[-1]

    async def _run(self, trial):
        end = "stopped"  # by a Stop, a Reset, a newer lab, or a kernel that is shut down
        try:
            end = await self._train(trial)
        except CourseError as error:
            end = "failed"
            self._say("train", str(error))
        except KeyboardInterrupt:
            end = "interrupted"
            self._say("train", f"interrupted{_kept(trial)}")
        except Exception as error:
            end = "failed"
            self._say("train", f"the run broke off with a {type(error).__name__}: {error}")
            raise
        finally:
            trial.ended = end
            self._show()

    async def _measured(self, trial):
        """The task of a run, whose base is measured once, with the seconds that this and one step take."""
        run, base = trial.settings, self.base
        await asyncio.sleep(GIVE_WAY)
        task = _task(run.task)
        if run.task not in self.pace and not trial.asked:
            began = time.perf_counter()
            loss, measured = evaluate(base, task.heldout), time.perf_counter() - began
            await asyncio.sleep(GIVE_WAY)
            [step] = train(trial.prepared(base), task.batches(run.seed), steps=1, lr=0.0)
            self.pace = self.pace | {run.task: dict(base=loss, step=step.seconds, measure=measured)}
            await asyncio.sleep(GIVE_WAY)
        return task

    async def _train(self, trial):
        run, base, method = trial.settings, self.base, METHODS[trial.settings.method]
        task = await self._measured(trial)  # the text may take a while
        if trial.asked:
            return self._conclude(trial)
        model = trial.prepared(base)
        trial.at.append(0), trial.heldout.append(self.pace[run.task]["base"])  # each of them starts at the base
        with closing(train(model, task.batches(run.seed), steps=run.steps, lr=method.rates(run.lr))) as training:
            while not trial.asked and (step := next(training, None)):
                self._note(trial, step)
                await asyncio.sleep(GIVE_WAY)
                if (len(trial.seconds) in EARLY or len(trial.seconds) % EVERY == 0) and not trial.asked:
                    self._measure(trial, model, task.heldout)
                    await asyncio.sleep(GIVE_WAY)
        if trial.seconds and trial.at[-1] != len(trial.seconds) and self._holds(trial):
            self._say("train", f"{'stopped' if trial.asked else 'done'} after {len(trial.seconds)} steps")  # at once
            await asyncio.sleep(GIVE_WAY)
            self._measure(trial, model, task.heldout)
        return self._conclude(trial)

    def _conclude(self, trial):
        end, steps = "stopped" if trial.asked else "done", len(trial.seconds)
        if self._holds(trial):
            said = f"{end} after {steps} steps: {_meaning(trial)}" if steps else "stopped before the first step"
            self._say("train", f"{said}{_kept(trial)}")
        return end

    def _note(self, trial, step):
        trial.losses.append(step.loss), trial.seconds.append(step.seconds)
        a_step, now = median(trial.seconds), self.pace[trial.settings.task]
        self.pace = self.pace | {trial.settings.task: now | dict(step=a_step)}
        left = trial.settings.steps - len(trial.seconds)
        ahead = math.ceil(left / EVERY) + sum(len(trial.seconds) < at < trial.settings.steps for at in EARLY)
        left = left * a_step + ahead * now["measure"]
        speed = f"{step.tokens / a_step:,.0f} tokens per second, about {_duration(left)} left"
        if self._holds(trial):
            self._say("train", f"step {step.index + 1}: training loss {step.loss:.2f}, {speed}")
            self._show()

    def _measure(self, trial, model, heldout):
        began = time.perf_counter()
        loss, step = evaluate(model, heldout), len(trial.seconds)
        trial.at.append(step), trial.heldout.append(loss)  # both or, after an interrupt, none
        if trial.best is None or loss < trial.kept:
            trained = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
            trial.best, trial.weights = step, trained
            if self._holds(trial) and self.voices["task"] == trial.settings.task:
                self._hear_voice(trial, model)
        name, now = trial.settings.task, self.pace[trial.settings.task]
        self.pace = self.pace | {name: now | dict(measure=time.perf_counter() - began)}
        self._show()

    def _asked(self, task, prompt=None):
        """From now on this is the prompt; another one is heard anew. A task has one of its own."""
        own = self.voices["prompt"] if self.voices["task"] == task else PROMPTS[task]()
        prompt = (prompt or "").strip() or own
        if (self.voices["prompt"], self.voices["task"]) != (prompt, task):
            self.voices = dict(prompt=prompt, task=task, of={})

    def _hear_voice(self, trial, model):
        """What the base and a run at its best step answer to the prompt; the base is heard once."""
        task, prompt, of = self.voices["task"], self.voices["prompt"], dict(self.voices["of"])
        if "base" not in of:
            of["base"] = dict(text=respond(self.base, task, prompt))
        if trial:
            of[str(trial.number)] = dict(step=trial.best, text=respond(model, task, prompt))
        if self.voices["prompt"] == prompt and self.voices["task"] == task:  # else it has changed meanwhile
            self.voices = self.voices | dict(of=self.voices["of"] | of)

    def _holds(self, trial):
        """Whether the run has been neither removed nor left behind by a lab that is closed."""
        return trial in self.trials and self._base is not None

    def _say(self, where, text):
        if self._base is not None:
            self.says = self.says | {where: text}

    def _show(self):
        if self._base is not None:
            self.runs = [trial.row() for trial in self.trials]


_DRAWING = threading.Lock()  # a seed and what is drawn from it: no other thread between the two


def _duration(seconds):
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _finite(value):
    return round(value, 4) if math.isfinite(value) else None


def _meaning(trial):
    """What the curve means and what to try next, in a sentence; the word for it stays with the run."""
    if len(trial.losses) < JUDGED:
        return f"held-out loss {trial.heldout[0]:.2f} -> {trial.heldout[-1]:.2f}, too few steps to judge"
    found = verdict(list(zip(trial.at, trial.heldout)), trial.losses)
    trial.meant = found.kind
    return f"{found.sentence}; {found.try_next}"


def _kept(trial):
    return f"; kept: step {trial.best} ({trial.kept:.2f})" if trial.best else ""


def _warning(trial, before=""):
    """That a run is worse than the base; nothing of one that is better."""
    worse = f"run {trial.number} is worse than the base, with {trial.kept:.2f} against {trial.heldout[0]:.2f}"
    return before + worse if not trial.kept < trial.heldout[0] else ""


def _free(folder):
    """The folder, or the first of folder-2, folder-3 ... that is not there yet."""
    names = (folder if n == 1 else f"{folder}-{n}" for n in range(1, 10**6))
    return next(name for name in names if not (user_path(name) / "adapter_config.json").exists())
