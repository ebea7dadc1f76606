"""Checks of notebook 09: DoRA's forward pass, a PiSSA made plain, and a comparison that was not fair."""

import copy
from collections.abc import Callable

import torch

from llm.course.exercises.speak import CHANGED, Invitation, close, compare, numbers, spoken


@spoken
def check_dora(dora_forward: Callable) -> str | None:
    """`dora_forward(x, W, A, B, m, scale)` against x (m V / |V|), V = W + scale A B, a length for each output.

    x (n, in), W (in, out), A (in, r), B (r, out), m (out,).
    """
    cases = []
    for i, (n, inner, outer, r) in enumerate(((5, 6, 9, 2), (3, 8, 4, 1), (4, 7, 7, 3))):
        x, W, A, B = (torch.randn(*shape) for shape in ((n, inner), (inner, outer), (inner, r), (r, outer)))
        cases.append((x, W, A, B, W.norm(dim=0) * (1 + torch.rand(outer)), 0.5 + i))

    def product(direction, length):
        """A slip or the right way: x (m V / length), both made from V, W and the rest."""
        return lambda x, W, A, B, m, scale: x @ (m * direction(W, A @ B, scale) / length(W, A @ B, scale))

    def V(W, AB, scale):
        return W + scale * AB

    def lengths(W, AB, scale):
        return V(W, AB, scale).norm(dim=0)

    def one(*_):
        return 1

    return compare(
        dora_forward,
        cases,
        product(V, lengths),
        {
            "that is LoRA: where are the lengths, m V / |V|": lambda x, W, A, B, m, scale: x @ (W + scale * A @ B),
            "m is missing: a column of V / |V| has the length 1, and m makes it m": lambda x, W, A, B, m, scale: (
                x @ (W + scale * A @ B) / (W + scale * A @ B).norm(dim=0)
            ),
            "V is not divided by its lengths: m multiplies a direction, and that has the length 1": product(V, one),
            "the lengths are W's, but the direction is V's: divide V by its own": product(
                V, lambda W, AB, scale: W.norm(dim=0)
            ),
            "A and B are missing: the direction is that of V = W + scale A B": product(
                lambda W, AB, scale: W, lambda W, AB, scale: W.norm(dim=0)
            ),
            "the scale is missing: V = W + scale A B": product(
                lambda W, AB, scale: W + AB, lambda W, AB, scale: (W + AB).norm(dim=0)
            ),
            "one length for the whole matrix: a length for each output is wanted, of each column": product(
                V, lambda W, AB, scale: V(W, AB, scale).norm()
            ),
            "the lengths are those of the rows, one for each input: the outputs are the columns, dim=0": product(
                V, lambda W, AB, scale: V(W, AB, scale).norm(dim=1, keepdim=True)
            ),
            "the length is squared: the root of the sum of squares is wanted, as .norm gives it": product(
                V, lambda W, AB, scale: lengths(W, AB, scale) ** 2
            ),
            "the length is the sum of the absolute values: .norm is the root of the sum of squares": product(
                V, lambda W, AB, scale: V(W, AB, scale).abs().sum(dim=0)
            ),
            "the update is added behind the direction: it turns the direction, so it belongs into V": (
                lambda x, W, A, B, m, scale: x @ (m * W / W.norm(dim=0)) + scale * x @ A @ B
            ),
            "the update alone is normalised: the direction is that of W + scale A B, all of it": (
                lambda x, W, A, B, m, scale: x @ (W + m * (A @ B) / (A @ B).norm(dim=0))
            ),
        },
        invite="make V = W + scale * A @ B first. How long is each of its columns, and how long shall it be?",
        wanted="a tensor",
        otherwise="the numbers are not x @ (m * V / V.norm(dim=0)) with V = W + scale * A @ B",
        misfit="the shapes do not fit: x (n, in), W (in, out), A (in, r), B (r, out), and a length for each of the `out` columns",
    )


@spoken
def check_plain(to_plain: Callable) -> str | None:
    """`to_plain(A, B, A0, B0)`: factors (in, 2r) and (2r, out) whose product is A B - A0 B0."""
    cases = []
    for inner, outer, r in ((9, 8, 2), (8, 11, 3), (7, 9, 1)):
        A0, B0 = torch.randn(inner, r), torch.randn(r, outer)
        cases.append((A0 + 0.5 * torch.randn(inner, r), B0 + 0.5 * torch.randn(r, outer), A0, B0))
    found = []
    for case in cases:
        kept = copy.deepcopy(case)
        found.append(to_plain(*case))
        if not all(torch.equal(now, then) for now, then in zip(case, kept)):
            return CHANGED
    if all(pair is None for pair in found):
        return Invitation("W' - W is A B - A0 B0: four thin matrices. How do two of twice the rank say the same?")
    for pair, case in zip(found, cases):
        if wrong := _no_pair(pair, case):
            return wrong
    products = [numbers(first) @ numbers(second) for first, second in found]
    return _unlike(products, cases) or next(
        (said for pair, c in zip(found, cases) if (said := _too_large(pair, c))), None
    )


def _no_pair(pair, case):
    """What is wrong with an answer's kind and shapes, apart from its rank."""
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        return f"it should return two matrices, A and B of the plain adapter, not {type(pair).__name__}"
    first, second = map(numbers, pair)
    if first is None or second is None or first.ndim != 2 or second.ndim != 2:
        return "it should return two matrices, A (in, 2r) and B (2r, out)"
    (inner, r), outer = case[0].shape, case[1].size(1)
    if first.size(0) == 2 * inner or second.size(1) == 2 * outer:
        return "stacked along the wrong side: A gets more columns (dim=1), B more rows (dim=0)"
    if first.size(0) != inner or second.size(1) != outer or first.size(1) != second.size(0):
        shapes = tuple(first.shape), tuple(second.shape)
        return f"the shapes are {shapes[0]} and {shapes[1]}, and ({inner}, {2 * r}) and ({2 * r}, {outer}) are wanted"


