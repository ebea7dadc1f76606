"""Recorded experiments: many small fine-tunes, a row each, in `data/results/` (`python -m llm experiments`).

A row is one run, described in full, and what it measured, on which device. A stopped experiment goes on where it was.
"""

import copy
import json
import multiprocessing
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache, partial
from itertools import product
from pathlib import Path
from statistics import fmean, median

import torch

from llm import bases, files, spectra
from llm.adapters import fingerprint
from llm.course import chats
from llm.course.tasks import ARMS, answers, load_task, score, speeches
from llm.errors import SettingError, TrainingError
from llm.finetune.target_words import targets_of
from llm.lora import SCALING, lora_layers, merge_lora
from llm.paths import RESULTS
from llm.quantize import quantize, read_scheme
from llm.relatives import METHODS
from llm.text.batches import UNSEEN
from llm.text.chat import TRAIN_ON, with_template
from llm.text.records import FACTS, make_facts, make_records
from llm.training import Step, evaluate, train

SEEDS = (0, 1, 2)
# what an adapter trained over four bits may be merged into: what it saw, in floats; the base as it was before it was
# rounded; the first of them rounded once more
MERGES = ("dequantized", "original", "again")

FOREIGN = {"plain": "plain", "bare": chats.BARE}  # templates that are not the model's own


@dataclass(frozen=True)
class Recipe:
    """One fine-tune, described in full; method: one of `relatives.METHODS`, which says what it takes of r to start.

    rows of a batch and different examples: 0 is as many as the task has by itself (`load_task`). quantize: the base's
    scheme, a word as `bases.load` takes it; merge: "" or one of MERGES.
    """

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
    precision: str = "float32"  # named, so that a row does not depend on what the machine multiplies
    rows: int = 0
    examples: int = 0
    model: str = "course"
    quantize: str = ""
    merge: str = ""


def grid(seed: int | tuple[int, ...] = SEEDS, **settings) -> list[Recipe]:
    """A run for each combination of the settings that are tuples, the last one fastest, then for each seed; alpha = r."""
    settings |= dict(seed=seed)
    combinations = product(*(value if isinstance(value, tuple) else (value,) for value in settings.values()))
    runs = [dict(zip(settings, values)) for values in combinations]
    return [Recipe(**{"alpha": run.get("r", Recipe.alpha)} | run) for run in runs]


def _runs(task, method, lr, r=8, **options):
    """Runs with the head's products in bfloat16 where it is frozen: "precisions" says that this changes nothing."""
    precision = "float32" if method == "full" else "bfloat16"
    return grid(task=task, method=method, precision=precision, **options, r=r, lr=lr)


def _plays(method, lr, r=8, **options):
    """On the plays, in batches of 8: half as many tokens as a notebook's step."""
    return _runs("shakespeare", method, lr, r, rows=8, **options)


# 122,880 numbers train in each; q, k and v are one matrix here
EQUALLY_MANY = {"all": 15, "attention": 40, "mlp": 24, "c_attn": 60}


def _tried(low: float, high: float, *quarters: float) -> tuple[float, ...]:
    """Half powers of ten from low to high, and quarters of a power between them."""
    halves = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0)
    return tuple(sorted({*quarters, *(rate for rate in halves if low <= rate <= high)}))


