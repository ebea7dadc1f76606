"""A base model's fingerprint: a short hash by which an adapter recognizes the model it was trained on."""

import hashlib
from pathlib import Path

import torch
import torch.nn as nn

from llm.adapters.foreign import shown
from llm.errors import AdapterError
from llm.lora import LoraLinear
from llm.quantize import Linear4bit, scheme_of
from llm.relatives import Ia3Linear
from llm.relatives.prefixes import Prefix, Prompt
from llm.surgery import places


def fingerprint(model: nn.Module, through: torch.dtype | None = None) -> str:
    """Return 16 hex digits that identify a base; the same with and without an adapter, compiled or not.

    Each parameter counts by its name, its shape and about a thousand evenly spaced values: training or merging changes
    nearly all of them, and reading all 13.7 M would take longer than a swap. Values are rounded to bfloat16, so that
    weights published in fp16 have one fingerprint in fp16, fp32 and bf16. Weights published in a finer dtype have
    another one in fp16, because they are rounded twice there; `through=torch.float16` gives it.
    A 4-bit layer counts by its scheme and its blocks' absmaxes, rounded likewise. So a quantized base differs from its
    original, and is the same whether float32 or bfloat16 was quantized, unless absmax is quantized too.
    """
    digest, samples = hashlib.sha256(), []
    for name, p in sorted(_of_base(model).items()):
        digest.update(f"{name}{tuple(p.shape)}".encode())
        # an odd stride, because an even one would sample the same few columns of a matrix again and again
        values = p.detach().reshape(-1)[:: (p.numel() // 1024) | 1]
        samples.append((values if through is None else values.to(through)).to(torch.bfloat16))
    if samples:
        digest.update(torch.cat(samples).view(torch.int16).cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _of_base(model):
    """Return {name: parameter} of the unwrapped model; scales stand for the weights of a 4-bit layer."""
    modules = places(model)
    wrapped = {p for m, paths in modules.items() if isinstance(m, LoraLinear | Ia3Linear) for p in paths}
    parameters = {}
    for module, paths in modules.items():
        if isinstance(module, LoraLinear | Ia3Linear | Prefix | Prompt):
            continue
        named = dict(module.named_parameters(recurse=False, remove_duplicate=False))
        if isinstance(module, Linear4bit):
            named[module.scheme] = module.scales()
        for path in paths:
            outer = path.removesuffix(".base")
            path = outer if outer in wrapped else path
            parameters |= {f"{path}.{name}".removeprefix("."): p for name, p in named.items()}
    return parameters


def marks_of(model: nn.Module) -> dict[str, str]:
    """Return what the metadata of an adapter's tensors says about the base of `model`: its fingerprint, its float16
    fingerprint if that differs, and its quantization scheme."""
    digits, halved = fingerprint(model), fingerprint(model, torch.float16)
    marks = dict(base_fingerprint=digits, base_fingerprint_float16=halved, base_quantized=scheme_of(model))
    return {key: mark for key, mark in marks.items() if mark and (mark != digits or key == "base_fingerprint")}


def check_base(model: nn.Module, folder: Path, marks: dict[str, str], base: str | None) -> None:
    """Raise AdapterError unless `model` has the weights, in any precision, of the base of the adapter in `folder`. An
    adapter without a fingerprint, such as PEFT's, fits any base."""
    right, digits = marks.get("base_fingerprint"), fingerprint(model)
    if right is None or digits in (right, marks.get("base_fingerprint_float16")):
        return
    if (scheme := marks.get("base_quantized")) != scheme_of(model):
        there, this = (f"quantized to {s[:40]}" if s else "not quantized" for s in (scheme, scheme_of(model)))
        raise AdapterError(
            f"{folder} was trained on another base: that one was {there}, this model is {this}: load its own base and "
            "quantize it as that one was"
        )
    if right == fingerprint(model, torch.float16):
        return
    name = f" {shown(base)}" if base else ""
    raise AdapterError(
        f"{folder} was trained on another base{name} (fingerprint {right[:16]!r}, this model has {digits}): load the base "
        "that it was trained on (a merged or fully fine-tuned model is another base), in the same precision"
    )
