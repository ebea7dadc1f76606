"""Check of a comparison in which some methods had rates that did not suit them."""

from collections.abc import Callable

from llm.course.exercises.speak import Comparison, spoken


@spoken
def check_unfair(unfair: Callable) -> str | None:
    """`unfair(table)`, table {method: {rate: loss}}: the methods whose best rate is the smallest or largest tried."""
    # for each method, the place of its best rate among five: 0 and 4 are the ends
    places = [{"LoRA": 2, "DoRA": 4, "PiSSA": 1}, {"LoRA": 1, "IA3": 3, "BitFit": 2}]
    places += [{"LoRA": 0, "DoRA": 2, "IA3": 4, "BitFit": 3}, {"full": 0, "LoRA": 2}]

    def best_at(*ends):
        """The methods whose best rate is one of the ends of a row {rate: loss}."""
        return lambda table: {n for n, row in table.items() if min(row, key=row.get) in [end(row) for end in ends]}

    right = best_at(min, max)
    slips = {
        "you check only the largest rate, but the best may also lie below the smallest": best_at(max),
        "you check only the smallest rate, but the best may also lie above the largest": best_at(min),
        "those are the methods that were treated fairly; their best rate lies between others that were tried": lambda table: (
            set(table) - right(table)
        ),
    }
    return Comparison(
        invite="look at one method's row. Where is its smallest loss, and were there tries on both sides of that rate?",
        otherwise="those are not the methods whose best rate is the smallest or the largest that was tried for them",
        unfit=_no_names,
        read=set,
        same=lambda names, goal: names == goal,
    ).diagnose(unfair, [(_table(best),) for best in places], right, slips)


def _no_names(names, table):
    if names is None:
        return "it returns None for some tables; if every method was treated fairly, return an empty list"
    if isinstance(names, str):
        return "it returns one name, but there may be several such methods, or none; return a list"
    if not isinstance(names, list | tuple | set | frozenset) or not all(name in [*table] for name in names):
        return "it should return a list of names of methods, spelled as in the table"


def _table(places):
    """Losses of each method at five rates, in no order; each method has rates and losses of its own."""
    return {
        name: {10 ** (-4 + i % 2 + j / 2): 1 + i / 5 + abs(j - best) / 10 for j in (3, 0, 4, 2, 1)}
        for i, (name, best) in enumerate(places.items())
    }
