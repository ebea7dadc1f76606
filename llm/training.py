"""The training loop, as a generator of steps: the caller owns the loop, and prints, plots or stops between steps.

Knows nothing about LoRA: whatever has `requires_grad` trains, the rest does not reach the optimizer.
"""

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn as nn

from llm.errors import SettingError, TrainingError
from llm.loss import IGNORE, head_precision, multiplies_bfloat16

LearningRate = float | Callable[[str], float]
Loss = Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor]  # model, inputs, targets -> mean nats a token


def best_device(said: str = "auto") -> torch.device:
    """The device called `said`: cpu, cuda, cuda:1, mps; "auto" is the first there is of CUDA, MPS and CPU.

    A model goes there with `.to(best_device())`. Under torchrun a process's GPU is the one of its own number, and MPS
    cannot join. Raises SettingError when the machine has no such device.
    """
    local, processes = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    there = {
        "cuda": torch.cuda.device_count(),
        "mps": int(processes == 1 and torch.backends.mps.is_available()),
        "cpu": 1,
    }
    kind, _, index = said.partition(":")
    if kind == "auto":
        kind = next(kind for kind, count in there.items() if count)
    if kind == "cuda" and not index and processes > 1 and local >= there["cuda"] > 0:
        raise SettingError(
            f"process {local} of this machine has no GPU of its own, there are {there['cuda']}: give torchrun "
            f"--nproc-per-node {there['cuda']}, or --device cpu"
        )
    index = index or str(local if kind == "cuda" else 0)
    if not index.isdigit() or int(index) >= there.get(kind, 0):
        known = ", ".join(name for name, count in there.items() if count)
        raise SettingError(f"there is no device {said!r} here: choose one of {known}")
    return torch.device(f"cuda:{index}" if kind == "cuda" else kind)


@dataclass(frozen=True)
class Step:
    """One optimizer step: its index from 0, mean loss in nats a token, learning rate, seconds, tokens read."""

    index: int
    loss: float
    lr: float
    seconds: float
    tokens: int


def own_loss(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The loss of a model that works it out itself, as the course's GPT does: `model(x, y)` -> (logits, loss)."""
    return model(x, y)[1]


def make_optimizer(model: nn.Module, lr: LearningRate, weight_decay: float = 0.0) -> torch.optim.AdamW:
    """AdamW over the parameters that train; `lr` is one rate, or a function of the parameter's name.

    Decay touches matrices that multiply, never embeddings, norms or biases. Raises TrainingError when all is frozen.
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
    return torch.optim.AdamW(
        [dict(params=ps, lr=rate, peak_lr=rate, weight_decay=decay) for (rate, decay), ps in groups.items()],
        betas=(0.9, 0.95),
        fused=all(p.device.type in ("cpu", "cuda") for ps in groups.values() for p in ps),  # five times as fast
    )


def schedule(step: int, steps: int, warmup: int = 10, final: float = 0.1) -> float:
    """The share of the peak learning rate at `step`: a linear warm-up, then half a cosine down to `final`."""
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
    loss: Loss = own_loss,
    precision: str = "auto",
    accumulate: int = 1,
) -> Iterator[Step]:
    """Train `model` on `batches` of (inputs, targets), one `Step` yielded after each of `steps` optimizer steps.

    lr: the peak rate, or a function of the parameter's name. optimizer and start resume an earlier run.
    loss: how a model that somebody else wrote is graded (`bases.Base.loss`). precision: of the head's products, see
    `loss.head_precision`; on a GPU of all products, see `products`. accumulate: pieces in which a batch's rows are read,
    one after the other: the same gradients, and the activations of one piece at a time.
    Raises SettingError for a precision or pieces that make no sense, and TrainingError when a step's loss, gradient or
    update is not finite; the weights are then those of the step before.
    """
    if accumulate < 1:
        raise SettingError(f"accumulate={accumulate} makes no sense: read a batch in 1 piece or more")
    optimizer = optimizer or make_optimizer(model, lr, weight_decay)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    device, was_training = parameters[0].device, model.training
    model.train()
    try:
        for index, (x, y) in zip(range(start, steps), batches):
            began = time.perf_counter()
            share = schedule(index, steps, warmup)
            for group in optimizer.param_groups:
                group["lr"] = share * group.setdefault("peak_lr", group["lr"])  # an optimizer may be the caller's own
            optimizer.zero_grad(set_to_none=True)
            total = 0.0
            for x_, y_, share in pieces(x, y, accumulate):
                with products(precision, device):
                    value = share * loss(model, *_moved(device, x_, y_))
                value.backward()
                total = total + value.detach()
            norm = nn.utils.clip_grad_norm_(parameters, clip)
            total, norm = torch.stack((total.float(), norm.float())).tolist()  # the one wait for a GPU in a step
            if not (math.isfinite(total) and math.isfinite(norm)):
                raise TrainingError(
                    f"the loss is {total:g} at step {index}: lower the learning rate or look for bad values in "
                    "the data; the weights are those of the step before"
                )
            coarse = {p: p.detach().clone() for p in parameters if p.element_size() < 4}
            optimizer.step()
            # AdamW's eps of 1e-8 is 0 in float16
            if coarse and not torch.stack([p.isfinite().all() for p in coarse]).all():
                with torch.no_grad():
                    for p, old in coarse.items():
                        p.copy_(old)
                raise TrainingError(
                    f"the update of step {index} is not finite: what trains is in 16 bits, too few for the optimizer: "
                    "load the model in float32; the weights are those of the step before"
                )
            yield Step(index, total, optimizer.param_groups[0]["lr"], time.perf_counter() - began, x.numel())
    finally:
        model.train(was_training)


def pieces(x: torch.Tensor, y: torch.Tensor, number: int) -> Iterator[tuple[torch.Tensor, torch.Tensor, float]]:
    """The rows of a batch in `number` pieces, each with its share of the batch's tokens that count."""
    if number == 1:
        yield x, y, 1.0
        return
    counts = [int((piece != IGNORE).sum()) for piece in y.chunk(number)]
    for x_, y_, n in zip(x.chunk(number), y.chunk(number), counts):
        if n or not any(counts):  # where none counts at all, `loss` says so
            yield x_, y_, n / max(1, sum(counts))


def _moved(device, *batch):
    """A batch where the model is; a GPU fetches it while it works on what came before."""
    return [tensor.to(device, non_blocking=device.type == "cuda") for tensor in batch]


@contextmanager
def products(precision: str, device: torch.device) -> Iterator[None]:
    """Inside the block matrix products are of `precision`: on a GPU all of them; on a processor the head's alone, and of
    transformers' models under "bfloat16" the blocks', too."""
    wanted = precision == "bfloat16" or precision == "auto" and multiplies_bfloat16(device)
    with head_precision(precision), torch.autocast("cuda", torch.bfloat16, enabled=device.type == "cuda" and wanted):
        yield


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[tuple[torch.Tensor, torch.Tensor]], loss: Loss = own_loss) -> float:
    """Mean loss in nats over every counted token of `batches`; the model's mode and weights stay as they are.

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
