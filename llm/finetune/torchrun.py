"""The processes of one training run: each trains on its rows of every batch, and all take the same step.

Each process builds the whole batch and keeps its own rows, so no data is sent. Only the gradients of the trainable
parameters, A and B, are sent, once a step, over gloo on CPUs and NCCL on GPUs.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist

from llm.errors import PeerError, RunError
from llm.training import Loss, SharedLoss, best_device


@dataclass(frozen=True)
class Group:
    """This process's rank among `size` processes. Rank 0 writes, prints and evaluates."""

    rank: int = 0
    size: int = 1

    def loss(self, loss: Loss) -> Loss | SharedLoss:
        """The loss for `train`: `loss` over whole batches, of which this process computes every `size`-th row.

        `together` has compared the bases and every A, so none of them need to be sent.
        """
        return loss if self.size == 1 else SharedLoss(loss, self.rank, self.size, self._add)

    def _add(self, parameters, loss):
        """Sum all gradients and the loss in one call, even if this process graded nothing: the others wait for it."""
        for p in parameters:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        sums = torch.cat([loss.reshape(1), *(p.grad.flatten() for p in parameters)])
        dist.all_reduce(sums)
        loss, *gradients = sums.split([1, *(p.numel() for p in parameters)])
        for p, gradient in zip(parameters, gradients):
            p.grad.copy_(gradient.view_as(p))
        return loss[0]

    def agree(self, loss: float, *wishes: bool) -> tuple[float, bool]:
        """The mean of `loss` over the processes, and for each wish whether any process has it."""
        if self.size == 1:
            return loss, *wishes
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        sums = torch.tensor([loss / self.size, *wishes], dtype=torch.float64, device=device)
        dist.all_reduce(sums)
        return sums[0].item(), *(wish > 0 for wish in sums[1:].tolist())

    def gather(self, value: object) -> list:
        """The `value` of every process, in the order of ranks."""
        values = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values


ALONE = Group()


def join(device: str) -> tuple[torch.device, Group]:
    """Join the group that this process was started in; returns this process's device, and the group or ALONE.

    The environment names the group, as torchrun or a SLURM script sets it for torch's `env://`. Raises SettingError as
    `best_device` does, RunError when a variable is missing or invalid, and PeerError when the processes cannot connect.
    """
    defaults = dict(WORLD_SIZE="1", RANK="", LOCAL_RANK="0", MASTER_ADDR="", MASTER_PORT="")
    values = {name: os.environ.get(name) or default for name, default in defaults.items()}
    size = values["WORLD_SIZE"]
    if size == "1":
        return best_device(device), ALONE
    for name, value in values.items():  # clusters and notebooks set some of them for their own use
        sound = value if name == "MASTER_ADDR" else value.isdecimal() and len(value) < 6
        sound = sound and not (name == "WORLD_SIZE" and int(value) < 1 or name == "RANK" and int(value) >= int(size))
        if not sound or name == "MASTER_PORT" and not 0 < int(value) < 2**16:
            what = f"{name} says {value}" if value else f"{name} is not set"
            what = what if name == "WORLD_SIZE" else f"WORLD_SIZE says {size}, but {what}"
            raise RunError(f"{what}: use torchrun, or set it right, or unset WORLD_SIZE")
    device = best_device(device, int(values["LOCAL_RANK"]))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    guarded(dist.init_process_group, "nccl" if device.type == "cuda" else "gloo")
    return device, Group(dist.get_rank(), dist.get_world_size())


def leave(group: Group) -> None:
    """Close the connections of the group."""
    if group.size > 1:
        dist.destroy_process_group()


def guarded(work: Callable, *args) -> object:
    """Call `work(*args)` and turn a broken connection into a PeerError."""
    try:
        return work(*args)
    except RuntimeError as error:
        lost = isinstance(error, dist.DistError) or any(word in str(error) for word in ("gloo", "NCCL", "Connection"))
        if not lost:
            raise
        raise PeerError(
            "another process of this run has ended or cannot be reached: look at what it said, then start all of them "
            "again, with --resume from the last checkpoint"
        ) from None
