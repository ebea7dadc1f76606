"""Next-token loss from hidden states, without ever holding all the (tokens, vocab) logits.

At 2,048 tokens and GPT-2's vocabulary the logits alone are 412 MB, and their gradient as much again.
`chunked_loss` shows the idea; `tiled_loss` takes a quarter of its time when the head is a plain weight.
Knows nothing about models: it takes hidden states, the output layer or its weight, and the targets.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from llm.errors import SettingError

IGNORE = -100  # a target with this value does not count, as in PyTorch
CHUNK, CHUNK_ON_GPU = 128, 2048  # rows of logits held at a time: 128 rows of 50,257 floats are 26 MB
TILE = 512, 2048  # rows and words of a tile in `tiled_loss`: 4 MB, which fit in the CPU's cache
PRECISIONS = ("auto", "float32", "bfloat16")


def head_loss(hidden: torch.Tensor, head: nn.Module, targets: torch.Tensor, precision: str = "float32") -> torch.Tensor:
    """Mean cross-entropy in nats of `head(hidden)` against `targets`, for any output layer.

    hidden (..., d), targets (...) with `IGNORE` where a position does not count. A plain linear layer without a bias
    goes through `tiled_loss` in `precision`. Any other layer may compute more than its weight says, such as an adapter
    or dropout, so `chunked_loss` calls it in its own precision.
    Raises SettingError when no position counts. On a GPU the loss is NaN instead, because the check would stall it.
    """
    hooks = getattr(head, "_forward_hooks", None) or getattr(head, "_forward_pre_hooks", None)
    if type(head) is nn.Linear and head.bias is None and not hooks and "forward" not in vars(head):
        return tiled_loss(hidden, head.weight, targets, precision)
    check_precision(precision)
    return chunked_loss(hidden, head, targets)


def chunked_loss(hidden: torch.Tensor, head: nn.Module, targets: torch.Tensor) -> torch.Tensor:
    """Compute `head_loss` one chunk of rows at a time; the backward pass computes each chunk's logits again."""

    def chunk_loss(rows, words):
        logits = head(rows)
        wide = torch.promote_types(logits.dtype, torch.float32)
        return F.cross_entropy(logits.to(wide), words, ignore_index=IGNORE, reduction="sum")

    hidden, targets = _counted(hidden, targets)
    size = CHUNK_ON_GPU if hidden.is_cuda else CHUNK
    chunks = zip(hidden.split(size), targets.split(size))
    return sum(checkpoint(chunk_loss, *chunk, use_reentrant=False) for chunk in chunks) / (targets != IGNORE).sum()


def tiled_loss(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, precision: str = "float32"
) -> torch.Tensor:
    """Mean cross-entropy in nats of `hidden @ weight.T` against `targets`, one tile of logits at a time.

    hidden (..., d), weight (vocab, d), targets (...) with `IGNORE` where a position does not count. Sums and the mean
    are float32, or the states' dtype if that is finer. precision: of the products, one of PRECISIONS; "auto" is
    bfloat16 for a frozen weight on a device that `multiplies_bfloat16`, and float32 elsewhere. A 16-bit weight keeps
    its dtype; under torch.autocast a float32 weight takes autocast's. Raises SettingError as `head_loss` does.
    """
    check_precision(precision)
    hidden, targets = _counted(hidden, targets)
    return _Tiled.apply(hidden, weight, targets, _product_dtype(weight, precision), torch.is_grad_enabled())


def check_precision(name: str) -> None:
    """Raise SettingError when `name` is not one of PRECISIONS."""
    if name not in PRECISIONS:
        raise SettingError(f"there is no precision {name!r}: choose one of {', '.join(PRECISIONS)}")


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the device has bfloat16 instructions, which are two to four times as fast as float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()  # every CPU with AMX has these too


def _product_dtype(weight, precision):
    if weight.dtype == torch.float32 and torch.is_autocast_enabled(weight.device.type):
        return torch.get_autocast_dtype(weight.device.type)
    frozen_and_fast = not weight.requires_grad and multiplies_bfloat16(weight.device)
    if weight.dtype == torch.float32 and (precision == "bfloat16" or precision == "auto" and frozen_and_fast):
        return torch.bfloat16
    return weight.dtype