# Of each method, on the plays and on the facts: the best rate, where two more seeds run, and the rates tried, which go on
# until the best one lies within, with quarters beside it.
RATES = {
    "lora": ((3e-2, _tried(1e-3, 1e-1, 1.8e-2, 5.6e-2)), (1e-2, _tried(1e-3, 1e-1, 5.6e-3, 1.8e-2))),
    "rslora": ((1e-2, _tried(1e-3, 1e-1, 5.6e-3, 1.8e-2)), (3e-3, _tried(1e-3, 1e-1, 1.8e-3, 5.6e-3))),
    "lora+": ((1.8e-3, _tried(1e-4, 1e-2, 5.6e-4, 1.8e-3)), (5.6e-4, _tried(1e-4, 1e-2, 5.6e-4, 1.8e-3))),
    "lora-fa": ((1.8e-2, _tried(3e-3, 3e-1, 1.8e-2, 5.6e-2)), (1e-2, _tried(3e-3, 3e-1, 5.6e-3, 1.8e-2))),
    "dora": ((3e-2, _tried(1e-3, 1e-1, 1.8e-2, 5.6e-2)), (1e-2, _tried(1e-3, 1e-1, 5.6e-3, 1.8e-2))),
    "pissa": ((5.6e-3, _tried(3e-4, 3e-2, 5.6e-3, 1.8e-2)), (5.6e-3, _tried(3e-4, 3e-2, 1.8e-3, 5.6e-3))),
    "ia3": ((1e-1, _tried(1e-2, 1.0, 5.6e-2, 1.8e-1)), (5.6e-1, _tried(1e-2, 3.0, 5.6e-1))),
    "prefix": ((3e-3, _tried(1e-3, 1.0, 5.6e-3)), (3e-1, _tried(1e-2, 1.0, 1.8e-1, 5.6e-1))),
    "prompt": ((3e-4, _tried(1e-4, 1.0)), (1.0, _tried(1e-2, 3.0, 5.6e-1))),
    "bitfit": ((3e-1, _tried(3e-3, 1.0, 1.8e-1, 5.6e-1)), (1.8e-2, _tried(3e-3, 3e-1, 1.8e-2, 5.6e-2))),
    "norm": ((1e-3, _tried(3e-4, 3e-1)), (1e-1, _tried(3e-3, 3e-1, 5.6e-2, 1.8e-1))),
    "full": ((1.8e-3, _tried(1e-4, 1e-2, 1.8e-3, 5.6e-3)), (3e-3, _tried(1e-4, 1e-2, 5.6e-4, 1.8e-3))),
}


