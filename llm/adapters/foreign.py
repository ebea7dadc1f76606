"""What other tools write: tensor names, and an error sentence for a folder without a PEFT adapter."""

import re
from pathlib import Path

from llm.surgery import INSIDE

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
AGAIN = "copy the folder again, or save the adapter again"
MERGE = (
    "open the adapter in PEFT, or merge it there (merge_and_unload, then save_pretrained with the tokenizer) and give the result as "
    "the base"
)
GATHER = (
    "copy the folder again, or save the adapter again with the weights of all processes gathered (DeepSpeed: "
    "zero_to_fp32.py; FSDP: a full state dict)"
)
CONVERT = "bring what another tool wrote into PEFT's format first"

LONGEST = 500  # characters in a tensor's name
# what PEFT (sometimes twice), DDP, torch.compile and Lightning put before a module's path
WRAPPERS = re.compile(r"(?:(?:base_model\.model|module|_orig_mod|model(?=\.base_model\.model\.))\.)+")
# a module's path, its part, and perhaps an adapter's name
PART = re.compile(r"(.+)\.(lora_[AB]|lora_magnitude_vector|ia3_l)(?:\.(?!weight$|bias$|bias\.)[\w-]+)?(?:\.weight)?")


def bare_path(name: str) -> str:
    """Return a module's path without the names that wrappers put before and inside it."""
    start = WRAPPERS.match(name)
    name = name[start.end() :] if start else name
    return ".".join(part for part in name.split(".") if part not in INSIDE)


def module_and_part(key: str) -> tuple[str, str] | None:
    """Split a tensor's name into its module's path and the part, such as "lora_A"; None for other names."""
    match = PART.fullmatch(key) if len(key) <= LONGEST and key.isprintable() else None
    return match and (bare_path(match[1]), match[2])


def what_is_there(path: Path) -> str:
    """Return the end of an error sentence about a path without an adapter's tensors: the problem and the cure."""
    if not path.exists():
        return f"does not exist: give the folder that holds {CONFIG} and {TENSORS}"
    if path.is_file():
        return f"is a file: give the folder that holds {CONFIG} and {TENSORS}"
    inside = {file.parent for pattern in ("*/", "*/*/") for file in path.glob(pattern + CONFIG)}
    if inside := sorted(map(str, inside), key=lambda name: (len(name), name)):
        return f"holds adapters in folders of their own: give one of {shown(', '.join(inside), 300)}"
    pickles = any(path.glob("*.bin")) or any(path.glob("*.pt"))
    pickle = "a pickle (.bin, .pt) can run code and is never opened here, so save it again from PEFT; " * pickles
    return (
        f"has no {TENSORS}: give the folder that holds it and {CONFIG}; {pickle}{CONVERT}; a whole model is a base, for "
        "--base or bases.load"
    )


def shown(text: object, limit: int = 120) -> str:
    """Make untrusted text safe for a message or a terminal: one line, no control characters, shortened."""
    text = str(text)
    text = text if len(text) <= limit else f"{text[: limit - 23]}...{text[-20:]}"
    return text if text.isprintable() else repr(text)[1:-1]
