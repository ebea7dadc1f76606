"""PEFT's adapter format: a folder with `adapter_config.json` and `adapter_model.safetensors`.

Replaces both files as a unit, checks all that it reads, and never unpickles. Knows nothing about models.
"""

import json
import math
import os
import re
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save

from llm import files
from llm.adapters.foreign import AGAIN, CONFIG, CONVERT, GATHER, MERGE, TENSORS, module_and_part, shown, what_is_there
from llm.adapters.peft_config import digest, read_alphas, read_settings, write_settings
from llm.errors import AdapterError
from llm.lora import SCALING

STAGED = CONFIG + ".new"  # the new config, until its tensors are in place
KEY = "base_model.model.{}.lora_{}.weight"
PARTS = {  # the parts of each method's layers, and their keys in the file
    "lora": {"lora_A": KEY.format("{}", "A"), "lora_B": KEY.format("{}", "B")},
    "ia3": {"ia3_l": "base_model.model.{}.ia3_l"},
}
PARTS["lora-fa"] = PARTS["lora"]  # PEFT cannot say that A is frozen; the tensors' metadata does
PARTS["dora"] = PARTS["lora"] | {"lora_magnitude_vector": "base_model.model.{}.lora_magnitude_vector"}
DTYPES = ("F64", "F32", "F16", "BF16")
LARGEST = 2**23, 2**25  # bytes of a config and of a tensor file's header: 50,000 layers take a third
MOST = 10**5, 2**28  # tensors in an adapter, and values in each: rank 1,024 over 200,000 words has fewer


@dataclass(frozen=True)
class AdapterInfo:
    """What an adapter folder holds. alpha is PEFT's: scale = alpha/r, or alpha/sqrt(r), as `scaling` says."""

    r: int  # r, alpha and scale are those of most layers
    alpha: float
    scaling: str
    scale: float
    layers: dict[str, tuple[int, float, float]]  # r, alpha and scale, by module path
    dropout: float  # in training; PEFT has one for all layers
    parameters: int
    bytes: int  # on disk, both files
    fingerprint: str | None  # of the base it was trained on; PEFT's adapters have none
    base: str | None = None  # the base's name in the config
    quantized: str | None = None  # how that base was quantized: "nf4", "nf4-double"
    method: str = "lora"  # or "lora-fa", "dora", or "ia3", whose rank and scale are 0

    @property
    def targets(self) -> tuple[str, ...]:
        """The paths of the layers that it adapts."""
        return tuple(self.layers)

    def __str__(self):
        kinds = Counter(re.sub(r"\b\d+\b", "*", path) for path in self.layers)
        base = self.fingerprint or "not named"
        if self.base:
            path = PureWindowsPath(self.base)  # parses Windows and POSIX paths; only a path's last part is a name
            name = shown(path.name if path.root or path.drive else self.base)
            base = name + f" ({self.fingerprint})" * bool(self.fingerprint)
        return "\n".join(
            (
                "IA3" if self.method == "ia3" else self._scaled(),
                f"{len(self.layers)} layers: " + shown(", ".join(f"{n} x {kind}" for kind, n in kinds.items()), 4000),
                f"{self.parameters:,} parameters in {self.bytes:,} bytes",
                f"base {base}" + f", quantized to {self.quantized}" * bool(self.quantized),
            )
        )

    def _scaled(self):
        r, alpha, scale = (
            f"{min(numbers):g}" + f" to {max(numbers):g}" * (min(numbers) < max(numbers))
            for numbers in zip(*self.layers.values())
        )
        line = "DoRA, " * (self.method == "dora") + f"rank {r}, alpha {alpha}, scale {self.scaling} = {scale}"
        return line + f", dropout {self.dropout:g}" * (self.dropout > 0)