EXPERIMENTS: dict[str, list[Recipe]] = {
    # how far each method comes at each rate, and what it forgets; ARMS in tasks.py takes its rates from here
    "rates": [
        *_plays("full", (3e-4, 1e-3, 3e-3)),
        *_plays("lora", (3e-3, 1e-2, 3e-2, 1e-1), r=1),
        *_plays("lora", (3e-3, 1e-2, 3e-2, 1e-1), r=8),
        *_plays("lora", (1e-3, 3e-3, 1e-2, 3e-2), r=64),
        *_plays("norm", 3e-2),
        *_plays("full", (3e-4, 1e-3, 3e-3), steps=30),
        *_plays("lora", (3e-3, 1e-2, 3e-2, 1e-1), steps=30),
        *_runs("records", "full", (3e-4, 1e-3, 3e-3), steps=30),
        *_runs("records", "lora", (1e-3, 3e-3, 1e-2, 3e-2), r=(1, 8), steps=30),
        *_runs("records", "lora", (3e-4, 1e-3, 3e-3, 1e-2), r=64, steps=30),
        *_runs("records", "norm", (1e-2, 3e-2, 1e-1), steps=30),
    ],
    # alpha = r, so that alpha/r is 1 at every rank and the rank alone changes
    "ranks": [
        run
        for task, ranks in {"records": (1, 2, 4, 8, 16, 32, 64), "shakespeare": (1, 4, 16, 64)}.items()
        for arm in (*(dict(method=method, lr=ARMS[method].lr) for method in ("full", "norm")), dict(r=ranks))
        for run in grid(task=task, **arm)
    ],
    # the same alpha under three conventions, each over a range of learning rates, at a small rank and a large one
    "alphas": [
        run
        for start, rates in {
            "chapter": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
            "paper": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1),
        }.items()
        for run in _plays("lora", rates, r=(4, 64), alpha=16.0, start=start, scaling=tuple(SCALING), steps=30)
    ],
    # the largest rank of "ranks" once more, at gentler rates
    "cooler": grid(r=64, lr=(1e-3, 3e-3)),
    # does the head's precision while training change what is learned? (on a processor; on a GPU it is all products')
    "precisions": [
        run
        for task, r in (("records", 1), ("records", 8), ("shakespeare", 8), ("shakespeare", 64))
        for run in grid(task=task, r=r, precision=("float32", "bfloat16"))
    ],
    # what no prompt gives away must be stored: how much is, by rank, each at its best rate?
    "facts": [
        *grid(task="facts", method="full", lr=(1e-3, 3e-3), steps=200),
        *grid(task="facts", method="norm", lr=3e-2, steps=200),
        *grid(task="facts", r=(1, 4, 8, 64), lr=(3e-3, 5.6e-3, 1e-2), steps=200),
    ],
    # as many steps on fewer facts and on more: who has room, and who only repeats what he has read? "facts" has 512
    "sizes": [
        *(
            run
            for n in (64, 256, 960)
            for method, r, lr in (("full", 8, 3e-3), ("lora", 1, 1e-2), ("lora", 64, 3e-3))
            for run in _runs("facts", method, lr, r, steps=200, examples=n)
        ),
        *(run for m in ("full", "lora") for run in _runs("records", m, ARMS[m].lr, steps=30, examples=16)),
        *(run for m in ("full", "lora") for run in _plays(m, ARMS[m].lr, examples=16)),
        # is it room that rank 1 lacks, or time? all 512 facts, in five times the steps
        *_runs("facts", "lora", 1e-2, r=1, steps=1000),
    ],
    # r = 8 for each choice; then as many numbers for each
    "targets": [
        *grid(task=("records", "shakespeare"), targets=("attention", "mlp", "all")),
        *(
            run
            for t, r in EQUALLY_MANY.items()
            for run in _runs("facts", "lora", 3e-3, r, targets=t, steps=200) + _plays("lora", 1e-2, r, targets=t)
        ),
    ],
    # 6,400 rows in every run, in batches of 16 to 256
    "batches": [
        run
        for rows, full, lora in (
            (16, (3e-4, 1e-3), (1e-3, 3e-3)),
            (64, (1e-3, 3e-3), (3e-3, 5.6e-3, 1e-2)),
            (256, (1e-3, 3e-3, 1e-2), (3e-3, 1e-2, 3e-2)),
        )
        for method, r, rates in (("full", 8, full), ("lora", 64, lora))
        for run in _runs("facts", method, rates, r, steps=6400 // rows, rows=rows)
    ]
    # a smaller rank and a larger one: in small batches at one rate near the best, in large ones at two
    + [
        run
        for rows, r, rates in (
            (16, 8, 5.6e-3),
            (64, 8, (1e-2, 1.8e-2)),
            (64, 128, (3e-3, 5.6e-3)),
            (16, 128, 3e-3),
        )
        for run in _runs("facts", "lora", rates, r, steps=6400 // rows, rows=rows)
    ],
    # the losses on the way, which the other tables lack: rank 1 runs out of room on 256 facts, the others do not
    "over_time": [
        run
        for method, r, lr in (("lora", 1, 1e-2), ("lora", 64, 3e-3), ("full", 8, 3e-3))
        for run in _runs("facts", method, lr, r, steps=200, examples=256)
    ],
    # A stays as it was drawn: twice as few numbers, and what is lost?
    "frozen_a": [
        *_runs("facts", "lora-fa", (1e-2, 3e-2, 1e-1), r=8, steps=200),
        *_plays("lora-fa", (1e-2, 3e-2, 1e-1)),
    ],
    # every method at rates of its own, and once more at the best of them
    "relatives": [
        run
        for method, ((play, plays), (fact, facts)) in RATES.items()
        for on_plays, on_facts, seeds in ((plays, facts, SEEDS[0]), (play, fact, SEEDS[1:]))
        for run in _plays(method, on_plays, seed=seeds) + _runs("facts", method, on_facts, steps=200, seed=seeds)
    ],
    # rates and forgetting once more, on a model ten times as large that others have trained: three seeds about the best
    "smollm2": [
        run
        for seeds, rates in (
            (SEEDS, {"lora": (1e-3, 3e-3, 1e-2), "full": (1e-4, 3e-4, 1e-3)}),
            (SEEDS[:1], {"lora": (1e-4, 3e-4), "full": (1e-5, 3e-5)}),
        )
        for method in rates
        for run in _runs("shakespeare", method, rates[method], steps=30, rows=4, seed=seeds, model="smollm2")
    ],
    # over four bits instead of 32, as it is and merged
    "qlora": [
        run
        for over in ({}, *(dict(quantize="nf4", merge=merge) for merge in ("", *MERGES)))
        for run in _runs("records", "lora", 1e-2, steps=30, **over) + _plays("lora", 1e-2, **over)
    ],
    # conversations: in the model's own template, in another and in none; the last answer graded, or every token; the cheap
    # control; a dozen of them alone, every token graded
    "chats": [
        run
        for seed in SEEDS
        for tasks, settings in (
            (("chats", "chats/plain", "chats/bare", "chats/last", "chats/all"), dict(lr=1e-3, steps=10)),
            ("chats/all", dict(lr=3e-3, steps=20, examples=12)),
        )
        for run in grid(seed, task=tasks, rows=4, model="smollm2", **settings)
    ]
    + grid(SEEDS[0], task="chats", method="norm", lr=3e-2, steps=10, rows=4, model="smollm2")
    # a rate that is too high: does it learn more, and what does it lose of the speeches?
    + grid(task="chats", lr=4e-3, steps=10, rows=4, model="smollm2"),
    # how the rank of a full update grows with its steps; of the plays "rates" has 30 and 100 steps
    "steps": [
        *_runs("facts", "full", 1e-3, steps=(10, 30, 100)),
        *_plays("full", 1e-3, steps=10),
    ],
}


def begin(run: Recipe, device: str = "cpu") -> tuple[torch.nn.Module, Iterator[Step]]:
    """The model of a run, and the run's steps, each done when it is asked for."""
    if run.task.startswith("chats"):
        return _begin_chats(run, device)
    torch.manual_seed(run.seed)  # before the base is loaded: to make a model draws numbers, too
    base = bases.load(run.model, scheme=run.quantize or None)
    method = METHODS[run.method]
    method.prepare(base.model, run.r, run.alpha, run.scaling, targets_of(run.targets), run.start)
    model = base.model.to(device)  # wrapped before, by the processor's random numbers: a GPU's are others
    batches = _task(run.task, run.model, run.rows, run.examples).batches(run.seed)
    options = dict(steps=run.steps, lr=method.rates(run.lr), precision=run.precision, loss=base.loss)
    return model, train(model, batches, **options)


def trained(run: Recipe, device: str = "cpu") -> tuple[torch.nn.Module, list[Step]]:
    """The model that a run leaves behind, and the steps that it took."""
    model, steps = begin(run, device)
    done = []
    try:
        done.extend(steps)
    except TrainingError:  # a rate too high is a result, too; the weights are those of the last good step
        pass
    return model, done


def measure(run: Recipe, device: str = "cpu") -> dict:
    """Do one run and measure it: trainable parameters, held-out loss (nats per token) before and after, the loss on the
    speeches before and after, shares of 100 answers that parse and are right, seconds a step, the base's fingerprint,
    the device, the rank that holds 90% of a matrix's update, the median over the matrices of the blocks, and the
    training loss on the way, the mean of each twentieth of the steps, in one cell with blanks between them."""
    if run.task.startswith("chats"):
        return measure_chats(run, device)
    base, (model, steps) = _base(run.model), trained(run, device)
    row = dict(trainable=sum(p.numel() for p in model.parameters() if p.requires_grad))
    ranks = _ranks(model, base.model)
    model = _merged(run, model)
    models = _base(run.model, run.quantize).model, model
    heldout = _task(run.task, run.model, 0, run.examples).heldout
    row["before"], row["after"] = (evaluate(each, heldout, base.loss) for each in models)
    heldout = speeches(tokenizer=base.tokenizer)
    row["speeches_before"], row["speeches_after"] = (evaluate(each, heldout, base.loss) for each in models)
    asked = {"records": make_records(100, UNSEEN), "facts": make_facts(run.examples or FACTS)[:100]}.get(run.task)
    shares = score(answers(model, asked, tokenizer=base.tokenizer), asked) if asked else {}
    seconds = median(step.seconds for step in steps)
    row |= dict(parses=shares.get("parses", ""), right=shares.get("right", ""), seconds_a_step=seconds)
    row["base"] = fingerprint(base.model)
    row["device"] = torch.cuda.get_device_name() if torch.device(device).type == "cuda" else device
    row["rank90"] = median(ranks) if ranks else ""
    each = -(-run.steps // 20)
    parts = [[step.loss for step in steps[i : i + each]] for i in range(0, len(steps), each)]
    row["losses"] = " ".join(f"{fmean(part):.4f}" for part in parts)
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}


def measure_chats(run: Recipe, device: str = "cpu") -> dict:
    """`measure` for conversations. task: "chats", and behind a slash the template or what counts, where it is another.

    before, after: the held-out answers' loss in the model's own template. heldout: on few conversations the losses after
    every second step, the first before them. In each template that it is asked in, its own and that of its training (or
    two others): the shares of `chats.score`, and what it says to the first questions, as JSON.
    """
    base, task = _chats(run)
    model, training = _begin_chats(run, device)
    row = dict(trainable=sum(p.numel() for p in model.parameters() if p.requires_grad))
    steps, curve = [], [evaluate(model, task.heldout, base.loss)] if run.examples else []
    for step in training:
        steps.append(step)
        if run.examples and step.index % 2:
            curve.append(evaluate(model, task.heldout, base.loss))
    row["before"], row["speeches_before"], row["base"] = _before_chats(run.model)
    row["after"], row["speeches_after"] = _chat_losses(base, model)
    row |= dict(parses="", right="", seconds_a_step=median(step.seconds for step in steps))
    row |= dict(device=device, rank90="", losses=" ".join(f"{step.loss:.4f}" for step in steps))
    row["heldout"] = " ".join(f"{loss:.4f}" for loss in curve)
    others = FOREIGN if run.task == "chats" and run.method == "lora" else {run.task.partition("/")[2]} & FOREIGN.keys()
    asked = {"own": base.tokenizer} | {word: with_template(base.tokenizer, FOREIGN[word]) for word in others}
    for name, each in asked.items():
        rows = chats.tokens(chats.make_chats(10, UNSEEN), each)
        prompts, wanted = map(list, zip(*chats.questions(rows, each)))
        found = chats.answers(model.eval(), each, prompts)
        row |= {f"{check}_{name}": share for check, share in chats.score(found, wanted).items()}
        row[f"said_{name}"] = json.dumps(found[:5])
    row["right"] = row["exact_own"]
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}


