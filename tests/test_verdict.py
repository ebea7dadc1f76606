"""A run's curve is judged as a person would judge it who has seen many, whatever its scale, length and noise."""

import math
import random

import pytest

from llm.finetune.verdict import verdict


def curve(*losses, every=25):
    return [(i * every, loss) for i, loss in enumerate(losses)]


def between(*losses, steps=100, noise=0.03, seed=0):
    """A training loss for each step along straight lines through `losses`, noisy as single batches are."""
    draw, found = random.Random(seed), []
    for i in range(steps):
        whole, part = divmod(i * (len(losses) - 1) / (steps - 1), 1)
        left, right = losses[int(whole)], losses[min(int(whole) + 1, len(losses) - 1)]
        found.append((left + (right - left) * part) * (1 + draw.gauss(0, noise)))
    return found


CURVES = {
    "soared and stayed": ("too hot", (4.5, 7.0, 7.2, 6.9, 6.8), (4.5, 7.0, 7.1, 6.9, 6.8)),
    "soared, came back a little": ("too hot", (4.5, 8.0, 6.0, 5.2, 4.7), (4.5, 8.0, 6.0, 5.2, 4.6)),
    "soared, ended just below the base": ("too hot", (4.5, 8.0, 6.0, 5.0, 4.2), (4.5, 8.0, 6.0, 5.0, 4.2)),
    "rose slowly": ("too hot", (3.0, 3.05, 3.1, 3.2, 3.3), (3.0, 3.05, 3.1, 3.2, 3.3)),
    "fell, then went off": ("too hot", (4.5, 1.5, 1.2, 3.0, 4.0), (4.5, 1.5, 1.2, 3.0, 4.0)),
    "fell, then went off above the base": ("too hot", (4.5, 3.0, 2.5, 6.0, 7.0), (4.5, 3.0, 2.5, 6.0, 7.0)),
    "flat": ("too cold", (4.5, 4.5, 4.499, 4.499, 4.498), (4.5, 4.5, 4.5, 4.5, 4.5)),
    "a hundredth below": ("too cold", (5.45, 5.44, 5.43, 5.42, 5.41), (5.45, 5.44, 5.43, 5.42, 5.41)),
    "a straight line down": ("falling", (5.45, 5.40, 5.35, 5.30, 5.25), (5.45, 5.40, 5.35, 5.30, 5.25)),
    "late but fast": ("falling", (4.5, 4.49, 4.4, 4.0, 3.0), (4.5, 4.49, 4.4, 4.0, 3.0)),
    "down, up, training down": ("overfitting", (3.2, 2.9, 2.8, 3.0, 3.3), (3.2, 2.8, 2.2, 1.5, 0.9)),
    "up from the start, training down": ("overfitting", (3.2, 3.3, 3.6, 4.0, 4.5), (3.2, 2.8, 2.0, 1.0, 0.5)),
    "up a little, training at its floor": ("overfitting", (3.2, 2.2, 2.1, 2.2, 2.25), (3.2, 0.6, 0.1, 0.1, 0.1)),
    "flat, training down": ("overfitting", (3.2, 3.19, 3.2, 3.19, 3.2), (3.2, 2.8, 2.2, 1.5, 0.9)),
    "settled": ("done", (4.5, 1.0, 0.6, 0.52, 0.5), (4.5, 1.0, 0.6, 0.52, 0.5)),
    "settled, with a ripple": ("done", (4.5, 1.0, 0.5, 0.51, 0.505), (4.5, 1.0, 0.5, 0.51, 0.5)),
    "a bump at the warm-up": ("done", (4.5, 4.6, 0.7, 0.55, 0.54), (4.5, 4.6, 0.7, 0.55, 0.54)),
}


@pytest.mark.parametrize("name", CURVES)
def test_each_kind_of_curve_is_known(name):
    kind, heldout, training = CURVES[name]
    for seed in range(20):
        found = verdict(curve(*heldout), between(*training, seed=seed))
        assert found.kind == kind and found.sentence and found.try_next


@pytest.mark.parametrize("name", CURVES)
def test_neither_the_unit_of_steps_nor_that_of_the_loss_nor_a_late_start_changes_what_is_seen(name):
    kind, heldout, training = CURVES[name]
    shifted = [(step + 40, 0.1 * loss) for step, loss in curve(*heldout, every=3)]
    assert verdict(shifted, [0.1 * x for x in between(*training, steps=12)]).kind == kind
    assert verdict(curve(*heldout, every=400), between(*training, steps=1600)).kind == kind


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_too_hot_wherever_it_stands(bad):
    assert verdict(curve(4.5, 3.0, bad), between(4.5, 3.0)).kind == "too hot"
    assert verdict(curve(4.5, 3.0, 2.0), [4.5, bad]).kind == "too hot"


def test_without_a_measurement_after_the_start_there_is_no_verdict():
    assert verdict([], []) is None and verdict([(0, 4.5)], [4.4]) is None


def test_two_measurements_and_no_training_loss_are_enough_for_a_verdict():
    assert verdict([(0, 4.5), (100, 6.0)], []).kind == "too hot"
    assert verdict([(0, 4.5), (100, 4.5)], []).kind == "too cold"
    assert verdict([(0, 4.5), (100, 2.0)], []).kind == "falling"


def test_the_sentence_holds_the_numbers_that_it_speaks_of_and_the_advice_is_what_its_kind_asks_for():
    hot = verdict(curve(4.5, 7.0, 6.8), between(4.5, 7.0, 6.8))
    assert "4.500" in hot.sentence and "6.800" in hot.sentence and "rate" in hot.try_next
    assert "rate" in verdict(curve(4.5, 4.5, 4.5), between(4.5, 4.5)).try_next
    assert "steps" in verdict(curve(4.5, 4.0, 3.5), between(4.5, 3.5)).try_next
    heart = verdict(curve(3.2, 2.9, 2.8, 3.0, 3.3), between(3.2, 2.2, 0.9))
    assert "step 50" in heart.sentence and heart.try_next.startswith("the best step was kept; for a better one try")
    rising = verdict(curve(3.2, 3.3, 3.6, 4.0, 4.5), between(3.2, 2.0, 0.5))
    assert rising.kind == "overfitting" and "kept" not in rising.try_next  # none was better than the base
