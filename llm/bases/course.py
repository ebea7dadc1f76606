"""The chapter-12 model: the one that ships, or a learner's own checkpoint in its place.

Weights are read from safetensors; a learner's own `.pt` is unpickled with `weights_only=True`, nothing else ever is.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from llm.errors import BaseError
from llm.model import GPT, GPTConfig
from llm.paths import BASE, CHECKPOINT


def load_base(own: Path = CHECKPOINT, shipped: Path = BASE) -> GPT:
    """The chapter-12 model in float32: the learner's own checkpoint when there is one, else the one that ships.

    Raises BaseError when a file is damaged or of another shape, or when one that was asked for is missing.
    """
    if own.is_file():
        return fill(own, _read_pt(own))
    if own != CHECKPOINT:
        raise BaseError(f"there is no checkpoint {own}: check the path, or leave it out for the shipped base")
    path = shipped / "model.safetensors"
    if not path.is_file():
        raise BaseError(f"the base model {path} is missing: restore it with `git checkout data/base`")
    try:
        return fill(path, load_file(path))
    except SafetensorError as error:
        raise BaseError(f"{path} is damaged ({error}): restore it with `git checkout data/base`") from None


def _read_pt(path):
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # torch raises half a dozen kinds here, for damage and for pickles that it refuses
        raise BaseError(
            f"{path} is not a plain PyTorch state dict: save one with torch.save(model.state_dict(), path), "
            "or move it away to use the shipped base"
        ) from None
    state = state.get("model", state) if isinstance(state, dict) else state
    if not isinstance(state, dict):
        return {}
    # torch.compile and DistributedDataParallel put their names before those of the model that they wrap
    return {str(name).removeprefix("module.").removeprefix("_orig_mod."): tensor for name, tensor in state.items()}


def fill(path: Path, state: dict, config: GPTConfig | None = None) -> GPT:
    """A GPT in float32 and eval mode, by default the chapter-12 one, with the tensors of `state`, which came from `path`.

    Raises BaseError when they are not just those that `config` asks for, before anything is allocated, or not finite.
    """
    what, cure = "the chapter-12 model", "move it away to use the shipped base"
    if config:
        what, cure = "the model that its config.json says", "copy or save the model again"
    with torch.device("meta"):  # no second copy, and no random start that would be thrown away
        model = GPT(config or GPTConfig())
    shapes = {k: v.shape for k, v in model.state_dict().items()}
    found = {k: getattr(v, "shape", None) for k, v in state.items()}
    wrong = sorted(k for k in shapes.keys() | found.keys() if shapes.get(k) != found.get(k))
    if wrong:
        raise BaseError(f"{path} does not hold {what}: {len(wrong)} tensors differ, {wrong[0]} first; {cure}")
    for name, tensor in state.items():
        if not tensor.isfinite().all():
            raise BaseError(f"{path}: {name} holds NaN or infinity; {cure}")
    # a copy of each: two names in a file may lie on one tensor, and would be trained as one
    model.load_state_dict({name: tensor.detach().float().clone() for name, tensor in state.items()}, assign=True)
    if model.config.tied_lm_head:
        model.lm_head.weight = model.transformer.wte.weight
    return model.requires_grad_(True).eval()
