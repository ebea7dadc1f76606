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
    return state if isinstance(state, dict) else {}


def fill(path: Path, state: dict, config: GPTConfig | None = None) -> GPT:
    """A GPT in float32 and eval mode, by default the chapter-12 one, with the tensors of `state`, which came from `path`.

    Raises BaseError when they are not just those that `config` asks for, before anything is allocated.
    """
    what, cure = "the chapter-12 model", "move it away to use the shipped base"
    if config:
        what, cure = "the model that its config.json says", "copy or save the model again"
    config = config or GPTConfig()
    with torch.device("meta"):
        shapes = {k: v.shape for k, v in GPT(config).state_dict().items()}
    found = {str(k): getattr(v, "shape", None) for k, v in state.items()}
    wrong = sorted(k for k in shapes.keys() | found.keys() if shapes.get(k) != found.get(k))
    if wrong:
        raise BaseError(f"{path} does not hold {what}: {len(wrong)} tensors differ, {wrong[0]} first; {cure}")
    model = GPT(config)
    model.load_state_dict(state)
    return model.eval()
