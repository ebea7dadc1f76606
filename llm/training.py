"""The training loop, as a generator of steps: the caller iterates, and can print, plot or stop between steps.

Knows nothing about LoRA: a parameter with `requires_grad` trains, and the others never reach the optimizer.
"""

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from inspect import signature
from numbers import Integral

import torch
import torch.nn as nn

from llm.errors import SettingError, TrainingError
from llm.loss import IGNORE, check_precision, multiplies_bfloat16

LearningRate = float | Callable[[str], float]
Loss = Callable[..., torch.Tensor]  # (model, inputs, targets) -> mean nats per token; may also take precision="float32"


def best_device(name: str = "auto", number: int | None = None) -> torch.device:
    """Return the device called `name`: cpu, cuda, cuda:1, mps, or "auto" for the first available of CUDA, MPS, CPU.

    Use it as `model.to(best_device())`. number: of this process among several on this machine; it selects the GPU,
    while MPS cannot be shared. Raises SettingError when the machine has no such device.
    """
    counts = {
        "cuda": torch.cuda.device_count(),
        "mps": int(number is None and torch.backends.mps.is_available()),
        "cpu": 1,
    }
    kind, _, index = name.partition(":")
    if kind == "auto":
        kind = next(kind for kind, count in counts.items() if count)
    if kind == "cuda" and not index and (number or 0) >= counts["cuda"] > 0:
        raise SettingError(
            f"process {number} of this machine has no GPU of its own, there are {counts['cuda']}: give torchrun "
            f"--nproc-per-node {counts['cuda']}, or --device cpu"
        )
    index = index or str((number or 0) if kind == "cuda" else 0)
    if not index.isdigit() or int(index) >= counts.get(kind, 0):
        known = ", ".join(kind for kind, count in counts.items() if count)
        raise SettingError(f"there is no device {name!r} here: choose one of {known}")
    return torch.device(f"cuda:{index}" if kind == "cuda" else kind)


@dataclass(frozen=True)
class Step:
    """One optimizer step: its index from 0, mean loss in nats per token, learning rate, seconds, tokens read."""

    index: int
    loss: float
    lr: float
    seconds: float
    tokens: int


@dataclass(frozen=True)
class SharedLoss:
    """The loss of batches shared by `size` processes: each computes it on every size-th row, starting at `rank`.

    add: takes the trained parameters and the loss of these rows, replaces the gradients by their sum over all
    processes, and returns the sum of the losses.
    """

    loss: Loss
    rank: int = 0
    size: int = 1
    add: Callable[[list[nn.Parameter], torch.Tensor], torch.Tensor] = lambda parameters, loss: loss


def own_loss(model: nn.Module, x: torch.Tensor, y: torch.Tensor, precision: str = "float32") -> torch.Tensor:
    """Return the loss that a model computes itself, as the course's GPT does: `model(x, y)` -> (logits, loss)."""
    forward = getattr(model, "_orig_mod", model).forward  # a compiled model takes what the original takes
    return model(x, y, **_choice(forward, precision))[1]


def _choice(function, precision):
    """Pass the precision as an option only to a loss or forward that has one; a foreign one may not."""
    return {"precision": precision} if "precision" in signature(function).parameters else {}


def make_optimizer(model: nn.Module, lr: LearningRate, weight_decay: float = 0.0) -> torch.optim.AdamW:
    """Return AdamW over the trainable parameters; `lr` is one rate, or a function of the parameter's name.

    Weight decay applies to weight matrices, never to embeddings, norms or biases. Raises TrainingError when everything
    is frozen, and SettingError for a rate or decay that is negative or not finite.
    """
    lr_of = lr if callable(lr) else lambda name: lr
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, p in model.named_parameters():
        if p.requires_grad:
            decay = weight_decay if p.ndim > 1 and id(p) not in embeddings else 0.0
            groups.setdefault((lr_of(name), decay), []).append(p)
    if not groups:
        raise TrainingError("nothing to train: every parameter is frozen (wrap the model with apply_lora first?)")
    for value in (value for pair in groups for value in pair):
        if not 0 <= value < math.inf:
            raise SettingError(f"a learning rate or weight decay of {value} makes no sense: give a number from 0 up")
    return torch.optim.AdamW(
        [dict(params=ps, lr=rate, peak_lr=rate, weight_decay=decay) for (rate, decay), ps in groups.items()],
        betas=(0.9, 0.95),
        fused=all(p.device.type in ("cpu", "cuda") for ps in groups.values() for p in ps),  # five times as fast
    )


