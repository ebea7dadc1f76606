"""PEFT's adapter format: a folder with `adapter_config.json` and `adapter_model.safetensors`.

Writes the two as one, and reads with everything checked; never unpickles. Knows nothing about models.
"""

import hashlib
import json
import os
import re
import reprlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from llm import files
from llm.lora import SCALING

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
STAGED = CONFIG + ".new"  # a save's config, until its tensors are in place
KEY = "base_model.model.{}.lora_{}.weight"
READ = {"peft_type", "r", "lora_alpha", "use_rslora", "target_modules", "bias", "init_lora_weights"}
# PEFT writes these too, but what a trained adapter computes does not depend on them; anything else must be empty
IGNORED = set(
    "task_type base_model_name_or_path inference_mode lora_dropout auto_mapping revision peft_version megatron_core "
    "qalora_group_size layers_pattern fan_in_fan_out ensure_weight_tying eva_config runtime_config".split()
)
AGAIN = "copy the folder again, or save the adapter again"


class AdapterError(ValueError):
    """An adapter cannot be saved or loaded; the message says what to do."""


@dataclass(frozen=True)
class Adapter:
    """What a folder says: factors by module path, A (r, in) and B (out, r) as PEFT has them, and how to scale them."""

    r: int
    alpha: float
    scaling: str  # "alpha/r" or "alpha/sqrt(r)"
    targets: list[str] | str  # module paths or their last parts; one string is a regular expression
    factors: dict[str, tuple[torch.Tensor, torch.Tensor]]
    fingerprint: str | None  # of the base; PEFT writes none

    @property
    def scale(self) -> float:
        return SCALING[self.scaling](self.alpha, self.r)

    def names(self, path: str) -> bool:
        """Whether PEFT would wrap the layer at `path`."""
        if isinstance(self.targets, str):
            return re.fullmatch(self.targets, path) is not None
        return any(path == t or path.endswith("." + t) for t in self.targets)


# writing: two files, one moment from which the new adapter holds


def write_adapter(adapter: Adapter, folder: Path) -> None:
    """Write `adapter`; a kill or a full disk leaves a folder that reads as the old adapter or as the new one.

    Other files in the folder stay. Raises AdapterError when the disk refuses.
    """
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "bias": "none",
        "fan_in_fan_out": False,
        "r": adapter.r,
        "lora_alpha": int(adapter.alpha) if float(adapter.alpha).is_integer() else adapter.alpha,
        "use_rslora": adapter.scaling == "alpha/sqrt(r)",
        "target_modules": adapter.targets,
    }
    tensors = {KEY.format(path, name): t for path, pair in adapter.factors.items() for name, t in zip("AB", pair)}
    metadata = {"format": "pt", "base_fingerprint": adapter.fingerprint, "config": _digest(config)}
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


def _digest(config):
    """Of all in a config that counts. The tensors carry it, so that they know their config, and an edit shows."""
    counts = {k: v for k, v in config.items() if k not in IGNORED and v}
    return hashlib.sha256(json.dumps(counts, sort_keys=True).encode()).hexdigest()[:16]


def _pending(folder):
    """Whether the staged config is the one of these tensors: a save was cut short when they were in place."""
    with suppress(OSError, SafetensorError, AdapterError), safe_open(folder / TENSORS, "pt") as f:
        config = _json(folder / STAGED)
        _settings(config, folder / STAGED)
        return _digest(config) == (f.metadata() or {}).get("config")
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
    settings = _settings(config, folder / name)
    try:
        with safe_open(path, "pt") as f:
            metadata = f.metadata() or {}
            if metadata.get("config", _digest(config)) != _digest(config):
                raise AdapterError(
                    f"{folder / name} is not what {TENSORS} was saved with (it was edited, or is another adapter's): "
                    "undo the edit, or save the adapter again"
                )
            factors = _factors(f, settings["r"], path)
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"{path} is damaged ({error}): {AGAIN}") from None
    return Adapter(**settings, factors=factors, fingerprint=metadata.get("base_fingerprint"))


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


