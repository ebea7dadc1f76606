"""4-bit weights: NF4, FP4, int4, and a frozen linear layer that stores them (Dettmers et al. 2023, arXiv 2305.14314).

    W[i] = absmax of i's block * levels[code of i]        16 levels from -1 to 1, blocks of 64

Needs torch and `surgery.py`. LoRA wraps such a layer like any other linear layer: that is QLoRA.
"""

import re
from collections.abc import Callable, Iterable

import torch
import torch.nn as nn
import torch.nn.functional as F

from llm.surgery import Targets, chosen_linears, places, plain_linear, replace_layers

BLOCK, NESTED_BLOCK = 64, 256  # weights per absmax; absmaxes per nested absmax
# The outermost quantile: the mean of 1 - 1/32 (half of one bin in 16 lies outside) and 1 - 1/30 (half of one in 15).
# Everything here is in float32, because the published levels were computed so.
OFFSET = 0.9677083


def nf4_levels() -> torch.Tensor:
    """Return the 16 levels of 4-bit NormalFloat, (16,) float32: quantiles of a normal distribution, scaled to end at 1.

    Zero takes one of the 16 codes, which leaves 8 above it and 7 below (section 3 of the paper). The levels equal the
    published table, digit for digit.
    """
    above, below = (torch.special.ndtri(torch.linspace(0.5, OFFSET, n + 1).double()).float() for n in (8, 7))
    return torch.cat((-below[1:].flip(0), above)) / above[-1]


def fp4_levels() -> torch.Tensor:
    """Return the E2M1 floating-point levels (sign, two exponent bits, one fraction bit) divided by the largest, (16,).

    Two of the 16 codes are zero. (bitsandbytes' "fp4" differs in one level: it has 0.0052 where E2M1 has 0.0833.)
    """
    above = [(e > 0) * 2.0**e + m * 2.0 ** max(e, 1) / 2 for e in range(4) for m in range(2)]  # e = 0 has no leading 1
    return torch.tensor([-x for x in above[::-1]] + above) / above[-1]


def int4_levels() -> torch.Tensor:
    """Return the whole numbers from -7 to 7 divided by 7, (16,): evenly spaced levels. Two of the 16 codes are zero."""
    return torch.tensor([*range(-7, 1), *range(8)]) / 7


FORMATS: dict[str, Callable[[], torch.Tensor]] = {"nf4": nf4_levels, "fp4": fp4_levels, "int4": int4_levels}


def dynamic_levels() -> torch.Tensor:
    """Return 256 levels for absmaxes, (256,): on each side of zero, twice as many for each power of ten up to 1.

    This is the 8-bit type of Dettmers 2015 (arXiv 1511.04561), as bitsandbytes implements it.
    """
    edges = [torch.linspace(0.1, 1, 2**i + 1) for i in range(7)]
    above = torch.cat([10.0 ** (i - 6) * ((e[:-1] + e[1:]) / 2) for i, e in enumerate(edges)])
    return torch.cat((-above, above, torch.tensor([0.0, 1.0]))).sort().values


