"""Every figure as the notebooks call it, and the explorers' after each value of their controls: no text over text, none cut off."""

import math
from itertools import combinations
from types import FunctionType

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from llm.course import figures
from llm.course.comparison import order
from llm.course.four_bits import BLOCKS, four_bit, relative_error, rounded, survival
from llm.course.movements import Moved
from llm.course.toy_matrices import MATRICES, approximate, noise, wrapped
from llm.files import read_csv
from llm.paths import ROOT
from llm.quantize import FORMATS
from llm.spectra import decompose

RECORDED = {path.stem: read_csv(path) for path in sorted((ROOT / "data" / "results").glob("*.csv"))}


def pick(name, **where):
    return [row for row in RECORDED[name] if where.items() <= row.items()]


def at(method, r=8, task="shakespeare", steps=100):
    return pick("rates", task=task, method=method, r=r, steps=steps)


def arms_on(task, steps):
    ranks = {f"LoRA, r = {r}": at("lora", r, task, steps) for r in (1, 8, 64)}
    return ranks | {"full": at("full", 8, task, steps), "final norm": at("norm", 8, task, steps)}


def of_qlora(ways):
    def losses(task, measure, quantize, merge):
        rows = figures.at_best_rate(pick("qlora", task=task, quantize=quantize, merge=merge))
        return [row[measure] for row in rows][:3]

    measures = {"held out": "after", "speeches": "speeches_after"}
    return {
        f"{task}:\n{title}": {name: losses(task, measure, *way) for name, way in ways.items()}
        for task in ("records", "shakespeare")
        for title, measure in measures.items()
    }


def matrices():
    kinds = {"attn.c_attn": (384, 128), "attn.c_proj": (128, 128), "mlp.c_fc": (512, 128), "mlp.c_proj": (128, 512)}
    return {f"transformer.h.{i}.{kind}.weight": shape for i in range(4) for kind, shape in kinds.items()}


def falling(start, end, steps=30):
    return [end + (start - end) * math.exp(-4 * i / steps) for i in range(steps)]


def singular():
    random = {name: torch.linalg.svdvals(noise(*shape)).tolist() for name, shape in matrices().items()}
    return figures.singular_values(
        {name: [3 * s * 0.8**i for i, s in enumerate(v)] for name, v in random.items()}, random
    )


def facts_by_size():
    def of(method, r, lr):
        where = dict(task="facts", method=method, r=r, lr=lr, steps=200)
        return pick("sizes", **where) + [row | {"examples": 512} for row in pick("facts", **where)]

    arms = {"LoRA, r = 1": ("lora", 1, 1e-2), "LoRA, r = 64": ("lora", 64, 3e-3), "full": ("full", 8, 3e-3)}
    return figures.curves({"facts, 200 steps": {name: of(*arm) for name, arm in arms.items()}}, "examples", "right")


def wide_batches():
    def of(method):
        return [row for n in (16, 64, 256) for row in figures.at_best_rate(pick("batches", method=method, rows=n))]

    return figures.curves({"facts, 6,400 rows": {"LoRA, r = 64": of("lora"), "full": of("full")}}, "rows", "right")


def by_steps():
    panels = {f"plays, {n} steps": {"full": at("full", steps=n), "LoRA, r = 8": at("lora", steps=n)} for n in (30, 100)}
    return figures.curves(panels, "lr", level="before")


def ranks_needed():
    rows = [row for row in RECORDED["steps"] + RECORDED["rates"] if (row["method"], row["lr"]) == ("full", 1e-3)]
    two = {task: [row for row in rows if row["task"] == task] for task in ("facts", "shakespeare")}
    return figures.curves({"full fine-tunes": two}, "steps", "rank90")


def shares():
    shapes = {"ours": (4, 128), "GPT-2": (12, 768), "GPT-2 medium": (24, 1024), "GPT-2 large": (36, 1280)}
    shapes |= {"GPT-2 XL": (48, 1600), "GPT-3": (96, 12288)}
    totals = dict(zip(shapes, (13_665_280, 124_439_808, 354_823_168, 774_030_080, 1_557_611_200, 174_604_000_000)))
    return figures.shares(
        {
            name: {r: layers * 18 * d * r / totals[name] for r in (1, 2, 4, 8, 16, 32, 64)}
            for name, (layers, d) in shapes.items()
        }
    )


PARTS = {"body": 0.21, "head": 0.34, "backward": 0.6, "update": 0.05}
CURVES = {
    "shakespeare": {"full": ([10, 20, 30], [5.1, 5.0, 4.97]), "lora": ([10, 20, 30], [5.1, 5.02, 4.98]), "norm": ([10, 20, 30], [5.15, 5.12, 5.1])},
    "records": {"full": ([10, 20, 30], [0.5, 0.1, 0.001]), "lora": ([10, 20, 30], [0.6, 0.1, 0.004]), "norm": ([10, 20, 30], [4.5, 4.0, 3.6])},
}  # fmt: skip
SCORES = {arm: {"parses": p, "right": r, "name right": r} for arm, p, r in (("base", 0.0, 0.0), ("norm", 0.13, 0.0), ("lora", 1.0, 0.99), ("full", 1.0, 1.0))}  # fmt: skip
WEIGHT = noise(128, 128, seed=3)
WORD = MATRICES["a word"]()