def write_adapter(folder: Path, method, factors, marks, base, layers, scaling, dropout) -> None:
    """Write the config and the tensors; when this is cut short, the folder reads as the old adapter or the new one.

    method, base, scaling and dropout are those of an AdapterInfo, layers gives r and alpha by path, factors is what
    `read_adapter` returns, and marks go into the tensors' metadata. Other files in the folder stay. Raises WriteError
    when the disk refuses, and AdapterError when only the last step fails, which PEFT needs: renaming the config.
    """
    inward = [path for path, parts in factors.items() if len(parts) == 1 and parts[0].size(0) == 1]
    config = write_settings(method, layers, scaling, dropout, inward, base)
    tensors = {key.format(path): t for path, parts in factors.items() for key, t in zip(PARTS[method].values(), parts)}
    metadata = {"format": "pt", "config": digest(config)} | marks | ({"method": method} if method == "lora-fa" else {})
    text, data = json.dumps(config, indent=2) + "\n", save(tensors, metadata)

    def write(path):
        path.write_bytes(data)  # first, because a full disk fails here
        files.replace(folder / STAGED, lambda path: path.write_text(text, encoding="utf-8"))

    if _is_pending(folder):  # an earlier save was killed after its tensors: keep its config
        _put_in_place(folder)
    # Before this rename the folder holds the old adapter, after it the new one: the reader takes the config that the
    # tensors name, even if it is still staged. The next step is for PEFT, which knows only one name.
    files.replace(folder / TENSORS, write)
    _put_in_place(folder)


def _is_pending(folder):
    """Whether the staged config belongs to these tensors: a save was cut short after they were in place."""
    with suppress(OSError, SafetensorError, AdapterError):
        return digest(_read_json(folder / STAGED)) == _read_header(folder / TENSORS)[0].get("config")
    return False


def _put_in_place(folder):
    try:
        os.replace(folder / STAGED, folder / CONFIG)
    except OSError as error:
        raise AdapterError(
            f"the adapter is saved to {folder} and loads here, but {CONFIG} could not be replaced ({error.strerror}): save "
            "it again before you open it in PEFT"
        ) from None


def read_adapter(
    folder: Path,
) -> tuple[AdapterInfo, dict[str, tuple[torch.Tensor, ...]], tuple[list[str], list[str]] | None, dict[str, str]]:
    """Read the adapter in `folder` and check all that can be checked without a model. Raises AdapterError.

    Returns its AdapterInfo; its factors by module path, LoRA's A (r, in) and B (out, r) with DoRA's magnitudes (out,),
    or IA3's (out, 1) or (1, in); the config's targets as in `read_settings`; and the marks of its base.
    """
    path, config_path = folder / TENSORS, folder / CONFIG
    try:
        if not path.is_file():
            raise AdapterError(f"{folder} {what_is_there(folder)}")
        config_path = folder / STAGED if _is_pending(folder) else config_path
        config = _read_json(config_path)
        settings = read_settings(config, config_path)
        metadata, tensors = _read_header(path)
        if metadata.get("config", digest(config)) != digest(config):
            raise AdapterError(
                f"{config_path} is not what {TENSORS} was saved with (it was edited, or is another adapter's): undo the "
                "edit, or save the adapter again"
            )
        keys = _keys_of_layers(tensors, settings["method"], config, path)
        values = load_file(path)
    except SafetensorError as error:
        raise AdapterError(f"{path} is damaged ({shown(error)}): {AGAIN}") from None
    except OSError as error:
        raise AdapterError(f"{shown(folder)} cannot be read ({error.strerror or error}): {AGAIN}") from None
    for key, tensor in values.items():
        if not finite(tensor):
            raise AdapterError(f"{path}: {shown(key)!r} holds NaN or infinity: train again at a lower rate, or {AGAIN}")
    factors = {layer: tuple(values[key] for key in keys[layer]) for layer in sorted(keys)}
    layers = dict.fromkeys(factors, (0, 0.0, 0.0))
    if scaling := settings["scaling"]:
        ranks = {layer: A.size(0) for layer, (A, *_) in factors.items()}
        alphas = read_alphas(config, factors)
        layers = {layer: (r, alphas[layer], SCALING[scaling](alphas[layer], r)) for layer, r in ranks.items()}
        if any(abs(scale) > torch.finfo(torch.float32).max for *_, scale in layers.values()):
            raise AdapterError(f"{config_path} has an alpha that is too large for float32: {AGAIN}")
    if metadata.get("method") == "lora-fa" and settings["method"] == "lora":
        settings["method"] = "lora-fa"
    marks, targets = {key: shown(value) for key, value in metadata.items()}, settings.pop("targets")
    [((r, alpha, scale), _)] = Counter(layers.values()).most_common(1)
    info = AdapterInfo(
        r=r,
        alpha=alpha,
        scale=scale,
        layers=layers,
        parameters=sum(t.numel() for t in values.values()),
        bytes=path.stat().st_size + config_path.stat().st_size,
        fingerprint=marks.get("base_fingerprint"),
        quantized=marks.get("base_quantized"),
        **settings,
    )
    return info, factors, targets, marks