def _settings(config, path):
    """r, alpha, scaling and targets from a config, or AdapterError for whatever is not plain LoRA."""

    def must(holds, key, what):
        if not holds:
            found = f"{reprlib.repr(key)[1:-1]}={reprlib.repr(config[key])}" if key in config else f"no {key}"
            raise AdapterError(f"{path} has {found}, but {what}: {AGAIN}")

    must(config.get("peft_type") == "LORA", "peft_type", "only LORA adapters load here")
    must(config.get("bias", "none") == "none", "bias", "an adapter with biases does not load here")
    starts = (True, False, "gaussian", "orthogonal", "eva")  # the others (PiSSA, LoftQ, ...) change the base as well
    must(config.get("init_lora_weights", True) in starts, "init_lora_weights", "that start changes the base weights")
    for key in sorted(k for k, v in config.items() if v and k not in READ | IGNORED):
        must(False, key, "only plain LoRA with one rank and one alpha loads here")
    r, alpha, targets = (config.get(key) for key in ("r", "lora_alpha", "target_modules"))
    must(type(r) is int and r >= 1, "r", "the rank is a whole number from 1 up")
    must(type(alpha) in (int, float) and abs(alpha) < 1e30, "lora_alpha", "alpha is a finite number")  # NaN fails too
    must(type(config.get("use_rslora", False)) is bool, "use_rslora", "it is true or false")
    if isinstance(targets, str):
        # hostile patterns run for ever: no repeated group, few repeats, few alternatives inside groups
        repeats, choices = re.findall(r"(?<![\\(])[*+?{]", targets), re.findall(r"[(|]", targets)
        calm = not re.search(r"\)[*+?{]", targets) and len(repeats) <= 4 and len(choices) <= 16
        must(calm and _compiles(targets), "target_modules", "a pattern must be valid and simple")
    else:
        listed = isinstance(targets, list) and targets and all(isinstance(t, str) and t for t in targets)
        must(listed, "target_modules", "it is a list of module names or a pattern")
    scaling = "alpha/sqrt(r)" if config.get("use_rslora") else "alpha/r"
    return dict(r=r, alpha=alpha, scaling=scaling, targets=targets)


def _compiles(pattern):
    with suppress(re.error, RecursionError, OverflowError):
        return bool(re.compile(pattern))
    return False


def _factors(f, r, path):
    """{module path: (A, B)} from an open safetensors file, names, dtypes and shapes checked before values are read."""
    keys = set(f.keys())
    layers = sorted({m[1] for m in (re.fullmatch(r"base_model\.model\.(.+)\.lora_[AB]\.weight", k) for k in keys) if m})
    wanted = {KEY.format(layer, name) for layer in layers for name in "AB"}
    for key in sorted(keys - wanted)[:1]:
        raise AdapterError(f"{path} holds {key[:120]!r}, which is no LoRA factor: save the adapter without it")
    for key in sorted(wanted - keys)[:1]:
        raise AdapterError(f"{path} lacks {key[:120]!r}: {AGAIN}")
    if not layers:
        raise AdapterError(f"{path} holds no tensors: {AGAIN}")
    factors = {}
    for layer in layers:
        for name, axis in (("A", 0), ("B", 1)):
            key = KEY.format(layer, name)
            head = f.get_slice(key)
            shape, dtype = list(head.get_shape()), head.get_dtype()
            if len(shape) != 2 or shape[axis] != r:
                raise AdapterError(f"{path}: {key[:120]!r} has shape {shape}, but {CONFIG} says r={r}: {AGAIN}")
            if dtype not in ("F64", "F32", "F16", "BF16"):
                raise AdapterError(f"{path}: {key[:120]!r} holds {dtype}, not floating point: {AGAIN}")
            tensor = f.get_tensor(key)
            if not tensor.isfinite().all():
                raise AdapterError(
                    f"{path}: {key[:120]!r} holds NaN or infinity: train again at a lower rate, or {AGAIN}"
                )
            factors.setdefault(layer, []).append(tensor)
    return {layer: tuple(pair) for layer, pair in factors.items()}
