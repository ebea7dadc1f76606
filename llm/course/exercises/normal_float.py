"""Checks of quantization: a block rounded by hand, the bits of a scheme, and the base that a merge started from."""

from collections.abc import Callable
from functools import partial

import torch

from llm.course.exercises.speak import Comparison, spoken
from llm.quantize import FORMATS


@spoken
def check_block(round_block: Callable) -> str | None:
    """`round_block(w, levels)` returns a block (n,) after rounding: absmax times the nearest level for each weight."""
    blocks = [0.1 * torch.randn(8), 3 * torch.randn(16), torch.tensor([0.2, -0.9, 0.35, 0.0, 0.55])]
    cases = [(w, FORMATS[name]()) for w, name in zip(blocks, ("nf4", "int4", "nf4"))]

    def right(w, levels, absmax=lambda w: w.abs().max(), multiplied=True):
        scale = absmax(w)
        nearest = levels[(w[:, None] / scale - levels).abs().argmin(1)]
        return nearest * (scale if multiplied else 1)

    slips = {
        "these are levels, not weights: multiply them by the block's absmax": partial(right, multiplied=False),
        "the levels lie between -1 and 1, so divide the weights by the block's absmax before you compare": partial(
            right, absmax=lambda w: 1
        ),
        "the weight with the largest absolute value may be negative: use w.abs().max()": partial(
            right, absmax=torch.max
        ),
    }
    return Comparison(
        invite="divide the block by its largest |w|, find the nearest level for each weight, and scale back",
        wanted="a tensor (n,)",
        otherwise="these are not absmax times the nearest level: print w / absmax and the levels for a short block",
        misfit="the shapes do not match: w[:, None] - levels has shape (n, 16) and holds all distances at once",
    ).diagnose(round_block, cases, right, slips)


@spoken
def check_bits(bits: Callable) -> str | None:
    """`bits(code, block, scale, nested)` returns bits per weight. `nested` scales share one float32; None means none do."""
    cases = [(4, 64, 32, None), (4, 64, 8, 256), (4, 32, 32, None), (3, 128, 16, None), (8, 16, 8, 64)]

    def right(code, block, scale, nested):
        return code + scale / block + (32 / (block * nested) if nested else 0)

    slips = {
        "one scale serves a whole block, so divide its bits by the block size": lambda c, b, s, n: (
            c + s + (32 / n if n else 0)
        ),
        "the second float32 is missing: it adds 32 bits for every block * nested weights": lambda c, b, s, n: c + s / b,
        "these are bytes, and the question asks for bits": lambda *case: right(*case) / 8,
    }
    return Comparison(
        invite="add up the bits of one block, codes and scale, and divide by its number of weights",
        wanted="one number",
        otherwise="as an example, 64 codes of 4 bits and one scale of 32 bits take 288 bits, which is 4.5 per weight",
    ).diagnose(bits, cases, right, slips)


WORDS = DEQUANTIZED, ORIGINAL, NEITHER = ("dequantized", "original", "neither")


@spoken
def check_which(which_base: Callable) -> str | None:
    """`which_base(merged, over_four_bits, over_original)` compares three outputs and names the base of the merge.

    The answer is "neither" where the merged weights were rounded again.
    """
    cases = [(kind, seed) for seed in range(3) for kind in WORDS]
    swap = {DEQUANTIZED: ORIGINAL, ORIGINAL: DEQUANTIZED, NEITHER: NEITHER}
    strict = "you call all of them neither: equal sums of floats differ in the last digits, so allow atol=1e-3"
    slips = {  # each returns the words that the mistake gives for an output
        "the two bases are swapped: over_four_bits comes from the dequantized base": lambda kind, seed: [swap[kind]],
        strict: lambda kind, seed: [NEITHER],
        "you call none of them neither: the closer of two outputs may still be far away": lambda kind, seed: [
            DEQUANTIZED,
            ORIGINAL,
        ],
    }
    return Comparison(
        invite="compare `merged` with each of the other two outputs: how closely must two equal sums agree?",
        otherwise="a merge that was rounded again passes for an exact one: the tolerance is too wide, try atol=1e-3",
        unfit=_no_word,
        same=lambda word, allowed: word in allowed,
    ).diagnose(lambda *case: which_base(*_outputs(*case)), cases, lambda kind, seed: [kind], slips)


def _no_word(word, kind, seed):
    if word not in WORDS:
        return f'the answer must be "dequantized", "original", or "neither", not {repr(word)[:40]}'


def _outputs(kind, seed):
    """Outputs of a small layer, merged in one of three ways, and of its adapter over the coarse and the original base."""
    torch.manual_seed(seed)
    x, W, AB = 4 * torch.randn(32, 64), 0.3 * torch.randn(64, 64), 0.05 * torch.randn(64, 64)
    coarse = (8 * W).round() / 8  # stands in for four bits
    merged = {DEQUANTIZED: coarse + AB, ORIGINAL: W + AB, NEITHER: (8 * (W + AB)).round() / 8}
    return x @ merged[kind], x @ coarse + x @ AB, x @ W + x @ AB