def schedule(step: int, steps: int, warmup: int = 10, final: float = 0.1) -> float:
    """Return the share of the peak learning rate at `step`: a linear warm-up, then half a cosine down to `final`."""
    if step < warmup:
        return (step + 1) / warmup
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def train(
    model: nn.Module,
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    *,
    steps: int,
    lr: LearningRate,
    warmup: int = 10,
    weight_decay: float = 0.0,
    clip: float = 1.0,
    optimizer: torch.optim.Optimizer | None = None,
    start: int = 0,
    loss: Loss | SharedLoss = own_loss,
    precision: str = "auto",
    accumulate: int = 1,
) -> Iterator[Step]:
    """Train `model` on `batches` of (inputs, targets), and yield a `Step` after each of `steps` optimizer steps.

    lr: the peak rate, or a function of the parameter's name. optimizer and start: resume an earlier run.
    loss: the loss of a model that does not compute its own (`bases.Base.loss`). precision: of the products in a `loss`
    that has this option (`loss.tiled_loss`); on a GPU, of all products. accumulate: the number of pieces that a batch's
    rows are read in; the gradients are the same, and only one piece's activations are held at a time.
    Raises SettingError at once for invalid arguments, and TrainingError when nothing trains, the batches end too early,
    or a step's loss, gradient or update is not finite; weights and optimizer are then those of the step before.
    """
    least = dict(steps=(steps, 0), start=(start, 0), warmup=(warmup, 0), accumulate=(accumulate, 1))
    for name, (value, lowest) in least.items():
        if not isinstance(value, Integral) or value < lowest:
            raise SettingError(f"{name}={value} makes no sense: give a whole number from {lowest} up")
    if not clip > 0:
        raise SettingError(f"clip={clip} makes no sense: give the largest norm of a gradient, above 0")
    check_precision(precision)
    optimizer = optimizer or make_optimizer(model, lr, weight_decay)
    if not _is_finite(optimizer):
        raise TrainingError("what trains or the optimizer's state holds NaN or infinity: load both anew")
    shared = loss if isinstance(loss, SharedLoss) else SharedLoss(loss)
    return _steps(model, batches, optimizer, shared, range(start, steps), warmup, clip, precision, accumulate)


def _steps(model, batches, optimizer, shared, indices, warmup, clip, precision, accumulate):
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    device, was_training, stream = parameters[0].device, model.training, iter(batches)
    half = device.type == "cuda" and (precision == "bfloat16" or precision == "auto" and multiplies_bfloat16(device))
    model.train()
    try:
        for index in indices:
            if (batch := next(stream, None)) is None:
                came = f"{index - indices.start} came, and {len(indices)} steps were asked for"
                raise TrainingError(f"the batches ended too early: {came}; give a batch for each step")
            (x, y), began = batch, time.perf_counter()
            of_peak = schedule(index, indices.stop, warmup)
            for group in optimizer.param_groups:
                group["lr"] = of_peak * group.setdefault("peak_lr", group["lr"])  # a caller's optimizer lacks peak_lr
            optimizer.zero_grad(set_to_none=True)
            total = torch.zeros((), device=device)
            for x_, y_, share in pieces(x, y, accumulate, shared.rank, shared.size):
                with torch.autocast("cuda", torch.bfloat16, enabled=half):
                    value = share * shared.loss(model, *_moved(device, x_, y_), **_choice(shared.loss, precision))
                value.backward()
                total = total + value.detach()
            total = shared.add(parameters, total)
            norm = nn.utils.clip_grad_norm_(parameters, clip)
            total, norm = torch.stack((total.float(), norm.float())).tolist()  # a step's only wait for a GPU
            for name, value in (("loss", total), ("norm of the gradient", norm)):
                if not math.isfinite(value):
                    raise TrainingError(
                        f"the {name} is {value:g} at step {index}: lower the learning rate or look for bad values in "
                        "the data; the weights are those of the step before"
                    )
            _step(optimizer, parameters, index)
            yield Step(index, total, optimizer.param_groups[0]["lr"], time.perf_counter() - began, x.numel())
    finally:
        model.train(was_training)


