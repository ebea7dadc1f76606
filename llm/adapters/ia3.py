"""IA3 adapters, on a model and in a folder: a vector `ia3_l` a layer, (out, 1) for its outputs or (1, in) for its inputs."""

import re
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn as nn

from llm.adapters.fingerprints import check_base, marks_of
from llm.adapters.folder import CONFIG, TENSORS, opened, read_tensor, write_folder
from llm.adapters.foreign import AGAIN, bare_path
from llm.adapters.peft_config import Targets, read_ia3_settings
from llm.errors import AdapterError
from llm.lora import places, replace_layers
from llm.relatives import Ia3Linear, layers_of

KEY = re.compile(r"(.+)\.ia3_l(?:\.[\w-]+)?")  # the second: an adapter's name


@dataclass(frozen=True)
class Scales:
    """What a folder says: vectors by module path, as PEFT shapes them."""

    vectors: dict[str, torch.Tensor]
    targets: Targets
    fingerprint: str | None  # of the base; PEFT writes none
    halved: str | None
    quantized: str | None


def save(model: nn.Module, folder: Path) -> None:
    """Write the factors of `model`'s IA3 layers. Raises AdapterError when one is not finite, or the disk refuses."""
    layers = layers_of(model)
    for path, layer in layers.items():
        if not layer.l.isfinite().all():
            raise AdapterError(f"{path}: a factor is not finite, so nothing was saved: train at a lower rate")
    config = {
        "peft_type": "IA3",
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "fan_in_fan_out": False,
        "target_modules": sorted(layers),
        "feedforward_modules": sorted(path for path, layer in layers.items() if layer.side == "in"),
    }
    tensors = {f"base_model.model.{path}.ia3_l": _shaped(layer) for path, layer in layers.items()}
    write_folder(config, tensors, marks_of(model), folder)


def _shaped(layer):
    """A factor for each output (out, 1), 1 where the layer has none, or for each input (1, in)."""
    factors = layer.factors().detach().float().cpu()
    return (factors[:, None] if layer.side == "out" else factors[None]).contiguous()


def read(folder: Path) -> Scales:
    """The IA3 adapter in `folder`, checked as far as that goes without a model. Raises AdapterError."""
    with opened(folder, read_ia3_settings) as (targets, f, marks):
        vectors, path = {}, folder / TENSORS
        for key in f.keys():
            if not (found := KEY.fullmatch(key)):
                raise AdapterError(
                    f"{path} holds {key[:120]!r}, which is no factor of IA3: save the adapter without it"
                )
            if len(shape := f.get_slice(key).get_shape()) != 2 or 1 not in shape:
                raise AdapterError(
                    f"{path}: {key[:120]!r} has shape {shape}, and (out, 1) or (1, in) is wanted: {AGAIN}"
                )
            if (layer := bare_path(found[1])) in vectors:
                raise AdapterError(f"{path} has two factors for {layer[:120]!r}: save one adapter alone")
            vectors[layer] = read_tensor(f, key, path)
    if not vectors:
        raise AdapterError(f"{path} holds no tensors: {AGAIN}")
    return Scales(vectors, targets, *marks)


def load(model: nn.Module, folder: Path) -> nn.Module:
    """Put the IA3 adapter in `folder` on `model`, bare or with another one's IA3 layers; returns the same model, frozen
    but for the factors. Raises AdapterError when it does not fit; the model is then as it was."""
    scales, wrapped = read(folder), layers_of(model)
    there = {paths[0]: m for m, paths in places(model).items() if isinstance(m, nn.Linear)}
    inside = {f"{path}.base" for path in wrapped}
    linears = {path: m for path, m in there.items() if path not in inside} | {p: x.base for p, x in wrapped.items()}
    check_base(model, folder, scales.fingerprint, scales.halved, scales.quantized)
    for path, vector in scales.vectors.items():
        if path not in linears:
            raise AdapterError(
                f"{folder} adapts {path[:120]!r}, which is no linear layer of this model: load the base it was trained on"
            )
        sizes = (linears[path].out_features, 1), (1, linears[path].in_features)
        if tuple(vector.shape) not in sizes:
            raise AdapterError(
                f"{folder}: the factor of {path} has shape {tuple(vector.shape)}, and the layer takes {sizes[0]} or {sizes[1]}: "
                "load the base it was trained on"
            )
    if differ := scales.targets.among(linears) ^ scales.vectors.keys():
        raise AdapterError(
            f"{folder}: target_modules in {CONFIG} and the factors differ at {min(differ)}: save it again"
        )
    new = {}
    for path, vector in scales.vectors.items():
        side = "out" if tuple(vector.shape) == (linears[path].out_features, 1) else "in"
        layer = Ia3Linear(linears[path], side)
        layer.l.data.copy_(vector.flatten())
        new[wrapped.get(path, linears[path])] = layer
    bare = {layer: layer.base for path, layer in wrapped.items() if path not in scales.vectors}
    replace_layers(model.requires_grad_(False), new | bare)
    return model
