"""GPT-2's weights (Radford et al. 2019), from a folder or the Hugging Face hub, under the names that the course uses.

The names are GPT-2's own already. What differs: GPT-2 was written with Conv1D, which holds its matrix as (in, out), and
its file may leave out the head (it is the embedding once more) and hold buffers that are no weights.
Knows nothing about the model that will take them.
"""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from llm.errors import BaseError

HUB = {name: f"openai-community/{name}" for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")}
CONFIG, TENSORS = "config.json", "model.safetensors"
CONV1D = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
# what the course's GPT has no switch for, and the only value that it computes
FIXED = {
    "layer_norm_epsilon": (1e-5,),
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
}


def read(name_or_folder: str | Path) -> tuple[dict, dict[str, torch.Tensor]]:
    """The fields of a config and a state dict in float32, from a folder or by a name in `HUB`.

    Everything but the values is checked before a tensor is read. Raises BaseError.
    """
    folder = Path(name_or_folder)
    if not folder.exists() and str(name_or_folder) in HUB:
        folder = _download(str(name_or_folder))
    fields, tied = _fields(read_config(folder), folder)
    try:
        with safe_open(folder / TENSORS, "pt") as f:
            return fields, _tensors(f, _shapes(fields, tied, len(f.keys())), tied, folder / TENSORS)
    except (SafetensorError, OSError) as error:
        raise BaseError(f"{folder / TENSORS} is damaged ({error}): copy or download it again") from None


def read_config(folder: Path) -> dict:
    """The `config.json` of a model's folder, beside which weights lie as safetensors. Raises BaseError."""
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise BaseError(f"{folder} {what}: give a folder with {CONFIG} and {TENSORS}, or one of {', '.join(HUB)}")
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BaseError(f"{folder} is no model: it has no {CONFIG}") from None
    except (OSError, ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise BaseError(f"{folder / CONFIG} is damaged: copy or download it again")
    if not any((folder / name).is_file() for name in (TENSORS, TENSORS + ".index.json")):
        pickles = sorted(p.name for kind in ("*.bin", "*.pt", "*.pth", "*.pkl") for p in folder.glob(kind))
        raise BaseError(
            f"{folder} has its weights in {pickles[0]}, a pickle, which can run code and is never opened here: "
            f"save it again as {TENSORS}"
            if pickles
            else f"{folder} has no {TENSORS}: copy or download it again"
        )
    return config


def _download(name):
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise BaseError(f"{name} comes from the Hugging Face hub: pip install huggingface_hub first") from None
    try:
        return Path(snapshot_download(HUB[name], allow_patterns=[CONFIG, TENSORS]))
    except Exception as error:  # the hub's client and the network below it raise a dozen kinds
        raise BaseError(
            f"could not fetch {name} from the Hugging Face hub ({type(error).__name__}): check the network once, "
            f"or give a folder with its {CONFIG} and {TENSORS}; after that it works offline"
        ) from None


def _fields(config, folder):
    """GPT-2's config in our words, and whether its head is tied."""
    if config.get("model_type") != "gpt2":
        raise BaseError(f"{folder} holds {config.get('model_type', 'a model')!r}, not 'gpt2': give a GPT-2")
    for key, values in FIXED.items():
        if config.get(key, values[0]) not in values:
            raise BaseError(f"{folder}: {key}={config[key]!r} is not what the course's GPT computes ({values[0]!r})")
    sizes = {ours: config.get(theirs) for ours, theirs in dict(
        vocab_size="vocab_size", block_size="n_positions", n_layer="n_layer", n_head="n_head", n_embd="n_embd"
    ).items()}  # fmt: skip
    inner = config.get("n_inner") or 4 * (sizes["n_embd"] or 0)
    numbers = (*sizes.values(), inner)
    if (
        not all(type(n) is int and n > 0 for n in numbers)
        or sizes["n_embd"] % sizes["n_head"]
        or inner % sizes["n_embd"]
    ):
        raise BaseError(f"{folder / CONFIG} gives no sizes that fit together: copy or download it again")
    tied = config.get("tie_word_embeddings", True) is not False
    return dict(sizes, ffn_mult=inner // sizes["n_embd"], bias=True, tied_lm_head=tied), tied


def _shapes(fields, tied, held):
    """The tensors that the file must hold, as it has them: name to shape."""
    d, inner = fields["n_embd"], fields["ffn_mult"] * fields["n_embd"]
    shapes = {"wte.weight": (fields["vocab_size"], d), "wpe.weight": (fields["block_size"], d)}
    norms, linears = {"ln_f": d}, {}
    for i in range(min(fields["n_layer"], held)):  # a config that claims a billion blocks costs nothing
        norms |= {f"h.{i}.ln_1": d, f"h.{i}.ln_2": d}
        linears |= {f"h.{i}.attn.c_attn": (d, 3 * d), f"h.{i}.attn.c_proj": (d, d)}
        linears |= {f"h.{i}.mlp.c_fc": (d, inner), f"h.{i}.mlp.c_proj": (inner, d)}
    shapes |= {f"{n}.{leaf}": (width,) for n, width in norms.items() for leaf in ("weight", "bias")}
    shapes |= {f"{n}.weight": shape for n, shape in linears.items()}
    shapes |= {f"{n}.bias": shape[1:] for n, shape in linears.items()}
    return shapes if tied else shapes | {"lm_head.weight": (fields["vocab_size"], d)}


def _tensors(f, shapes, tied, path):
    keys = {key.removeprefix("transformer."): key for key in f.keys()}
    buffers = {k for k in keys if k.endswith((".attn.bias", ".attn.masked_bias"))}  # the causal mask, no weight
    found = {
        k: tuple(f.get_slice(keys[k]).get_shape())
        for k in keys.keys() - buffers - ({"lm_head.weight"} if tied else set())
    }
    wrong = sorted(k for k in shapes.keys() | found.keys() if shapes.get(k) != found.get(k))
    if wrong:
        has, needs = (sizes.get(wrong[0], "missing") for sizes in (found, shapes))
        raise BaseError(
            f"{path} is not the model that its {CONFIG} says: {len(wrong)} tensors differ, {wrong[0][:80]} first "
            f"({has} in the file, {needs} by the config)"
        )
    state = {}
    for name in shapes:
        tensor = f.get_tensor(keys[name]).float()
        if not tensor.isfinite().all():
            raise BaseError(f"{path}: {name} holds NaN or infinity: copy or download it again")
        # Conv1D computes x @ W with W (in, out), nn.Linear x @ W.T with W (out, in)
        own = name if name == "lm_head.weight" else f"transformer.{name}"
        state[own] = tensor.T.contiguous() if name.endswith(CONV1D) else tensor
    return state | ({"lm_head.weight": state["transformer.wte.weight"]} if tied else {})
