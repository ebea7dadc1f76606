"""PEFT's adapter format: a folder with `adapter_config.json` and `adapter_model.safetensors`.

Writes the two as one, and reads with everything checked; never unpickles. Knows nothing about models.
"""

import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from llm import files
from llm.adapters.foreign import AGAIN, CONFIG, TENSORS, abridged, factor, is_pointer, lengths, stranger, what_is_there
from llm.adapters.peft_config import Targets, digest, read_settings, write_settings
from llm.errors import AdapterError
from llm.lora import SCALING

STAGED = CONFIG + ".new"  # a save's config, until its tensors are in place
DTYPES = ("F64", "F32", "F16", "BF16")
KEY = "base_model.model.{}.lora_{}.weight"
LENGTHS_KEY = "base_model.model.{}.lora_magnitude_vector"


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
    lengths: dict[str, torch.Tensor] = field(
        default_factory=dict
    )  # DoRA's (out,), by module path: of all layers or none

    def scale(self, path: str) -> float:
        r, alpha = self.layers[path]
        return SCALING[self.scaling](alpha, r)


# writing: two files, one moment from which the new adapter holds


def write_adapter(adapter: Adapter, folder: Path) -> None:
    """Write `adapter` as `write_folder` does."""
    config = write_settings(adapter.layers, adapter.scaling, adapter.dropout, bool(adapter.lengths))
    tensors = {KEY.format(path, name): t for path, pair in adapter.factors.items() for name, t in zip("AB", pair)}
    tensors |= {LENGTHS_KEY.format(path): t for path, t in adapter.lengths.items()}
    write_folder(config, tensors, (adapter.fingerprint, adapter.halved, adapter.quantized), folder)


def write_folder(config: dict, tensors: dict[str, torch.Tensor], marks: tuple, folder: Path) -> None:
    """Write the two files, and into the second the base's `marks`, as `fingerprints.marks_of` has them; a kill or a full
    disk leaves a folder that reads as the old adapter or as the new one.

    Other files in the folder stay. Raises AdapterError when the disk refuses.
    """
    own, halved, quantized = marks
    metadata = {"format": "pt", "base_fingerprint": own, "config": digest(config)}
    if halved != own:
        metadata["base_fingerprint_float16"] = halved
    if quantized:
        metadata["base_quantized"] = quantized
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
        with safe_open(folder / TENSORS, "pt") as f:
            return digest(config) == (f.metadata() or {}).get("config")
    return False


# reading


def peft_type(folder: Path) -> str | None:
    """What the folder's config calls its method, with nothing else checked. Raises AdapterError when it cannot be read."""
    found = _config(folder)[0].get("peft_type")
    return found if isinstance(found, str) else None


def read_adapter(folder: Path) -> Adapter:
    """The LoRA or DoRA adapter in `folder`, checked as far as that goes without a model. Raises AdapterError."""
    with opened(folder, read_settings) as (settings, f, marks):
        path = folder / TENSORS
        found = {key: layer for key in f.keys() if settings.dora and (layer := lengths(key))}
        keys = _keys(f.keys() - found.keys(), path)
        layers = settings.of(sorted(keys))
        factors = {layer: _pair(f, keys[layer], r, path) for layer, (r, _) in layers.items()}
        dora = _lengths(f, found, factors, path) if settings.dora else {}
    return Adapter(layers, settings.scaling, settings.targets, factors, settings.dropout, *marks, dora)


@contextmanager
def opened(folder: Path, settings: Callable[[dict, Path], Any]) -> Iterator[tuple]:
    """The config of a folder as `settings` reads it, its tensors, and the base's marks. Raises AdapterError."""
    config, path = _config(folder)
    said = settings(config, path)
    try:
        with safe_open(folder / TENSORS, "pt") as f:  # the library checks the header, all sizes and offsets
            metadata, own = f.metadata() or {}, digest(config)
            if metadata.get("config", own) != own:
                raise AdapterError(
                    f"{path} is not what {TENSORS} was saved with (it was edited, or is another adapter's): undo the edit, "
                    "or save the adapter again"
                )
            marks = [metadata.get(f"base_{mark}") for mark in ("fingerprint", "fingerprint_float16", "quantized")]
            yield said, f, marks
    except (SafetensorError, OSError) as error:
        path = folder / TENSORS
        if is_pointer(path):
            raise AdapterError(f"{path} is a note that Git LFS left in its place: `git lfs pull` brings it") from None
        raise AdapterError(f"{path} is damaged ({error}): {AGAIN}") from None


def _config(folder):
    """The config that goes with the tensors, and its path."""
    if not (folder / TENSORS).is_file():
        raise AdapterError(f"{folder} {what_is_there(folder)}")
    path = folder / (STAGED if _pending(folder) else CONFIG)
    return _json(path), path


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
    for name, axis in (("A", 0), ("B", 1)):
        shape = f.get_slice(keys[name]).get_shape()
        if len(shape) != 2 or shape[axis] != r:
            raise AdapterError(f"{path}: {keys[name][:120]!r} has shape {shape}, but {CONFIG} says r={r}: {AGAIN}")
    return tuple(read_tensor(f, keys[name], path) for name in "AB")


def _lengths(f, found, factors, path):
    """DoRA's lengths by module path, one for each output of each layer that has factors."""
    keys = {layer: key for key, layer in found.items()}
    for layer in sorted(factors.keys() - keys.keys()):
        raise AdapterError(
            f"{path} lacks lora_magnitude_vector of {layer[:120]!r}, and {CONFIG} says use_dora: {AGAIN}"
        )
    for layer in sorted(keys.keys() - factors.keys()):
        raise AdapterError(f"{path} has DoRA's lengths for {layer[:120]!r}, but no factors: {AGAIN}")
    for layer, (_, B) in factors.items():
        if (shape := f.get_slice(keys[layer]).get_shape()) != [B.size(0)]:
            raise AdapterError(
                f"{path}: {keys[layer][:120]!r} has shape {shape}, and the layer {B.size(0)} outputs: {AGAIN}"
            )
    return {layer: read_tensor(f, key, path) for layer, key in keys.items()}


def read_tensor(f, key: str, path: Path) -> torch.Tensor:
    """One tensor of an open file; its dtype is checked before its values are read. Raises AdapterError."""
    dtype = f.get_slice(key).get_dtype()
    if dtype not in DTYPES:
        raise AdapterError(f"{path}: {key[:120]!r} holds {dtype}, no floating point of 16 bits or more: {AGAIN}")
    tensor = f.get_tensor(key)
    if not finite(tensor):
        raise AdapterError(f"{path}: {key[:120]!r} holds NaN or infinity: train again at a lower rate, or {AGAIN}")
    return tensor


def finite(tensor: torch.Tensor) -> bool:
    """Whether all values are finite: the smallest and the largest are, and NaN would be both. Ten times as fast."""
    if not tensor.numel():
        return True
    low, high = tensor.aminmax()
    return math.isfinite(low) and math.isfinite(high)
