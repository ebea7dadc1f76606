"""What trains in a model, one row for each kind of module. Knows nothing about training."""

import re
from dataclasses import dataclass

import torch.nn as nn

from llm.lora import lora_layers


@dataclass(frozen=True)
class Row:
    """A kind of module (all blocks together): parameters in all, how many of them train, whether LoRA wraps it.

    parameters counts A and B as well, where there are any.
    """

    kind: str  # "attn.c_attn", "wte"
    parameters: int
    trained: int
    wrapped: bool


def audit_model(model: nn.Module) -> list[Row]:
    """One row for each kind of module of `model`, in the model's own order; a tied matrix counts once."""
    layers, found = lora_layers(model), {}
    for name, p in model.named_parameters():
        path = name.rpartition(".")[0]
        kind = re.sub(r"^(transformer\.)?(h\.\d+\.)?|\.base$", "", path)
        row = found.get(kind, Row(kind, 0, 0, False))
        outer = path.removesuffix(".base")
        found[kind] = Row(
            kind, row.parameters + p.numel(), row.trained + p.numel() * p.requires_grad, row.wrapped or outer in layers
        )
    return list(found.values())
