"""The settings of a fine-tune: their defaults, and which values make no sense.

Imports nothing that takes time, as the command line shows the defaults in its help.
"""

from dataclasses import dataclass

from llm.errors import SettingError

# `relatives` has more methods; these are the ones whose adapters can be saved
METHODS = ("lora", "rslora", "lora+", "lora-fa", "dora", "pissa", "ia3")
PRECISIONS = ("auto", "float32", "bfloat16")  # as `loss.py` has them
WORDS = dict(dtype=("float32", "bfloat16"), precision=PRECISIONS, method=METHODS)  # float16 would need loss scaling
WORDS["train_on"] = ("answers", "last", "all")
STEPS = 100  # unless steps or epochs are given
# Peak learning rate of LoRA, by the base: the course's own model, as data/results/rates.csv has it, and any other, whose
# wider layers start hotter.
COURSE_RATE, OTHER_RATE = 1e-2, 1e-3
# as high, as data/results/relatives.csv has it: LoRA+'s B at LoRA's rate; IA3's factors, which start at 1, between the two
TIMES = {"lora+": 1 / 16, "ia3": 10}


@dataclass(frozen=True)
class Settings:
    """A run in full: the same settings, text and base on the same machine give the same adapter, bit for bit.

    method: one of METHODS; lr is the rate of A where LoRA+ has two.
    targets: see `target_words.py`. start, dropout: see `LoraLinear`. rows: of a batch, in all processes together. block,
    skip_long: see `load_dataset`. precision, accumulate: see `train`. checkpointing: work activations out again in the
    backward instead of keeping them. quantize: the base's linear layers in four bits, a word as `bases.load` takes it.
    steps: or epochs instead, of as many rows as the data have; they are drawn at random, so some come twice and some never.
    measure: steps between two measurements of the held-out loss. patience: measurements in a row without a new best, after
    which the run ends. map, train_on, template: see `load_dataset` and `text/chat.py`.
    lr: None is `COURSE_RATE` for the course's model, `OTHER_RATE` for any other, `TIMES` as high for some methods.
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
        """Raises SettingError with one sentence for the first setting that makes no sense."""
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
