"""The methods by name: prepare a model for one, take it off, merge it, silence it.

model = METHODS["dora"].prepare(model, r=8, alpha=8.0)
for step in train(model, batches, steps=100, lr=METHODS["dora"].rates(1e-2)): ...
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn as nn

from llm.errors import SettingError
from llm.lora import (
    LoraLinear,
    apply_lora,
    bare,
    chosen_linears,
    lora_layers,
    merge_lora,
    places,
    refuse_lone_layer,
    replace_layers,
)
from llm.model import GPT
from llm.quantize import four_bit_layers
from llm.relatives.layers import DoraLinear, Ia3Linear, PissaLinear, refuse_no_parts
from llm.relatives.prefixes import Prefix, Prompt
from llm.training import LearningRate

Kept = dict[str, torch.Tensor]  # the base's own parameters that a method trains, as they were


@dataclass(frozen=True)
class Method:
    """One way to fine-tune: what it makes of a base, at which rates it trains, and what it is for.

    source: the paper, by its arXiv number. layer: what it wraps linear layers in, None for those that wrap none. peft: what
    PEFT calls it, None for what PEFT has not. merges: whether a plain model can say the same afterwards. saves: whether
    `llm.adapters` writes it in PEFT's format, and PEFT opens it. heeds: which of OPTIONS mean something to it. rates: makes
    of one peak learning rate what `train` takes for `lr`.
    """

    name: str
    use: str
    source: str
    apply: Callable[..., Kept | None]
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
        targets=None,
        start: str = "chapter",
        dropout: float = 0.0,
    ) -> nn.Module:
        """Freeze `model` and give it what this method trains; returns the same model.

        The options are those of `apply_lora`; each method heeds those in `heeds`, and is indifferent to the others. For
        prefix and prompt `r` is the number of virtual tokens. Raises ValueError when the model is prepared already or an option makes no sense; the model is then as it was.
        """
        if now := method_of(model):
            raise SettingError(f"this model is prepared for {now} already: call remove(model), or load the base again")
        refuse_lone_layer(model)
        options = dict(alpha=alpha, scaling=scaling, targets=targets, start=start, dropout=dropout)
        vars(bare(model))["_method"] = self.name, self.apply(model, r, **options) or {}
        return model


OPTIONS = ("r", "alpha", "scaling", "targets", "start", "dropout")  # of `Method.prepare`
METHODS: dict[str, Method] = {}


def _method(name, use, source="", **facts):
    """Keep the function below as the method `name`. It gets model, r and the options; what it returns is kept of the base."""

    def keep(apply):
        METHODS[name] = Method(name, use, source, apply, **facts)
        return apply

    return keep


def loraplus_rates(lr: float, ratio: float = 16.0) -> LearningRate:
    """LoRA+: A's learning rate is `lr`, B's `ratio` times that (Hayou et al. 2024, arXiv 2402.12354)."""
    return lambda name: ratio * lr if name.rpartition(".")[2] == "B" else lr


def _but(name):
    return tuple(option for option in OPTIONS if option != name)


_KIN = dict(layer=LoraLinear, saves=True, heeds=OPTIONS)


@_method("lora", "the one to begin with: the others are measured against it", "2106.09685", peft="LoraConfig", **_KIN)
def _lora(model, r, **options):
    apply_lora(model, r, **options)


_ROOT = _KIN | dict(peft="use_rslora", heeds=_but("scaling"))


@_method("rslora", "large ranks, whose updates alpha/r makes small", "2312.03732", **_ROOT)
def _rslora(model, r, **options):
    apply_lora(model, r, **options | dict(scaling="alpha/sqrt(r)"))


_PLUS = _KIN | dict(peft="create_loraplus_optimizer", rates=loraplus_rates)
_method("lora+", "a faster B at no price, once the two rates are found", "2402.12354", **_PLUS)(_lora)

_FA = _KIN | dict(peft="create_lorafa_optimizer")


@_method("lora-fa", "memory: with A frozen, no wide activation is kept for its gradient", "2308.03303", **_FA)
def _lora_fa(model, r, **options):
    for layer in lora_layers(apply_lora(model, r, **options)).values():
        layer.A.requires_grad_(False)


_DORA = _KIN | dict(layer=DoraLinear, peft="use_dora")


@_method("dora", "small ranks: lengths are learned apart from directions, for longer steps", "2402.09353", **_DORA)
def _dora(model, r, **options):
    apply_lora(model, r, kind=DoraLinear, **options)


_PISSA = dict(layer=PissaLinear, saves=True, peft='init_lora_weights="pissa"', heeds=_but("start"))


@_method("pissa", "a faster start: the largest parts of the weights themselves are trained", "2404.02948", **_PISSA)
def _pissa(model, r, alpha, targets, **options):
    for layer in chosen_linears(model, targets, None):
        refuse_no_parts(layer, alpha)  # all of them before the first is frozen
    apply_lora(model, r, alpha, targets=targets, kind=PissaLinear, **options)


_IA3 = dict(layer=Ia3Linear, saves=True, peft="IA3Config")


@_method("ia3", "the smallest adapters that PEFT opens, for what the base can nearly do already", "2205.05638", **_IA3)
def _ia3(model, r, **_):
    wrapped = {}
    for layer, (path, *_) in places(model).items():
        *_, parent, name = ("", *path.split("."))
        if not isinstance(layer, nn.Linear):
            continue
        if name == "c_attn" and layer.out_features == 3 * layer.in_features:  # q, k and v in one product
            wrapped[layer] = Ia3Linear(layer, "out", first=layer.in_features)
        elif name in ("k_proj", "v_proj"):
            wrapped[layer] = Ia3Linear(layer, "out")
        elif name == "down_proj" or (parent, name) == ("mlp", "c_proj"):  # its inputs are the MLP's activations
            wrapped[layer] = Ia3Linear(layer, "in")
    if not wrapped:
        raise SettingError(
            "IA3 finds keys, values and MLPs by GPT-2's and Llama's names, and this model has none of them"
        )
    replace_layers(model.requires_grad_(False), wrapped)


_VIRTUAL = dict(merges=False, heeds=("r",))


@_method("prefix", "one base, a prefix with each request", "2101.00190", peft="PrefixTuningConfig", **_VIRTUAL)
def _prefix(model, r, kind=Prefix, **_):
    own = bare(model)
    if not isinstance(own, GPT):
        raise SettingError(
            f"virtual tokens are for the course's own GPT, and this is a {type(own).__name__}: take PEFT"
        )
    if type(r) is not int or r < 1:
        raise SettingError(f"r={r} makes no sense: here it is the number of virtual tokens, a whole number from 1 up")
    own.requires_grad_(False).prefix = kind(own, r)


_PROMPT = _VIRTUAL | dict(peft="PromptTuningConfig")


@_method("prompt", "the same with hardly any numbers, for very large models", "2104.08691", **_PROMPT)
def _prompt(model, r, **_):
    _prefix(model, r, Prompt)


@_method("bitfit", "a control: how far the biases alone come", "2106.10199")
def _bitfit(model, r, **_):
    return _of_the_base(model, "biases", lambda name: name.rpartition(".")[2] == "bias")


@_method("norm", "a control: how far the last norm alone comes", peft="LNTuningConfig")
def _norm(model, r, **_):
    *_, last = (None, *(path for m, (path, *_) in places(model).items() if "norm" in type(m).__name__.lower()))
    return _of_the_base(model, "a norm", lambda name: name.rpartition(".")[0] == last)


def _of_the_base(model, what, chosen):
    names = [name for name, _ in bare(model).named_parameters() if chosen(name)]
    if not names:
        raise SettingError(f"this method trains {what}, and this model has none")
    model.requires_grad_(False)
    return {name: bare(model).get_parameter(name).requires_grad_(True).detach().clone() for name in names}


@_method("full", "the measure of all: every number of the base trains")
def _full(model, r, **_):
    if four_bit_layers(model):  # no numbers that a gradient could reach: all but them would train
        raise SettingError(
            "full fine-tuning cannot train weights in four bits: load the base as it was, or take lora, dora or ia3"
        )
    model.requires_grad_(True)


def layers_of(model: nn.Module) -> dict[str, LoraLinear | Ia3Linear]:
    """The layers that LoRA or a relative has wrapped, by the path at which each stands first."""
    return {paths[0]: m for m, paths in places(model).items() if isinstance(m, LoraLinear | Ia3Linear)}


def method_of(model: nn.Module) -> str | None:
    """The name of the method that `model` is prepared for; None for a bare base."""
    said, _ = vars(bare(model)).get("_method", (None, {}))
    kinds = {type(layer) for layer in layers_of(model).values()}
    if kinds:  # a loaded adapter brings its layers, and says no more
        names = [name for name, method in METHODS.items() if method.layer in kinds]
        return said if said in names else names[0]
    return said if said and METHODS[said].layer is None else None


def remove(model: nn.Module) -> nn.Module:
    """Take the method off: the base exactly as it was, frozen; returns the same model.

    Raises SettingError after full fine-tuning, of which no copy is kept.
    """
    name, kept = vars(bare(model)).get("_method", (None, {}))
    if name == "full":
        raise SettingError("full fine-tuning has changed the base itself: load the base again")
    _forget(model)
    _put(bare(model), kept)
    return replace_layers(model, {layer: layer.base for layer in layers_of(model).values()})


@torch.no_grad()
def merge(model: nn.Module) -> nn.Module:
    """A plain model, frozen, that says the same as the prepared one; returns the same model.

    Raises SettingError for a prefix or prompt, and ValueError when an update is not finite; the model is then as it was.
    """
    name = method_of(model)
    if name and not METHODS[name].merges:
        raise SettingError(f"a {name} is no weight but something that the model reads, so it cannot be merged")
    scaled = {path: layer for path, layer in layers_of(model).items() if isinstance(layer, Ia3Linear)}
    for path, layer in scaled.items():
        if not layer.weight.isfinite().all():
            raise ValueError(f"{path}: its factors hold NaN or infinity, so nothing was merged: train at a lower rate")
    merge_lora(replace_layers(model, {layer: layer.merged() for layer in scaled.values()}))
    return _forget(model)


def _forget(model):
    own = bare(model)
    vars(own).pop("_method", None)
    if getattr(own, "prefix", None) is not None:
        own.prefix = None
    return model.requires_grad_(False)


@contextmanager
def disabled(model: nn.Module) -> Iterator[nn.Module]:
    """Inside the block the model answers as its base; afterwards it is as it was found. Raises SettingError after full."""
    own, layers = bare(model), layers_of(model).values()
    name, kept = vars(own).get("_method", (None, {}))
    if name == "full":
        raise SettingError("full fine-tuning has changed the base itself: load the base again")
    before, prefix = [layer.enabled for layer in layers], getattr(own, "prefix", None)
    trained = {path: own.get_parameter(path).detach().clone() for path in kept}
    try:
        _put(own, kept)
        for layer in layers:
            layer.enabled = False
        if prefix is not None:
            own.prefix = None
        yield model
    finally:
        _put(own, trained)
        for layer, enabled in zip(layers, before):
            layer.enabled = enabled
        if prefix is not None:
            own.prefix = prefix


@torch.no_grad()
def _put(model, values):
    for path, value in values.items():
        model.get_parameter(path).copy_(value)
