"""The commands that look after the course itself: `doctor`, `fetch`, `pretrain`, `experiments`, `colab`."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from llm.cli import doctor as doctors
from llm.cli.app import AsJson, Device, app, number
from llm.cli.console import show_json


@app.command()
def doctor(as_json: AsJson = False):
    """Say what is here, what is missing, and how to get it.

    Exit code 1: something is missing that every notebook needs.

    Example: python -m llm doctor
    """
    found, here = list(doctors.checks()), doctors.machine()
    well = all(check.ok or check.needed != doctors.COURSE for check in found)
    if as_json:
        show_json(ok=well, machine=here, checks=[vars(check) | dict(ok=check.ok) for check in found])
    else:
        for name, value in here.items():
            print(f"     {name:18} {value}")
        for check in found:
            print(f"{'ok  ' if check.ok else 'LACK'} {check.name:18} {check.found or '-'}")
        for check in found:
            if not check.ok:
                print(f"{check.name}, for {check.needed}: {check.how}")
        print("all that every notebook needs is here" if well else "the course cannot run yet")
    raise typer.Exit(int(not well))


@app.command()
def fetch(real: Annotated[bool, Option("--real", help="the model of notebook 07 as well, 98 MB")] = False):
    """Fetch and check the corpora, once; then all works offline.

    Example: python -m llm fetch --real
    """
    from llm import bases
    from llm.text import corpora, download

    for name in download.sources():
        corpus = corpora.load(name)
        print(f"{name:12} {len(corpus.train):9,} tokens to train on, {len(corpus.heldout):7,} held out")
    if real:
        print(f"{'smollm2':12} in {bases.fetch_smollm2()}")


@app.command()
def pretrain(
    out: Annotated[Path, Option(metavar="FOLDER", help="where the base goes")] = Path("build/base"),
    steps: number("optimizer steps") = 9000,
    seed: number("same seed, same base") = 0,
    device: Device = "auto",
):
    """Train the course's base.

    That takes some minutes on a large GPU and about three hours on two cores.

    A stopped run goes on where it was.

    Example: python -m llm pretrain --out build/base
    """
    from llm import files
    from llm.course import pretraining
    from llm.course.figures import training_log
    from llm.course.pretraining_mixture import MIXTURE
    from llm.training import best_device

    for row in pretraining.pretrain(out := out.expanduser(), steps, seed, device=best_device(device)):
        print("  ".join(f"{k} {v}" for k, v in row.items()), flush=True)
    curve = training_log(files.read_csv(out / "log.csv"), list(MIXTURE))
    curve.savefig(out / "loss.png", dpi=100)


@app.command()
def experiments(
    names: Annotated[list[str] | None, Argument(metavar="NAME", hidden=True)] = None,
    processes: Annotated[int | None, Option(metavar="N", min=1, help="runs at a time; one a core")] = None,
    device: Device = "cpu",
):
    """Do the recorded experiments again, or go on with them.

    NAME: rates, ranks, alphas, facts, sizes, targets, batches, relatives, qlora, smollm2 and others; without one, all.

    Example: python -m llm experiments ranks
    """
    import os
    from functools import partial

    from tqdm import tqdm

    from llm import files
    from llm.course import experiments, subspaces
    from llm.course.figures import at_best_rate, by_rank, compared
    from llm.paths import RESULTS
    from llm.training import best_device

    at_once = processes or os.cpu_count() or 1
    names = names or [*experiments.EXPERIMENTS, "subspaces"]
    # an unknown name is refused before the first run
    left = {name: len(subspaces.RUNS if name == "subspaces" else experiments.missing(name)) for name in names}
    for name in names:
        record = subspaces.record if name == "subspaces" else partial(experiments.record, name)
        rows = record(processes=at_once, device=str(best_device(device)))
        for row in tqdm(rows, total=left[name], desc=name, unit="run", mininterval=0):
            tqdm.write(f"{name}  " + "  ".join(f"{k} {v}" for k, v in row.items()), sys.stdout)
            sys.stdout.flush()
    rows = files.read_csv(RESULTS / "ranks.csv") + at_best_rate(files.read_csv(RESULTS / "facts.csv"))
    by_rank(rows, ("right", "after"), tasks=("facts", "shakespeare")).savefig(RESULTS / "ranks.png", dpi=100)
    if rows := files.read_csv(RESULTS / "relatives.csv"):
        compared(rows).savefig(RESULTS / "relatives.png", dpi=100)


@app.command()
def colab():
    """Write each notebook's badge and first cell.

    Both are made from the address in pyproject.toml.

    Example: python -m llm colab
    """
    from llm.course import colab
    from llm.paths import NOTEBOOKS

    changed = colab.write(NOTEBOOKS)
    print(f"{colab.repository()}: {', '.join(changed) or 'every notebook says so already'}")