def _chats(run):
    """The base of a run on conversations, and the task in the run's template."""
    base, word = _base(run.model), run.task.partition("/")[2]
    tokenizer = with_template(base.tokenizer, FOREIGN[word]) if word in FOREIGN else base.tokenizer
    train_on = word if word in TRAIN_ON else "answers"
    return base, chats.chat_task(tokenizer, train_on, run.rows, run.examples)


def _begin_chats(run, device):
    base, task = _chats(run)
    torch.manual_seed(run.seed)
    model, method = copy.deepcopy(base.model).to(device), METHODS[run.method]
    method.prepare(model, run.r, run.alpha, run.scaling, targets_of(run.targets), run.start)
    options = dict(steps=run.steps, lr=method.rates(run.lr), warmup=3, precision=run.precision, loss=base.loss)
    return model, train(model, task.batches(run.seed), **options)


def _chat_losses(base, model):
    """On the held-out answers in the model's own template, and on eight windows of speeches, which no conversation needs."""
    [(x, y)] = speeches(1, base.tokenizer)
    tasks = chats.chat_task(base.tokenizer).heldout, [(x[:8], y[:8])]
    return [evaluate(model, heldout, base.loss) for heldout in tasks]


@cache
def _before_chats(model):
    return *_chat_losses(_base(model), _base(model).model), fingerprint(_base(model).model)


