"""What pictures are made with: where labels stand, and a figure that is drawn into again."""

import random
from itertools import pairwise

import pytest

from llm.plots import emptied, new_axes, png, spread


@pytest.mark.parametrize("seed", range(20))
def test_labels_keep_their_order_and_their_distance_and_stay_where_there_is_room(seed):
    chance = random.Random(seed)
    values = [chance.choice((chance.random(), 0.5)) for _ in range(chance.randint(1, 9))]
    moved = spread(values, 0.1)
    order = sorted(range(len(values)), key=values.__getitem__)
    assert all(moved[b] - moved[a] > 0.1 - 1e-9 for a, b in pairwise(order))
    assert sum(moved) == pytest.approx(sum(values)), "crowded labels stand around the place where they belong"
    far = [
        i for i, v in enumerate(values) if all(abs(v - w) > len(values) * 0.1 for j, w in enumerate(values) if j != i)
    ]
    assert all(moved[i] == pytest.approx(values[i]) for i in far)


def test_labels_that_do_not_touch_are_not_moved():
    assert spread([3.0, 1.0, 2.0], 0.9) == [3.0, 1.0, 2.0] and spread([], 1) == []
    assert spread([1.0, 1.0, 1.0], 2) == [-1.0, 1.0, 3.0]


def test_no_label_stands_below_the_axis():
    assert spread([1.0, 1.0, 1.0], 2, low=0) == [0, 2, 4] and spread([-3.0, 1.5], 2, low=0) == [0, 2]
    assert spread([1.0, 9.0], 2, low=0) == [1.0, 9.0]


def test_a_figure_drawn_into_again_shows_what_a_new_one_would():
    def draw(figure, y):
        figure = emptied(figure, 3, 2)
        axes = figure.subplots()
        axes.plot(y)
        return figure

    used = draw(draw(None, [3, 1]), [1, 2])
    assert png(used) == png(draw(None, [1, 2])) != png(draw(None, [3, 1]))
    figure, _ = new_axes(2, 2)
    assert emptied(figure, 9, 9) is figure and not figure.axes
