"""The methods by name: prepare a model for one, remove it, merge it, disable it.

model = METHODS["dora"].prepare(model, r=8, alpha=8.0)
for step in train(model, batches, steps=100, lr=METHODS["dora"].rates(1e-2)): ...
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn as nn

from llm.errors import SettingError
from llm.lora import LoraLinear, apply_lora, merge_lora
from llm.model import GPT
from llm.quantize import four_bit_layers
from llm.relatives.layers import DoraLinear, Ia3Linear, LoraFaLinear, PissaLinear
from llm.relatives.prefixes import Prefix, Prompt
from llm.surgery import Targets, bare, check_model, places, plain_linear, replace_layers, silenced
from llm.training import LearningRate

OPTIONS = ("r", "alpha", "scaling", "targets", "start", "dropout")  # of `Method.prepare`


@dataclass(frozen=True)
class Method:
    """One way to fine-tune: how it changes a base, at which rates it trains, and what it is for.

    source: the paper's arXiv number. apply: a function of the model and the OPTIONS in `heeds`; afterwards only the
    method's parameters train. layer: the class that wraps linear layers, or None. peft: PEFT's name for the method, or
    None. merges: whether a plain model can be made equivalent. saves: whether `llm.adapters` writes it in PEFT's
    format. rates: turns one peak learning rate into `train`'s `lr`.
    """

    name: str
    use: str
    source: str
    apply: Callable[..., object]
    layer: type[nn.Module] | None = None
    peft: str | None = None
    merges: bool = True
    saves: bool = False
    heeds: tuple[str, ...] = ()
    rates: Callable[[float], LearningRate] = lambda lr: lr

    def prepare(
        self,
        model: nn.Module,
        r: int = 8,
        alpha: float = 8.0,
        scaling: str = "alpha/r",
        targets: Targets = None,
        start: str = "chapter",
        dropout: float = 0.0,
    ) -> nn.Module:
        """Freeze `model`, and add or unfreeze what this method trains; return the same model.

        The options are those of `apply_lora`; a method ignores those that are not in its `heeds`. For prefix and
        prompt, `r` is the number of virtual tokens. Warns as `apply_lora` does. Raises ValueError when the model is
        prepared already or an option is invalid; the model is then unchanged.
        """
        if now := method_of(model):
            raise SettingError(f"this model is prepared for {now} already: call remove(model), or load the base again")
        check_model(model)
        options = dict(r=r, alpha=alpha, scaling=scaling, targets=targets, start=start, dropout=dropout)
        base = set(model.parameters())
        self.apply(model, **{name: options[name] for name in self.heeds})
        trained = {path: p for path, p in bare(model).named_parameters() if p.requires_grad and p in base}
        original = {} if self.name == "full" else {path: p.detach().clone() for path, p in trained.items()}
        vars(bare(model))["_method"] = self.name, original
        return model


def loraplus_rates(lr: float, ratio: float = 16.0) -> LearningRate:
    """Return LoRA+'s learning rates: `lr` for A, and `ratio` times that for B (Hayou et al. 2024, arXiv 2402.12354)."""
    return lambda name: ratio * lr if name.rpartition(".")[2] == "B" else lr


def apply_ia3(model: nn.Module) -> None:
    """Scale keys, values and the inputs of the MLP's second layer, which are found by GPT-2's and Llama's names."""
    wrapped = {}
    linears = {layer: paths[0] for layer, paths in places(model).items() if isinstance(layer, nn.Linear)}
    for layer, path in linears.items():
        parent, name = ["", *path.split(".")][-2:]
        if name == "c_attn" and layer.out_features == 3 * layer.in_features:  # q, k and v in one product
            wrapped[layer] = Ia3Linear(layer, "out", first=layer.in_features)
        elif name in ("k_proj", "v_proj"):
            wrapped[layer] = Ia3Linear(layer, "out")
        elif name == "down_proj" or (parent, name) == ("mlp", "c_proj"):
            wrapped[layer] = Ia3Linear(layer, "in")
    if not wrapped:
        raise SettingError("IA3 finds its layers by GPT-2's and Llama's names, and this model has none of them")
    replace_layers(model.requires_grad_(False), wrapped)


def apply_virtual(model: nn.Module, r: int, kind: type[Prefix] | type[Prompt]) -> None:
    """Put r virtual tokens before the text that a `GPT` reads."""
    gpt = bare(model)
    if not isinstance(gpt, GPT):
        raise SettingError(f"virtual tokens need the course's own GPT, and this is a {type(gpt).__name__}: take PEFT")
    if type(r) is not int or r < 1:
        raise SettingError(f"r={r} makes no sense: here it is the number of virtual tokens, a whole number from 1 up")
    gpt.requires_grad_(False).prefix = kind(gpt, r)


def train_biases(model: nn.Module) -> None:
    train_only(model, "biases", [p for name, p in model.named_parameters() if name.rpartition(".")[2] == "bias"])


def train_last_norm(model: nn.Module) -> None:
    norms = [module for module in model.modules() if "norm" in type(module).__name__.lower()]
    train_only(model, "a norm", [p for norm in norms[-1:] for p in norm.parameters(recurse=False)])


def train_only(model: nn.Module, what: str, parameters: list[nn.Parameter]) -> None:
    if not parameters:
        raise SettingError(f"this method trains {what}, and this model has none")
    model.requires_grad_(False)
    for p in parameters:
        p.requires_grad_(True)


def train_everything(model: nn.Module) -> None:
    if four_bit_layers(model):  # 4-bit codes cannot have a gradient
        raise SettingError("full fine-tuning cannot train weights in four bits: load the base as it was, or take lora")
    model.requires_grad_(True)