def _ranks(model, base):
    """Of each block matrix that moved, the rank that holds 90% of its update."""
    if layers := lora_layers(model):
        updates = [layer.update().detach() for layer in layers.values()]
    else:
        before, after = base.state_dict(), model.state_dict()
        updates = [after[name].cpu() - before[name] for name in spectra.block_matrices(base) if name in after]
    return [spectra.rank_for(spectra.singular_values(update)) for update in updates if update.any()]


def _merged(run, model):
    """The trained model with its adapter merged as the recipe says, or not."""
    if not run.merge:
        return model
    if run.merge == "original":
        whole = bases.load(run.model).model.to(next(model.parameters()).device)
        for path, layer in lora_layers(model).items():
            layer.base = whole.get_submodule(path).requires_grad_(False)
    return quantize(merge_lora(model), **read_scheme(run.quantize)) if run.merge == "again" else merge_lora(model)


@cache
def _base(model, scheme=""):
    return bases.load(model, scheme=scheme or None)  # nobody trains this one: it is what runs are compared with


@cache
def _task(name, model, rows, examples):
    return load_task(name, tokenizer=_base(model).tokenizer, rows=rows or None, examples=examples or None)


def missing(name: str, results: Path = RESULTS) -> list[Recipe]:
    """The runs of an experiment that are not recorded yet. Raises SettingError for an unknown name."""
    if name not in EXPERIMENTS:
        raise SettingError(f"there is no experiment called {name!r}: choose one of {', '.join(EXPERIMENTS)}")
    done = {_described(row) for row in files.read_csv(results / f"{name}.csv")}
    return [run for run in EXPERIMENTS[name] if _described(asdict(run)) not in done]


