"""What others write: factors under other names, other libraries' files and folders, known by what they are called.

Where their meaning is clear they are read; else a person is told what lies there and what to do.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from safetensors import SafetensorError, safe_open

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
AGAIN = "copy the folder again, or save the adapter again"
ELSEWHERE = "open it in PEFT (PeftModel.from_pretrained), or train again "
SHOWN = 4  # of many names in a sentence

# before a module's path: what wrappers call the model that they hold (PEFT also twice, DDP, torch.compile, Lightning)
WRAPPERS = re.compile(r"(?:(?:base_model\.model|module|_orig_mod|model(?=\.base_model\.model\.))\.)+")
INSIDE = re.compile(r"(?<=\.)(?:_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.")
FACTOR = re.compile(r"(.+)\.lora_([AB])(?:\.(?!weight|bias)([\w-]+))?(?:\.weight)?")  # the third: an adapter's name

LENGTHS = re.compile(r"(.+)\.lora_magnitude_vector(?:\.(?!weight$)[\w-]+)?(?:\.weight)?")  # DoRA's

PLAIN = "make it a LoRA adapter in PEFT's format first"
KEYS = {  # how to know what is no factor among the tensors, what it is, and what to do about it
    r"\.lora_embedding_[AB]\b": ("the LoRA of an embedding", ELSEWHERE + "without embeddings among the targets"),
    r"\.lora_magnitude_vector": ("DoRA's learned lengths", f"{CONFIG} has to say use_dora then; {AGAIN}"),
    r"\.lora_[AB](\.[\w-]+)?\.bias$": ("a bias (lora_bias)", ELSEWHERE + "with lora_bias=False"),
    r"trainable_tokens_": ("embeddings of trained tokens", ELSEWHERE + "without trainable_token_indices"),
    r"\.modules_to_save\.": ("a layer that was trained whole", ELSEWHERE + "without modules_to_save"),
    r"lora_(unet|te\d?)_|\.lora_(down|up)\b|\.alpha$": ("a part of a kohya (sd-scripts) file for image models", PLAIN),
    r"\.lora\.(down|up)\.|_lora\.(down|up)\.": ("a part of a diffusers file for image models", PLAIN),
    r"\.(hada|lokr|oft)_": ("a part of a LyCORIS file", PLAIN),
    r"\.lora_[ab](\.weight)?$": ("a factor as MLX or torchtune writes it", PLAIN),
    r"(?i)lora": ("a factor under a name that is not known here", PLAIN),
    # PEFT does so by itself when an embedding or a transformers model's head is among the targets
    r"\.(weight|bias)$": ("a weight of the base", "save it from PEFT with save_embedding_layers=False"),
    "": ("something else", "save the adapter without it"),
}


def bare_path(name: str) -> str:
    """A module's path without the names that wrappers put before and into it."""
    start = WRAPPERS.match(name)
    return INSIDE.sub("", name[start.end() :] if start else name)


def factor(key: str) -> tuple[str, str, str | None] | None:
    """The module path, "A" or "B", and the adapter's name if it is in the key; None for what is no factor."""
    found = FACTOR.fullmatch(key)
    return found and (bare_path(found[1]), found[2], found[3])


def lengths(key: str) -> str | None:
    """The module path of DoRA's lengths; None for what is none."""
    found = LENGTHS.fullmatch(key)
    return found and bare_path(found[1])


def stranger(keys: Iterable[str]) -> str | None:
    """Of the tensors that are no factors the one that says most: its name, what it is, and what to do."""
    aliens = sorted(key for key in keys if not factor(key))
    for mark, (what, do) in KEYS.items():
        for key in aliens:
            if re.search(mark, key):
                return f"{key[:120]!r}, which is no LoRA factor but {what}: {do}"


def what_is_there(path: Path) -> str:
    """The end of a sentence on a path that is no adapter's folder: what is wrong with it, or what it is, and a cure."""
    if not path.exists():
        return f"does not exist: give the folder that holds {CONFIG} and {TENSORS}"
    if path.is_file():
        if path.name in (CONFIG, TENSORS):
            return f"is a file of an adapter: give its folder, {path.parent}"
        return _what_file(path) or f"is a file: give the folder that holds {CONFIG} and {TENSORS}"
    inside = sorted((p.parent for p in (*path.glob(f"*/{CONFIG}"), *path.glob(f"*/*/{CONFIG}"))), key=_by_number)
    inside = [str(folder) for folder in inside if any(folder.glob("adapter_model.*"))]
    if len(inside) == 1:
        return f"holds the adapter in a folder of its own: give {inside[0]}"
    if inside:
        return f"holds {len(inside)} adapters in folders of their own: give one of {abridged(inside)}"
    names = {p.name for p in path.iterdir()}
    if "pytorch_adapter.bin" in names:
        return f"holds an adapter of AdapterHub's adapters library, which has another format: {PLAIN}"
    if names & {"adapters.safetensors", "adapters.npz"}:
        return f"holds an adapter of MLX, whose factors have other names and shapes: {PLAIN}"
    if any(name.startswith("pytorch_lora_weights.") for name in names):
        return f"holds a LoRA of diffusers, for an image model: {PLAIN}"
    if any(name.startswith("adapter_model-") for name in names):
        return f"holds an adapter in several pieces: save it again as one {TENSORS}"
    whole = ("model.safetensors", "model-", "pytorch_model", "consolidated.")
    if "config.json" in names and any(name.startswith(whole) for name in names):
        return "holds a whole model and no adapter: give it as the base, with --base or bases.load"
    found = [said for p in sorted(path.iterdir()) if p.is_file() and (said := _what_file(p))]
    return f"has no {TENSORS}: " + (f"what it holds, {found[0]}" if found else AGAIN)


def _what_file(path):
    if path.suffix == ".gguf":
        return f"{path.name} is a GGUF file, for llama.cpp: take the adapter that it was made of, in PEFT's format"
    if path.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".lora"):
        return (
            f"{path.name} is a pickle, which can run code and is never opened here: save it again with a PEFT that "
            f"writes {TENSORS}"
        )
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, "pt") as f:
                found = stranger(f.keys())
        except (SafetensorError, OSError):
            return None
        if found:
            return f"{path.name} holds {found}"
        return f"{path.name} has factors but not the name that PEFT gives: call it {TENSORS}, beside its {CONFIG}"
    return None


def is_pointer(path: Path) -> bool:
    """Whether Git LFS has left a note here in place of a file."""
    with path.open("rb") as f:
        return f.read(40).startswith(b"version https://git-lfs.github.com")


def abridged(names: list[str]) -> str:
    """Names with commas between them, the middle of a long list left out."""
    if len(names) > SHOWN:
        names = [*names[: SHOWN - 1], "...", names[-1]]
    return ", ".join(names)


def _by_number(path):
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", str(path))]
