"""PEFT's adapter format: a folder with `adapter_config.json` and `adapter_model.safetensors`.

Writes the two as one, and reads with everything checked; never unpickles. Knows nothing about models.
"""

import json
import math
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from llm import files
from llm.adapters.peft_config import AGAIN, ELSEWHERE, digest, read_settings, write_settings
from llm.errors import AdapterError
from llm.lora import SCALING

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
STAGED = CONFIG + ".new"  # a save's config, until its tensors are in place
DTYPES = ("F64", "F32", "F16", "BF16")
KEY = "base_model.model.{}.lora_{}.weight"
FOREIGN = {  # how to know what else PEFT saves among the tensors, what it is, and what to do about it
    r"\.lora_embedding_[AB]$": ("the LoRA of an embedding", ELSEWHERE + "without embeddings among the targets"),
    r"\.lora_magnitude_vector": ("DoRA's learned lengths", ELSEWHERE + "with use_dora=False"),
    r"\.lora_[AB]\.bias$": ("a bias (lora_bias)", ELSEWHERE + "with lora_bias=False"),
    r"trainable_tokens_": ("embeddings of trained tokens", ELSEWHERE + "without trainable_token_indices"),
    # PEFT does so by itself when an embedding or a transformers model's head is among the targets
    r"\.(weight|bias)$": ("a weight of the base", "save it from PEFT with save_embedding_layers=False"),
    "": ("something else", "save the adapter without it"),
}


@dataclass(frozen=True)
class Adapter:
    """What a folder says: factors by module path, A (r, in) and B (out, r) as PEFT has them, and how to scale them."""

    layers: dict[str, tuple[int, float]]  # r and alpha, by module path
    scaling: str  # "alpha/r" or "alpha/sqrt(r)"
    targets: list[str] | str  # module paths or their last parts; one string is a regular expression
    factors: dict[str, tuple[torch.Tensor, torch.Tensor]]
    fingerprint: str | None  # of the base; PEFT writes none

    def scale(self, path: str) -> float:
        r, alpha = self.layers[path]
        return SCALING[self.scaling](alpha, r)


# writing: two files, one moment from which the new adapter holds


def write_adapter(adapter: Adapter, folder: Path) -> None:
    """Write `adapter`; a kill or a full disk leaves a folder that reads as the old adapter or as the new one.

    Other files in the folder stay. Raises AdapterError when the disk refuses.
    """
    config = write_settings(adapter.layers, adapter.scaling)
    tensors = {KEY.format(path, name): t for path, pair in adapter.factors.items() for name, t in zip("AB", pair)}
    metadata = {"format": "pt", "base_fingerprint": adapter.fingerprint, "config": digest(config)}
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
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise AdapterError(f"{folder} {what}: give the folder that holds {CONFIG} and {TENSORS}")
    path = folder / TENSORS
    if not path.is_file() and (folder / "adapter_model.bin").exists():
        raise AdapterError(
            f"{folder} has its weights in adapter_model.bin, a pickle, which can run code and is never opened here: "
            f"save it again with a PEFT that writes {TENSORS}"
        )
    if not path.is_file():
        raise AdapterError(f"{folder} has no {TENSORS}: {AGAIN}")
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
            layers = settings.of(_paths(f.keys(), path))
            factors = {layer: _pair(f, layer, r, path) for layer, (r, _) in layers.items()}
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"{path} is damaged ({error}): {AGAIN}") from None
    return Adapter(layers, settings.scaling, settings.targets, factors, metadata.get("base_fingerprint"))


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


def _paths(keys, path):
    """The module paths among a file's keys, each with an A and a B, and nothing else there."""
    layers = sorted({m[1] for m in (re.fullmatch(r"base_model\.model\.(.+)\.lora_[AB]\.weight", k) for k in keys) if m})
    keys, wanted = set(keys), {KEY.format(layer, name) for layer in layers for name in "AB"}
    for mark, (what, do) in FOREIGN.items():
        for key in sorted(key for key in keys - wanted if re.search(mark, key))[:1]:
            raise AdapterError(f"{path} holds {key[:120]!r}, which is no LoRA factor but {what}: {do}")
    for key in sorted(wanted - keys)[:1]:
        raise AdapterError(f"{path} lacks {key[:120]!r}: {AGAIN}")
    if not layers:
        raise AdapterError(f"{path} holds no tensors: {AGAIN}")
    return layers


def _pair(f, layer, r, path):
    """A and B of a layer of rank r; dtypes and shapes are checked before values are read."""
    pair = []
    for name, axis in (("A", 0), ("B", 1)):
        key = KEY.format(layer, name)
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
