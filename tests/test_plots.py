"""What pictures are made with: where labels stand, and a figure that is drawn into again."""

import random
from itertools import pairwise

import pytest
import torch
from matplotlib.colors import to_hex

from llm.course import figures
from llm.course.comparison import order
from llm.course.figures.canvas import spread
from llm.course.figures.palette import COLOURS
from llm.course.four_bits import four_bit, rounded, survival
from llm.course.movements import Moved
from llm.course.toy_matrices import noise


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


def swept(task, method, losses, numbers=100, right=0.5, seeds=(0,)):
    """Rows of one method: rate -> loss, each with these seeds, a seed a hundredth above the one before."""
    said = dict(task=task, method=method, trainable=numbers, right=right, before=5.0)
    return [said | dict(lr=lr, seed=s, after=loss + 0.01 * s) for lr, loss in losses.items() for s in seeds]


SWEPT = [
    row
    for task in ("shakespeare", "facts")
    for row in (
        *swept(task, "lora", {1e-3: 4.5, 1e-2: 4.0, 1e-1: 6.0}, 65_536, 0.4, seeds=(0, 1, 2)),
        *swept(task, "dora", {1e-3: 4.6, 1e-2: 4.1, 1e-1: 4.3}, 70_144, 0.3),
        *swept(task, "norm", {1e-2: 4.9, 1e-1: 4.7, 1.0: 4.8}, 256, 0.0),
        *swept(task, "full", {1e-4: 4.6, 1e-3: 4.2, 1e-2: 9.0}, 13_665_280, 0.8),
    )
]


def test_levels_and_kept_updates_say_what_was_measured():
    parts = [rounded(noise(24, 64), format) for format in ("nf4", "int4")]
    titles = [axes.get_title(loc="left") for axes in figures.levels(parts).axes]
    for part, title in zip(parts, titles):
        assert f"{part.entropy:.2f} bits, error {part.error:.1%}" in title
    layer = four_bit(noise(24, 64))
    part = survival(layer, 0.3 * noise(24, 64, seed=1))
    [axes] = figures.kept_updates({"as trained": part}).axes
    assert axes.get_title() == f"as trained\n{part.same:.0%} keep their code; relative error {part.error:.0%}"


def test_rounding_errors_has_a_line_for_each_format_and_one_for_its_control():
    by_block = {f: {"weights": [0.1, 0.2], "noise": [0.1, 0.15]} for f in ("nf4", "int4")}
    left, right = figures.rounding_errors(by_block, [16, 64], {f: {"a": 0.1, "b": 0.2} for f in by_block}).axes
    assert len(left.lines) == 4 and len(right.lines) == 2
    assert [text.get_text() for text in right.get_yticklabels()] == ["a", "b"]


def test_of_each_rank_the_rows_at_its_best_rate_are_kept():
    rows = [
        dict(task="facts", method="lora", r=r, lr=lr, seed=seed, after=after)
        for r, lr, losses in [(1, 0.1, (3, 5)), (1, 0.2, (2, 9)), (8, 0.1, (2, 2)), (8, 0.2, (1, 2))]
        for seed, after in enumerate(losses)
    ]
    assert [(row["r"], row["lr"]) for row in figures.at_best_rate(rows)] == [(1, 0.1), (1, 0.1), (8, 0.2), (8, 0.2)]


def test_arms_by_seed_have_a_point_a_seed_a_line_for_each_and_a_bar_at_the_median():
    arms = {"LoRA": [1.0, 3.0, 2.0], "QLoRA": [2.0, 5.0, 1.0]}
    [axes, other] = figures.by_seed({"a": arms, "b": arms}, {"LoRA": "lora", "QLoRA": "qlora"}).axes
    assert [axes.get_title(), other.get_title()] == ["a", "b"]
    assert [text.get_text() for text in axes.get_xticklabels()] == list(arms)
    drawn = [(to_hex(line.get_color()).upper(), list(line.get_ydata())) for line in axes.lines]
    lines = [(COLOURS["control"], list(pair)) for pair in zip(*arms.values())]
    ours, theirs = COLOURS["lora"], COLOURS["qlora"]
    assert drawn == [*lines, (ours, arms["LoRA"]), (ours, [2.0]), (theirs, arms["QLoRA"]), (theirs, [2.0])]


def recorded(method, *points, before=5.0, knew=4.0):
    """Rows of (rate, loss, loss on the speeches)."""
    said = dict(task="facts", method=method, before=before, speeches_before=knew)
    return [said | dict(lr=lr, after=after, speeches_after=forgot) for lr, after, forgot in points]


FULL = recorded("full", (0.1, 3, 5), (0.1, 5, 7), (0.1, 4, 4), (0.2, 2, 9))
LORA = recorded("lora", (0.1, 1, 4), (0.2, 3, 5))


def test_a_curve_goes_through_the_medians_and_every_seed_is_a_point():
    [axes] = figures.curves({"facts": {"full": FULL, "r = 1": LORA}}, "lr", level="before").axes
    lines = {(line.get_marker(), line.get_linestyle()): [] for line in axes.lines}
    for line in axes.lines:
        lines[line.get_marker(), line.get_linestyle()].append((list(line.get_xdata()), list(line.get_ydata())))
    assert lines["o", "-"] == [([0.1, 0.2], [4, 2]), ([0.1, 0.2], [1, 3])]
    assert sorted(y for _, ys in lines["o", "None"] for y in ys) == [1, 2, 3, 3, 4, 5]
    assert lines["None", "--"] == [([0.1, 0.2], [5.0, 5.0])]
    assert [text.get_text() for text in axes.texts] == ["full", "r = 1", "base"]
    colours = [line.get_color() for line in axes.lines if (line.get_marker(), line.get_linestyle()) == ("o", "-")]
    assert colours == [COLOURS["full"], COLOURS["lora"]]


