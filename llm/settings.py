"""What one fine-tune is: its settings, checked, and what their names mean. Knows nothing about training or files."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}  # float16 would want its loss scaled
# a linear layer's part by the names that GPT-2 and Llama give to it
PARTS = {"attention": (".attn.", ".self_attn."), "mlp": (".mlp.",)}


@dataclass(frozen=True)
class Settings:
    """A run in full: the same settings, text and base on the same machine give the same adapter, bit for bit.

    targets: "all", "attention", "mlp", or names of linear layers with commas between them. rows: of a batch, in all
    processes together. block: see `load_dataset`. lr: None is 1e-2 for the course's model, 1e-3 for any other.
    """

    data: str
    base: str = "course"
    rank: int = 8
    alpha: float = 8.0
    scaling: str = "alpha/r"
    targets: str = "all"
    steps: int = 100
    lr: float | None = None
    rows: int = 16
    block: int | None = None
    seed: int = 0
    dtype: str = "float32"

    def check(self) -> None:
        """Raises ValueError with one sentence for the first setting that makes no sense."""
        for name in ("steps", "rows", "lr", "alpha"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"--{name} {value:g} makes no sense: give a number above 0")
        dtype_of(self.dtype)
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"--seed {self.seed} is out of range: give one from 0 to {2**31 - 1}")


def dtype_of(name: str) -> torch.dtype:
    """Raises ValueError when nothing is trained in a dtype of that name."""
    if name not in DTYPES:
        raise ValueError(f"there is no --dtype {name} here: choose one of {', '.join(DTYPES)}")
    return DTYPES[name]


def targets_of(said: str) -> Callable[[str], bool] | list[str] | None:
    """`Settings.targets` as `apply_lora` takes it."""
    if said == "all":
        return None
    if said in PARTS:
        return lambda path: any(part in f".{path}" for part in PARTS[said])
    return [name.strip() for name in said.split(",")]
