"""Matrices to look at, made by code, and their best rank-r factors.

    M (m, n)  ~  A (m, r) @ B (r, n):  m * n numbers become r * (m + n)

Knows nothing about models or training.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

# five by seven pixels a letter
LETTERS = {
    "L": ("10000", "10000", "10000", "10000", "10000", "10000", "11111"),
    "o": ("00000", "00000", "01110", "10001", "10001", "10001", "01110"),
    "R": ("11110", "10001", "10001", "11110", "10100", "10010", "10001"),
    "A": ("01110", "10001", "10001", "11111", "10001", "10001", "10001"),
}


def word(text: str = "LoRA", size: int = 9) -> torch.Tensor:
    """A word in pixel letters, each pixel size x size: (7 * size, (6 * letters + 1) * size), rank 7 at most."""
    rows = ["0" + "".join(LETTERS[letter][i] + "0" for letter in text) for i in range(7)]
    pixels = torch.tensor([[float(p) for p in row] for row in rows])
    return torch.kron(pixels, torch.ones(size, size))


def smooth(m: int = 63, n: int = 225) -> torch.Tensor:
    """A smooth surface (m, n): full rank on paper, nearly all of it in a few ranks."""
    y, x = torch.linspace(-1, 1, m)[:, None], torch.linspace(-1, 1, n)[None, :]
    return torch.sin(4 * x * y + 2 * x) * torch.exp(-((x - y) ** 2))


def noise(m: int = 63, n: int = 225, seed: int = 0) -> torch.Tensor:
    """Independent Gaussian numbers (m, n): no rank below the full one does much."""
    return torch.randn(m, n, generator=torch.Generator().manual_seed(seed))


MATRICES: dict[str, Callable[[], torch.Tensor]] = {"a word": word, "a smooth surface": smooth, "noise": noise}


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
    u, s, vh = torch.linalg.svd(target.double(), full_matrices=False)
    root = s[:r].sqrt()
    error = (s[r:].norm() / s.norm()).item()
    return Approximation(target, (u[:, :r] * root).to(target.dtype), (root[:, None] * vh[:r]).to(target.dtype), error)
