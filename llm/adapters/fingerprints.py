"""A base model's fingerprint: the few digits by which an adapter knows the model it was trained on."""

import hashlib
from pathlib import Path

import torch
import torch.nn as nn

from llm.errors import AdapterError
from llm.lora import places
from llm.quantize import Linear4bit, scheme_of
from llm.relatives import layers_of
from llm.relatives.prefixes import Prefix, Prompt


def fingerprint(model: nn.Module, through: torch.dtype | None = None) -> str:
    """16 hex digits that tell one base from another; the same with and without an adapter, compiled or not.

    Every parameter counts by name, shape and about a thousand evenly spread values: training or merging moves nearly
    all of them, and to read all 13.7 M would cost more than a swap. Values are rounded to bfloat16, so that weights
    shipped in fp16 have one fingerprint in fp16, fp32 and bf16. Weights that were shipped finer have another one in
    fp16, as they are rounded twice there: `through=torch.float16` gives it.
    A layer in four bits counts by its scheme and its blocks' absmaxes, which are as coarse: so a quantised base is
    another one than its original, and the same whether float32 or bfloat16 was quantised (but if absmax is, too).
    """
    named = {
        f"{path}.{name}".removeprefix("."): p
        for module, paths in places(model).items()
        if not isinstance(module, Prefix | Prompt)
        for name, p in (*module.named_parameters(recurse=False, remove_duplicate=False), *_of_four_bits(module))
        for path in paths
    }
    return _digits(_of_base(named, layers_of(model)), through)


def _of_four_bits(module):
    """What stands for the weights of a quantised layer, which are no parameter."""
    return [(module.scheme, module.scales())] if isinstance(module, Linear4bit) else []


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


def marks_of(model: nn.Module) -> tuple[str, str, str | None]:
    """What an adapter says of its base: the fingerprint, that in float16, and how it is quantised."""
    return fingerprint(model), fingerprint(model, torch.float16), scheme_of(model)


def check_base(model: nn.Module, folder: Path, named: str | None, halved: str | None, quantized: str | None) -> None:
    """Raise AdapterError unless `model` has the weights of the base whose marks the adapter in `folder` names, in
    whatever precision; one that names no fingerprint fits any."""
    own = fingerprint(model)
    if named in (None, own) or own == halved:
        return
    if quantized != (mine := scheme_of(model)):
        theirs, this = (f"quantised to {scheme[:40]}" if scheme else "not quantised" for scheme in (quantized, mine))
        raise AdapterError(
            f"{folder} was trained on another base: that one was {theirs}, this model is {this}: load its own base and "
            "quantise it as that one was"
        )
    if named == fingerprint(model, torch.float16):
        return
    raise AdapterError(
        f"{folder} was trained on another base (fingerprint {named[:16]!r}, this model has {own}): load the base that it "
        "was trained on (a merged or fully fine-tuned model is another base), in the same precision"
    )
