"""The words that say which layers LoRA wraps: on the command line, in the lab and in the experiments."""

import re
from collections.abc import Callable

# a pattern that some part of a layer's path matches; None means every linear layer but the head
TARGETS = {
    "all": None,
    "attention": r"attn|attention|^att$",  # GPT-2's attn, Llama's self_attn, Pythia's attention
    "mlp": r"mlp|ffn|feed_?forward|^ff$|^fc\d$|moe|experts",  # OPT has fc1 and fc2 in the block itself
}


def targets_of(targets: str) -> Callable[[str], bool] | list[str] | None:
    """Convert a word of `TARGETS`, or comma-separated names of linear layers, into targets for `apply_lora`."""
    if targets not in TARGETS:
        return [name.strip() for name in targets.split(",")]
    pattern = TARGETS[targets]
    return pattern and (lambda path: any(re.search(pattern, part, re.IGNORECASE) for part in path.split(".")))