STORED = {
    "spectrum": lambda: figures.spectrum((decompose(noise(384, 128)), 8), "W", bands=("query", "key", "value")),
    "order, plays": lambda: figures.order(order(RECORDED["relatives"], "shakespeare", 1e-2)),
    "order, facts": lambda: figures.order(order(RECORDED["relatives"], "facts", 1e-2)),
    "stacked": lambda: figures.stacked({"LoRA": PARTS, "full": {k: 1.6 * v for k, v in PARTS.items()}}, "seconds of one step"),
    "side_by_side": lambda: figures.side_by_side(
        {"seconds of a step": {"r = 1": 0.32, "r = 8": 0.33, "full": 0.6}, "MB of a step": {"r = 1": 210.0, "r = 8": 212.0, "full": 390.0}}
    ),
    "rates, plays": lambda: figures.rates(RECORDED["relatives"], "shakespeare"),
    "rates, facts": lambda: figures.rates(RECORDED["relatives"], "facts"),
    "compared": lambda: figures.compared(RECORDED["relatives"]),
    "forgetting": lambda: figures.forgetting(RECORDED["relatives"]),
    "sizes_by_rank": lambda: figures.sizes_by_rank(
        {t: {"alpha/r": {r: 1 / r for r in (4, 16, 64)}, "alpha/sqrt(r)": {r: r**-0.5 for r in (4, 16, 64)}} for t in ("a step", "the output")}
    ),
    "lengths_and_turns": lambda: figures.lengths_and_turns(
        {m: Moved(torch.rand(64) * 0.1, torch.rand(64) * 0.01) for m in ("lora", "dora", "full")}
    ),
    "largest_parts": lambda: figures.largest_parts(
        [5 * 0.95**i for i in range(60)], [5 * 0.95 ** (i + 8) for i in range(60)], [5 * 0.95**i for i in range(8)]
    ),
    "footprint": lambda: figures.footprint(54.7e6, 266_935),
    "loss_curves": lambda: figures.loss_curves(CURVES, {"shakespeare": 5.22, "records": 5.04}),
    "loss_curves, one": lambda: figures.loss_curves(
        {"shakespeare": {"norm": ([10, 20], [5.0, 4.9]), "lora": ([10, 20], [4.5, 4.3])}}, {"shakespeare": 5.1}
    ),
    "score_bars": lambda: figures.score_bars(SCORES),
    "turn": lambda: figures.turn(
        [falling(3.6, low) for low in (0.05, 0.2)],
        [[3.5, 1.6, 0.9, 0.57, 0.53, 0.53, 0.58, 0.6, 0.61 + up, 0.6 + up] for up in (0, 0.2)],
        3,
    ),
    "training_log": lambda: figures.training_log(
        [{"tokens": 1e6 * i, "plays": 9 - i / 2, "speeches": 9 - i / 2.1, "wikipedia": 9 - i / 3} for i in range(1, 10)],
        ["plays", "speeches", "wikipedia"],
    ),
    "layer": lambda: figures.layer(wrapped(d=128, r=4, alpha=2)),
    "rank_strip": lambda: figures.rank_strip(
        [approximate(WORD, r) for r in (1, 2, 3, 4)], [approximate(WORD, r).error for r in range(9)]
    ),
    "by_rank": lambda: figures.by_rank(RECORDED["ranks"]),
    "by_rank, facts": lambda: figures.by_rank(figures.at_best_rate(RECORDED["facts"]), "right", tasks=("facts",)),
    "by_rank, speeches": lambda: figures.by_rank(RECORDED["ranks"], "speeches_after"),
    "by_target": lambda: figures.by_target(pick("targets", r=8)),
    "by_seed": lambda: figures.by_seed(of_qlora({"LoRA": ("", ""), "QLoRA": ("nf4", "")}), {"LoRA": "lora", "QLoRA": "qlora"}),
    "by_seed, merged": lambda: figures.by_seed(
        of_qlora(ways := {"not merged": ("nf4", ""), "dequantized": ("nf4", "dequantized"), "original": ("nf4", "original"), "rounded again": ("nf4", "again")}),
        dict.fromkeys(ways, "qlora"),
    ),
    "curves, rank90": ranks_needed,
    "curves, facts": facts_by_size,
    "curves, batches": wide_batches,
    "curves, steps": by_steps,
    "curves, SmolLM2": lambda: figures.curves(
        {"SmolLM2, plays, 30 steps": {"full": pick("smollm2", method="full"), "LoRA, r = 8": pick("smollm2", method="lora")}}, "lr", level="before"
    ),
    "curves, ranks": lambda: figures.curves(
        {"plays, 100 steps": {f"r = {r}": at("lora", r) for r in (1, 8, 64)} | {"full": at("full")}}, "lr", level="before"
    ),
    "frontier": lambda: figures.frontier({"shakespeare": arms_on("shakespeare", 100), "records": arms_on("records", 30)}),
    "kept_updates": lambda: figures.kept_updates(
        {t: survival(four_bit(WEIGHT), s * noise(128, 128, seed=1)) for t, s in (("as trained", 0.3), ("a quarter of it", 0.07))}
    ),
    "levels": lambda: figures.levels([rounded(WEIGHT, name) for name in FORMATS]),
    "rounding_errors": lambda: figures.rounding_errors(
        {f: {k: [relative_error(w, f, b) for b in BLOCKS] for k, w in (("weights", WEIGHT), ("noise", noise(128, 128)))} for f in FORMATS},
        list(BLOCKS),
        {f: {name.removeprefix("transformer.").removesuffix(".weight"): relative_error(noise(*shape, seed=i), f) for i, (name, shape) in enumerate(matrices().items())} for f in FORMATS},
    ),
    "savings": lambda: figures.savings(
        {"this course": 128, "GPT-2 small": 768, "GPT-2 medium": 1024, "GPT-3 6.7B": 4096, "GPT-3 175B": 12288},
        8,
        {"GPT-2 small": (1024, 64), "GPT-3 territory": (4096, 256)},
    ),
    "shares": shares,
    "energy_table": lambda: figures.energy_table(
        {arm: {name: [1 - 0.5**r for r in (1, 2, 4, 8, 16)] for name in matrices()} for arm in ("records", "shakespeare", "noise")}, [1, 2, 4, 8, 16]
    ),
    "fits": lambda: figures.fits(
        {t: {r: falling(1, 10**-r) for r in (1, 2, 4, 8)} | {"full": falling(1, 1e-7)} for t in ("the word", "the surface", "the noise")},
        {t: {r: 0.5 / r for r in (1, 2, 4, 8)} for t in ("the word", "the surface", "the noise")},
        low=1e-6,
    ),
    "loss_by_rank": lambda: figures.loss_by_rank(
        [0, 1, 2, 4, 8, 16, 32], *({t: [5.0 - k * i / 10 for i in range(7)] for t in ("records", "shakespeare")} for k in (1.5, 1)),
        dict.fromkeys(("records", "shakespeare"), 5.0), dict.fromkeys(("records", "shakespeare"), 4.0),
    ),
    "singular_values": singular,
}  # fmt: skip


