"""Checks of notebook 08: a block rounded by hand, the bits of a scheme, and which merge an output comes from."""

from collections.abc import Callable

import torch
import torch.nn as nn

from llm.course.exercises.speak import Invitation, compare, spoken
from llm.lora import LoraLinear, merged_linear
from llm.quantize import FORMATS, Linear4bit


@spoken
def check_block(round_block: Callable) -> str | None:
    """`round_block(w, levels)`: a block (n,) as it comes back from its codes: absmax times the nearest level, each."""
    cases = [
        (torch.randn(n) * size, FORMATS[name]()) for n, size, name in ((8, 0.1, "nf4"), (16, 3, "nf4"), (9, 1, "int4"))
    ]
    cases += [(torch.tensor([0.2, -0.9, 0.35, 0.0, 0.55]), FORMATS["nf4"]())]  # its largest is below zero

    def nearest(values, levels):
        return levels[(values[:, None] - levels).abs().argmin(1)]

    def right(w, levels):
        return w.abs().max() * nearest(w / w.abs().max(), levels)

    def border(which):  # the first level at or above it, or the last one at or below
        def slip(w, levels):
            top, distinct = w.abs().max(), levels.unique()
            scaled = (w / top).contiguous()
            found = torch.searchsorted(distinct, scaled, right=which < 0) + min(which, 0)
            return top * distinct[found.clamp(0, len(distinct) - 1)]

        return slip

    return compare(
        round_block,
        cases,
        right,
        {
            "these are the levels: times the block's absmax they are weights again": lambda w, levels: nearest(
                w / w.abs().max(), levels
            ),
            "the levels go from -1 to 1, and so must the weights: divide by the block's absmax first": nearest,
            "divided by nothing, but multiplied: divide by absmax first, multiply by it last": lambda w, levels: (
                w.abs().max() * nearest(w, levels)
            ),
            "that takes the largest weight; the largest may be below zero: the largest of w.abs()": lambda w, levels: (
                w.max() * nearest(w / w.max(), levels)
            ),
            "that divides by the mean of w.abs(); the largest of it makes the largest weight exact": lambda w, levels: (
                w.abs().mean() * nearest(w / w.abs().mean(), levels)
            ),
            "that divides by the spread; the largest of w.abs() makes the largest weight exact": lambda w, levels: (
                w.std() * nearest(w / w.std(), levels)
            ),
            "that is the level below, not the nearest one": border(-1),
            "that is the level above, not the nearest one": border(1),
            "that is the level farthest away: argmin, not argmax": lambda w, levels: (
                w.abs().max() * levels[(w[:, None] / w.abs().max() - levels).abs().argmax(1)]
            ),
            "these are the codes, places in the list: levels[codes] are the levels": lambda w, levels: (
                (w[:, None] / w.abs().max() - levels).abs().argmin(1).float()
            ),
            "that is the block as it was: only sixteen values are to be had": lambda w, levels: w,
            "that is what rounding has changed: the rounded block is asked": lambda w, levels: right(w, levels) - w,
        },
        invite="divide the block by its largest |w|. Which level is nearest to each? And back?",
        wanted="a tensor (n,)",
        otherwise="the numbers are not absmax times the nearest level: print w / absmax beside the levels for a short block",
        misfit="the shapes do not fit: w[:, None] - levels is (n, 16), all distances at once",
    )