def _described(row):
    return tuple(row[key] for key in asdict(Recipe()))


def record(name: str, results: Path = RESULTS, processes: int = 1, device: str = "cpu") -> Iterator[dict]:
    """Do what is missing of an experiment, a row yielded and saved after each run; in several processes at a time.

    Raises SettingError for an unknown name.
    """
    path, runs = results / f"{name}.csv", missing(name, results)
    rows, place = files.read_csv(path), {_described(asdict(run)): i for i, run in enumerate(EXPERIMENTS[name])}
    for run, measured in in_processes(measure, runs, processes, device):
        rows.append(row := asdict(run) | measured)
        rows.sort(key=lambda row: place.get(_described(row), -1))  # also when the plan has grown in its middle
        files.write_csv(path, rows)
        yield row


def in_processes(
    what: Callable[[Recipe, str], object], runs: list[Recipe], processes: int, device: str
) -> Iterator[tuple[Recipe, object]]:
    """Run by run, as they come: (run, what(run, device)), in so many processes at a time, a core each."""
    if processes == 1:
        yield from ((run, what(run, device)) for run in runs)
        return
    # a fresh process each: a fork would share what threads and the GPU hold
    context = multiprocessing.get_context("spawn")
    with context.Pool(min(processes, len(runs)) or 1, torch.set_num_threads, (1,)) as pool:
        yield from pool.imap_unordered(partial(_with_run, what, device=device), runs)


def _with_run(what, run, device):
    return run, what(run, device)
