"""Next-token loss straight from hidden states: the (tokens, vocab) logits are never held whole.

At 2,048 tokens and GPT-2's vocabulary the logits alone are 412 MB, and their gradient as much again.
Knows nothing about models: it takes hidden states, the head's weight and the targets.
"""

import torch
import torch.nn.functional as F

from llm.errors import SettingError

IGNORE = -100  # a target with this value does not count, PyTorch's own convention
CHUNK = 256  # rows of logits held at a time: 256 x 50,257 floats are 51 MB


def next_token_loss(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy in nats of `hidden @ weight.T` against `targets`, in chunks of rows.

    hidden (..., d), weight (vocab, d), targets (...) with `IGNORE` where a position does not count.
    Ignored positions are dropped before they are projected. The mean is float32, or finer where the states are. Raises SettingError when no position counts.
    """
    hidden, targets = hidden.reshape(-1, hidden.size(-1)), targets.reshape(-1)
    counted = targets != IGNORE
    if not counted.all():
        hidden, targets = hidden[counted], targets[counted]
    if len(targets) == 0:
        raise SettingError("no position counts towards the loss: every target is masked")
    if hasattr(F, "linear_cross_entropy") and hidden.element_size() > 2:  # torch 2.13 and newer
        return _library(hidden, weight, targets)
    return _Chunked.apply(hidden, weight, targets, torch.is_grad_enabled())


def _library(hidden, weight, targets):
    # Without an explicit size torch picks 4 rows at d = 128, ten times slower than holding the logits whole.
    from torch.nn import LinearCrossEntropyOptions

    options = LinearCrossEntropyOptions(chunking_method=None, batch_chunk_size=CHUNK)
    return F.linear_cross_entropy(hidden, weight, targets, options=options)


class _Chunked(torch.autograd.Function):
    """The same by hand, for older torch and for 16-bit weights, whose loss the library rounds to 16 bits.

    A chunk's gradients are made while its logits are there: they would be made a second time in the backward.
    """

    @staticmethod
    def forward(ctx, hidden, weight, targets, training):
        wants_hidden, wants_weight = (training and wanted for wanted in ctx.needs_input_grad[:2])
        d_hidden = torch.empty_like(hidden) if wants_hidden else None
        d_weight = (
            torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32)) if wants_weight else None
        )
        total, wide = 0.0, torch.promote_types(hidden.dtype, torch.float32)
        for rows in torch.arange(len(targets), device=hidden.device).split(CHUNK):
            h, t = hidden[rows], targets[rows, None]
            log_p = F.log_softmax((h @ weight.T).to(wide), dim=-1)
            total = total - log_p.gather(1, t).sum()
            if wants_hidden or wants_weight:
                d_logits = log_p.exp_().scatter_add_(1, t, -torch.ones_like(t, dtype=log_p.dtype)) / len(targets)
                d_logits = d_logits.to(weight.dtype)
                if wants_hidden:
                    d_hidden[rows] = (d_logits @ weight).to(hidden.dtype)
                if wants_weight:
                    d_weight += d_logits.T @ h
        ctx.save_for_backward(d_hidden, None if d_weight is None else d_weight.to(weight.dtype))
        return total / len(targets)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return *(d if d is None else d * gradient.to(d.dtype) for d in ctx.saved_tensors), None, None
