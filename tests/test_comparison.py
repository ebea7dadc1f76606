"""Methods by their recorded rows: which rate is the best, and which seeds count."""

import pytest

from llm.course.comparison import at_best, best_rate, by_method, by_rate, forgotten, half_powers, order


def rows(method, points, task="facts"):
    """Rows of (rate, seed, loss)."""
    said = dict(task=task, method=method, before=5.0)
    return [said | dict(lr=lr, seed=seed, after=after) for lr, seed, after in points]


def test_rates_rise_and_have_the_median_of_their_seeds():
    found = by_rate(rows("lora", [(0.2, 0, 4), (0.1, 0, 1), (0.1, 1, 9), (0.1, 2, 2), (0.2, 1, 5), (0.2, 2, 6)]))
    assert list(found.items()) == [(0.1, 2), (0.2, 5)]


def test_where_one_rate_has_more_seeds_only_those_that_all_have_decide():
    here = rows("lora", [(0.1, 0, 3), (0.2, 0, 2), (0.2, 1, 8), (0.2, 2, 9)])
    assert by_rate(here) == {0.1: 3, 0.2: 2} and best_rate(here) == 0.2
    assert [row["seed"] for row in at_best(here)] == [0, 1, 2]


def test_seeds_that_no_two_rates_share_all_count():
    assert by_rate(rows("lora", [(0.1, 0, 3), (0.2, 1, 2), (0.2, 2, 4)])) == {0.1: 3, 0.2: 3}


def test_rows_are_told_apart_by_task_and_method():
    mixed = rows("lora", [(0.1, 0, 1)]) + rows("lora", [(0.1, 0, 2)], "plays") + rows("full", [(0.1, 0, 3)])
    found = by_method(mixed, "facts")
    assert {name: [row["after"] for row in here] for name, here in found.items()} == {"lora": [1], "full": [3]}


def test_the_coarse_grid_has_half_powers_of_ten():
    rates = [1e-4, 3e-4, 5.6e-4, 1e-3, 1.8e-3, 3e-3, 1e-2, 0.1, 0.18, 0.3, 0.56, 1.0, 3.0]
    found = half_powers(rows("lora", [(lr, 0, 1) for lr in rates]))
    assert [row["lr"] for row in found] == [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 0.1, 0.3, 1.0, 3.0]


def test_forgotten_is_what_the_speeches_cost():
    assert forgotten(dict(speeches_before=4.0, speeches_after=4.5)) == pytest.approx(0.5)


def test_places_follow_the_loss_at_one_rate_or_at_each_ones_own():
    mixed = rows("lora", [(0.1, 0, 3), (0.2, 0, 1)]) + rows("full", [(0.1, 0, 2), (0.05, 0, 1.5)])
    own, shared = order(mixed, "facts"), order(mixed, "facts", 0.1)
    assert list(own.best.items()) == [("lora", 1), ("full", 1.5)] and own.now == own.best
    assert own.places == {"lora": 1, "full": 2} and shared.places == {"full": 1, "lora": 2}
    assert shared.best == own.best and (shared.rate, shared.base) == (0.1, 5.0)
    assert order(mixed, "facts", 0.05).now == {"full": 1.5}, "a method that was not tried there has no place"
