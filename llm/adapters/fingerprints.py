"""A base model's fingerprint: the few digits by which an adapter knows the model it was trained on."""

import hashlib
from pathlib import Path

import torch
import torch.nn as nn

from llm.errors import AdapterError
from llm.lora import places
from llm.relatives import layers_of
from llm.relatives.prefixes import Prefix, Prompt


def fingerprint(model: nn.Module, through: torch.dtype | None = None) -> str:
    """16 hex digits that tell one base from another; the same with and without an adapter, compiled or not.

    Every parameter counts by name, shape and about a thousand evenly spread values: training or merging moves nearly
    all of them, and to read all 13.7 M would cost more than a swap. Values are rounded to bfloat16, so that weights
    shipped in fp16 have one fingerprint in fp16, fp32 and bf16. Weights that were shipped finer have another one in
    fp16, as they are rounded twice there: `through=torch.float16` gives it.
    """
    named = {
        f"{path}.{name}".removeprefix("."): p
        for module, paths in places(model).items()
        if not isinstance(module, Prefix | Prompt)
        for name, p in module.named_parameters(recurse=False, remove_duplicate=False)
        for path in paths
    }
    return _digits(_of_base(named, layers_of(model)), through)


def _of_base(parameters, layers):
    """[(name, parameter)] in the order of names, as the unwrapped model has them."""
    found = {}
    for name, p in parameters.items():
        owner, _, leaf = name.rpartition(".")
        outer = owner.removesuffix(".base")
        if outer in layers and owner != outer:
            found[f"{outer}.{leaf}"] = p
        elif owner not in layers:  # else it is A, B or another of the adapter's
            found[name] = p
    return sorted(found.items())


def _digits(parameters, through):
    digest, samples = hashlib.sha256(), []
    for name, p in parameters:
        digest.update(f"{name}{tuple(p.shape)}".encode())
        # an odd stride: an even one would meet the same few columns of a matrix again and again
        some = p.detach().reshape(-1)[:: (p.numel() // 1024) | 1]
        samples.append((some if through is None else some.to(through)).to(torch.bfloat16))
    if samples:
        digest.update(torch.cat(samples).view(torch.int16).cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def check_base(model: nn.Module, folder: Path, named: str | None, halved: str | None) -> None:
    """Raise AdapterError unless `model` has the weights of the base whose fingerprint the adapter in `folder` names, in
    whatever precision; one that names none fits any."""
    own = fingerprint(model)
    if named in (None, own) or own == halved or named == fingerprint(model, torch.float16):
        return
    raise AdapterError(
        f"{folder} was trained on another base (fingerprint {named[:16]!r}, this model has {own}): load the base that it "
        "was trained on (a merged or fully fine-tuned model is another base), in the same precision"
    )