@spoken
def check_bits(bits: Callable) -> str | None:
    """`bits(code, block, scale, nested)`: bits a weight; nested: how many scales share a float32, None for no such."""
    cases = [(4, 64, 32, None), (4, 64, 8, 256), (4, 32, 32, None), (3, 128, 16, None), (8, 16, 8, 64)]

    def right(code, block, scale, nested, word=32):
        return code + scale / block + (word / (block * nested) if nested else 0)

    return compare(
        bits,
        cases,
        right,
        {
            "a scale serves a whole block: divide it by the block": lambda c, b, s, n: c + s + (32 / n if n else 0),
            "the float32 of the nested scales is missing: 32 bits for every block * nested weights": lambda c, b, s, n: (
                c + s / b
            ),
            "a nested float32 serves nested scales, and each of these a block: 32 / (block * nested)": lambda c, b, s, n: (
                c + s / b + (32 / n if n else 0)
            ),
            "the code is missing: each weight has one": lambda *case: right(*case) - case[0],
            "these are bytes: bits are asked": lambda *case: right(*case) / 8,
            "that is for a whole block: divide by the block": lambda *case: right(*case) * case[1],
            "a float32 has 32 bits; 4 are its bytes": lambda *case: right(*case, word=4),
            "a scale has `scale` bits; it is not 32 in every scheme": lambda c, b, s, n: right(c, b, 32, n),
            "that is 16 levels; to name one of 16 takes 4 bits": lambda c, b, s, n: right(2**c, b, s, n),
            "rounded: a share of a bit counts, for there are billions of weights": lambda *case: round(right(*case)),
        },
        invite="how many bits does one block take, codes and scale together? Divide by its weights",
        wanted="one number",
        otherwise="that is not it. 64 codes of 4 bits and one scale of 32 are 288 bits, 4.5 for each weight",
    )


DEQUANTISED, ORIGINAL, NEITHER = "dequantised", "original", "neither"


@spoken
def check_which(which_base: Callable) -> str | None:
    """`which_base(merged, over_four_bits, over_original)`, outputs all, says into which base was merged; "neither" where
    the merge was rounded again."""
    cases, answers = zip(*(_outputs(seed, kind) for seed in range(3) for kind in (DEQUANTISED, ORIGINAL, NEITHER)))
    found = [which_base(*(output.clone() for output in case)) for case in cases]
    if all(said is None for said in found):
        return Invitation("two outputs that are the same sum, taken two ways, differ how much? And two that are not?")
    words = (DEQUANTISED, ORIGINAL, NEITHER)
    if odd := next((repr(said) for said in found if said not in words), None):
        return f'one of "dequantised", "original" and "neither" is wanted, not {odd[:40]}'
    if tuple(found) == answers:
        return None
    swapped = {DEQUANTISED: ORIGINAL, ORIGINAL: DEQUANTISED, NEITHER: NEITHER}
    if tuple(swapped[said] for said in found) == answers:
        return "the two bases are swapped: over_four_bits is what the adapter gave over the dequantised one"
    if set(found) == {NEITHER}:
        return (
            "all are called neither: a sum that is taken another way differs in its last digits, so torch.equal is too "
            "strict, and torch.allclose with its own tolerance nearly so: try atol=1e-3"
        )
    if NEITHER not in found:
        return "none is called neither: the nearer of the two need not be near; how far is it, beside how far they are apart?"
    if any(said != NEITHER and goal == NEITHER for said, goal in zip(found, answers)):
        return "one that was rounded again passes for a plain merge: the tolerance is too wide, try atol=1e-3"
    return "a plain merge is called neither: allow for float32's last digits, in outputs of about 10, try atol=1e-3"


def _outputs(seed, kind):
    """What a small layer gives merged so, with its adapter over four bits, and with its adapter over the original."""
    torch.manual_seed(seed)
    base, x = nn.Linear(64, 64, bias=False).requires_grad_(False), 4 * torch.randn(32, 64)
    base.weight *= 4
    four, whole = LoraLinear(Linear4bit(base), r=4, alpha=1), LoraLinear(base, r=4, alpha=1)
    nn.init.normal_(four.B, std=0.2)
    whole.A, whole.B = four.A, four.B
    with torch.no_grad():
        made = {
            DEQUANTISED: lambda: merged_linear(four),
            ORIGINAL: lambda: merged_linear(whole),
            NEITHER: lambda: Linear4bit(merged_linear(four)),
        }
        return (made[kind]()(x), four(x), whole(x)), kind
