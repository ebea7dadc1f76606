"""The settings of a fine-tune: their defaults, and which values are invalid.

Imports nothing slow, because the command line shows the defaults in its help.
"""

from dataclasses import dataclass

from llm.errors import SettingError

# the methods whose adapters can be saved; `relatives` has more
METHODS = ("lora", "rslora", "lora+", "lora-fa", "dora", "pissa", "ia3")
PRECISIONS = ("auto", "float32", "bfloat16")  # as `loss.py` has them
WORDS = dict(dtype=("float32", "bfloat16"), precision=PRECISIONS, method=METHODS)  # float16 would need loss scaling
WORDS["train_on"] = ("answers", "last", "all")
STEPS = 100  # unless steps or epochs are given
# Peak learning rate of LoRA for the course's own model (measured in data/results/rates.csv), and for any other, whose
# layers are wider and need a lower one.
COURSE_RATE, OTHER_RATE = 1e-2, 1e-3
# multiples of that rate, from data/results/relatives.csv: LoRA+ has its B at LoRA's rate, and IA3 needs a higher one
RATE_FACTORS = {"lora+": 1 / 16, "ia3": 10}


@dataclass(frozen=True)
class Settings:
    """All settings of a run: the same settings, text and base on the same machine give the same adapter, bit for bit.

    method: one of METHODS. targets: see `target_words.py`. start, dropout: see `LoraLinear`. rows: the batch size over
    all processes. block, skip_long: see `load_dataset`. precision, accumulate: see `train`. checkpointing: recompute
    activations in the backward pass instead of storing them. quantize: the four-bit scheme of the base's linear layers,
    as in `bases.load`. epochs: replaces steps, in multiples of the number of rows; rows are drawn at random, so some
    come twice and some never. measure: steps between measurements of the held-out loss. patience: end the run after
    this many measurements in a row without a new best. map, train_on, template: see `load_dataset` and `text/chat.py`.
    lr: the peak rate, of A in LoRA+; None means `COURSE_RATE` or `OTHER_RATE`, times the method's factor in `RATE_FACTORS`.
    """

    data: str
    base: str = "course"
    rank: int = 8
    alpha: float = 8.0
    scaling: str = "alpha/r"
    targets: str = "all"
    steps: int | None = None
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
    epochs: float | None = None
    measure: int | None = None
    patience: int | None = None
    map: str | None = None
    train_on: str = "answers"
    template: str | None = None

    def check(self) -> None:
        """Raise SettingError with one sentence for the first invalid setting."""
        if self.method == "qlora":
            raise SettingError("QLoRA is LoRA over a base of four bits: give --method lora --quantize nf4")
        for name in ("rank", "steps", "rows", "block", "seed", "accumulate", "measure", "patience"):
            value, least = getattr(self, name), 0 if name == "seed" else 1
            if value is not None and (type(value) is not int or value < least):
                raise SettingError(f"--{name} {value} makes no sense: give a whole number from {least} up")
        for name in ("alpha", "lr", "dropout", "epochs"):
            value = getattr(self, name)
            if value is not None and not (type(value) in (int, float) and 0 <= value < float("inf")):
                raise SettingError(f"--{name} {value} makes no sense: give a number from 0 up")
        for name, words in WORDS.items():
            if (value := getattr(self, name)) not in words:
                raise SettingError(
                    f"there is no --{name.replace('_', '-')} {value} here: choose one of {', '.join(words)}"
                )
        for name in ("rank", "alpha", "scaling", "targets", "start", "dropout") if self.method == "ia3" else ():
            if getattr(self, name) != getattr(Settings, name):
                raise SettingError(f"--{name} {getattr(self, name)} means nothing to --method ia3: leave it out")
        if self.method == "rslora" and self.scaling == "alpha":
            raise SettingError("--method rslora is --scaling alpha/sqrt(r) and no other: leave --scaling out")