def _unlike(products, cases):
    slips = {
        "A0 B0 is added, but the residual is W - A0 B0: one of the new halves carries a minus": lambda A, B, A0, B0: (
            A @ B + A0 @ B0
        ),
        "the signs are the other way round: that is A0 B0 - A B, the way back": lambda A, B, A0, B0: A0 @ B0 - A @ B,
        "those are A and B alone: on the original base they count W's largest parts twice": lambda A, B, A0, B0: A @ B,
        "A0 B0 alone is what was taken out of W: what was learned is A B - A0 B0": lambda A, B, A0, B0: A0 @ B0,
        "the differences are taken factor by factor: (A - A0) (B - B0) is another matrix": lambda A, B, A0, B0: (
            (A - A0) @ (B - B0)
        ),
        "A meets B0, and A0 meets B: keep the halves in the same order in both": lambda A, B, A0, B0: A0 @ B - A @ B0,
        "A meets B0, and A0 meets B, with the minus in the other place": lambda A, B, A0, B0: A @ B0 - A0 @ B,
    }

    def agree(function):
        return all(close(product, function(*case)) for product, case in zip(products, cases))

    if agree(lambda A, B, A0, B0: A @ B - A0 @ B0):
        return None
    return next((slip for slip, function in slips.items() if agree(function)), None) or (
        "the product of the two is not A B - A0 B0"
    )


def _too_large(pair, case):
    rank, r = numbers(pair[0]).size(1), case[0].size(1)
    if rank != 2 * r:
        return f"the product is right, but the rank is {rank}: [A, A0] beside each other is enough, rank {2 * r}"


@spoken
def check_unfair(unfair: Callable) -> str | None:
    """`unfair(table)`, table {method: {rate: loss}}: the methods whose best rate is the smallest or largest tried."""
    tables = [_table(best) for best in _BESTS]
    found = []
    for table in tables:
        kept = copy.deepcopy(table)
        found.append(unfair(table))
        if table != kept:
            return CHANGED
    if all(names is None for names in found):
        return Invitation(
            "look at one method's row: where is its smallest loss, and was anything tried beyond that rate?"
        )
    if any(names is None for names in found):
        return "it returns None for some tables: where all is fair, an empty list is wanted"
    if any(isinstance(names, str) for names in found):
        return (
            "it returns one name, but several methods may have been treated unfairly, or none: return a list of names"
        )
    for names, table in zip(found, tables):
        if not isinstance(names, list | tuple | set | frozenset) or not all(
            isinstance(name, str) and name in table for name in names
        ):
            return "it should return a list of methods' names, as they stand in the table"
    if any(len(set(names)) != len(names) for names in found):
        return "a name is there twice: each method once"

    def agree(function):
        return all(set(names) == set(function(table)) for names, table in zip(found, tables))

    if agree(_at_an_end):
        return None
    return next((slip for slip, function in _SLIPS.items() if agree(function)), None) or (
        "those are not the methods whose best rate is the smallest or the largest that was tried for them"
    )


# where each method's best rate is among five: 0 and 4 are the ends
_BESTS = (
    {"LoRA": 2, "DoRA": 4, "PiSSA": 1},
    {"LoRA": 1, "IA3": 3, "BitFit": 2},
    {"LoRA": 0, "DoRA": 2, "IA3": 4, "BitFit": 3},
    {"full": 0, "LoRA": 2},
)


def _table(bests):
    """Losses at five rates a method, the rates in no order; they suit each method differently, as do the losses."""
    table = {}
    for i, (name, best) in enumerate(bests.items()):
        rates = [10 ** (-4 + i % 2 + j / 2) for j in range(5)]
        losses = [1 + 0.3 * ((i * 2 + len(bests)) % 3) + 0.1 * abs(j - best) * (1 + 0.2 * (j > best)) for j in range(5)]
        order = [3, 0, 4, 2, 1] if i % 2 else [1, 4, 2, 0, 3]
        table[name] = {rates[j]: losses[j] for j in order}
    return table


def _best(row):
    return min(row, key=row.get)


def _at_an_end(table):
    return [name for name, row in table.items() if _best(row) in (min(row), max(row))]


def _written_last(table):
    return [name for name, row in table.items() if _best(row) in (next(iter(row)), list(row)[-1])]


_SLIPS = {
    "only the largest rate is looked at: the best may lie below the smallest, too": lambda table: [
        name for name, row in table.items() if _best(row) == max(row)
    ],
    "only the smallest rate is looked at: the best may lie above the largest, too": lambda table: [
        name for name, row in table.items() if _best(row) == min(row)
    ],
    "those are the fair ones: their best rate has a worse one on each side": lambda table: [
        name for name in table if name not in _at_an_end(table)
    ],
    "the rates do not stand in order in the table: compare with min(row) and max(row)": _written_last,
    "that is the method with the largest loss: the worst may have been treated fairly": lambda table: [
        max(table, key=lambda name: min(table[name].values()))
    ],
    "that is the method with the smallest loss: the best may have been treated unfairly, and fairly, too": lambda table: [
        min(table, key=lambda name: min(table[name].values()))
    ],
    "those are all methods: fair is one whose smallest loss has a rate with a larger loss on each side": list,
    "that is none: a best rate at the end of what was tried may have a better one beyond": lambda table: [],
}
