"""The processes of one training run, as `torchrun` starts them: each takes its rows of every batch, all take one step.

Each process makes the whole batch and keeps its own rows of it, so no data travel: only the gradients of what trains
do, A and B, through DistributedDataParallel over gloo on CPUs and NCCL on GPUs.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn as nn
from torch.nn.parallel import DistributedDataParallel

from llm.errors import PeerError
from llm.loss import IGNORE
from llm.training import Loss


@dataclass(frozen=True)
class Group:
    """This process's place among `size`. Rank 0 writes, prints and evaluates."""

    rank: int = 0
    size: int = 1

    def loss(self, model: nn.Module, loss: Loss) -> Loss:
        """`loss` of a whole batch, computed from this process's rows: its gradient is the whole batch's.

        DDP averages the processes' gradients, as if each had counted as many tokens; so each mean is weighted by its
        share of the batch's counted tokens, times `size`.
        """
        if self.size == 1:
            return loss
        # `together` has seen that the bases are the same, and each process draws the same A: nothing of them has to travel
        buffers = "broadcast_buffers" if torch.__version__ < "2.13" else "forward_sync_buffers"
        wrapped = DistributedDataParallel(_Loss(model, loss), init_sync=False, **{buffers: False})

        def share(model, x, y):
            mine = slice(self.rank, None, self.size)
            weight = _counted(y[mine]) * self.size / _counted(y)
            return wrapped(x[mine], y[mine]) * weight

        return share

    def agree(self, loss: float, stop: bool) -> tuple[float, bool]:
        """The whole batch's loss from each process's weighted one, and whether any process wants to stop."""
        if self.size == 1:
            return loss, stop
        both = torch.tensor([loss / self.size, float(stop)], dtype=torch.float64, device=_device())
        dist.all_reduce(both)
        return both[0].item(), both[1].item() > 0

    def gather(self, value: object) -> list:
        """What each process says, in the order of their ranks."""
        if self.size == 1:
            return [value]
        found = [None] * self.size
        dist.all_gather_object(found, value)
        return found


ALONE = Group()


class _Loss(nn.Module):
    """DDP averages what its module's forward led to, so forward is the loss."""

    def __init__(self, model, loss):
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, x, y):
        return self.loss(self.model, x, y)


def _counted(targets):
    return int((targets != IGNORE).sum())


def _device():
    return "cuda" if dist.get_backend() == "nccl" else "cpu"


def join(device: torch.device) -> Group:
    """The group that torchrun has started this process in, or ALONE. `device` decides between NCCL and gloo.

    Raises PeerError when the processes do not find each other.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) < 2:
        return ALONE
    if device.type == "cuda":
        torch.cuda.set_device(device)
    guarded(dist.init_process_group, "nccl" if device.type == "cuda" else "gloo")
    return Group(dist.get_rank(), dist.get_world_size())


def leave(group: Group) -> None:
    """Give the connections back."""
    if group.size > 1 and dist.is_initialized():
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
