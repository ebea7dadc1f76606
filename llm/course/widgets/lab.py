"""The live lab: choose, train, stop, compare, listen, save. Controls over `train`; no maths, no drawing of its own.

Training runs on the event loop that the click came from and gives way after every step: Stop and other cells need no
thread. JupyterLab may still bring two clicks on two threads, so what touches the model holds a lock, and whether to
stop is asked of each run by itself: one that was reset can end while the next begins.
"""

import asyncio
import html
import threading
from contextlib import closing
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from statistics import median

import ipywidgets as widgets
import torch

from llm.adapters import inspect_adapter, save_adapter
from llm.bases import load_base
from llm.course.experiments import Recipe
from llm.course.figures import canvas
from llm.course.figures.losses import trials
from llm.course.tasks import load_task, respond
from llm.course.widgets.old_explorer import close_parts, live, take_the_place_of_the_last
from llm.errors import CourseError, SettingError
from llm.finetune.target_words import TARGETS, targets_of
from llm.finetune.verdict import verdict
from llm.lora import SCALING, START
from llm.model import GPT
from llm.relatives import METHODS, OPTIONS, disabled, method_of, remove
from llm.text.batches import UNSEEN
from llm.text.records import make_records
from llm.training import best_device, evaluate, train

LIVE = ("lora", "rslora", "dora", "pissa", "lora-fa", "ia3", "bitfit")
RANKS = (1, 2, 4, 8, 16, 32, 64)
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
PROMPTS = {  # made when asked for: a record's words come out of the tokenizer's tables
    "records": lambda: make_records(1, seed=UNSEEN)[0].sentence,
    "shakespeare": lambda: "The people of the United States,",
}
GIVE_WAY = 0.005  # seconds: a click needs several rounds of the loop to arrive, and a step is a hundred times as long
JUDGED = 10  # steps: before, the rate has not reached its height, and a curve means nothing yet
EVERY = 5  # steps between two measurements, each about as long as a step

_task = cache(lambda name: load_task(name, limit=1))


@dataclass(eq=False)  # each run is itself, however alike two are
class Trial:
    """One run on the plot: its settings and its end, and what was measured.

    heldout: losses at the steps `at`, the base's at 0; losses, seconds: of each training step; meant: its curve in a word.
    """

    settings: Recipe
    at: list[int] = field(default_factory=list)
    heldout: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    meant: str = ""
    ended: str = "training"
    asked: bool = False  # to end after the step that it is in


