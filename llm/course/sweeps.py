"""Recorded sweeps: many small fine-tunes of one base, a row each, in `data/results/` (`python -m llm sweep`).

A row is one run, described in full, and what it measured, on which device. A stopped sweep goes on where it was.
"""

import multiprocessing
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from statistics import median

import torch

from llm import files
from llm.adapters import fingerprint
from llm.bases import load_base
from llm.course.tasks import ARMS, answers, load_task, score, speeches
from llm.errors import SettingError, TrainingError
from llm.finetune.targets import targets_of
from llm.lora import SCALING, apply_lora
from llm.paths import RESULTS
from llm.text.batches import UNSEEN
from llm.text.records import make_facts, make_records
from llm.training import evaluate, train

SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Recipe:
    """One fine-tune, described in full; method "lora" uses r to targets and start, the others do not."""

    task: str = "records"
    method: str = "lora"
    r: int = 8
    alpha: float = 8.0
    scaling: str = "alpha/r"
    targets: str = "all"
    lr: float = ARMS["lora"].lr
    steps: int = 100
    seed: int = 0
    start: str = "chapter"
    precision: str = "float32"  # said, so that a row does not depend on what the machine multiplies


def _arms(task):
    return [Recipe(task, method, lr=ARMS[method].lr, seed=s) for method in ("full", "norm") for s in SEEDS]


SWEEPS: dict[str, list[Recipe]] = {
    # which rate suits which method: ARMS in tasks.py takes its rates from here
    "rates": [
        Recipe(task, method, lr=lr)
        for task in ("records", "shakespeare")
        for method, rates in {
            "full": (3e-4, 1e-3, 3e-3),
            "lora": (3e-3, 1e-2, 3e-2),
            "norm": (1e-2, 3e-2, 1e-1),
        }.items()
        for lr in rates
    ],
    # alpha = r, so that alpha/r is 1 at every rank and the rank alone changes
    "ranks": [
        run
        for task, ranks in {"records": (1, 2, 4, 8, 16, 32, 64), "shakespeare": (1, 4, 16, 64)}.items()
        for run in _arms(task) + [Recipe(task, r=r, alpha=r, seed=s) for r in ranks for s in SEEDS]
    ],
    # the same alpha under three conventions, each over a range of learning rates, at a small rank and a large one
    "alphas": [
        Recipe(r=r, alpha=16.0, scaling=scaling, lr=lr, steps=40, seed=s, start=start)
        for start, rates in {
            "chapter": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
            "paper": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
        }.items()
        for scaling in SCALING
        for r in (4, 64)
        for lr in rates
        for s in SEEDS
    ],
    # the largest rank of "ranks" once more, at gentler rates
    "cooler": [Recipe(r=64, alpha=64, lr=lr, seed=s) for lr in (1e-3, 3e-3) for s in SEEDS],
    # does the head's precision while training change what is learned? (on a processor; on a GPU it is all products')
    "precisions": [
        Recipe(task, r=r, alpha=r, seed=s, precision=precision)
        for task, r in (("records", 1), ("records", 8), ("shakespeare", 8), ("shakespeare", 64))
        for precision in ("float32", "bfloat16")
        for s in SEEDS
    ],
    # what no prompt gives away must be stored: how much is, by rank, each at its best rate?
    "facts": [
        Recipe("facts", method, r=r, alpha=r, lr=lr, steps=200, seed=s)
        for method, r, rates in [
            ("full", 8, (1e-3,)),
            ("norm", 8, (3e-2,)),
            *(("lora", r, (3e-3, 1e-2)) for r in (1, 4, 8, 64)),
        ]
        for lr in rates
        for s in SEEDS
    ],
    "targets": [
        Recipe(task, targets=t, seed=s)
        for task in ("records", "shakespeare")
        for t in ("attention", "mlp", "all")
        for s in SEEDS
    ],
}


def measure(run: Recipe, device: str = "cpu") -> dict:
    """Do one run and measure it: trainable parameters, held-out loss (nats a token) before and after, the loss on the
    speeches before and after, shares of 100 answers that parse and are right, seconds a step, the device, the
    base's fingerprint."""
    torch.manual_seed(run.seed)
    task, model = _task(run.task), load_base()
    before, knew = _start(run.task)
    if run.method == "lora":
        apply_lora(model, run.r, run.alpha, run.scaling, targets=targets_of(run.targets), start=run.start)
    else:
        ARMS[run.method].prepare(model)
    model.to(device)  # wrapped before, by the processor's random numbers: a GPU's are others
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    seconds = []
    try:
        for step in train(model, task.batches(run.seed), steps=run.steps, lr=run.lr, precision=run.precision):
            seconds.append(step.seconds)
    except TrainingError:  # a rate too hot is a result, too; the weights are those of the last good step
        pass
    found = dict(trainable=trainable, before=before, after=evaluate(model, task.heldout))
    found |= dict(speeches_before=knew, speeches_after=evaluate(model, _speeches()))
    asked = {"records": make_records(100, UNSEEN), "facts": make_facts()[:100]}.get(run.task)
    scored = score(answers(model, asked), asked) if asked else {}
    found |= dict(parses=scored.get("parses", ""), right=scored.get("right", ""), seconds_a_step=median(seconds))
    found["base"] = _fingerprint()
    found["device"] = torch.cuda.get_device_name() if torch.device(device).type == "cuda" else device
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in found.items()}


_task, _speeches, _fingerprint = cache(load_task), cache(speeches), cache(lambda: fingerprint(load_base()))


@cache
def _start(task):
    base = load_base()
    return evaluate(base, _task(task).heldout), evaluate(base, _speeches())


def sweep(name: str, results: Path = RESULTS, processes: int = 1, device: str = "cpu") -> Iterator[dict]:
    """Do what is missing of the sweep `name`, a row yielded and saved after each run; in several processes at a time.

    Raises SettingError for an unknown name.
    """
    if name not in SWEEPS:
        raise SettingError(f"there is no sweep called {name!r}: choose one of {', '.join(SWEEPS)}")
    path = results / f"{name}.csv"
    rows = files.read_csv(path)
    place = {tuple(asdict(run).values()): i for i, run in enumerate(SWEEPS[name])}

    def described(row):
        return tuple(row[key] for key in asdict(Recipe()))

    done = {described(row) for row in rows}
    missing = [run for run in SWEEPS[name] if tuple(asdict(run).values()) not in done]
    for run, found in _measured(missing, processes, device):
        rows.append(row := asdict(run) | found)
        rows.sort(key=lambda row: place.get(described(row), -1))  # also when the plan has grown in its middle
        files.write_csv(path, rows)
        yield row


def _measured(runs, processes, device):
    if processes == 1:
        yield from ((run, measure(run, device)) for run in runs)
        return
    # a fresh process each: a fork would share what threads and the GPU hold
    context = multiprocessing.get_context("spawn")
    with context.Pool(min(processes, len(runs)) or 1, torch.set_num_threads, (1,)) as pool:
        yield from pool.imap_unordered(partial(_with_run, device=device), runs)


def _with_run(run, device):
    return run, measure(run, device)
