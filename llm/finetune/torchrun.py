"""The processes of one training run: each takes its rows of every batch, all take one step.

Each process makes the whole batch and keeps its own rows of it, so no data travel. What travels is the gradients of what
trains, A and B, once a step, over gloo on CPUs and NCCL on GPUs.
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
    """This process's place among `size`. Rank 0 writes, prints and evaluates."""

    rank: int = 0
    size: int = 1

    def loss(self, loss: Loss) -> Loss | SharedLoss:
        """`loss` of whole batches, for `train`, of which this process grades every `size`-th row.

        `together` has compared the bases and every A, so none of them has to travel.
        """
        return loss if self.size == 1 else SharedLoss(loss, self.rank, self.size, self._add)

    def _add(self, parameters, loss):
        """One call for all gradients and the loss, also where this process had nothing to grade: the others wait for it."""
        for p in parameters:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        sums = torch.cat([loss.reshape(1), *(p.grad.flatten() for p in parameters)])
        dist.all_reduce(sums)
        loss, *gradients = sums.split([1, *(p.numel() for p in parameters)])
        for p, gradient in zip(parameters, gradients):
            p.grad.copy_(gradient.view_as(p))
        return loss[0]

    def agree(self, loss: float, *wishes: bool) -> tuple[float, bool]:
        """The mean over the processes of the whole batch's loss, and whether any of them has each of the wishes."""
        if self.size == 1:
            return loss, *wishes
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        sums = torch.tensor([loss / self.size, *wishes], dtype=torch.float64, device=device)
        dist.all_reduce(sums)
        return sums[0].item(), *(wish > 0 for wish in sums[1:].tolist())

    def gather(self, value: object) -> list:
        """The `value` of each process, in the order of their ranks."""
        values = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values


ALONE = Group()


def join(device: str) -> tuple[torch.device, Group]:
    """The device called `device` for this process, and the group that it was started in, or ALONE.

    The environment says which, as torchrun or a script under SLURM sets it for torch's `env://`. Raises
    SettingError as `best_device` does, RunError when a variable is missing or makes no sense, and PeerError when the
    processes do not find each other.
    """
    defaults = dict(WORLD_SIZE="1", RANK="", LOCAL_RANK="0", MASTER_ADDR="", MASTER_PORT="")
    values = {name: os.environ.get(name) or default for name, default in defaults.items()}
    size = values["WORLD_SIZE"]
    if size == "1":
        return best_device(device), ALONE
    for name, value in values.items():  # clusters and notebooks set some of them for themselves
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
    """Give the connections back."""
    if group.size > 1:
        dist.destroy_process_group()


def guarded(work: Callable, *args) -> object:
    """`work(*args)`, in which a connection that breaks is a PeerError."""
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
