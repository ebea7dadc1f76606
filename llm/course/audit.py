"""What trains in a model, one row for each kind of module. Knows nothing about training."""

import re
from dataclasses import dataclass

import torch.nn as nn


@dataclass(frozen=True)
class AuditRow:
    """A kind of module (all blocks together): parameters in all, how many of them train, how many of those the base's.

    parameters and trained count A and B as well, where there are any.
    """

    kind: str  # "attn.c_attn", "wte"
    parameters: int
    trained: int
    of_base: int


def audit_model(model: nn.Module) -> list[AuditRow]:
    """One row for each kind of module of `model`, in the model's own order; a tied matrix counts once."""
    found: dict[str, AuditRow] = {}
    for name, p in model.named_parameters():
        path, _, leaf = name.rpartition(".")
        kind = re.sub(r"^(transformer\.)?(h\.\d+\.)?|(\.base)*$", "", path)  # a wrapper may stand around a wrapper
        row, trained = found.get(kind, AuditRow(kind, 0, 0, 0)), p.numel() * p.requires_grad
        of_base = 0 if leaf in ("A", "B") else trained
        found[kind] = AuditRow(kind, row.parameters + p.numel(), row.trained + trained, row.of_base + of_base)
    return list(found.values())
