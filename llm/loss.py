"""Next-token loss straight from hidden states: the (tokens, vocab) logits are never held whole.

At 2,048 tokens and GPT-2's vocabulary the logits alone are 412 MB, and their gradient as much again.
Knows nothing about models: it takes hidden states, the head's weight and the targets.
"""

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from llm.errors import SettingError

IGNORE = -100  # a target with this value does not count, PyTorch's own convention
CHUNK = 256  # rows of logits held at a time: 256 x 50,257 floats are 51 MB


def next_token_loss(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy in nats of `hidden @ weight.T` against `targets`, in chunks of rows.

    hidden (..., d), weight (vocab, d), targets (...) with `IGNORE` where a position does not count.
    Ignored positions are dropped before they are projected. Raises SettingError when no position counts.
    """
    hidden, targets = hidden.reshape(-1, hidden.size(-1)), targets.reshape(-1)
    counted = targets != IGNORE
    if not counted.all():
        hidden, targets = hidden[counted], targets[counted]
    if len(targets) == 0:
        raise SettingError("no position counts towards the loss: every target is masked")
    if hasattr(F, "linear_cross_entropy"):  # torch 2.13 and newer
        return _library(hidden, weight, targets)
    return _chunked(hidden, weight, targets)


def _library(hidden, weight, targets):
    # Without an explicit size torch picks 4 rows at d = 128, ten times slower than holding the logits whole.
    from torch.nn import LinearCrossEntropyOptions

    options = LinearCrossEntropyOptions(chunking_method=None, batch_chunk_size=CHUNK)
    return F.linear_cross_entropy(hidden, weight, targets, options=options)


def _chunked(hidden, weight, targets):
    # Each chunk's logits are thrown away after the forward and made again in the backward.
    total = hidden.new_zeros((), dtype=torch.float32)
    for h, t in zip(hidden.split(CHUNK), targets.split(CHUNK)):
        total = total + checkpoint(_sum, h, weight, t, use_reentrant=False)
    return total / len(targets)


def _sum(h, weight, t):
    return F.cross_entropy((h @ weight.T).float(), t, reduction="sum")