def _read_json(path):
    if not path.is_file():  # rejects pipes too, which never end
        raise AdapterError(f"{path.parent} has no {path.name}: {AGAIN}")
    try:
        if path.stat().st_size > LARGEST[0]:
            raise ValueError("it is larger than that of any adapter")
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("it is no object")
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterError(f"{path} cannot be read as JSON ({error}): {AGAIN}") from None
    return config


def _read_header(path):
    """Return a tensor file's metadata and {key: {"dtype": ..., "shape": ...}}; safetensors checks sizes and offsets.

    Before safetensors 0.7, one call of its own `get_slice` takes time proportional to the number of tensors.
    """
    with path.open("rb") as file:
        start = file.read(8)
        if start == b"version ":
            raise SafetensorError("Git LFS left a note in its place: `git lfs pull` brings it")
        if (size := int.from_bytes(start, "little")) > LARGEST[1]:
            raise SafetensorError("its header is longer than that of any adapter")
        safe_open(path, "pt")
        header = json.loads(file.read(size))
    return header.pop("__metadata__", None) or {}, header


def _keys_of_layers(tensors, method, config, path):
    """Check names, dtypes and shapes without reading values; return {module path: keys in the order of PARTS}."""
    if not 0 < len(tensors) <= MOST[0]:
        raise AdapterError(f"{path} holds {len(tensors):,} tensors, and an adapter 1 to {MOST[0]:,}: {AGAIN}")
    keys = {}
    for key, tensor in tensors.items():
        layer, part = module_and_part(key) or (None, None)
        known, usual = keys.setdefault(layer, {}), tensor["dtype"] in DTYPES and math.prod(tensor["shape"]) <= MOST[1]
        if part not in PARTS[method] or part in known or not usual:
            kind = shown(f"{tensor['dtype']}, {tensor['shape']}", 60)
            raise AdapterError(
                f"{path} holds {shown(key)!r} ({kind}), which is no factor of one {method} adapter: {MERGE}; {CONVERT}"
            )
        known[part] = key
    ranks, pattern = [config.get("r")], config.get("rank_pattern") or {}
    ranks += pattern.values() if isinstance(pattern, dict) else []
    for layer, known in keys.items():
        keys[layer] = [known.get(part) for part in PARTS[method]]
        shapes = [tensors[key]["shape"] if key else [] for key in keys[layer]]
        right = all(shape and math.prod(shape) for shape in shapes)
        if right and method != "ia3":  # A (r, in) and B (out, r)
            (rank, *_), (*_, of_B) = shapes[:2]
            right = len(shapes[0]) == len(shapes[1]) == 2 and rank == of_B and (rank in ranks or ranks == [None])
        if not right:
            raise AdapterError(
                f"{path} holds {', '.join(PARTS[method])} of shapes {shown(shapes)} for {shown(layer)!r} ([] is missing), and "
                f"{CONFIG} says r={shown(ranks[0], 60)}: {GATHER}"
            )
    return keys


def finite(tensor: torch.Tensor) -> bool:
    """Whether all values are finite, from their extremes (NaN if any is NaN): ten times as fast as `isfinite`."""
    low, high = tensor.aminmax()
    return math.isfinite(low) and math.isfinite(high)
