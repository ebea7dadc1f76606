"""Read GPT-2's weights (Radford et al. 2019) from a folder or the Hugging Face hub into the course's GPT.

The tensor names are the same. The differences: GPT-2's Conv1D stores its matrices as (in, out), and its file may omit
the head, which equals the embedding, and may hold buffers that are not weights.
"""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn as nn

from llm.checkpoint_folder import AGAIN, CONFIG, TENSORS, fill, first_line, read_folder
from llm.errors import BaseError
from llm.paths import user_path

HUB = {name: f"openai-community/{name}" for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")}
CONV1D = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
TABLE, HEAD = "transformer.wte.weight", "lm_head.weight"
SIZES = ("vocab_size", "n_positions", "block_size", "n_layer", "n_head", "n_embd", "n_inner", "ffn_mult")
# settings for which the course's GPT has no switch, and the values that it computes
FIXED = {
    "model_type": ("gpt2",),
    "layer_norm_epsilon": (1e-5,),
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
}


def read(name_or_folder: str | Path, build: Callable[[dict], nn.Module]) -> nn.Module:
    """Return the float32 model that a name in `HUB` stands for, or one in a folder in GPT-2's or the course's format.

    "./gpt2" or a Path is always a folder. build: makes the model from a dict of `GPTConfig` fields. Everything but the
    values is checked before a tensor is read. Raises BaseError when the model cannot be fetched or does not fit.
    """
    folder = _download(name_or_folder) if name_or_folder in HUB else user_path(name_or_folder)
    if not folder.is_dir():
        raise BaseError(f"there is no folder {folder}: give that of a model, or one of {', '.join(HUB)}")
    fields, tensors = read_folder(folder)
    try:
        if wrong := [key for key in SIZES if type(n := fields.get(key) or 1) is not int or n < 1]:
            raise ValueError(f"{wrong[0]} is no positive whole number")
        if "model_type" in fields:
            fields, tensors = _in_our_words(fields), _under_our_names(tensors)
        if fields.get("n_layer", 1) > len(tensors):  # a config that claims a billion blocks must not build them
            raise ValueError(f"n_layer={fields['n_layer']}, but {len(tensors)} tensors")
        tables = [tensors[name] for name in (TABLE, HEAD) if name in tensors]
        tied = bool(fields.get("tied_lm_head")) and (len(tables) < 2 or torch.equal(*tables))
        with torch.device("meta"):  # avoids a second copy and a useless random initialization
            model = build(fields | dict(tied_lm_head=tied))
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        what = f"describes no model that the course's GPT computes ({first_line(error)})"
        raise BaseError(f"{folder / CONFIG} {what}: take another GPT-2, or {AGAIN}") from None
    if tied and HEAD in tensors:  # a file stores a tied matrix under either name
        tensors[TABLE] = tensors.pop(HEAD)
    fill(model, tensors, folder / TENSORS)
    if tied:
        model.lm_head.weight = model.transformer.wte.weight
    return model


def _download(name):
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(HUB[name], allow_patterns=[CONFIG, TENSORS]))
    except Exception as error:  # not installed, or any of a dozen client and network errors
        raise BaseError(
            f"could not fetch {name} from the Hugging Face hub ({type(error).__name__}): pip install huggingface_hub and "
            f"check the network, or give a folder with its {CONFIG} and {TENSORS}; once fetched, it works offline"
        ) from None


def _in_our_words(config):
    """Translate GPT-2's config into fields of `GPTConfig`. Raises ValueError for settings that it lacks."""
    for key, values in FIXED.items():
        if config.get(key, values[0]) not in values:
            raise ValueError(f"{key}={config[key]!r}, not {values[0]!r}")
    width = config.get("n_embd")
    inner = config.get("n_inner") or 4 * width
    if inner % width:
        raise ValueError(f"n_inner={inner} is no multiple of n_embd={width}")
    fields = {key: config.get(key) for key in ("vocab_size", "n_layer", "n_head", "n_embd")}
    tied = config.get("tie_word_embeddings", True) is not False
    return fields | dict(block_size=config.get("n_positions"), ffn_mult=inner // width, bias=True, tied_lm_head=tied)


def _under_our_names(tensors):
    ours = {}
    for name, tensor in tensors.items():
        name = "transformer." * (name != HEAD) + name.removeprefix("transformer.")
        # Conv1D computes x @ W with W (in, out), nn.Linear x @ W.T with W (out, in); the causal mask is not a weight
        if not name.endswith((".attn.bias", ".attn.masked_bias")):
            ours[name] = tensor.mT if name.endswith(CONV1D) and tensor.ndim > 1 else tensor
    return ours