def _step(optimizer, parameters, index):
    """Take the optimizer's step, or raise TrainingError and restore weights and state.

    A backup takes time and memory, so only a step that may overflow makes one. AdamW's in float32 cannot: a gradient of
    finite norm is below 1e20, so an update is at most rate * 1e20 / eps, less than the last bit of the largest number.
    """
    if type(optimizer) is torch.optim.AdamW and all(torch.finfo(p.dtype).max > 1e38 for p in parameters):
        groups = optimizer.param_groups
        if all(g["lr"] <= 1 and g["lr"] * g["weight_decay"] <= 1 and g["eps"] >= 1e-10 for g in groups):
            return optimizer.step()
    before = copy.deepcopy((parameters, optimizer.state_dict()))
    try:
        optimizer.step()
        finite = _is_finite(optimizer)
    except RuntimeError as error:  # from a rate beyond float32's range
        if "overflow" not in str(error):
            raise
        finite = False
    if not finite:
        for p, old in zip(parameters, before[0]):
            p.data.copy_(old)
        optimizer.load_state_dict(before[1])
        raise TrainingError(
            f"the update of step {index} is not finite: lower the learning rate, or load the model in float32; the "
            "weights are those of the step before"
        )


def _is_finite(optimizer):
    state = [t for values in optimizer.state.values() for t in values.values() if torch.is_tensor(t)]
    return all(t.isfinite().all() for t in state + [p for group in optimizer.param_groups for p in group["params"]])


def pieces(
    x: torch.Tensor, y: torch.Tensor, number: int, rank: int = 0, size: int = 1
) -> list[tuple[torch.Tensor, torch.Tensor, float]]:
    """Split every size-th row of a batch, from `rank` on, into `number` pieces, each with its share of counted tokens.

    The shares are relative to the whole batch. A piece in which no token counts is left out.
    """
    if number == size == 1 or not (counted := int((y != IGNORE).sum())):  # if none counts, `loss` raises
        return [(x, y, 1.0)]
    parts = zip(x[rank::size].chunk(number), y[rank::size].chunk(number))
    return [(x_, y_, n / counted) for x_, y_ in parts if (n := int((y_ != IGNORE).sum()))]


def _moved(device, *batch):
    """Move a batch to the model's device; a GPU copies it while it finishes earlier work."""
    return [tensor.to(device, non_blocking=device.type == "cuda") for tensor in batch]


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[tuple[torch.Tensor, torch.Tensor]], loss: Loss = own_loss) -> float:
    """Return the mean loss in nats over every counted token of `batches`; the model's mode and weights are unchanged.

    Raises SettingError when no token counts.
    """
    device, was_training = next(model.parameters()).device, model.training
    model.eval()
    total = count = 0
    try:
        for x, y in batches:
            if n := int((y != IGNORE).sum()):
                total, count = total + loss(model, *_moved(device, x, y)).item() * n, count + n
    finally:
        model.train(was_training)
    if not count:
        raise SettingError("nothing to evaluate: the batches hold no token that counts (is an iterator used up?)")
    return total / count
