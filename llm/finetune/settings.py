"""What one fine-tune is: its settings, their defaults, and what makes no sense in them.

Imports nothing that takes time: the command line shows the defaults in its help.
"""

import math
from dataclasses import dataclass

from llm.errors import SettingError

DTYPES = ("float32", "bfloat16")  # float16 would want its loss scaled
PRECISIONS = ("auto", "float32", "bfloat16")  # as `loss.py` has them
METHODS = (
    "lora",
    "rslora",
    "lora+",
    "lora-fa",
    "dora",
    "pissa",
    "ia3",
)  # those of `relatives` that an adapter can hold
# Peak learning rate of LoRA, by the base: the course's own model, as data/results/rates.csv has it, and any other, whose
# wider layers start hotter.
COURSE_RATE, OTHER_RATE = 1e-2, 1e-3
# as high, as data/results/relatives.csv has it: LoRA+'s B at LoRA's rate; IA3's factors, which start at 1, between the two
TIMES = {"lora+": 1 / 16, "ia3": 10}


@dataclass(frozen=True)
class Settings:
    """A run in full: the same settings, text and base on the same machine give the same adapter, bit for bit.

    method: one of METHODS; lr is the rate of A where LoRA+ has two.
    targets: see `targets.py`. start, dropout: see `LoraLinear`. rows: of a batch, in all processes together. block,
    skip_long: see `load_dataset`. precision, accumulate: see `train`. checkpointing: work activations out again in the
    backward instead of keeping them. quantize: the base's linear layers in four bits, a word as `bases.load` takes it.
    lr: None is `COURSE_RATE` for the course's model, `OTHER_RATE` for any other, `TIMES` as high for some methods.
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
    start: str = "chapter"
    dropout: float = 0.0
    skip_long: bool = False
    precision: str = "auto"
    accumulate: int = 1
    checkpointing: bool = False
    quantize: str | None = None
    method: str = "lora"

    def check(self) -> None:
        """Raises SettingError with one sentence for the first setting that makes no sense."""
        for name in ("steps", "rows", "lr", "alpha", "accumulate"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise SettingError(f"--{name} {value:g} makes no sense: give a number above 0")
        if self.dtype not in DTYPES:
            raise SettingError(f"there is no --dtype {self.dtype} here: choose one of {', '.join(DTYPES)}")
        if self.precision not in PRECISIONS:
            raise SettingError(f"there is no --precision {self.precision} here: choose one of {', '.join(PRECISIONS)}")
        if self.method not in METHODS:
            raise SettingError(
                f"there is no --method {self.method} whose adapter can be kept: choose one of {', '.join(METHODS)}"
            )
        for name in ("rank", "alpha", "scaling", "targets", "start", "dropout") if self.method == "ia3" else ():
            if getattr(self, name) != getattr(Settings, name):
                raise SettingError(f"--{name} {getattr(self, name)} means nothing to --method ia3: leave it out")
        if self.method == "rslora" and self.scaling == "alpha":
            raise SettingError("--method rslora is --scaling alpha/sqrt(r) and no other: leave --scaling out")
        if not 0 <= self.seed < 2**31:
            raise SettingError(f"--seed {self.seed} is out of range: give one from 0 to {2**31 - 1}")
