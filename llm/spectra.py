"""What fine-tuning changed: delta W = W_tuned - W_base, its singular values, its best rank-r approximation.

    delta W = U diag(s) V.T;   best rank-r: keep the r largest s (Eckart and Young 1936);   energy: the squared s

Knows nothing about LoRA or training: it compares the weights of two models of the same shape.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn as nn

from llm.errors import SettingError

State = dict[str, torch.Tensor]


def snapshot(model: nn.Module) -> State:
    """Return a copy of the model's weights that later training does not change."""
    return {name: p.detach().clone() for name, p in model.state_dict().items()}


def block_matrices(model: nn.Module, head: str = "lm_head") -> list[str]:
    """Return the state-dict names of the weights that LoRA wraps by default: each `nn.Linear` but the head."""
    return [f"{path}.weight" for path, m in model.named_modules() if isinstance(m, nn.Linear) and path != head]


def delta(base: State, tuned: State) -> State:
    """Return tuned - base for every tensor. Raises SettingError when the two differ in names or shapes."""
    one, other = ({(name, tensor.shape) for name, tensor in state.items()} for state in (base, tuned))
    if wrong := sorted({name for name, _ in one ^ other}):
        raise SettingError(f"the two models differ in shape: {len(wrong)} tensors, {wrong[0]} first")
    return {name: tuned[name] - base[name] for name in base}


def singular_values(matrix: torch.Tensor) -> torch.Tensor:
    """Return the singular values of a matrix (m, n), largest first: (min(m, n),), float64.

    For a matrix much longer than wide, such as an embedding of 50,257 rows, they come from its small Gram matrix, which
    in float64 is exact enough for values above 1e-7 of the largest.
    """
    m = matrix.detach().double()
    if max(m.shape) > 8 * min(m.shape):
        gram = m.T @ m if m.size(0) > m.size(1) else m @ m.T
        return torch.linalg.eigvalsh(gram).flip(0).clamp(min=0).sqrt()
    return torch.linalg.svdvals(m)


def energy(values: torch.Tensor, ranks: Iterable[int]) -> list[float]:
    """Return, for each r of `ranks`, the share of the squared Frobenius norm in the best rank-r approximation."""
    held = (values**2).cumsum(0) / (values**2).sum().clamp(min=1e-300)
    return [held[min(r, len(held)) - 1].item() if r else 0.0 for r in ranks]


def rank_for(values: torch.Tensor, share: float = 0.9) -> int:
    """Return the smallest rank whose best approximation holds `share` of the energy."""
    held = (values**2).cumsum(0) / (values**2).sum()
    return int((held < share).sum()) + 1


class Parts(NamedTuple):
    """The singular value decomposition of (m, n): u (m, k), s (k,) largest first, vh (k, n), k = min(m, n), float64."""

    u: torch.Tensor
    s: torch.Tensor
    vh: torch.Tensor

    def best(self, r: int) -> torch.Tensor:
        """Return the best rank-r approximation (m, n); r = 0 gives zeros."""
        return (self.u[:, :r] * self.s[:r]) @ self.vh[:r]  # (m, r) @ (r, n)


def decompose(matrix: torch.Tensor, full: bool = False) -> Parts:
    """Return the singular value decomposition of a matrix; full: with all of u (m, m) and vh (n, n)."""
    return Parts(*torch.linalg.svd(matrix.detach().double(), full_matrices=full))


def truncate(matrix: torch.Tensor, r: int) -> torch.Tensor:
    """Return the best rank-r approximation of a matrix (m, n), same shape and dtype; r = 0 gives zeros."""
    return decompose(matrix).best(r).to(matrix.dtype)


def overlap(first: torch.Tensor, second: torch.Tensor, i: int, j: int) -> float:
    """Return the share, 0 to 1, of the span of first's i leading directions that lies in that of second's j.

    first (n, r), second (n, s): their left singular vectors. ||U_i.T V_j||^2 / min(i, j), Hu et al. 2021, section 7.2.
    """
    shared = decompose(first).u[:, :i].T @ decompose(second).u[:, :j]  # (i, j)
    return (shared.square().sum() / min(i, j)).item()


def amplification(weight: torch.Tensor, update: torch.Tensor, r: int) -> float:
    """Return the norm of an update relative to that of the weight within the update's r leading directions.

    weight, update (m, n): ||update|| / ||U_r.T weight V_r|| in the Frobenius norm, Hu et al. 2021, section 7.3.
    """
    parts = decompose(update)
    there = parts.u[:, :r].T @ weight.detach().double() @ parts.vh[:r].T  # (r, r)
    return (update.norm() / there.norm()).item()


def noise_like(matrix: torch.Tensor, seed: int) -> torch.Tensor:
    """Return a Gaussian matrix of the same shape and Frobenius norm: a baseline without structure."""
    noise = torch.randn(matrix.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (noise * matrix.double().norm() / noise.norm()).to(matrix.dtype)


def compose(base: State, *updates: State) -> State:
    """Return base plus the given updates; each may name only some of the tensors."""
    state = dict(base)
    for update in updates:
        state |= {name: state[name] + d for name, d in update.items()}
    return state
