"""Checks of time and memory: how many multiplications a step takes."""

from collections.abc import Callable
from functools import partial

from llm.course.exercises.speak import Comparison, spoken


@spoken
def check_count_step(count_step: Callable) -> str | None:
    """`count_step(tokens, shapes, r, head, head_trains)`: the multiplications of a step over frozen matrices with A and B.

    A frozen matrix takes two products, one that trains three; the head has no adapter.
    """
    block = [(128, 384), (128, 128), (128, 512), (512, 128)]
    cases = [(512, block, 8, (128, 50_257), False), (512, block, 8, (128, 50_257), True)]
    cases += [(3, [(20, 70)], 2, (11, 13), False), (7, [(30, 10), (5, 90)], 1, (17, 6), True)]

    def right(tokens, shapes, r, head, head_trains, frozen=2, thin=3, heads=(2, 3), sides=lambda m, n: m + n):
        each = sum(frozen * m * n + thin * r * sides(m, n) for m, n in shapes)
        return tokens * (each + heads[head_trains] * head[0] * head[1])

    slips = {
        "every token passes through every matrix: multiply by the tokens": lambda tokens, *rest: right(1, *rest),
        "A and B are missing: each of them takes three products": partial(right, thin=0),
        "A and B train: each takes three products, not one": partial(right, thin=1),
        "A and B train: each takes three products, not two": partial(right, thin=2),
        "B is missing: it has r * columns entries": partial(right, sides=lambda m, n: m),
        "a frozen matrix has no gradient of its weight: two products, not three": partial(right, frozen=3),
        "a frozen matrix still passes gradients on to its input: two products, not one": partial(right, frozen=1),
        "the head is missing": partial(right, heads=(0, 0)),
        "a head that trains takes three products": partial(right, heads=(2, 2)),
        "a frozen head takes two products": partial(right, heads=(3, 3)),
    }
    return Comparison(
        invite="how many products does one frozen matrix take in a step, and how many does A take?",
        wanted="one whole number",
        otherwise="that is not the count. One 10 x 10 matrix with r = 1 takes 260 multiplications per token without the head",
    ).diagnose(count_step, cases, right, slips)