def _counted(hidden, targets):
    """Return the rows (N, d) and targets (N,) that count; on a GPU, which selecting would stall, zero the others."""
    hidden, targets = hidden.reshape(-1, hidden.size(-1)), targets.reshape(-1).long()
    counted = targets != IGNORE
    if _waits(hidden.device):
        return hidden.masked_fill(~counted[:, None], 0), targets
    if not counted.all():
        hidden, targets = hidden[counted], targets[counted]
    if len(targets) == 0:
        raise SettingError("no position counts towards the loss: every target is masked")
    if targets.min() < 0:
        raise SettingError(f"{targets.min()} is no target: give a token's id, or {IGNORE} where none counts")
    return hidden, targets


def _waits(device):
    """Whether reading a value blocks until the device has finished all earlier work."""
    return device.type == "cuda"


class _Tiled(torch.autograd.Function):
    """-log softmax(W h)[t] = log sum_j exp(w_j h) - w_t h; its gradient with respect to h is softmax(W h) W - w_t.

    The sum and the gradient accumulate tile by tile, relative to the largest logit so far, as in FlashAttention (Dao et
    al. 2022, section 3.1), so that no exp overflows. The forward pass computes the gradients while it holds a tile; the
    backward pass would have to compute the tile again. When the weight trains too, a tile spans the vocabulary, because
    its gradient needs the whole sum of a row. The target's logit is computed separately, in full precision: for a
    confident model, low-precision products would leave mostly rounding error, and losses below zero.
    """

    @staticmethod
    def forward(ctx, hidden, weight, targets, products, training):
        wants_hidden, wants_weight = (training and wanted for wanted in ctx.needs_input_grad[:2])
        wide = torch.promote_types(hidden.dtype, torch.float32)
        counted, targets = targets != IGNORE, targets.clamp(min=0)
        share = counted[:, None] / counted.sum(dtype=wide)  # (N, 1), each row's share of the mean
        wide_h, target_row = hidden.to(wide), weight[targets].to(wide)  # (N, d), (N, d)
        own = (wide_h * target_row).sum(1, keepdim=True)  # (N, 1), the target's logit
        d_hidden = torch.zeros_like(wide_h) if wants_hidden else None
        d_weight = torch.zeros_like(weight, dtype=wide) if wants_weight else None
        loss, missed = own.new_zeros(()), torch.empty_like(own)  # missed: 1 - the target's probability
        h, W = hidden.to(products), weight.to(products)
        n_rows, n_words = TILE
        if h.is_cuda or wants_weight:
            n_rows, n_words = CHUNK_ON_GPU if h.is_cuda else CHUNK, len(W)
        for rows in (slice(i, i + n_rows) for i in range(0, len(h), n_rows)):
            # (rows, 1) each: the largest logit so far, starting with the target's, and the sum over the other words
            top, others = own[rows], torch.zeros_like(own[rows])
            for first in range(0, len(W), n_words):
                words = W[first : first + n_words]
                e, new_top = _exponentials(h[rows] @ words.T, targets[rows, None] - first, top)
                shrink, top = (top - new_top).exp(), new_top
                others = others * shrink + e.sum(1, keepdim=True)
                e = e.to(products)
                if wants_hidden:
                    d_hidden[rows] = d_hidden[rows] * shrink + e @ words
            total = others + (own[rows] - top).exp()
            missed[rows] = others / total
            loss += (share[rows] * (total.log() + (top - own[rows])).clamp(min=0)).sum()
            if wants_hidden:
                d_hidden[rows] *= share[rows] / total
            if wants_weight:
                d_weight += e.T @ (share[rows] * wide_h[rows] / total).to(products)
        if wants_hidden:
            d_hidden -= share * missed * target_row
        if wants_weight:
            d_weight.index_add_(0, targets, -share * missed * wide_h)
        ctx.save_for_backward(d_hidden, d_weight)
        ctx.dtypes = hidden.dtype, weight.dtype
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        gradients = zip(ctx.saved_tensors, ctx.dtypes)
        return *(None if d is None else (d * gradient).to(dtype) for d, dtype in gradients), None, None, None


def _exponentials(logits, targets, top):
    """Return exp(logits - the largest so far) without the target's, in the dtype of `top`, and the largest so far.

    Overwrites `logits`. logits (rows, words), targets (rows, 1) counted from the tile's first word, top (rows, 1).
    """
    at = targets.clamp(0, logits.size(1) - 1)
    elsewhere = logits.gather(1, at)
    logits.scatter_(1, at, torch.where(at == targets, float("-inf"), elsewhere))
    new_top = torch.maximum(top, logits.amax(1, keepdim=True).to(top.dtype))
    return logits.to(top.dtype).sub_(new_top).exp_(), new_top