def texts(figure):
    """Every text as it is drawn, and the box that its ink is in."""
    drawn, draw = [], Text.draw

    def recorded(text, renderer):
        draw(text, renderer)
        if text.get_visible() and text.get_text().strip():
            drawn.append((text.get_text(), Text.get_window_extent(text, renderer)))

    try:
        Text.draw = recorded
        FigureCanvasAgg(figure).draw()
    finally:
        Text.draw = draw
    return drawn


def faults(figure):
    found, frame = texts(figure), figure.bbox
    for text, box in found:
        if box.x0 < -1 or box.y0 < -1 or box.x1 > frame.x1 + 1 or box.y1 > frame.y1 + 1:
            yield f"{text!r} leaves the frame"
    for (a, one), (b, other) in combinations(found, 2):
        wide = min(one.x1, other.x1) - max(one.x0, other.x0)
        high = min(one.y1, other.y1) - max(one.y0, other.y0)
        if wide > 1 and high > 0.2 * min(one.height, other.height):  # a line's box is taller than its letters
            yield f"{a!r} over {b!r}"


@pytest.mark.parametrize("name", STORED)
def test_no_text_lies_over_another_or_leaves_the_frame(name):
    assert not list(faults(STORED[name]()))


def test_every_figure_is_here():
    made = {
        name
        for name, of in vars(figures).items()
        if isinstance(of, FunctionType) and of.__annotations__.get("return") is Figure
    }
    assert made <= {name.split(",")[0] for name in STORED}


def test_a_fault_would_be_found():
    figure, (axes,) = figures.new_axes(3, 2)
    axes.text(0.2, 0.5, "one"), axes.text(0.21, 0.51, "two"), figure.text(2, 0.5, "far away")
    assert list(faults(figure)) == ["'far away' leaves the frame", "'one' over 'two'"]


@pytest.mark.parametrize("name", STORED)
def test_the_alternative_text_says_what_is_shown_in_numbers(name):
    data, metadata = STORED[name]()._repr_mimebundle_()
    alt = metadata["image/png"]["alt"]
    assert data == {} and 20 < len(alt) < 3000 and any(map(str.isdigit, alt)) and "\n" not in alt
