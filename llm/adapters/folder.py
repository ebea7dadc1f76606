"""PEFT's adapter format: a folder with `adapter_config.json` and `adapter_model.safetensors`.

Writes the two as one, and reads with everything checked; never unpickles. Knows nothing about models.
"""

import json
import math
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from llm import files
from llm.adapters.foreign import AGAIN, CONFIG, TENSORS, abridged, factor, is_pointer, stranger, what_is_there
from llm.adapters.peft_config import Targets, digest, read_settings, write_settings
from llm.errors import AdapterError
from llm.lora import SCALING

STAGED = CONFIG + ".new"  # a save's config, until its tensors are in place
DTYPES = ("F64", "F32", "F16", "BF16")
KEY = "base_model.model.{}.lora_{}.weight"


@dataclass(frozen=True)
class Adapter:
    """What a folder says: factors by module path, A (r, in) and B (out, r) as PEFT has them, and how to scale them."""

    layers: dict[str, tuple[int, float]]  # r and alpha, by module path
    scaling: str  # "alpha/r" or "alpha/sqrt(r)"
    targets: Targets
    factors: dict[str, tuple[torch.Tensor, torch.Tensor]]
    dropout: float
    fingerprint: str | None  # of the base; PEFT writes none
    halved: str | None = None  # of the base in float16, in which a base that was shipped finer has another fingerprint
    quantized: str | None = None  # how the base was, in a word of `quantize.py`; PEFT says nothing of it

    def scale(self, path: str) -> float:
        r, alpha = self.layers[path]
        return SCALING[self.scaling](alpha, r)


# writing: two files, one moment from which the new adapter holds


def write_adapter(adapter: Adapter, folder: Path) -> None:
    """Write `adapter`; a kill or a full disk leaves a folder that reads as the old adapter or as the new one.

    Other files in the folder stay. Raises AdapterError when the disk refuses.
    """
    config = write_settings(adapter.layers, adapter.scaling, adapter.dropout)
    tensors = {KEY.format(path, name): t for path, pair in adapter.factors.items() for name, t in zip("AB", pair)}
    metadata = {"format": "pt", "base_fingerprint": adapter.fingerprint, "config": digest(config)}
    if adapter.halved != adapter.fingerprint:
        metadata["base_fingerprint_float16"] = adapter.halved
    if adapter.quantized:
        metadata["base_quantized"] = adapter.quantized
    text, data, existed = json.dumps(config, indent=2) + "\n", save(tensors, metadata), folder.exists()
    try:
        if _pending(folder):  # finish what a kill cut short before its staged file is overwritten
            os.replace(folder / STAGED, folder / CONFIG)
        files.replace(folder / STAGED, lambda path: path.write_text(text, encoding="utf-8"))
        # Up to this rename the folder holds the old adapter, from it on the new one: the reader takes the config that
        # the tensors name, the staged one if need be. The last rename is for PEFT, which knows one name only.
        files.replace(folder / TENSORS, lambda path: path.write_bytes(data))
        os.replace(folder / STAGED, folder / CONFIG)
    except BaseException as error:
        saved = False
        with suppress(OSError):
            saved = (folder / TENSORS).read_bytes() == data
        if not saved:
            with suppress(OSError):
                (folder / STAGED).unlink(missing_ok=True)
                if not existed:
                    folder.rmdir()
        if not isinstance(error, OSError):
            raise
        why = error.strerror or error
        if saved:
            raise AdapterError(
                f"the adapter is saved to {folder} and loads here, but {CONFIG} could not be replaced ({why}): "
                "save it again before you open it in PEFT"
            ) from None
        raise AdapterError(
            f"the adapter was not saved to {folder} ({why}), and what was there is as it was: "
            "free some space or choose another folder"
        ) from None


def _pending(folder):
    """Whether the staged config is the one of these tensors: a save was cut short when they were in place."""
    with suppress(OSError, SafetensorError, AdapterError):
        config = _json(folder / STAGED)
        read_settings(config, folder / STAGED)
        with safe_open(folder / TENSORS, "pt") as f:
            return digest(config) == (f.metadata() or {}).get("config")
    return False


