"""Next-token loss straight from hidden states: the (tokens, vocab) logits are never held whole.

At 2,048 tokens and GPT-2's vocabulary the logits alone are 412 MB, and their gradient as much again.
Knows nothing about models: it takes hidden states, the head's weight and the targets.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

from llm.errors import SettingError

IGNORE = -100  # a target with this value does not count, PyTorch's own convention
CHUNK, CHUNK_ON_GPU = 128, 2048  # rows of logits held at a time: 128 rows of 50,257 floats are 26 MB
PRECISIONS = ("auto", "float32", "bfloat16")

_precision: ContextVar[str] = ContextVar("precision", default="float32")


def next_token_loss(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy in nats of `hidden @ weight.T` against `targets`, in chunks of rows.

    hidden (..., d), weight (vocab, d), targets (...) with `IGNORE` where a position does not count.
    Ignored positions are dropped before they are projected. The mean is float32, or finer where the states are; see
    `head_precision` for the products. Raises SettingError when no position counts; on a GPU, where asking would wait for
    it, the loss is then NaN, and ignored positions are projected and not counted.
    """
    hidden, targets = hidden.reshape(-1, hidden.size(-1)), targets.reshape(-1)
    counted = targets != IGNORE
    if not _waits(hidden.device) and not counted.all():
        hidden, targets, counted = hidden[counted], targets[counted], counted[counted]
        if len(targets) == 0:
            raise SettingError("no position counts towards the loss: every target is masked")
    hidden, targets = hidden.masked_fill(~counted[:, None], 0), targets.masked_fill(~counted, 0)
    return _Chunked.apply(hidden, weight, targets, counted, _products(weight), torch.is_grad_enabled())


@contextmanager
def head_precision(name: str) -> Iterator[None]:
    """Inside the block the head's matrix products are of this precision, one of PRECISIONS; their sums stay float32.

    "auto" is bfloat16 for a frozen head where the device multiplies it (`multiplies_bfloat16`), and float32 elsewhere.
    A head that is loaded in 16 bits keeps them, and under torch.autocast its dtype is the one. Raises SettingError for
    another name.
    """
    if name not in PRECISIONS:
        raise SettingError(f"there is no precision {name!r}: choose one of {', '.join(PRECISIONS)}")
    token = _precision.set(name)
    try:
        yield
    finally:
        _precision.reset(token)


def asked_for_bfloat16(device: torch.device) -> bool:
    """Whether this is inside `head_precision("bfloat16")`, on a processor."""
    return device.type == "cpu" and _precision.get() == "bfloat16"


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for bfloat16 products: two to four times as fast as float32 where it has."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()  # AMX has them, too, and is never without


def _products(weight):
    """The dtype in which `weight` is multiplied."""
    name, device = _precision.get(), weight.device
    if weight.dtype == torch.float32 and torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    if weight.dtype != torch.float32 or name == "float32":
        return weight.dtype
    if name == "auto" and (weight.requires_grad or not multiplies_bfloat16(device)):
        return weight.dtype
    return torch.bfloat16


class _Chunked(torch.autograd.Function):
    """-log softmax(W h)[t] = log sum_j exp(w_j h) - w_t h, whose gradient by h is softmax(W h) W - w_t.

    A chunk's gradients are made while its logits are there: they would be made a second time in the backward. The
    target's own part is worked out apart, in full precision: in coarse products a model that is nearly sure would see
    little but their rounding, and a loss below zero.
    """

    @staticmethod
    def forward(ctx, hidden, weight, targets, counted, products, training):
        wants_hidden, wants_weight = (training and wanted for wanted in ctx.needs_input_grad[:2])
        wide = torch.promote_types(hidden.dtype, torch.float32)
        share = counted[:, None] / counted.sum(dtype=wide)  # (N, 1), of the mean
        wide_h, row = hidden.to(wide), weight[targets].to(wide)  # (N, d), (N, d)
        own = (wide_h * row).sum(1, keepdim=True)  # (N, 1), the target's logit
        loss, missed = own.new_zeros(()), torch.empty_like(own)  # missed: 1 - the target's probability
        d_hidden = torch.empty_like(wide_h) if wants_hidden else None
        d_weight = torch.zeros_like(weight, dtype=wide) if wants_weight else None
        h, W = hidden.to(products), weight.to(products)
        calm = _calm(wide_h, weight, products)
        rows_at_once = CHUNK_ON_GPU if h.is_cuda else CHUNK if wants_weight else CHUNK // 2  # half stays in the cache
        for rows in (slice(i, i + rows_at_once) for i in range(0, len(h), rows_at_once)):
            logits = h[rows] @ W.T  # (rows, vocab)
            top = 0 if calm else logits.amax(1, keepdim=True)
            e = (logits if calm else logits.sub_(top)).exp_().scatter_(1, targets[rows, None], 0)
            others = e.sum(1, keepdim=True, dtype=wide)
            total = others + (own[rows] - top).exp()
            missed[rows] = others / total
            loss += (share[rows] * (total.log() + top - own[rows]).clamp(min=0)).sum()
            if wants_hidden:
                d_hidden[rows] = share[rows] * (e @ W) / total
            if wants_weight:
                d_weight += e.T @ (share[rows] * wide_h[rows] / total).to(products)
        if wants_hidden:
            d_hidden -= share * missed * row
        if wants_weight:
            d_weight.index_add_(0, targets, -share * missed * wide_h)
        ctx.save_for_backward(d_hidden, d_weight)
        ctx.dtypes = hidden.dtype, weight.dtype
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        made = zip(ctx.saved_tensors, ctx.dtypes)
        return *(None if d is None else (d * gradient).to(dtype) for d, dtype in made), None, None, None, None


def _waits(device):
    """Whether to ask for a value is to wait until the device has worked off all that came before."""
    return device.type == "cuda"


def _calm(hidden, weight, products):
    """Whether exp takes every logit as it is: by Cauchy and Schwarz none comes near 88, where float32 and bfloat16 end."""
    if _waits(hidden.device) or products is torch.float16:
        return False
    return bool(hidden.norm(dim=1).amax() * weight.norm(dim=1).amax() < 80)
