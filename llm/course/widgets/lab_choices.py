"""What the live lab lets a learner choose: settings, ready ones, what they cost, and the line to get below. Trains nothing."""

import copy
from collections.abc import Callable
from statistics import median
from typing import Any

from llm import files
from llm.adapters import fingerprint
from llm.course.figures.palette import COLOURS, TASKS
from llm.finetune.target_words import TARGETS, targets_of
from llm.lora import SCALING, START
from llm.model import GPT
from llm.paths import RESULTS
from llm.relatives import METHODS, OPTIONS, remove
from llm.text.batches import UNSEEN
from llm.text.records import make_records

LIVE = ("lora", "rslora", "dora", "pissa", "lora-fa", "ia3", "bitfit")
CONTROLS = dict(
    method=LIVE,
    r=(1, 2, 4, 8, 16, 32, 64),
    scaling=tuple(SCALING),
    start=tuple(START),
    targets=(*TARGETS, "lm_head"),
    lr=(1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
)
BEGIN = dict(method="lora", r=8, alpha=8.0, scaling="alpha/r", start="chapter", targets="all", lr=1e-2, steps=40)
# ready settings: what each changes of BEGIN, and what to look for
READY = (
    ("the course's own", {}, "How close does the curve come to the line of full fine-tuning?"),
    (
        "as many steps as full",
        dict(steps=100),
        "Full fine-tuning took 100 steps, too. Is the lower end worth the time?",
    ),
    ("rank 1", dict(r=1, alpha=1.0), "An eighth of the numbers trains. How much of the gain is left?"),
    ("r = 64, a third of the rate", dict(r=64, alpha=64.0, lr=3e-3), "Do eight times as many numbers end lower?"),
    ("too hot", dict(lr=1e-1), "The curve leaves the frame. Which step is kept, and how does it answer?"),
    ("too cold", dict(lr=1e-4), "The curve hardly moves. How many times this rate would you try?"),
    (
        "the chapter's scale",
        dict(scaling="alpha", alpha=16.0),
        "16 times the scale at the same rate. Does it still learn?",
    ),
    ("and a rate to match", dict(scaling="alpha", alpha=16.0, lr=3e-4), "A smaller rate makes up for alpha. Compare."),
    (
        "the paper's start",
        dict(start="paper", lr=3e-2),
        "A starts smaller, at three times the rate. Is the end another?",
    ),
    ("attention only", dict(targets="attention"), "Fewer numbers. Is the curve much higher than with all layers?"),
    ("the MLP only", dict(targets="mlp"), "More numbers than in attention. Do they help more?"),
    ("only the head", dict(targets="lm_head"), "The head is the largest matrix. Does it learn more, or faster?"),
    ("DoRA", dict(method="dora"), "Lengths train apart from directions. What does a step cost?"),
    (
        "only the biases",
        dict(method="bitfit", lr=1e-1),
        "A control: a few thousand numbers, and no A and B. How far do they come?",
    ),
)
PROMPTS = {  # made when asked for: a record's words come out of the tokenizer's tables
    "records": lambda: make_records(2, seed=UNSEEN)[1].sentence,  # the first goes from a place to itself
    "shakespeare": lambda: "The people of the United States,",
}


def chosen(word: str) -> Callable[[str], bool] | list[str] | None:
    """A word of the targets as `apply_lora` takes them; of names it would skip the head."""
    return (lambda path: path == word) if word == "lm_head" else targets_of(word)


def setup(base: GPT, folder: str) -> dict[str, Any]:
    """What the page needs once: the choices, ready settings, what they cost, and where full fine-tuning ends."""
    heeds = {name: [o for o in OPTIONS if o in METHODS[name].heeds and o in BEGIN] for name in LIVE}
    ready = [dict(name=name, change=change, look=look) for name, change, look in READY]
    return dict(
        colors=COLOURS,
        tasks={task: TASKS.get(task, task) for task in PROMPTS},
        prompts={task: prompt() for task, prompt in PROMPTS.items()},
        controls=CONTROLS,
        begin=BEGIN,
        ready=ready,
        heeds=heeds,
        costs=_costs(base),
        whole=sum(p.numel() for p in base.parameters()),
        full=full_ends(base),
        folder=folder,
    )


def full_ends(base: GPT) -> dict[str, dict]:
    """Of each task, where full fine-tuning of this base ends on the same held-out text: the recorded median of its seeds."""
    rows = [row for row in files.read_csv(RESULTS / "ranks.csv") if row["method"] == "full"]
    rows = [row for row in rows if row["base"] == fingerprint(base)]
    ends = {task: [(row["after"], row["steps"]) for row in rows if row["task"] == task] for task in PROMPTS}
    return {task: dict(loss=median(loss for loss, _ in end), steps=end[0][1]) for task, end in ends.items() if end}


def _costs(base):
    """By method and targets: how many numbers train at rank 0 and how many more for each rank, counted on a copy."""
    model = copy.deepcopy(base)

    def count(method, r, targets):
        METHODS[method].prepare(model, r, targets=chosen(targets))
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        remove(model)
        return trained

    costs = {}
    for method in LIVE:
        if method in ("rslora", "pissa"):  # of LoRA's shapes; PiSSA would compute a singular value decomposition
            costs[method] = costs["lora"]
            continue
        costs[method] = {}
        for targets in CONTROLS["targets"]:
            one, two = (count(method, r, targets) for r in (1, 2))
            costs[method][targets] = [2 * one - two, two - one]
    return costs
