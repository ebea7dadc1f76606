"""What fine-tuning moved, and its spectrum: delta W = W_tuned - W_base, its singular values, its best rank-r part.

    delta W = U diag(s) V.T;   best rank-r part: the r largest s (Eckart and Young 1936);   energy: the s squared

Knows nothing about LoRA or training: it compares the weights of two models of one shape.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn as nn

from llm.errors import SettingError

State = dict[str, torch.Tensor]


def snapshot(model: nn.Module) -> State:
    """A copy of the model's weights that later training does not touch."""
    return {name: p.detach().clone() for name, p in model.state_dict().items()}


def block_matrices(model: nn.Module, head: str = "lm_head") -> list[str]:
    """The weights that LoRA wraps by default: every `nn.Linear` but the head, as names in the state dict."""
    return [f"{path}.weight" for path, m in model.named_modules() if isinstance(m, nn.Linear) and path != head]


def delta(base: State, tuned: State) -> State:
    """tuned - base, for every tensor. Raises SettingError when the two are not of one shape."""
    one, other = ({(name, tensor.shape) for name, tensor in state.items()} for state in (base, tuned))
    if wrong := sorted({name for name, _ in one ^ other}):
        raise SettingError(f"the two models differ in shape: {len(wrong)} tensors, {wrong[0]} first")
    return {name: tuned[name] - base[name] for name in base}


def singular_values(matrix: torch.Tensor) -> torch.Tensor:
    """The singular values of a matrix (m, n), largest first: (min(m, n),), float64.

    A tall matrix (an embedding of 50,257 rows) goes through its small Gram matrix, which is exact enough in float64
    for values above 1e-7 of the largest.
    """
    m = matrix.detach().double()
    if max(m.shape) > 8 * min(m.shape):
        gram = m.T @ m if m.size(0) > m.size(1) else m @ m.T
        return torch.linalg.eigvalsh(gram).flip(0).clamp(min=0).sqrt()
    return torch.linalg.svdvals(m)


def energy(values: torch.Tensor, ranks: Iterable[int]) -> list[float]:
    """The share of the squared Frobenius norm that the best rank-r part holds, for each r of `ranks`."""
    held = (values**2).cumsum(0) / (values**2).sum().clamp(min=1e-300)
    return [held[min(r, len(held)) - 1].item() if r else 0.0 for r in ranks]


def rank_for(values: torch.Tensor, share: float = 0.9) -> int:
    """The smallest rank whose best part holds `share` of the energy."""
    held = (values**2).cumsum(0) / (values**2).sum()
    return int((held < share).sum()) + 1


class Parts(NamedTuple):
    """A matrix (m, n) taken apart: u (m, k), s (k,) largest first, vh (k, n), k = min(m, n), float64."""

    u: torch.Tensor
    s: torch.Tensor
    vh: torch.Tensor

    def best(self, r: int) -> torch.Tensor:
        """The best rank-r part (m, n); r = 0 gives zeros."""
        return (self.u[:, :r] * self.s[:r]) @ self.vh[:r]  # (m, r) @ (r, n)


def decompose(matrix: torch.Tensor, full: bool = False) -> Parts:
    """The singular value decomposition of a matrix; full: with all of u (m, m) and vh (n, n)."""
    return Parts(*torch.linalg.svd(matrix.detach().double(), full_matrices=full))


def truncate(matrix: torch.Tensor, r: int) -> torch.Tensor:
    """The best rank-r part of a matrix (m, n), same shape and dtype; r = 0 gives zeros."""
    return decompose(matrix).best(r).to(matrix.dtype)


def overlap(first: torch.Tensor, second: torch.Tensor, i: int, j: int) -> float:
    """How much of the span of the first's i leading directions lies in that of the second's j: from 0 to 1.

    first (n, r), second (n, s): their left singular vectors count. ||U_i.T V_j||^2 / min(i, j), Hu et al. 2021, section 7.2.
    """
    shared = decompose(first).u[:, :i].T @ decompose(second).u[:, :j]  # (i, j)
    return (shared.square().sum() / min(i, j)).item()


def amplification(weight: torch.Tensor, update: torch.Tensor, r: int) -> float:
    """How many times as large an update is in its r leading directions as the weight is in them.

    weight, update (m, n): ||update|| / ||U_r.T weight V_r|| in the Frobenius norm, Hu et al. 2021, section 7.3.
    """
    parts = decompose(update)
    there = parts.u[:, :r].T @ weight.detach().double() @ parts.vh[:r].T  # (r, r)
    return (update.norm() / there.norm()).item()


def noise_like(matrix: torch.Tensor, seed: int) -> torch.Tensor:
    """A Gaussian matrix of the same shape and Frobenius norm: what no structure looks like."""
    noise = torch.randn(matrix.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (noise * matrix.double().norm() / noise.norm()).to(matrix.dtype)


def compose(base: State, *updates: State) -> State:
    """base plus the given updates; each may name only some of the tensors."""
    state = dict(base)
    for update in updates:
        state |= {name: state[name] + d for name, d in update.items()}
    return state
