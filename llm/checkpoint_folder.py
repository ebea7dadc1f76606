"""Read a model's folder, config.json and safetensors weights, and check it. Knows nothing about any particular model.

Nothing is unpickled. Tensors are memory-mapped, and `fill` compares all names and shapes before it reads a value.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn as nn
from safetensors import SafetensorError
from safetensors.torch import load_file

from llm.errors import BaseError

CONFIG, TENSORS, ADAPTER = "config.json", "model.safetensors", "adapter_config.json"
INDEX = TENSORS + ".index.json"  # names the file of each tensor when there are several files
AGAIN = "copy or download it again"


def read_folder(folder: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    """Return the config of a model's folder and its tensors by name, from one file or several listed in an index.

    Raises BaseError when a file is missing or damaged, or when the weights are packed in fewer than 16 bits.
    """
    if (folder / ADAPTER).is_file():  # transformers would silently apply it to a model beside it
        raise BaseError(
            f"{folder} holds an adapter: give it as the adapter, and as the base a folder without {ADAPTER}"
        )
    if not (folder / CONFIG).is_file():
        inside = [*folder.glob(f"*/{CONFIG}"), *folder.glob(f"snapshots/*/{CONFIG}")]
        where = min(inside).parent if inside else "a folder as transformers saves it"
        raise BaseError(f"{folder} is no model, as it has no {CONFIG} (a GGUF file is for llama.cpp): give {where}")
    config, names = _read_json(folder / CONFIG), [TENSORS]
    if not (folder / TENSORS).is_file() and not (folder / INDEX).is_file():
        why = "no other weights are read, as a pickle (.bin, .pt) can run code"
        raise BaseError(f"{folder} has no {TENSORS} ({why}): save or download the model in this format")
    if not (folder / TENSORS).is_file():
        weight_map = _read_json(folder / INDEX).get("weight_map")
        names = weight_map.values() if isinstance(weight_map, dict) else []
        names = sorted({name if isinstance(name, str) else "" for name in names})
        if not names or not all(Path(name).name == name not in ("", "..") and name.isprintable() for name in names):
            raise BaseError(f"{folder / INDEX} is damaged: {AGAIN}")
    if missing := [name for name in names if not (folder / name).is_file()]:  # rejects pipes too, which never end
        raise BaseError(f"{folder} lacks {missing[0]}, one of the {len(names)} files of its weights: copy it too")
    tensors = {name: tensor for file in names for name, tensor in read_file(folder / file).items()}
    # boolean and int64 tensors are masks and positions, not weights
    dtypes = {t.dtype for name, t in tensors.items() if not name.endswith("bias")} - {torch.bool, torch.int64}
    plain = all(dtype.is_floating_point and dtype.itemsize > 1 for dtype in dtypes)
    if not plain or config.get("quantization_config") or config.get("quantization"):
        raise BaseError(f"the weights in {folder} are packed in fewer bits: take the model that they were packed from")
    return config, tensors


def read_file(path: Path, cure: str = AGAIN) -> dict[str, torch.Tensor]:
    """Return the tensors of one safetensors file by name. Raises BaseError when it is missing or damaged."""
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, AttributeError) as error:  # AttributeError: a dtype that torch lacks
        raise BaseError(f"{path} is missing or damaged ({first_line(error)}): {cure}") from None


def fill(model: nn.Module, tensors: Mapping[str, object], path: Path, cure: str = AGAIN) -> nn.Module:
    """Fill `model`, which was made on the meta device, with float32 copies of `tensors`; return it in eval mode.

    path: the file that the tensors came from. Raises BaseError when their names or shapes are not the model's, before
    anything is allocated, and when a value is not finite.
    """
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    compare({name: tuple(getattr(t, "shape", ())) for name, t in tensors.items()}, shapes, path, cure)
    # copies, because two names may share one tensor and the mapped file may change
    options = dict(dtype=torch.float32, copy=True, memory_format=torch.contiguous_format)
    copies = {name: tensor.detach().to(**options) for name, tensor in tensors.items()}
    for name, tensor in copies.items():
        if not tensor.isfinite().all():
            raise BaseError(f"{path}: {name} holds NaN or infinity: {cure}")
    model.load_state_dict(copies, strict=False, assign=True)  # not strict: a tied parameter comes under one name
    return model.eval()


def compare(found: Mapping[str, object], needed: Mapping[str, object], path: Path, cure: str = AGAIN) -> None:
    """Raise BaseError unless the tensors `found` in `path` are those `needed`; both map a name to a shape or a word."""
    wrong = sorted(name for name in found.keys() | needed.keys() if found.get(name) != needed.get(name))
    if wrong:
        has, needs = (shapes.get(wrong[0], "missing") for shapes in (found, needed))
        raise BaseError(
            f"{path} holds another model than expected: {len(wrong)} tensors differ, {wrong[0][:80]} first "
            f"({has} in the file, {needs} in the model): {cure}"
        )


def first_line(error: BaseException) -> str:
    """Return the first nonblank line of an error's message, cut to 200 characters."""
    lines = [text.strip() for text in str(error).splitlines() if text.strip()]
    return (lines[0] if lines else type(error).__name__)[:200].rstrip(".:")


def _read_json(path):
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise BaseError(f"{path} is damaged: {AGAIN}")
    return fields
