"""Checks of LoRA's relatives: DoRA's forward pass, and a trained PiSSA as a plain adapter."""

from collections.abc import Callable

import numpy as np
import torch

from llm.course.exercises.speak import Comparison, numbers, spoken


@spoken
def check_dora(dora_forward: Callable) -> str | None:
    """`dora_forward(x, W, A, B, m, scale)` against x (m V / |V|), V = W + scale A B, a length for each output.

    x (n, in), W (in, out), A (in, r), B (r, out), m (out,).
    """
    cases = []
    for i, (n, inner, outer, r) in enumerate(((5, 6, 9, 2), (3, 8, 4, 1), (4, 7, 7, 3))):
        x, W, A, B = (torch.randn(*shape) for shape in ((n, inner), (inner, outer), (inner, r), (r, outer)))
        cases.append((x, W, A, B, W.norm(dim=0) * (1 + torch.rand(outer)), 0.5 + i))

    def dora(weight):
        return lambda x, W, A, B, m, scale: x @ weight(W + scale * A @ B, W, m)

    right = dora(lambda V, W, m: m * V / V.norm(dim=0))
    slips = {
        "that is LoRA's weight; DoRA's is m V / |V|, with the lengths m": dora(lambda V, W, m: V),
        "m is missing; without it, every column of V / |V| has length 1": dora(lambda V, W, m: V / V.norm(dim=0)),
        "V is not divided by its lengths; m must multiply columns of length 1": dora(lambda V, W, m: m * V),
        "the scale is missing; V = W + scale A B": lambda x, W, A, B, m, scale: right(x, W, A, B, m, 1),
        "those are the lengths of the rows; dim=0 gives the lengths of the columns": dora(
            lambda V, W, m: m * V / V.norm(dim=1, keepdim=True)
        ),
    }
    return Comparison(
        invite="compute V = W + scale * A @ B first. How long is each of its columns, and how long should it be?",
        wanted="a tensor",
        otherwise="the result is not x @ (m * V / V.norm(dim=0)) with V = W + scale * A @ B",
        misfit="the shapes do not fit; x is (n, in), W (in, out), A (in, r), B (r, out), and each of the `out` columns has one length",
    ).diagnose(dora_forward, cases, right, slips)


@spoken
def check_plain(to_plain: Callable) -> str | None:
    """`to_plain(A, B, A0, B0)`: factors (in, 2r) and (2r, out) whose product is A B - A0 B0."""
    cases = []
    for inner, outer, r in ((9, 8, 2), (8, 11, 3), (7, 9, 1)):
        A0, B0 = torch.randn(inner, r), torch.randn(r, outer)
        cases.append((A0 + 0.5 * torch.randn(inner, r), B0 + 0.5 * torch.randn(r, outer), A0, B0))
    slips = {
        "A0 B0 is added, but it must be subtracted, because the residual is W - A0 B0": lambda A, B, A0, B0: (
            A @ B + A0 @ B0
        ),
        "the signs are reversed; the product is A0 B0 - A B": lambda A, B, A0, B0: A0 @ B0 - A @ B,
        "those are A and B alone; on the original base they count W's largest parts twice": lambda A, B, A0, B0: A @ B,
        "subtracting the factors gives (A - A0) (B - B0), which is another matrix": lambda A, B, A0, B0: (
            (A - A0) @ (B - B0)
        ),
    }
    return Comparison(
        invite="W' - W is A B - A0 B0, which has four thin factors. How can two factors of twice the rank give the same product?",
        otherwise="the product of the two factors is not A B - A0 B0",
        unfit=_no_factors,
        read=lambda pair: numbers(pair[0]) @ numbers(pair[1]),
    ).diagnose(to_plain, cases, lambda A, B, A0, B0: A @ B - A0 @ B0, slips)


def _no_factors(pair, A, B, A0, B0):
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        return f"it should return two matrices, the A and B of the plain adapter, not {type(pair).__name__}"
    (inner, r), outer, shapes = A.shape, B.size(1), [tuple(np.shape(factor)) for factor in pair]
    if shapes[0][:1] == (2 * inner,) or shapes[1][1:] == (2 * outer,):
        return "the factors are stacked along the wrong side; A needs more columns (dim=1), and B more rows (dim=0)"
    if shapes not in [[(inner, rank), (rank, outer)] for rank in (r, 2 * r)]:  # rank r is one of the usual slips
        return (
            f"the shapes are {shapes[0]} and {shapes[1]}, but they should be ({inner}, {2 * r}) and ({2 * r}, {outer})"
        )