def quantize_blocks(values: torch.Tensor, levels: torch.Tensor, block: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Map each of `values` (n,) to the index of the level that is nearest to value / absmax of its block.

    Returns codes (n,), int32, and absmax (blocks,), float32; the last block may be shorter.
    """
    values = values.float()
    absmax = F.pad(values, (0, -len(values) % block)).view(-1, block).abs().amax(1)
    # multiply by the inverse, as bitsandbytes does: a division would round some values to the next level
    inverse = 1 / absmax.clamp(min=1e-38)
    scaled = (values * inverse.repeat_interleave(block)[: len(values)]).clamp(-1, 1)
    return torch.bucketize(scaled, (levels[1:] + levels[:-1]) / 2, out_int32=True), absmax


def dequantize_blocks(codes: torch.Tensor, absmax: torch.Tensor, levels: torch.Tensor, block: int) -> torch.Tensor:
    """Return the float32 values (n,) that codes (n,) stand for."""
    return levels[codes.long()] * absmax.repeat_interleave(block)[: len(codes)]


def bits_per_weight(block: int = BLOCK, double: bool = False) -> float:
    """Return the bits that a weight takes: its code, and its share of its block's absmax.

    An absmax takes 32 bits, or 8 under double quantization, plus a float32 for every 256 of them.
    """
    return 4 + ((8 + 32 / NESTED_BLOCK) if double else 32) / block


class Linear4bit(nn.Linear):
    """A frozen linear layer with 4-bit weights: x (..., in) -> (..., out).

    `weight` (out, in) is dequantized at each access, in the dtype of the original layer, and never kept: the forward
    and backward passes each hold it only for their product. Gradients reach the input, not the weight.
    The state_dict holds `codes`, two per byte, `absmax`, float32 or uint8, and for uint8 its own scales; never W.
    double: whether absmax is quantized too (section 3 of the paper). The bias is not quantized.
    Raises ValueError for an unknown format, an invalid block size, and weights that are packed or not finite.
    """

    def __init__(self, linear: nn.Linear, format: str = "nf4", block: int = BLOCK, double: bool = False):
        nn.Module.__init__(self)  # nn.Linear's __init__ would allocate a weight
        if format not in FORMATS or block < 1:
            known = ", ".join(FORMATS)
            raise ValueError(
                f"no {format!r} in blocks of {block} weights: choose one of {known}, in blocks of 1 or more"
            )
        if isinstance(linear, Linear4bit) or not linear.weight.is_floating_point():
            raise ValueError("the weights are packed already: quantize the model as it was")
        if not linear.weight.isfinite().all():
            raise ValueError("the weights hold NaN or infinity, which no block can be scaled by")
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.format, self.block, self.double = format, block, double
        W = linear.weight.detach()
        self.register_buffer("like", W.new_empty(0), persistent=False)  # empty; tracks dtype and device
        self.register_buffer("levels", FORMATS[format]().to(W.device), persistent=False)
        codes, absmax = quantize_blocks(W.flatten(), self.levels, block)
        self.register_buffer("codes", pack(codes, zero=int((self.levels == 0).nonzero()[0])))
        if double:  # absmaxes are positive: minus their mean, they use the levels on both sides of zero
            self.register_buffer("nested_offset", absmax.mean())
            nested, scale = quantize_blocks(absmax - self.nested_offset, dynamic_levels().to(W.device), NESTED_BLOCK)
            self.register_buffer("nested_absmax", scale)
            absmax = nested.to(torch.uint8)
        self.register_buffer("absmax", absmax)
        self.bias = linear.bias
        self.train(linear.training)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = _Product.apply(x, self)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    @property
    def weight(self) -> torch.Tensor:
        """W (out, in), dequantized into a new tensor at each access."""
        with torch.no_grad():
            pairs = torch.cartesian_prod(self.levels, self.levels)  # (256, 2): what each byte stands for
            W = F.embedding(self.codes.int(), pairs).flatten()[: self.in_features * self.out_features]
            W *= self.scales().repeat_interleave(self.block)[: len(W)]
            return W.view(self.out_features, self.in_features).to(self.like.dtype)

    def scales(self) -> torch.Tensor:
        """The absmax of each block, (blocks,) float32."""
        if not self.double:
            return self.absmax
        levels = dynamic_levels().to(self.absmax.device)
        return dequantize_blocks(self.absmax, self.nested_absmax, levels, NESTED_BLOCK) + self.nested_offset

    @property
    def scheme(self) -> str:
        """The quantization scheme in one word: "nf4", "nf4-double", "int4-32"."""
        return self.format + f"-{self.block}" * (self.block != BLOCK) + "-double" * self.double

    def _apply(self, fn, recurse=True):
        """Move every tensor, but cast only W and the bias: the scales stay float32."""
        fine = {name: b for name, b in self._buffers.items() if name != "like"}
        super()._apply(fn, recurse)
        for name, kept in fine.items():
            if (now := self._buffers[name]).dtype != kept.dtype:
                self._buffers[name] = kept.to(now.device)
        return self

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.scheme}"


class _Product(torch.autograd.Function):
    """x @ W.T, where the backward pass dequantizes W again instead of keeping it."""

    @staticmethod
    def forward(ctx, x, layer):
        ctx.layer = layer
        return F.linear(x, layer.weight.to(x.dtype))

    @staticmethod
    def backward(ctx, grad):
        return grad @ ctx.layer.weight.to(grad.dtype), None  # (..., out) @ (out, in)


def pack(codes: torch.Tensor, zero: int = 0) -> torch.Tensor:
    """Pack codes (n,) of 0 to 15 two per byte, the first in the upper half; `zero` pads an odd number of codes."""
    first, second = F.pad(codes, (0, len(codes) % 2), value=zero).to(torch.uint8).view(-1, 2).unbind(1)
    return first << 4 | second


def unpack(packed: torch.Tensor) -> torch.Tensor:
    """Return the codes (2n,), 0 to 15, that the bytes (n,) hold."""
    return torch.stack((packed >> 4, packed & 15), 1).flatten()


def quantize(
    model: nn.Module,
    format: str = "nf4",
    block: int = BLOCK,
    double: bool = False,
    targets: Targets = None,
    skip: str | Iterable[str] | None = None,
) -> nn.Module:
    """Replace the linear layers of `model` by `Linear4bit`; return the same model.

    targets and skip work as in `apply_lora`: by default every linear layer but the output head. Embeddings, norms and
    other modules are unchanged. Raises ValueError when a layer is wrapped by an adapter already, ours or PEFT's, when
    nothing matches, and as `Linear4bit` does; the model is then unchanged. Warns as `apply_lora` does.
    """
    layers = chosen_linears(model, targets, skip)
    return replace_layers(model, {layer: Linear4bit(layer, format, block, double) for layer in layers})


@torch.no_grad()
def dequantize(model: nn.Module) -> nn.Module:
    """Replace every `Linear4bit` of `model` by a plain linear layer with the same weights; return the same model.

    The new weights are those that the codes stand for, not the original ones. Raises ValueError when one is too large
    for the model's dtype; the model is then unchanged.
    """
    dense = {}
    for path, layer in four_bit_layers(model).items():
        dense[layer] = plain_linear(layer, layer.weight, None)
        dense[layer].bias = layer.bias
        if not dense[layer].weight.isfinite().all():
            raise ValueError(f"{path} would hold infinity in {dense[layer].weight.dtype}: call model.float() first")
    return replace_layers(model, dense)


def four_bit_layers(model: nn.Module) -> dict[str, Linear4bit]:
    """Return the quantized layers of `model`, wrapped by LoRA or not, keyed by the first path of each."""
    return {paths[0]: m for m, paths in places(model).items() if isinstance(m, Linear4bit)}


def scheme_of(model: nn.Module) -> str | None:
    """Return the quantization scheme of `model`, several joined by "+"; None when it is not quantized."""
    return "+".join(sorted({layer.scheme for layer in four_bit_layers(model).values()})) or None


def read_scheme(scheme: str) -> dict:
    """Translate a scheme into options of `quantize`: "int4-32" -> format int4, block 32, double False.

    Raises ValueError for an unknown scheme.
    """
    match = re.fullmatch(rf"({'|'.join(FORMATS)})(?:-(\d+))?(-double)?", scheme)
    if not match:
        raise ValueError(
            f"there is no scheme {scheme!r}: choose one of {', '.join(FORMATS)}, with -double for absmaxes in 8 bits"
        )
    format, block, double = match.groups()
    return dict(format=format, block=int(block or BLOCK), double=bool(double))
