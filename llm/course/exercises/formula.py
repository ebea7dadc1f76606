"""Checks for the formula: the forward pass, and how many numbers A and B hold."""

from collections.abc import Callable

import torch

from llm.course.exercises.speak import Comparison, spoken


@spoken
def check_forward(forward: Callable) -> str | None:
    """Compare `forward(x, W, A, B, alpha)` with the formula. x (n, in), W (in, out), A (in, r), B (r, out)."""
    shapes = ((5, 6, 4, 2, 3.0), (3, 7, 7, 3, 0.5))
    cases = [(*(torch.randn(s) for s in ((n, i), (i, o), (i, r), (r, o))), a) for n, i, o, r, a in shapes]

    def right(x, W, A, B, alpha):
        return x @ W + alpha * (x @ A @ B)

    slips = {
        "this is the frozen part, x @ W, and the update is missing": lambda x, W, A, B, alpha: x @ W,
        "this is the update alone, and the output of the base, x @ W, is missing": lambda x, W, A, B, a: (
            a * (x @ A @ B)
        ),
        "alpha is missing: multiply the update by it": lambda x, W, A, B, alpha: right(x, W, A, B, 1),
        "alpha multiplies everything: multiply only the update by it": lambda x, W, A, B, a: a * right(x, W, A, B, 1),
        "you multiply by alpha / r, as the paper does; this formula uses alpha itself": lambda x, W, A, B, a: right(
            x, W, A, B, a / len(B)
        ),
    }
    return Comparison(
        invite="write the formula after `return`",
        wanted="a tensor",
        otherwise="the shape is right, but the numbers are not. The formula is x @ W + alpha * (x @ A @ B)",
        misfit="the shapes do not fit. x @ A is (n, r), and (x @ A) @ B is (n, out), the shape of x @ W",
    ).diagnose(forward, cases, right, slips)


@spoken
def check_count(count: Callable) -> str | None:
    """Compare `count(shapes, r)` with the numbers in every A (rows, r) and B (r, columns)."""
    cases = [([(6, 4)], 2), ([(5, 5), (3, 9)], 3), ([(128, 384), (128, 512), (512, 128)], 8)]

    def total(of_one):
        return lambda shapes, r: sum(of_one(m, n, r) for m, n in shapes)

    slips = {
        "you counted the numbers of W, and W is frozen": total(lambda m, n, r: m * n),
        "you counted A alone, and B (r, columns) trains too": total(lambda m, n, r: m * r),
        "2 * rows * r is right for square matrices only: B has r * columns numbers": total(lambda m, n, r: 2 * m * r),
        "r is missing: A has r columns, and B has r rows": total(lambda m, n, r: m + n),
        "you counted the first matrix alone: is `return` inside the loop?": lambda shapes, r: r * sum(shapes[0]),
        "you counted the last matrix alone: start a sum at 0 and add each matrix to it": lambda shapes, r: (
            r * sum(shapes[-1])
        ),
    }
    return Comparison(
        invite="start with one matrix: A holds rows * r numbers. How many does B hold?",
        wanted="one whole number",
        otherwise="this is not the count. For W (6, 4) and r = 2, A (6, 2) and B (2, 4) hold 20 numbers",
    ).diagnose(count, cases, total(lambda m, n, r: r * (m + n)), slips)
