"""The live lab: choose, train, stop, compare, listen, save. Controls over `train`; no maths, no drawing of its own.

Training runs on the event loop that the click came from and gives way after every step: Stop and other cells need no
thread. JupyterLab may still bring two clicks on two threads, so what touches the model holds a lock.
"""

import asyncio
import html
import threading
import weakref
from contextlib import closing
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from statistics import median

import ipywidgets as widgets
import torch

from llm.adapters import inspect_adapter, save_adapter
from llm.bases import load_base
from llm.course.figures import canvas, training
from llm.course.sweeps import Recipe
from llm.course.tasks import load_task, respond
from llm.errors import CourseError
from llm.finetune.targets import TARGETS, targets_of
from llm.lora import SCALING, apply_lora, lora_disabled, lora_layers, remove_lora
from llm.model import GPT
from llm.text.batches import UNSEEN
from llm.text.records import make_records
from llm.training import best_device, evaluate, train

RANKS = (1, 2, 4, 8, 16, 32, 64)
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
PROMPTS = {"records": make_records(1, seed=UNSEEN)[0].sentence, "shakespeare": "The people of the United States,"}
GIVE_WAY = 0.005  # seconds: a click needs several rounds of the loop to arrive, and a step is a hundred times as long
EVERY = 5  # steps between two measurements, each about as long as a step

_labs: "weakref.WeakSet[Lab]" = weakref.WeakSet()
_task = cache(lambda name: load_task(name, limit=1))


@dataclass
class Trial:
    """One run on the plot: its settings, held-out losses at some steps (the base's at 0), seconds a step, its end."""

    settings: Recipe
    at: list[int] = field(default_factory=list)
    heldout: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    ended: str = "training"


