"""Matrices to look at, made by code, and their best rank-r factors.

    M (m, n)  ~  A (m, r) @ B (r, n):  m * n numbers become r * (m + n)

Knows nothing about models or training.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from llm.errors import SettingError
from llm.spectra import decompose

# five by seven pixels a letter
LETTERS = {
    "L": ("10000", "10000", "10000", "10000", "10000", "10000", "11111"),
    "o": ("00000", "00000", "01110", "10001", "10001", "10001", "01110"),
    "R": ("11110", "10001", "10001", "11110", "10100", "10010", "10001"),
    "A": ("01110", "10001", "10001", "11111", "10001", "10001", "10001"),
}


def pixels(text: str = "LoRA") -> torch.Tensor:
    """A word in pixel letters (7, 6 * letters + 1), rank 7 at most."""
    rows = ["0" + "".join(LETTERS[letter][i] + "0" for letter in text) for i in range(7)]
    return torch.tensor([[float(p) for p in row] for row in rows])


def word(text: str = "LoRA", size: int = 9) -> torch.Tensor:
    """A word's pixels, each size x size."""
    return torch.kron(pixels(text), torch.ones(size, size))


def smooth(m: int = 63, n: int = 225) -> torch.Tensor:
    """A smooth surface (m, n): full rank on paper, nearly all of it in a few ranks."""
    y, x = torch.linspace(-1, 1, m)[:, None], torch.linspace(-1, 1, n)[None, :]
    return torch.sin(4 * x * y + 2 * x) * torch.exp(-((x - y) ** 2))


def noise(m: int = 63, n: int = 225, seed: int = 0) -> torch.Tensor:
    """Independent Gaussian numbers (m, n): no rank below the full one does much."""
    return torch.randn(m, n, generator=torch.Generator().manual_seed(seed))


MATRICES: dict[str, Callable[[], torch.Tensor]] = {"a word": word, "a smooth surface": smooth, "noise": noise}
WIDEST, THICKEST = 128, 32  # the largest layer and rank of `wrapped`


@dataclass(frozen=True)
class Wrapped:
    """A layer as LoRA sees it: frozen W (d, d), factors A (d, r) and B (r, d), and the scale of their product."""

    W: torch.Tensor
    A: torch.Tensor
    B: torch.Tensor
    scale: float

    @property
    def update(self) -> torch.Tensor:
        return self.scale * self.A @ self.B


def wrapped(d: int, r: int, alpha: float) -> Wrapped:
    """A random layer of width d with factors of rank r, as if trained, under the chapter's scale, alpha itself.

    A smaller layer is a corner of a larger one, and a lower rank the first patterns of a higher: what moves is what
    was changed. Raises SettingError beyond `WIDEST` and `THICKEST`.
    """
    if not (1 <= r <= min(d, THICKEST) and d <= WIDEST):
        raise SettingError(f"r={r}, d={d}: use 1 <= r <= {THICKEST} and r <= d <= {WIDEST}")
    generator = torch.Generator().manual_seed(0)
    sizes = (WIDEST, WIDEST), (WIDEST, THICKEST), (THICKEST, WIDEST)
    W, A, B = (torch.randn(size, generator=generator) / WIDEST**0.5 for size in sizes)
    return Wrapped(W[:d, :d], A[:d, :r], B[:r, :d], float(alpha))


@dataclass(frozen=True)
class Approximation:
    """A target M (m, n), the factors A (m, r) and B (r, n) of its best rank-r part, and |M - AB| / |M|."""

    target: torch.Tensor
    A: torch.Tensor
    B: torch.Tensor
    error: float

    @property
    def numbers(self) -> int:
        return self.A.numel() + self.B.numel()


def approximate(target: torch.Tensor, r: int) -> Approximation:
    """The best rank-r part of a matrix (Eckart and Young 1936), split evenly between its two factors."""
    u, s, vh = decompose(target)
    root = s[:r].sqrt()
    error = (s[r:].norm() / s.norm()).item()
    return Approximation(target, (u[:, :r] * root).to(target.dtype), (root[:, None] * vh[:r]).to(target.dtype), error)
