"""GPT-2's weights (Radford et al. 2019), from a folder or the Hugging Face hub, under the names that the course uses.

The names are GPT-2's own already. What differs: GPT-2 was written with Conv1D, which holds its matrix as (in, out), and
its file may leave out the head (it is the embedding once more) and hold buffers that are no weights.
Knows nothing about the model that will take them.
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from llm.errors import BaseError

HUB = {name: f"openai-community/{name}" for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")}
CONFIG, TENSORS, ADAPTER = "config.json", "model.safetensors", "adapter_config.json"
INDEX = TENSORS + ".index.json"  # which of several files holds which tensor
PACKED = ("I8", "U8", "I16", "U16", "I32", "U32", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4")  # no weights as they are
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
    folder = Path(name_or_folder).expanduser()
    if not folder.exists() and str(name_or_folder) in HUB:
        folder = _download(str(name_or_folder))
    fields, tied = _fields(read_config(folder), folder)
    with weights(folder) as files:
        tied, fields["tied_lm_head"] = (tied and one_matrix(files),) * 2
        return fields, _tensors(files, _shapes(fields, tied, len(files)), tied, folder / TENSORS)


@contextmanager
def weights(folder: Path) -> Iterator[dict]:
    """The tensors in `folder`, name to the open safetensors file that holds it: one file, or the several of an index.

    Raises BaseError when one is missing or damaged, also by what is read inside the `with`.
    """
    path = folder / TENSORS
    with ExitStack() as stack:
        try:
            found = {}
            for path in _files(folder):
                f = stack.enter_context(safe_open(path, "pt"))
                found |= dict.fromkeys(f.keys(), f)
            yield found
        except (SafetensorError, OSError) as error:
            raise BaseError(f"{path} is damaged ({error}): copy or download it again") from None


def _files(folder):
    if (folder / TENSORS).is_file():
        return [folder / TENSORS]
    try:
        names = sorted(set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
        sound = bool(names) and all(Path(name).name == name for name in names)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        sound = False
    if not sound:
        raise BaseError(f"{folder / INDEX} is damaged: copy or download it again")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise BaseError(f"{folder} lacks {missing[0]}, one of the {len(names)} files of its weights: copy it too")
    return [folder / name for name in names]


def one_matrix(files: dict) -> bool:
    """Whether head and embedding in `files` (as `weights` gives them) are one: only one is there, or both are equal."""
    both = [key for key in files if key.endswith(("wte.weight", "lm_head.weight"))]
    tensors = [files[key].get_tensor(key) for key in both]
    return len(both) < 2 or (tensors[0].shape == tensors[1].shape and torch.equal(*tensors))


def read_config(folder: Path) -> dict:
    """The `config.json` of a model's folder, beside which weights lie as safetensors. Raises BaseError."""
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise BaseError(f"{folder} {what}: give a folder with {CONFIG} and {TENSORS}, or one of {', '.join(HUB)}")
    if (folder / ADAPTER).is_file() and not (folder / CONFIG).is_file():
        raise BaseError(f"{folder} is an adapter, not a base: give it as the adapter, and its model as the base")
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BaseError(f"{folder} is no model: it has no {CONFIG}{_elsewhere(folder)}") from None
    except (OSError, ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise BaseError(f"{folder / CONFIG} is damaged: copy or download it again")
    if not any((folder / name).is_file() for name in (TENSORS, INDEX)):
        pickles = sorted(p.name for kind in ("*.bin", "*.pt", "*.pth", "*.pkl") for p in folder.glob(kind))
        others = sorted(p.name for p in folder.glob("*.safetensors"))
        raise BaseError(
            f"{folder} has its weights in {pickles[0]}, a pickle, which can run code and is never opened here: "
            f"save it again as {TENSORS}"
            if pickles
            else f"{folder} has no {TENSORS} but {others[0]}: call that {TENSORS}"
            if len(others) == 1
            else f"{folder} has no {TENSORS}: copy or download it again"
        )
    _refuse_packed(folder, config)
    return config


def _elsewhere(folder):
    """Where a model lies that was looked for in `folder`, as the end of a sentence."""
    for found in sorted([*folder.glob(f"*/{CONFIG}"), *folder.glob(f"snapshots/*/{CONFIG}")]):
        return f", and the model is in {found.parent}: give that"
    for found in sorted(folder.glob("*.gguf")):
        return f", only {gguf(found)}"
    return ""


def gguf(path: Path) -> str:
    """The end of a sentence on a GGUF file: what to do with it."""
    return (
        f"{path.name}: save it as {TENSORS} with AutoModelForCausalLM.from_pretrained(folder, "
        "gguf_file=...).save_pretrained(...), the tokenizer likewise"
    )


def _refuse_packed(folder, config):
    """Weights of four or eight bits: copying them again changes nothing, so they are named for what they are."""
    said = config.get("quantization_config") or config.get("quantization")
    if not said:
        with weights(folder) as files:
            kinds = {f.get_slice(key).get_dtype() for key, f in files.items() if not key.endswith("bias")}
        packed = sorted(kinds & set(PACKED))
        if not packed:
            return
        said = dict(quant_method=f"stored as {', '.join(packed)}")
    said = said if isinstance(said, dict) else {}
    bits = said.get("bits") or 4 * bool(said.get("load_in_4bit")) or 8 * bool(said.get("load_in_8bit"))
    how = ", ".join(str(x)[:40] for x in (said.get("quant_method"), bits and f"{bits} bits") if x)
    raise BaseError(
        f"the weights in {folder} are packed{f' ({how})' if how else ''}, which does not load here: take the plain model "
        "that they were packed from"
    )


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
    if not all(type(n) is int and n > 0 for n in numbers) or sizes["n_embd"] % sizes["n_head"]:
        raise BaseError(f"{folder / CONFIG} gives no sizes that fit together: copy or download it again")
    if inner % sizes["n_embd"]:
        raise BaseError(
            f"{folder}: n_inner={inner} is no multiple of n_embd={sizes['n_embd']}, as the course's GPT needs it: take "
            "another GPT-2"
        )
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


def _tensors(files, shapes, tied, path):
    keys = {key.removeprefix("transformer."): key for key in files}
    if (
        tied and "wte.weight" not in keys and "lm_head.weight" in keys
    ):  # of two names for one matrix a file keeps either
        keys["wte.weight"] = keys["lm_head.weight"]
    buffers = {k for k in keys if k.endswith((".attn.bias", ".attn.masked_bias"))}  # the causal mask, no weight
    found = {
        k: tuple(files[keys[k]].get_slice(keys[k]).get_shape())
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
        tensor = files[keys[name]].get_tensor(keys[name]).float()
        if not tensor.isfinite().all():
            raise BaseError(f"{path}: {name} holds NaN or infinity: copy or download it again")
        # Conv1D computes x @ W with W (in, out), nn.Linear x @ W.T with W (out, in)
        own = name if name == "lm_head.weight" else f"transformer.{name}"
        state[own] = tensor.T.contiguous() if name.endswith(CONV1D) else tensor
    return state | ({"lm_head.weight": state["transformer.wte.weight"]} if tied else {})
