"""Checks of notebook 01: the forward pass, and how many numbers A and B hold."""

from collections.abc import Callable

import torch

from llm.course.exercises.speak import compare, spoken


@spoken
def check_forward(forward: Callable) -> str | None:
    """`forward(x, W, A, B, alpha)` against the formula. x (n, in), W (in, out), A (in, r), B (r, out)."""
    shapes = ((5, 6, 4, 2, 3.0), (3, 7, 7, 3, 0.5))
    cases = [(*(torch.randn(s) for s in ((n, i), (i, o), (i, r), (r, o))), a) for n, i, o, r, a in shapes]

    def mixed(weights):
        def formula(x, W, A, B, alpha):
            of_base, of_update = weights(alpha, A.size(1))
            return of_base * (x @ W) + of_update * (x @ A @ B)

        return formula

    return compare(
        forward,
        cases,
        mixed(lambda alpha, r: (1, alpha)),
        {
            "that is the frozen half, x @ W, alone: the update is missing": mixed(lambda alpha, r: (1, 0)),
            "that is the update alone: the base's own answer, x @ W, is missing": mixed(lambda alpha, r: (0, alpha)),
            "alpha is missing: it multiplies the update": mixed(lambda alpha, r: (1, 1)),
            "alpha multiplies everything: it belongs to the update only": mixed(lambda alpha, r: (alpha, alpha)),
            "that is alpha / r, the paper's; here the factor is alpha itself": mixed(lambda alpha, r: (1, alpha / r)),
            "the update is subtracted; it is added": mixed(lambda alpha, r: (1, -alpha)),
        },
        invite="put the formula after `return`",
        wanted="a tensor",
        otherwise="the shape is right, the numbers are not. The formula again: x @ W + alpha * (x @ A @ B)",
        misfit="the shapes do not fit. x (n, in) @ A (in, r) is (n, r), that @ B (r, out) is (n, out), as x @ W is",
    )


@spoken
def check_count(count: Callable) -> str | None:
    """`count(shapes, r)` against the numbers in every A (rows, r) and B (r, columns)."""
    block = [(128, 384), (128, 128), (128, 512), (512, 128)]

    def total(each):
        return lambda shapes, r: sum(each(m, n, r) for m, n in shapes)

    return compare(
        count,
        [([(6, 4)], 2), ([(5, 5), (3, 9)], 3), (block, 8)],
        total(lambda m, n, r: r * (m + n)),
        {
            "those are the numbers of W, and W is frozen": total(lambda m, n, r: m * n),
            "W is counted as well, and W is frozen": total(lambda m, n, r: m * n + r * (m + n)),
            "that is A alone: B (r, columns) trains too": total(lambda m, n, r: m * r),
            "that is B alone: A (rows, r) trains too": total(lambda m, n, r: n * r),
            "that is 2 * rows * r, for squares alone: B has W's columns": total(lambda m, n, r: 2 * m * r),
            "that is 2 * columns * r, for squares alone: A has W's rows": total(lambda m, n, r: 2 * n * r),
            "r is missing: A has r columns and B has r rows": total(lambda m, n, r: m + n),
            "A and B lie side by side, so their numbers add up: no m * n": total(lambda m, n, r: r * m * n),
            "that is the first matrix alone: is `return` inside the loop?": lambda shapes, r: r * sum(shapes[0]),
            "that is the last matrix alone: add to a sum that begins at 0": lambda shapes, r: r * sum(shapes[-1]),
        },
        invite="for one matrix A holds rows * r numbers, and B how many?",
        wanted="one whole number",
        otherwise="that is not the count. For W (6, 4) and r = 2, A is (6, 2) and B is (2, 4): 20 numbers",
    )