# reading


def read_adapter(folder: Path) -> Adapter:
    """The adapter in `folder`, checked as far as that goes without a model. Raises AdapterError."""
    path = folder / TENSORS
    if not path.is_file():
        raise AdapterError(f"{folder} {what_is_there(folder)}")
    name = STAGED if _pending(folder) else CONFIG
    config = _json(folder / name)
    settings = read_settings(config, folder / name)
    try:
        with safe_open(path, "pt") as f:  # the library checks the header, all sizes and offsets
            metadata, own = f.metadata() or {}, digest(config)
            if metadata.get("config", own) != own:
                raise AdapterError(
                    f"{folder / name} is not what {TENSORS} was saved with (it was edited, or is another adapter's): "
                    "undo the edit, or save the adapter again"
                )
            keys = _keys(f.keys(), path)
            layers = settings.of(sorted(keys))
            factors = {layer: _pair(f, keys[layer], r, path) for layer, (r, _) in layers.items()}
    except (SafetensorError, OSError) as error:
        if is_pointer(path):
            raise AdapterError(f"{path} is a note that Git LFS left in its place: `git lfs pull` brings it") from None
        raise AdapterError(f"{path} is damaged ({error}): {AGAIN}") from None
    marks = (metadata.get(f"base_{mark}") for mark in ("fingerprint", "fingerprint_float16", "quantized"))
    return Adapter(layers, settings.scaling, settings.targets, factors, settings.dropout, *marks)


def _json(path):
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise AdapterError(f"{path.parent} has no {path.name}: {AGAIN}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterError(f"{path} cannot be read as JSON ({error}): {AGAIN}") from None
    if not isinstance(config, dict):
        raise AdapterError(f"{path} is JSON but not an object: {AGAIN}")
    return config


def _keys(found, path):
    """{module path: {"A": key, "B": key}} of a file's keys, and nothing else there."""
    keys, names = {}, set()
    if said := stranger(found):
        raise AdapterError(f"{path} holds {said}")
    for key in sorted(found):
        layer, which, name = factor(key)
        names.add(name)
        if which in keys.setdefault(layer, {}):
            why = f"has the factors of several adapters ({abridged(sorted(map(str, names)))})"
            why = why if len(names) > 1 else f"has two factors {which} for {layer[:120]!r}"
            raise AdapterError(f"{path} {why}: save one alone")
        keys[layer][which] = key
    for layer, pair in keys.items():
        for which in sorted({"A", "B"} - pair.keys()):
            raise AdapterError(f"{path} lacks lora_{which} of {layer[:120]!r}: {AGAIN}")
    if not keys:
        raise AdapterError(f"{path} holds no tensors: {AGAIN}")
    return keys


def _pair(f, keys, r, path):
    """A and B of a layer of rank r; dtypes and shapes are checked before values are read."""
    pair = []
    for name, axis in (("A", 0), ("B", 1)):
        key = keys[name]
        said = f.get_slice(key)
        shape, dtype = said.get_shape(), said.get_dtype()
        if len(shape) != 2 or shape[axis] != r:
            raise AdapterError(f"{path}: {key[:120]!r} has shape {shape}, but {CONFIG} says r={r}: {AGAIN}")
        if dtype not in DTYPES:
            raise AdapterError(f"{path}: {key[:120]!r} holds {dtype}, no floating point of 16 bits or more: {AGAIN}")
        tensor = f.get_tensor(key)
        if not finite(tensor):
            raise AdapterError(f"{path}: {key[:120]!r} holds NaN or infinity: train again at a lower rate, or {AGAIN}")
        pair.append(tensor)
    return tuple(pair)


def finite(tensor: torch.Tensor) -> bool:
    """Whether all values are finite: the smallest and the largest are, and NaN would be both. Ten times as fast."""
    if not tensor.numel():
        return True
    low, high = tensor.aminmax()
    return math.isfinite(low) and math.isfinite(high)
