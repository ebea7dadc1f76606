"""What the words for targets mean, on the command line, in the lab and in the sweeps: which layers LoRA wraps."""

from collections.abc import Callable

# by the names that GPT-2 and Llama give to a linear layer's part; None is every linear but the head
TARGETS = {"all": None, "attention": (".attn.", ".self_attn."), "mlp": (".mlp.",)}


def targets_of(said: str) -> Callable[[str], bool] | list[str] | None:
    """A word of `TARGETS`, or names of linear layers with commas between them, as `apply_lora` takes targets."""
    if said not in TARGETS:
        return [name.strip() for name in said.split(",")]
    parts = TARGETS[said]
    return parts and (lambda path: any(part in f".{path}" for part in parts))
