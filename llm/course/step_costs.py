"""What a training step costs, part by part: seconds measured on this machine, multiply-adds and bytes counted."""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from llm.loss import head_loss
from llm.model import GPT
from llm.text.batches import Batch
from llm.training import make_optimizer


def step_seconds(model: GPT, batch: Batch, precision: str = "auto", times: int = 5) -> dict[str, float]:
    """Median seconds of a step's parts: the head with its loss, the blocks, the optimizer, there and back each.

    The rate is 0: the model's weights stay what they are. precision: as `loss.head_loss` has it.
    """
    x, y = batch
    optimizer = make_optimizer(model, 0.0)
    parts = {"head and loss": [], "blocks": [], "optimizer": []}
    for _ in range(times + 1):
        optimizer.zero_grad()
        moments = [now(x)]
        hidden, _ = model.hidden(x)
        moments.append(now(x))
        states = hidden.detach().requires_grad_()
        head_loss(states, model.lm_head, y, precision).backward()
        moments.append(now(x))
        hidden.backward(states.grad)
        moments.append(now(x))
        optimizer.step()
        moments.append(now(x))
        forward, head, backward, update = (b - a for a, b in zip(moments, moments[1:]))
        for found, seconds in zip(parts.values(), (head, forward + backward, update)):
            found.append(seconds)
    return {part: median(found[1:]) for part, found in parts.items()}  # the first one sets up


def layer_seconds(tokens: int = 2048, d: int = 1024, times: int = 7) -> dict[str, float]:
    """Median seconds of the three products of a linear layer of d x d, each alone, in float32 on the processor."""
    x, w, error = torch.ones(tokens, d), torch.ones(d, d), torch.ones(tokens, d)
    products = {
        "forward": lambda: x @ w.T,
        "back to its input": lambda: error @ w,
        "back to its weight": lambda: error.T @ x,
    }
    found = {name: [] for name in products}
    for _ in range(times + 1):  # in turns, so that what slows the machine slows all three
        for name, product in products.items():
            began = now(x)
            product()
            found[name].append(now(x) - began)
    return {name: median(seconds[1:]) for name, seconds in found.items()}


def multiply_adds(loss: Callable[..., torch.Tensor], *inputs: Any) -> int:
    """Multiply-adds of all matrix products of `loss(*inputs)`, there and back, as PyTorch's own counter has them.

    It leaves out what attention multiplies among its tokens where that is one fused operation of the processor.
    """
    with FlopCounterMode(display=False) as counter:
        loss(*inputs).backward()
    return counter.get_total_flops() // 2  # a multiplication and an addition are two of its operations


def step_bytes(model: GPT, rows: int, block: int = 64) -> dict[str, int]:
    """Bytes of all weights, of the gradients, of Adam's two moments, and of the activations: what the blocks keep of
    `rows` rows for the way back, each piece of memory once.
    """
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    own, kept = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    device = model.lm_head.weight.device
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden, _ = model.hidden(torch.zeros(rows, block, dtype=torch.long, device=device))
    weights = sum(p.nbytes for p in model.parameters())
    found = {"weights": weights, "gradients": trained, "Adam": 2 * trained, "activations": sum(kept.values())}
    del hidden  # until here the graph holds what was counted, and no address is given out twice
    return found


def now(x: torch.Tensor) -> float:
    """Seconds on a clock, once the device of x has done all that it was told."""
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    return time.perf_counter()