class Lab(widgets.VBox):
    """The lab as a widget. `await lab.run()` is what the Train button does; `.trials` holds what has been tried.

    A new lab takes the place of the one before it: two would fight over the processor, and each holds a model.
    """

    def __init__(self, base: GPT | None = None, folder: str | Path = "adapters/mine", task: str = "records"):
        self.trials, self._model, self._figure = [], None, None
        self._job: asyncio.Task | None = None
        self._lock = threading.RLock()  # held through a step, an answer, a save: none of them sees half of another
        if task not in PROMPTS:
            raise SettingError(f'there is no task called "{task}": choose {" or ".join(PROMPTS)}')
        take_the_place_of_the_last("lab", self)
        self._model = base or load_base().to(best_device())
        self.controls, self.buttons = _controls(task), {}
        for name, (act, tip) in {
            "Train": (self.start, "train a fresh adapter with these settings"),
            "Stop": (self.stop, "stop after the step that is running"),
            "Reset": (self.reset, "forget all runs and take the adapter off"),
            "Answer": (self.answer, "let the base and the adapter go on from the prompt"),
            "Save": (self.save, "write the adapter to the folder"),
        }.items():
            self.buttons[name] = widgets.Button(description=name, tooltip=tip, layout=widgets.Layout(width="90px"))
            self.buttons[name].on_click(lambda _, act=act: act())
        self.buttons["Train"].button_style = "primary"
        self.bar = widgets.IntProgress(0, 0, 1, description="steps", layout=widgets.Layout(width="420px"))
        self.status, self.table, self.answers = widgets.HTML(), widgets.HTML(), widgets.HTML()
        self.image = widgets.Image(format="png", layout=dict(align_self="flex-start"))
        wide = dict(layout=widgets.Layout(width="640px"))
        self.prompt = widgets.Text(PROMPTS[task](), description="prompt", **wide)
        self.folder = widgets.Text(str(folder), description="folder", **wide)
        self.controls["task"].observe(self._new_task, names="value")
        self.controls["method"].observe(self._new_method, names="value")
        self._say("ready: choose the settings and press Train")
        self._draw()
        settings = widgets.GridBox(list(self.controls.values()), layout=dict(grid_template_columns="330px 330px"))
        train = widgets.HBox([self.buttons[name] for name in ("Train", "Stop", "Reset")])
        ask = widgets.HBox([self.prompt, self.buttons["Answer"]])
        keep = widgets.HBox([self.folder, self.buttons["Save"]])
        super().__init__([settings, train, self.bar, self.status, self.image, self.table, ask, self.answers, keep])

    def __repr__(self) -> str:  # what a reader without a kernel sees in its place
        return "(the live lab: run this cell to use it)"

    @property
    def model(self) -> GPT:
        """The lab's own base, with the adapter of the latest run. Raises SettingError when the lab is closed."""
        if self._model is None:
            raise SettingError("a newer lab has taken the place of this one: use that, or run this cell again")
        return self._model

    @property
    def running(self) -> bool:
        return bool(self.trials) and self.trials[-1].ended == "training"

    def start(self) -> None:
        """Train in the background of the kernel; says so, and no more, when a run is under way."""
        loop = asyncio.get_running_loop()
        if trial := self._new_trial():
            self._job = loop.create_task(self._run(trial))
            self._job.add_done_callback(lambda job: job.cancelled() or job.result())  # a defect shows its traceback

    async def run(self) -> None:
        """One run with the settings as they are now; what a person can put right is said in the status line."""
        if trial := self._new_trial():
            await self._run(trial)

    def stop(self) -> None:
        """Ask the run to end after the step that it is in."""
        if not self.running:
            return self._say("nothing is training")
        self.trials[-1].asked = True

    def reset(self) -> None:
        """Forget all runs; the base is as it was."""
        self._stop_all()
        with self._lock:
            remove(self.model)
            self.trials.clear()
            self.bar.value, self.table.value, self.answers.value = 0, "", ""
            self._say("ready: choose the settings and press Train")
            self._draw()

    def close(self) -> None:
        """Stop, and let go of the model and of all widgets."""
        self._stop_all()
        self._model = None
        close_parts(self)
        super().close()

    def _stop_all(self):
        for trial in self.trials:
            trial.asked = True

    def _new_trial(self):
        with self._lock:
            if self.model and self.running:
                return self._say("a run is under way: stop it first, or wait for its end")
            self.trials.append(Trial(Recipe(**{name: control.value for name, control in self.controls.items()})))
            self._say("reading the text and measuring the base")
            return self.trials[-1]

    async def _run(self, trial):
        end = "stopped"  # by a Stop, a Reset, a newer lab, or a kernel that is shut down
        try:
            end = await self._train(trial, self.model)
        except CourseError as error:
            end = "failed"
            self._say(str(error))
        except KeyboardInterrupt:
            end = "interrupted"
            self._say("interrupted: the adapter is that of the last whole step")
        except Exception as error:
            end = "failed"
            self._say(f"the run broke off with a {type(error).__name__}: {error}")
            raise
        finally:
            trial.ended = end
            if trial in self.trials:  # else it was reset meanwhile
                self._draw()

    async def _train(self, trial, model):
        run = trial.settings
        await asyncio.sleep(GIVE_WAY)
        if trial.asked:  # the text may take a while
            return self._conclude(trial)
        task = _task(run.task)
        with self._lock:
            if trial.asked:
                return self._conclude(trial)
            torch.manual_seed(run.seed)
            try:
                method, targets = METHODS[run.method], targets_of(run.targets)
                method.prepare(remove(model), run.r, run.alpha, run.scaling, targets, start=run.start)
            except ValueError as error:  # `lora.py` knows none of our errors
                raise SettingError(str(error)) from None
            self.bar.max, self.bar.value = run.steps, 0
            self._measure(trial, 0, task.heldout)  # each of them starts at the base
        with closing(train(model, task.batches(run.seed), steps=run.steps, lr=method.rates(run.lr))) as training:
            while True:
                with self._lock:  # once asked to end, the model may be another run's
                    if trial.asked or not (step := next(training, None)):
                        break
                    self._note(trial, step)
                await asyncio.sleep(GIVE_WAY)
                if len(trial.seconds) % EVERY == 0 and not trial.asked:
                    self._measure(trial, len(trial.seconds), task.heldout)
                    await asyncio.sleep(GIVE_WAY)
        return self._conclude(trial)

    def _conclude(self, trial):
        end, steps = "stopped" if trial.asked else "done", len(trial.seconds)
        if trial not in self.trials or self._model is None:  # reset or closed meanwhile
            return end
        self._say(f"{end} after {steps} steps" if steps else "stopped before the first step")  # at once: to measure
        if steps:  # takes another moment
            if trial.at[-1] != steps:
                self._measure(trial, steps, _task(trial.settings.task).heldout)
            self._say(f"{end} after {steps} steps: {_meaning(trial)}")
            self.answer()
        return end

    def _note(self, trial, step):
        trial.losses.append(step.loss), trial.seconds.append(step.seconds)
        self.bar.value = done = step.index + 1
        a_step = median(trial.seconds)
        left = f"{(trial.settings.steps - done) * a_step:.0f} s left"
        self._say(f"step {done}: training loss {step.loss:.2f}, {step.tokens / a_step:,.0f} tokens a second, {left}")

    def _measure(self, trial, step, heldout):
        with self._lock:
            loss = evaluate(self.model, heldout)
            trial.at.append(step), trial.heldout.append(loss)  # both or, after an interrupt, none
        self._draw()

    def answer(self) -> None:
        """The base and the adapter go on from the prompt, with one seed."""
        task, prompt = self.controls["task"].value, self.prompt.value.strip()
        if not prompt:
            return self._say("the prompt is empty: type a few words")
        with self._lock:
            with disabled(self.model):
                parts = {"base": respond(self.model, task, prompt)}
            if method_of(self.model):
                parts["with the adapter"] = respond(self.model, task, prompt)
        self.answers.value = "".join(f"<b>{who}</b><pre>{html.escape(text)}</pre>" for who, text in parts.items())

    def save(self) -> None:
        """Write the adapter as it is now, between two steps if need be."""
        model, folder = self.model, self.folder.value.strip()
        if not folder:
            return self._say("name a folder for the adapter")
        try:
            with self._lock:
                save_adapter(model, folder)
        except (CourseError, OSError) as error:
            return self._say(str(error))
        info = inspect_adapter(folder)
        self._say(f"saved to {folder}: {info.parameters:,} parameters in {info.bytes:,} bytes")

    def _new_task(self, change):
        if self.prompt.value == PROMPTS[change["old"]]():  # not one that the learner typed
            self.prompt.value = PROMPTS[change["new"]]()

    def _new_method(self, change):
        for name in self.controls.keys() & set(OPTIONS):
            self.controls[name].disabled = name not in METHODS[change["new"]].heeds

    def _say(self, text):
        self.status.value = live(text)

    def _draw(self):
        with canvas.DRAWING:
            self._figure = trials([(t.at, t.heldout) for t in self.trials if t.at], self._figure)
            self.image.value, self.table.value = canvas.png(self._figure), _table(self.trials)


