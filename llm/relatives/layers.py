"""Layers that replace a linear layer as LoRA's do: LoRA-FA's, DoRA's and PiSSA's, which are LoRA layers, and IA3's.

Each keeps the frozen `nn.Linear` as `base`, computes what it does while `enabled` is False, and has the effective
`weight` and `bias` of a plain linear layer. The formulas have W as (in, out); torch stores its transpose.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F

from llm.lora import LoraLinear
from llm.quantize import Linear4bit
from llm.surgery import weight_like


class LoraFaLinear(LoraLinear):
    """LoRA whose A stays at its random start: only B trains (Zhang et al. 2023, arXiv 2308.03303)."""

    def __init__(self, base: nn.Linear, *args, **options):
        super().__init__(base, *args, **options)
        self.A.requires_grad_(False)


class DoraLinear(LoraLinear):
    """A magnitude for each output, and a direction that LoRA changes: y = x W' + b, W' = m V / |V|, V = W + s A B.

    x (..., in) -> (..., out). `magnitude` m (out,) starts at |W| for each output, so the first output is the base's.
    |V| is a constant in the gradient (Liu et al. 2024, arXiv 2402.09353, equation 5 and section 4.3). dropout applies
    only to the input of A B.
    """

    def __init__(self, base: nn.Linear, *args, **options):
        super().__init__(base, *args, **options)
        self.magnitude = nn.Parameter(self.lengths())

    def lengths(self) -> torch.Tensor:
        """|V| for each output, (out,), without a gradient."""
        with torch.no_grad():
            return self.turned().norm(dim=1).clamp(min=1e-12)  # an all-zero output has no direction

    def turned(self) -> torch.Tensor:
        """V (out, in), in A's precision."""
        return self.base.weight.to(self.A.dtype) + super().update()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.base(x)
        if not self.enabled:
            return y
        g = self.magnitude / self.lengths()  # (out,)
        own = y if self.bias is None else y - self.bias  # (..., out), x W
        x = F.dropout(x.to(self.A.dtype), self.dropout, self.training)
        low = self.scale * (x @ self.A)  # (..., r)
        return y + ((g - 1) * own + g * (low @ self.B)).to(y.dtype)  # in this form, g = 1 keeps y bit for bit

    def update(self) -> torch.Tensor:
        """W' - W (out, in), in A's precision."""
        g = self.magnitude / self.lengths()
        return g[:, None] * self.turned() - self.base.weight.to(self.A.dtype)


class PissaLinear(LoraLinear):
    """LoRA that starts with W's largest singular components: y = x (R + s A B) + b, R = W - s A0 B0 frozen.

        W = U S V.T;   A0 = U_r sqrt(S_r / s) (in, r),   B0 = sqrt(S_r / s) V_r.T (r, out)

    A B is not zero at the start, yet the output is the base's up to rounding (Meng et al. 2024, arXiv 2404.02948,
    section 3). `residual` is R as torch stores it, (out, in). `base` is unchanged, so that the layer can be removed.
    """

    def __init__(self, base: nn.Linear, r: int = 8, alpha: float = 16.0, *args, **options):
        super().__init__(base, r, alpha, *args, **options)
        W = base.weight.detach().to(self.A.dtype)
        V, S, Ut = torch.linalg.svd(W, full_matrices=False)  # of the transpose: (out, k), (k,), (k, in)
        root = (S[:r] / self.scale).sqrt()
        with torch.no_grad():
            self.A.copy_((root[:, None] * Ut[:r]).T), self.B.copy_((V[:, :r] * root).T)
        self.register_buffer("A0", self.A.detach().clone(), persistent=False)
        self.register_buffer("B0", self.B.detach().clone(), persistent=False)
        self.register_buffer("residual", (W - super().update().detach()).to(base.weight.dtype), persistent=False)

    @staticmethod
    def check(base: nn.Linear, r: int, alpha: float, *options) -> None:
        """Raise ValueError as `LoraLinear.check` does, and unless `base` has singular values that alpha can scale."""
        if isinstance(base, Linear4bit):
            raise ValueError("PiSSA over four bits would keep a dense residual of each layer: take lora, dora or ia3")
        LoraLinear.check(base, r, alpha, *options)
        if not (alpha > 0 and base.weight.isfinite().all()):
            raise ValueError(f"PiSSA needs weights that are finite and an alpha above 0, which here is {alpha:g}")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.enabled:
            return self.base(x)
        y = F.linear(x, self.residual, self.bias)
        x = F.dropout(x.to(self.A.dtype), self.dropout, self.training)
        return y + (self.scale * (x @ self.A) @ self.B).to(y.dtype)

    def update(self) -> torch.Tensor:
        """W' - W (out, in), in A's precision: s (A B - A0 B0), up to R's rounding."""
        W = self.base.weight.to(self.A.dtype)
        return self.residual.to(self.A.dtype) - W + super().update()

    def plain(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return A (in, 2r) and B (2r, out) of an equivalent ordinary LoRA on the original base, with the same scale.

        s A B - s A0 B0 = s [A, A0] [B; -B0] (the paper's appendix). The rank is capped at W's smaller side.
        """
        A, B = torch.cat((self.A, self.A0), dim=1), torch.cat((self.B, -self.B0))
        smaller = min(self.in_features, self.out_features)
        if A.size(1) <= smaller:
            return A, B
        eye = torch.eye(smaller, dtype=A.dtype, device=A.device)
        return (A @ B, eye) if self.out_features == smaller else (eye, A @ B)


class Ia3Linear(nn.Module):
    """A frozen `nn.Linear` whose outputs or inputs are scaled: y = l * (x W + b), or y = (l * x) W + b.

    side: "out" or "in". first: where l starts; what comes before it is not scaled, such as q in a layer of q, k and v.
    l starts at 1 (Liu et al. 2022, arXiv 2205.05638, section 3.3).
    """

    def __init__(self, base: nn.Linear, side: str = "out", first: int = 0):
        super().__init__()
        self.in_features, self.out_features, self.side, self.first = base.in_features, base.out_features, side, first
        size = (base.out_features if side == "out" else base.in_features) - first
        W = weight_like(base)
        self.l = nn.Parameter(torch.ones(size, dtype=torch.promote_types(W.dtype, torch.float32), device=W.device))
        self.enabled = True
        self.base = base.requires_grad_(False)
        self.train(base.training)

    def factors(self) -> torch.Tensor:
        """l for all outputs or inputs, with 1 for those before `first`."""
        return F.pad(self.l, (self.first, 0), value=1.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.enabled:
            return self.base(x)
        if self.side == "in":
            return self.base((x * self.factors()).to(x.dtype))
        y = self.base(x)
        return (y * self.factors()).to(y.dtype)

    @property
    def weight(self) -> torch.Tensor:
        """The effective weight (out, in) in the base's dtype."""
        W, factors = self.base.weight, self.factors()
        return (W * (factors[:, None] if self.side == "out" else factors)).to(W.dtype) if self.enabled else W

    @property
    def bias(self) -> torch.Tensor | None:
        b = self.base.bias
        return (b * self.factors()).to(b.dtype) if b is not None and self.side == "out" and self.enabled else b