def layers_of(model: nn.Module) -> dict[str, LoraLinear | Ia3Linear]:
    """Return the layers that LoRA or a relative wraps, keyed by the first path of each."""
    return {paths[0]: m for m, paths in places(model).items() if isinstance(m, LoraLinear | Ia3Linear)}


def method_of(model: nn.Module) -> str | None:
    """Return the name of the method that `model` is prepared for; None for a bare base."""
    name, _ = vars(bare(model)).get("_method", (None, {}))
    if kinds := {type(layer) for layer in layers_of(model).values()}:  # a loaded adapter has layers but no name
        names = [method.name for method in METHODS.values() if method.layer in kinds] or ["lora"]
        return name if name in names else names[0]
    return name if name and METHODS[name].layer is None else None


def remove(model: nn.Module) -> nn.Module:
    """Remove the method, so that the base is exactly as it was, frozen; return the same model.

    Raises SettingError after full fine-tuning, for which no copy is kept.
    """
    original = originals(model)
    replace_layers(model, {layer: layer.base for layer in layers_of(model).values()})
    overwrite(model, original)
    return forget(model)


@torch.no_grad()
def merge(model: nn.Module) -> nn.Module:
    """Turn the prepared model into an equivalent plain model, frozen; return the same model.

    Raises SettingError for prefix and prompt, and ValueError when an update is not finite; the model is then unchanged.
    """
    name = method_of(model)
    if name and not METHODS[name].merges:
        raise SettingError(f"a {name} stands before the text and is not part of any weight, so it cannot be merged")
    scaled = {}
    for path, layer in layers_of(model).items():
        if isinstance(layer, Ia3Linear):
            scaled[layer] = plain_linear(layer, layer.weight.clone(), layer.bias)
            if not all(p.isfinite().all() for p in scaled[layer].parameters()):
                raise ValueError(f"{path}: l * W holds NaN or infinity, so nothing was merged: train at a lower rate")
    return forget(replace_layers(merge_lora(model), scaled))


@contextmanager
def disabled(model: nn.Module) -> Iterator[nn.Module]:
    """Give `model` its base's output inside the block, then restore it. Raises SettingError after full fine-tuning."""
    base, original = bare(model), originals(model)
    trained = {path: base.get_parameter(path).detach().clone() for path in original}
    prefix = getattr(base, "prefix", None)
    with silenced(layers_of(model).values()):
        try:
            overwrite(model, original)
            if prefix is not None:
                base.prefix = None
            yield model
        finally:
            overwrite(model, trained)
            if prefix is not None:
                base.prefix = prefix


def originals(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the original values of the base's trained parameters. Raises SettingError after full fine-tuning."""
    name, original = vars(bare(model)).get("_method", (None, {}))
    if name == "full":
        raise SettingError("full fine-tuning has changed the base itself: load the base again")
    return original


@torch.no_grad()
def overwrite(model: nn.Module, values: dict[str, torch.Tensor]) -> None:
    for path, value in values.items():
        bare(model).get_parameter(path).copy_(value)


def forget(model: nn.Module) -> nn.Module:
    """Freeze a model, and clear the record that it is prepared for a method."""
    base = bare(model)
    vars(base).pop("_method", None)
    if getattr(base, "prefix", None) is not None:
        base.prefix = None
    return model.requires_grad_(False)


# fmt: off
METHODS: dict[str, Method] = {method.name: method for method in (
    Method("lora", "the one to begin with: the others are measured against it", "2106.09685",
           apply_lora, LoraLinear, "LoraConfig", saves=True, heeds=OPTIONS),
    Method("rslora", "large ranks, whose updates alpha/r makes small", "2312.03732",
           partial(apply_lora, scaling="alpha/sqrt(r)"), LoraLinear, "use_rslora",
           saves=True, heeds=("r", "alpha", "targets", "start", "dropout")),
    Method("lora+", "a faster B at no price, once the two rates are found", "2402.12354",
           apply_lora, LoraLinear, "create_loraplus_optimizer", saves=True, heeds=OPTIONS, rates=loraplus_rates),
    Method("lora-fa", "memory: with A frozen, no wide activation is kept for its gradient", "2308.03303",
           partial(apply_lora, kind=LoraFaLinear), LoraFaLinear, "create_lorafa_optimizer", saves=True, heeds=OPTIONS),
    Method("dora", "small ranks: lengths are learned apart from directions, for longer steps", "2402.09353",
           partial(apply_lora, kind=DoraLinear), DoraLinear, "use_dora", saves=True, heeds=OPTIONS),
    Method("pissa", "a faster start: the largest parts of the weights themselves are trained", "2404.02948",
           partial(apply_lora, kind=PissaLinear), PissaLinear, 'init_lora_weights="pissa"',
           saves=True, heeds=("r", "alpha", "scaling", "targets", "dropout")),
    Method("ia3", "the smallest adapters that PEFT opens, for what the base can nearly do already", "2205.05638",
           apply_ia3, Ia3Linear, "IA3Config", saves=True),
    Method("prefix", "one base, a prefix with each request", "2101.00190",
           partial(apply_virtual, kind=Prefix), peft="PrefixTuningConfig", merges=False, heeds=("r",)),
    Method("prompt", "the same with hardly any numbers, for very large models", "2104.08691",
           partial(apply_virtual, kind=Prompt), peft="PromptTuningConfig", merges=False, heeds=("r",)),
    Method("bitfit", "a control: how far the biases alone come", "2106.10199", train_biases),
    Method("norm", "a control: how far the last norm alone comes", "", train_last_norm, peft="LNTuningConfig"),
    Method("full", "the measure of all: every number of the base trains", "", train_everything),
)}
# fmt: on
