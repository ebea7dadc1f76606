"""Adapters swapped on one base, and what each says to the same prompt (anywidget: the page shows, the kernel answers)."""

import threading
import time
import weakref
from pathlib import Path
from typing import Any

import anywidget
import traitlets

from llm.adapters import load_adapter
from llm.course.tasks import respond
from llm.course.widgets.explorer import bundle
from llm.errors import AdapterError
from llm.lora import remove_lora
from llm.model import GPT


class Voices(anywidget.AnyWidget):
    """Pick an adapter, hear the same prompt answered by it; what was heard stays, for comparison.

    model: a base of the widget's own, on which adapters are swapped; folders: adapter folders by name.
    A new one takes the place of the one before it.
    """

    BASE = "no adapter"

    _esm, _latest = bundle(), None
    view = traitlets.Unicode("voices").tag(sync=True)
    names = traitlets.List().tag(sync=True)
    adapter = traitlets.Unicode(BASE).tag(sync=True)
    prompt = traitlets.Unicode().tag(sync=True)
    answer = traitlets.Dict().tag(
        sync=True
    )  # to which adapter and prompt, what it says of them, and all that was heard

    def __init__(self, model: GPT, folders: dict[str, Path], prompt: str):
        if Voices._latest and (last := Voices._latest()):  # its cell has run again, and each holds a model
            last.close()
        Voices._latest = weakref.ref(self)
        self._model, self._folders, self._heard, self._lock = model, folders, {}, threading.RLock()
        super().__init__(names=[self.BASE, *folders], prompt=prompt)
        self.hear()
        self.observe(self.hear, names=["adapter", "prompt"])

    def close(self) -> None:
        """Let go of the model, and of the widget with its layout."""
        self._model = None
        self.layout.close()
        super().close()

    def hear(self, _change: Any = None) -> None:
        """Swap to the chosen adapter and let it go on from the prompt, unless it has done so already."""
        with self._lock:
            adapter, prompt = self.adapter, self.prompt
            says = self._says(adapter, prompt.strip())
            heard = {name: text for (name, to), text in self._heard.items() if to == prompt.strip()}
            self.answer = {"adapter": adapter, "prompt": prompt, "says": says, "heard": heard}

    def _says(self, adapter: str, prompt: str) -> str:
        if not prompt:
            return "The prompt is empty: type a few words."
        began = time.perf_counter()
        try:
            if adapter == self.BASE:
                remove_lora(self._model)
            else:
                load_adapter(self._model, self._folders[adapter])
        except AdapterError as error:
            return str(error)
        swapped = time.perf_counter()
        if (adapter, prompt) in self._heard:
            return f"{adapter}: swapped in {1000 * (swapped - began):.1f} ms, answered before"
        self._heard[adapter, prompt] = respond(self._model, "shakespeare", prompt)
        response = time.perf_counter() - swapped
        return f"{adapter}: swapped in {1000 * (swapped - began):.1f} ms, answered in {response:.1f} s"

    def __repr__(self) -> str:  # what a reader without a kernel sees in its place
        return "(voices for one base: run this cell to hear them)"