def test_the_frontier_has_a_point_for_each_rate_and_a_level_for_what_the_base_knew():
    [axes, _] = figures.frontier({"facts": {"full": FULL}, "plays": {"r = 1": LORA}}).axes
    first, level = axes.lines
    assert (list(first.get_xdata()), list(first.get_ydata())) == ([4, 2], [5, 9])
    assert set(level.get_ydata()) == {4.0} and axes.get_yscale() == "log"


def test_the_frontier_leaves_out_a_rate_at_which_the_task_was_not_learned():
    broken = recorded("lora", (0.1, 3, 5), (0.2, 6, 9), before=5.0)
    [axes, _] = figures.frontier({"facts": {"r = 1": broken}, "plays": {"r = 1": LORA}}).axes
    assert (list(axes.lines[0].get_xdata()), list(axes.lines[0].get_ydata())) == ([3], [5])


# LoRA's relatives


def test_each_methods_best_rate_stands_in_a_ring_over_the_others_in_grey():
    panels = figures.rates(SWEPT, "shakespeare").axes
    drawn = {axes.get_title(): axes for axes in panels}
    assert len(panels) == 12 and not drawn["PiSSA"].texts
    own = [line for line in drawn["LoRA"].lines if to_hex(line.get_color()) == COLOURS["lora"].lower()]
    curve, ring = own
    assert list(curve.get_ydata()) == [4.51, 4.01, 6.01], "the medians"
    assert list(ring.get_xdata()) == [1e-2] and ring.get_markerfacecolor() == "none"
    assert [text.get_text() for text in drawn["full fine-tune"].texts] == ["4.20"]


def test_the_comparison_has_a_dot_a_seed_a_bar_at_the_median_and_loras_spread_as_a_band():
    facts, plays = figures.compared(SWEPT).axes
    for axes, lora in ((facts, [0.4] * 3), (plays, [4.0, 4.01, 4.02])):
        dots = {round(x): list(ys) for line in axes.lines if line.get_marker() == "o" for x, *_, ys in
                [(line.get_xdata()[0], line.get_ydata())]}  # fmt: skip
        assert dots[65_536] == pytest.approx(lora) and len(dots) == 4
        bars = [line.get_ydata()[0] for line in axes.lines if line.get_marker() == "_"]
        assert len(bars) == 4 and pytest.approx(lora[1]) in bars
        [band] = axes.patches
        edges = band.get_patch_transform().transform(band.get_path().vertices)[:, 1]  # before matplotlib 3.9 a polygon
        assert (edges.min(), edges.max()) == pytest.approx((min(lora), max(lora)))
        assert {"LoRA", "DoRA", "final norm", "full\nfine-tune"} <= {text.get_text() for text in axes.texts}


def test_equal_numbers_stand_side_by_side_and_others_where_they_are():
    rows = [row | dict(trainable=65_536) if row["method"] == "dora" else row for row in SWEPT]
    _, plays = figures.compared(rows).axes
    at = sorted(line.get_xdata()[0] for line in plays.lines if line.get_marker() == "_")
    assert at[0] == 256 and at[1] == 65_536 and at[2] > 1.2 * at[1] and at[3] == 13_665_280


def test_under_one_rate_each_method_gets_the_place_that_its_loss_there_gives_it():
    [axes] = figures.order(order(SWEPT, "shakespeare", 1e-2)).axes
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["LoRA", "DoRA", "full fine-tune", "final norm"]
    assert [text.get_text() for text in axes.texts] == ["place", "base", "1", "2", "4", "3"]
    _, dots, beyond = axes.collections
    assert len(dots.get_offsets()) == 3 and beyond.get_offsets()[0][1] == 2, "the full fine-tune has left the picture"
    [axes] = figures.order(order(SWEPT, "shakespeare", 1e-4)).axes
    assert [text.get_text() for text in axes.texts] == ["place", "base", "-", "-", "1", "-"]


def test_lengths_and_turns_have_a_dot_an_output_and_say_how_they_go_together():
    parts = {name: Moved(torch.tensor([0.1, 0.2, 0.4]), torch.tensor(t)) for name, t in
             {"lora": [0.1, 0.2, 0.4], "full": [0.4, 0.2, 0.1]}.items()}  # fmt: skip
    up, down = figures.lengths_and_turns(parts).axes
    assert up.get_title() == "LoRA: correlation +1.00" and "fine-tune: correlation -0.9" in down.get_title()
    assert len(up.lines[0].get_xdata()) == 3


def test_sizes_by_rank_labels_each_scale_and_pissas_parts_are_three_rows_of_dots():
    panels = {"a step": {"alpha/r": {4: 1.0, 16: 0.25}, "alpha/sqrt(r)": {4: 1.0, 16: 1.0}}}
    [axes] = figures.sizes_by_rank(panels).axes
    assert [text.get_text() for text in axes.texts] == ["alpha/r", "alpha/sqrt(r)"] and len(axes.lines) == 2
    [axes] = figures.largest_parts([5.0, 4.0, 3.0, 2.0], [3.0, 2.0, 0.0, 0.0], [5.0, 4.0], show=4).axes
    assert [len(line.get_xdata()) for line in axes.lines] == [4, 2, 4]
