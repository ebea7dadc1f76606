"""An explorer: which layers get A and B, and what trains then."""

import copy
from collections.abc import Callable

import ipywidgets as widgets
import torch
import torch.nn as nn

from llm.course.audit import AuditRow, audit_model
from llm.course.figures import audit
from llm.course.widgets.old_explorer import Explorer, slider
from llm.lora import apply_lora
from llm.model import GPT, GPTConfig


def targets_explorer(ways: dict[str, Callable[[GPT], nn.Module]]) -> Explorer:
    """The course's model by kind of module: which linears get A and B, at which rank, and what trains then.

    ways: further ways to prepare a model for training, by name, to set beside `apply_lora`. Each is called for real,
    on a model whose tensors have shapes and no numbers (the meta device), so that nothing is computed or allocated.
    """
    ours = "apply_lora, with these targets"
    linears = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj", "lm_head")

    def numbers(way: str, r: int, **chosen: bool) -> list[AuditRow]:
        for name in linears:
            controls[name].disabled = way != ours
        controls["r"].disabled = way != ours
        targets = [name for name, on in chosen.items() if on]
        model = copy.deepcopy(blank)
        with torch.device("meta"):
            if way != ours:
                model = ways[way](model)
            elif targets:
                apply_lora(model, r=r, targets=targets, skip=())
            else:
                model.requires_grad_(False)
        return audit_model(model)

    def describe(rows: list[AuditRow]) -> str:
        trained = sum(row.trained for row in rows)
        whole = sum(p.numel() for p in blank.parameters())
        if not trained:
            return "nothing trains: choose a target"
        return (
            f"{trained:,} parameters train, {whole / trained:,.1f} times fewer than the base has: "
            f"{4 * trained:,} bytes in float32"
        )

    with torch.device("meta"):
        blank = GPT(GPTConfig())
    way = widgets.Dropdown(options=[ours, *ways], description="way", layout=widgets.Layout(width="420px"))
    controls = {"way": way, "r": slider("rank r", 8, 1, 64)}
    for name in linears:
        layout = widgets.Layout(width="110px")
        controls[name] = widgets.Checkbox(name != "lm_head", description=name, indent=False, layout=layout)
    return Explorer(controls, numbers, audit, describe, beside=linears)