class Lab(widgets.VBox):
    """The lab as a widget. `await lab.run()` is what the Train button does; `.trials` holds what has been tried.

    A new lab stops the one before it: two would fight over the processor.
    """

    def __init__(self, base: GPT | None = None, folder: str | Path = "adapters/mine", task: str = "records"):
        for other in list(_labs):
            other.stop()
        _labs.add(self)
        self.model, self.trials, self._asked, self._figure = base or load_base().to(best_device()), [], False, None
        self._job: asyncio.Task | None = None
        self._lock = threading.RLock()  # held through a step, an answer, a save: none of them sees half of another
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
        self.prompt = widgets.Text(PROMPTS[task], description="prompt", **wide)
        self.folder = widgets.Text(str(folder), description="folder", **wide)
        self.controls["task"].observe(self._new_task, names="value")
        self._say("ready: choose the settings and press Train")
        self._draw()
        settings = widgets.GridBox(list(self.controls.values()), layout=dict(grid_template_columns="330px 330px"))
        train, ask, keep = (
            widgets.HBox(row)
            for row in (
                [self.buttons[name] for name in ("Train", "Stop", "Reset")],
                [self.prompt, self.buttons["Answer"]],
                [self.folder, self.buttons["Save"]],
            )
        )
        super().__init__([settings, train, self.bar, self.status, self.image, self.table, ask, self.answers, keep])

    def __repr__(self) -> str:  # what a reader without a kernel sees in its place
        return "(the live lab: run this cell to use it)"

    @property
    def running(self) -> bool:
        return bool(self.trials) and self.trials[-1].ended == "training"

    def start(self) -> None:
        """Train in the background of the kernel; says so, and no more, when a run is under way."""
        if self.running or self._job and not self._job.done():
            return self._say("a run is under way: stop it first, or wait for its end")
        self._job = asyncio.ensure_future(self.run())

    def stop(self) -> None:
        """Ask the run to end after the step that it is in."""
        self._asked = True
        if not self.running:
            self._say("nothing is training")

    def reset(self) -> None:
        """Forget all runs; the base is as it was."""
        self._asked = True
        with self._lock:
            remove_lora(self.model)
            self.trials.clear()
            self.bar.value, self.table.value, self.answers.value = 0, "", ""
            self._say("ready: choose the settings and press Train")
            self._draw()

    async def run(self) -> None:
        """One run with the settings as they are now; what goes wrong is said in the status line, not raised."""
        trial, self._asked = Trial(Recipe(**{name: control.value for name, control in self.controls.items()})), False
        self.trials.append(trial)
        try:
            await self._train(trial)
        except (CourseError, ValueError) as error:
            trial.ended = "failed"
            self._say(str(error))
        except KeyboardInterrupt:
            trial.ended = "interrupted"
            self._say("interrupted: the adapter is that of the last whole step")
        except asyncio.CancelledError:
            trial.ended = "stopped"
            raise
        finally:
            if trial in self.trials:  # else it was reset meanwhile
                self._draw()

    async def _train(self, trial):
        run = trial.settings
        self._say("reading the text and measuring the base")
        await asyncio.sleep(GIVE_WAY)
        task = _task(run.task)
        with self._lock:
            torch.manual_seed(run.seed)
            apply_lora(remove_lora(self.model), run.r, run.alpha, run.scaling, targets=targets_of(run.targets))
            self.bar.max, self.bar.value = run.steps, 0
            self._measure(trial, 0, task.heldout)  # B is zero: this is the base
        with closing(train(self.model, task.batches(run.seed), steps=run.steps, lr=run.lr)) as training:
            while not self._asked:
                with self._lock:
                    if not (step := next(training, None)):
                        break
                    self._note(trial, step)
                await asyncio.sleep(GIVE_WAY)
                if len(trial.seconds) % EVERY == 0 and not self._asked:
                    self._measure(trial, len(trial.seconds), task.heldout)
                    await asyncio.sleep(GIVE_WAY)
        if trial not in self.trials:  # reset meanwhile
            return
        trial.ended = "stopped" if self._asked else "done"
        self._say(f"{trial.ended} after {len(trial.seconds)} steps")  # at once; to measure takes another moment
        if trial.at[-1] != len(trial.seconds):
            self._measure(trial, len(trial.seconds), task.heldout)
        self._draw()
        change = f"held-out loss {trial.heldout[0]:.2f} -> {trial.heldout[-1]:.2f}"
        self._say(f"{trial.ended} after {len(trial.seconds)} steps: {change}")
        self.answer()

    def _note(self, trial, step):
        trial.seconds.append(step.seconds)
        self.bar.value = done = step.index + 1
        a_step = median(trial.seconds)
        left = f"{(trial.settings.steps - done) * a_step:.0f} s left"
        self._say(f"step {done}: training loss {step.loss:.2f}, {step.tokens / a_step:,.0f} tokens a second, {left}")

    def _measure(self, trial, step, heldout):
        with self._lock:
            trial.at.append(step), trial.heldout.append(evaluate(self.model, heldout))
        if trial in self.trials:
            self._draw()

    def answer(self) -> None:
        """The base and the adapter go on from the prompt, with one seed."""
        task, prompt = self.controls["task"].value, self.prompt.value.strip()
        if not prompt:
            return self._say("the prompt is empty: type a few words")
        with self._lock:
            with lora_disabled(self.model):
                parts = {"base": respond(self.model, task, prompt)}
            if lora_layers(self.model):
                parts["with the adapter"] = respond(self.model, task, prompt)
        self.answers.value = "".join(f"<b>{who}</b><pre>{html.escape(text)}</pre>" for who, text in parts.items())

    def save(self) -> None:
        """Write the adapter as it is now, between two steps if need be."""
        folder = self.folder.value.strip()
        if not folder:
            return self._say("name a folder for the adapter")
        try:
            with self._lock:
                save_adapter(self.model, folder)
        except (CourseError, OSError) as error:
            return self._say(str(error))
        info = inspect_adapter(folder)
        self._say(f"saved to {folder}: {info.parameters:,} parameters in {info.bytes:,} bytes")

    def _new_task(self, change):
        if self.prompt.value == PROMPTS[change["old"]]:  # not one that the learner typed
            self.prompt.value = PROMPTS[change["new"]]

    def _say(self, text):
        self.status.value = f'<div role="status" aria-live="polite">{html.escape(text)}</div>'

    def _draw(self):
        with canvas.DRAWING:
            self._figure = training.trials([(t.at, t.heldout) for t in self.trials if t.at], self._figure)
            self.image.value, self.table.value = canvas.png(self._figure), _table(self.trials)


def _controls(task):
    def pick(label, options, value):
        return widgets.Dropdown(options=options, value=value, description=label)

    return {
        "task": pick("task", list(PROMPTS), task),
        "r": pick("rank r", RANKS, Recipe.r),
        "alpha": widgets.BoundedFloatText(Recipe.alpha, min=0.0, max=256.0, description="alpha"),
        "scaling": pick("scale", list(SCALING), Recipe.scaling),
        "targets": pick("targets", list(TARGETS), Recipe.targets),
        "lr": pick("rate", [(f"{rate:g}", rate) for rate in RATES], Recipe.lr),
        "steps": widgets.BoundedIntText(40, min=1, max=2000, description="steps"),
    }


def _table(trials):
    def row(cells, tag="td"):
        return "<tr>" + "".join(f'<{tag} style="padding: 0 10px">{cell}</{tag}>' for cell in cells) + "</tr>"

    shown = ("task", "r", "alpha", "scaling", "targets", "lr", "steps")
    rows = [row(("run", *shown, "base", "held-out", "s a step", "end"), "th")]
    for i, t in enumerate(trials, 1):
        measured = (f"{y:.2f}" for y in (t.heldout[0], t.heldout[-1])) if t.heldout else ("", "")
        a_step = f"{median(t.seconds):.2f}" if t.seconds else ""
        rows.append(row((i, *(getattr(t.settings, name) for name in shown), *measured, a_step, t.ended)))
    return f"<table>{''.join(rows)}</table>" if trials else ""
