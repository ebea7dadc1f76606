"""Adapters swapped on one base, and what each says to the same prompt."""

import html
import threading
import time
from pathlib import Path
from typing import Any

import ipywidgets as widgets

from llm.adapters import load_adapter
from llm.course.tasks import respond
from llm.course.widgets.old_explorer import close_parts, live, take_the_place_of_the_last
from llm.errors import AdapterError
from llm.lora import remove_lora
from llm.model import GPT


class Voices(widgets.VBox):
    """Pick an adapter, hear the same prompt answered by it; what was heard stays, for comparison.

    model: a base of the explorer's own, on which adapters are swapped; folders: adapter folders by name.
    A new one takes the place of the one before it.
    """

    BASE = "no adapter"

    def __init__(self, model: GPT, folders: dict[str, Path], prompt: str):
        take_the_place_of_the_last("voices", self)
        self._model, self._folders, self._heard, self._lock = model, folders, {}, threading.RLock()
        self.choice = widgets.Dropdown(options=[self.BASE, *folders], description="adapter")
        wide = widgets.Layout(width="640px")
        self.prompt = widgets.Text(prompt, description="prompt", continuous_update=False, layout=wide)
        self.text, self.answers = widgets.HTML(), widgets.HTML()
        self.answer()
        self.choice.observe(self.answer, names="value")
        self.prompt.observe(self._new_prompt, names="value")
        super().__init__([self.choice, self.prompt, self.text, self.answers])

    def close(self) -> None:
        """Let go of the model and of all widgets."""
        self._model = None
        close_parts(self)
        super().close()

    def _new_prompt(self, _change: Any) -> None:
        with self._lock:
            self._heard.clear()
            self.answer()

    def answer(self, _change: Any = None) -> None:
        """Swap to the chosen adapter and let it go on from the prompt, unless it has done so already."""
        with self._lock:
            name, prompt = self.choice.value, self.prompt.value.strip()
            if not prompt:
                self.text.value, self.answers.value = live("the prompt is empty: type a few words"), ""
                return
            began = time.perf_counter()
            try:
                if name == self.BASE:
                    remove_lora(self._model)
                else:
                    load_adapter(self._model, self._folders[name])
            except AdapterError as error:
                self.text.value = live(str(error))
                return
            swapped = time.perf_counter()
            if name not in self._heard:
                self._heard[name] = respond(self._model, "shakespeare", prompt)
            swap, response = 1000 * (swapped - began), time.perf_counter() - swapped
            self.text.value = live(f"{name}: swapped in {swap:.1f} ms, answered in {response:.1f} s")
            self.answers.value = "".join(
                f"<b>{html.escape(adapter)}{' (chosen)' if adapter == name else ''}</b><pre>{html.escape(text)}</pre>"
                for adapter, text in self._heard.items()
            )

    def __repr__(self) -> str:  # what a reader without a kernel sees in its place
        return "(three voices for one base: run this cell to hear them)"
