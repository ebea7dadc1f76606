"""An explorer: which layers get A and B, and what trains then."""

import copy
from collections.abc import Callable
from dataclasses import asdict

import torch
import torch.nn as nn

from llm.course.audit import audit_model
from llm.course.widgets.explorer import Explorer
from llm.model import GPT, GPTConfig

HEAD = "lm_head"


def targets_explorer(ways: dict[str, Callable[[GPT], nn.Module]]) -> Explorer:
    """The course's model by kind of module: which linears get A and B, at which rank, and what trains then.

    ways: further ways to prepare a model for training, by name, to set beside `apply_lora`. Each is called for real,
    on a model whose tensors have shapes and no numbers (the meta device), so that nothing is computed or allocated.
    """
    with torch.device("meta"):
        blank = GPT(GPTConfig())
        prepared = {name: audit_model(way(copy.deepcopy(blank))) for name, way in ways.items()}
    linears: dict[str, dict] = {}
    for path, layer in blank.named_modules():
        if isinstance(layer, nn.Linear):
            kind = ".".join(path.split(".")[-2:])
            found = linears.setdefault(kind, {"in": layer.in_features, "out": layer.out_features, "layers": 0})
            found["layers"] += 1
    return Explorer(
        "targets",
        "A bar for each kind of module: how many numbers it holds, and how many of them train.",
        kinds=[{"kind": row.kind, "parameters": row.parameters} for row in audit_model(blank)],
        linears=linears,
        chosen=[kind for kind in linears if kind != HEAD],
        ways={name: [asdict(row) for row in rows] for name, rows in prepared.items()},
    )