def _controls(task):
    def pick(label, options, value):
        return widgets.Dropdown(options=options, value=value, description=label)

    return {
        "task": pick("task", list(PROMPTS), task),
        "method": pick("method", list(LIVE), Recipe.method),
        "r": pick("rank r", RANKS, Recipe.r),
        "alpha": widgets.BoundedFloatText(Recipe.alpha, min=0.0, max=256.0, description="alpha"),
        "scaling": pick("scale", list(SCALING), Recipe.scaling),
        "start": pick("A's start", list(START), Recipe.start),
        "targets": pick("targets", list(TARGETS), Recipe.targets),
        "lr": pick("rate", [(f"{rate:g}", rate) for rate in RATES], Recipe.lr),
        "steps": widgets.BoundedIntText(40, min=1, max=2000, description="steps"),
    }


def _meaning(trial):
    """What the curve means and what to try next, in a sentence; the word for it stays with the run."""
    if len(trial.losses) < JUDGED:
        return f"held-out loss {trial.heldout[0]:.2f} -> {trial.heldout[-1]:.2f}, too few steps to judge"
    found = verdict(list(zip(trial.at, trial.heldout)), trial.losses)
    trial.meant = found.kind
    return f"{found.sentence}; {found.try_next}"


def _table(trials):
    def row(cells, tag="td"):
        style = "padding: 0 5px" + "; white-space: nowrap" * (tag == "td")
        return "<tr>" + "".join(f'<{tag} style="{style}">{cell}</{tag}>' for cell in cells) + "</tr>"

    shown = ("task", "method", "r", "alpha", "scaling", "start", "targets", "lr", "steps")
    rows = [row(("run", *shown, "base", "held-out", "s a step", "end", "curve"), "th")]
    for i, t in enumerate(trials, 1):
        measured = (f"{y:.2f}" for y in (t.heldout[0], t.heldout[-1])) if t.heldout else ("", "")
        a_step = f"{median(t.seconds):.2f}" if t.seconds else ""
        rows.append(row((i, *(getattr(t.settings, name) for name in shown), *measured, a_step, t.ended, t.meant)))
    return f"<table>{''.join(rows)}</table>" if trials else ""
