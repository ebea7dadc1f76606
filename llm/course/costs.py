"""What a training step of the course's GPT costs on this machine, part by part: seconds measured, bytes counted."""

import time
from statistics import median

import torch

from llm.loss import head_precision, next_token_loss
from llm.model import GPT
from llm.text.batches import Batch
from llm.training import make_optimizer


def step_seconds(model: GPT, batch: Batch, precision: str = "auto", times: int = 5) -> dict[str, float]:
    """Median seconds of a step's parts: the head with its loss, the blocks, the optimizer, there and back each.

    The rate is 0: the model's weights stay what they are. precision: see `loss.head_precision`.
    """
    x, y = batch
    optimizer = make_optimizer(model, 0.0)
    parts = {"head and loss": [], "blocks": [], "optimizer": []}
    for _ in range(times + 1):
        optimizer.zero_grad()
        moments = [time.perf_counter()]
        hidden, _ = model.hidden(x)
        moments.append(time.perf_counter())
        states = hidden.detach().requires_grad_()
        with head_precision(precision):
            next_token_loss(states, model.lm_head.weight, y).backward()
        moments.append(time.perf_counter())
        hidden.backward(states.grad)
        moments.append(time.perf_counter())
        optimizer.step()
        moments.append(time.perf_counter())
        forward, head, backward, update = (b - a for a, b in zip(moments, moments[1:]))
        for found, seconds in zip(parts.values(), (head, forward + backward, update)):
            found.append(seconds)
    return {part: median(found[1:]) for part, found in parts.items()}  # the first one sets up


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
