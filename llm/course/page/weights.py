"""The base model for the page: one byte a number, with one scale for each row of a matrix."""

import copy
from pathlib import Path

import torch
from safetensors.torch import save

from llm import files
from llm.adapters import fingerprint
from llm.model import GPT


def in_bytes(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix as int8 levels and a float32 scale for each row, whose largest number is 127 steps (round to nearest)."""
    scale = matrix.abs().amax(1).clamp(min=1e-12) / 127
    return (matrix / scale[:, None]).round().to(torch.int8), scale


def rounded(model: GPT) -> GPT:
    """The model that the page computes with: a copy whose matrices have been through `in_bytes`."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 2:
                levels, scale = in_bytes(p.float())
                p.copy_(levels.float() * scale[:, None])
    return model


def write_weights(model: GPT, to: Path) -> int:
    """Write `model` as safetensors with matrices in bytes; returns the file's size.

    The head is left out, because the course's base has one matrix for head and embedding. The metadata has the base's
    fingerprint, by which an adapter knows it. Raises WriteError; ValueError when head and embedding differ.
    """
    named = {name: value.detach().float() for name, value in model.state_dict().items()}
    if not torch.equal(named.pop("lm_head.weight"), named["transformer.wte.weight"]):
        raise ValueError("the page keeps one matrix for head and embedding, and this model has two")
    tensors = {}
    for name, value in named.items():
        if value.ndim == 1:
            tensors[name] = value
        else:
            tensors[name], tensors[f"{name}.scale"] = in_bytes(value)
    files.replace(to, lambda at: at.write_bytes(save(tensors, {"base_fingerprint": fingerprint(model)})))
    return to.stat().st_size
