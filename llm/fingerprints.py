"""A base model's fingerprint: the few digits by which an adapter knows the model it was trained on."""

import hashlib
from collections.abc import Collection
from weakref import WeakKeyDictionary

import torch
import torch.nn as nn

from llm.lora import lora_layers

_KNOWN = WeakKeyDictionary()  # what was seen of a model, and its fingerprint; goes when the model goes


def fingerprint(model: nn.Module) -> str:
    """16 hex digits that tell one base from another; the same with and without LoRA layers.

    Every parameter counts by name, shape and about a thousand evenly spread values: training or merging moves nearly
    all of them, and to read all 13.7 M would cost more than a swap. Values are rounded to bfloat16, so that weights
    shipped in fp16 have one fingerprint in fp16, fp32 and bf16.
    """
    return _digits(_of_base(dict(model.named_parameters(remove_duplicate=False)), lora_layers(model)))


def known_fingerprint(model: nn.Module, parameters: dict[str, nn.Parameter], layers: Collection[str]) -> str:
    """`fingerprint(model)`, from memory where the base is what it was at the last call: a quarter of the time.

    parameters: the model's, a tied one under each of its names; layers: the paths of its LoRA layers. Another parameter
    or another tensor in it has another id or address, and whatever autograd can see, an optimizer's step under no_grad
    among it, counts `_version` up. What goes past these, a write through `.data` or NumPy, shows in 32 values of each
    parameter, if it moves as many as training and merging do.
    """
    base = _of_base(parameters, layers)
    if not base or any(p.is_inference() for _, p in base):  # these count no versions
        return _digits(base)
    marks = [(name, id(p), p.data_ptr(), p._version, p.shape, p.dtype) for name, p in base]
    values = torch.cat([p.detach().reshape(-1)[:: (p.numel() // 32) | 1].float() for _, p in base])
    seen = _KNOWN.get(model)
    if seen is None or seen[0] != marks or not torch.equal(seen[1], values):
        seen = _KNOWN[model] = (marks, values, _digits(base))
    return seen[2]


def _of_base(parameters, layers):
    """[(name, parameter)] in the order of names, as the unwrapped model has them."""
    found = {}
    for name, p in parameters.items():
        owner, _, leaf = name.rpartition(".")
        outer = owner.removesuffix(".base")
        if outer in layers and owner != outer:
            found[f"{outer}.{leaf}"] = p
        elif owner not in layers:  # else it is A or B
            found[name] = p
    return sorted(found.items())


def _digits(parameters):
    digest, samples = hashlib.sha256(), []
    for name, p in parameters:
        digest.update(f"{name}{tuple(p.shape)}".encode())
        # an odd stride: an even one would meet the same few columns of a matrix again and again
        samples.append(p.detach().reshape(-1)[:: (p.numel() // 1024) | 1].to(torch.bfloat16))
    if samples:
        digest.update(torch.cat(samples).view(torch.int16).cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
