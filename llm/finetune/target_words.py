"""Which layers LoRA wraps, by a word: on the command line, in the lab and in the experiments."""

import re
from collections.abc import Callable

# a part of the layer's path that is, or has in it; None is every linear but the head
TARGETS = {
    "all": None,
    "attention": r"attn|attention|^att$",  # GPT-2's attn, Llama's self_attn, Pythia's attention
    "mlp": r"mlp|ffn|feed_?forward|^ff$|^fc\d$|moe|experts",  # OPT has fc1 and fc2 in the block itself
}


def targets_of(targets: str) -> Callable[[str], bool] | list[str] | None:
    """A word of `TARGETS`, or names of linear layers with commas between them, as `apply_lora` takes targets."""
    if targets not in TARGETS:
        return [name.strip() for name in targets.split(",")]
    pattern = TARGETS[targets]
    return pattern and (lambda path: any(re.search(pattern, part, re.IGNORECASE) for part in path.split(".")))
