"""The commands that maintain the course itself: `doctor`, `fetch`, `pretrain`, `experiments`, `copy-lora`, `site`, `contents`, `pack`."""

import os
import re
import sys
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from llm import paths
from llm.cli import doctor as doctors
from llm.cli.app import AsJson, Device, app, number, path
from llm.cli.console import show_json
from llm.errors import CourseError


@app.command()
def doctor(as_json: AsJson = False):
    """Show what is installed, what is missing, and how to get it.

    The exit code is 1 if something is missing that every notebook needs.

    Example: python -m llm doctor
    """
    checks, machine = list(doctors.checks()), doctors.machine()
    well = not any(check.how and check.needed == doctors.COURSE for check in checks)
    if as_json:
        show_json(ok=well, machine=machine, checks=[vars(check) | dict(ok=not check.how) for check in checks])
    else:
        rows = [f"     {name:18} {value}" for name, value in machine.items()]
        rows += [f"{'LACK' if check.how else 'ok  '} {check.name:18} {check.found or '-'}" for check in checks]
        rows += [f"{check.name}, for {check.needed}: {check.how}" for check in checks if check.how]
        print(*rows, "all that every notebook needs is here" if well else "the course cannot run yet", sep="\n")
    raise typer.Exit(int(not well))


@app.command()
def fetch(real: Annotated[bool, Option("--real", help="also a real language model (98 MB)")] = False):
    """Download and check the corpora for offline work.

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
    out: Annotated[Path, Option(metavar="FOLDER", parser=path, help="where to write the base")] = Path("build/base"),
    steps: number("optimizer steps") = 9000,
    seed: number("same seed, same base", low=0) = 0,
    device: Device = "auto",
):
    """Train the course's base.

    This takes minutes on a large GPU, or about three hours on two CPU cores. A stopped run resumes where it was.

    Example: python -m llm pretrain --out build/base
    """
    from llm import files
    from llm.course import pretraining
    from llm.course.figures import training_log
    from llm.course.pretraining_mixture import MIXTURE
    from llm.training import best_device

    for row in pretraining.pretrain(out, steps, seed, device=best_device(device)):
        print("  ".join(f"{k} {v}" for k, v in row.items()), flush=True)
    curve = training_log(files.read_csv(out / "log.csv"), list(MIXTURE))
    curve.savefig(out / "loss.png", dpi=100)


@app.command()
def experiments(
    names: Annotated[list[str] | None, Argument(metavar="NAME", hidden=True)] = None,
    processes: Annotated[int | None, Option(metavar="N", min=1, help="parallel runs; default: one per core")] = None,
    device: Device = "cpu",
):
    """Repeat the recorded experiments, or resume them.

    NAME: rates, ranks, alphas, facts, sizes, targets, batches, relatives, qlora, smollm2 and others; default: all.

    Example: python -m llm experiments ranks
    """
    from tqdm import tqdm

    from llm import files
    from llm.course import experiments, subspaces
    from llm.course.figures import at_best_rate, by_rank, compared
    from llm.training import best_device

    names = names or [*experiments.EXPERIMENTS, "subspaces"]
    # an unknown name is refused before the first run
    left = {name: len(subspaces.RUNS if name == "subspaces" else experiments.missing(name)) for name in names}
    options = dict(processes=processes or os.cpu_count() or 1, device=str(best_device(device)))
    for name in names:
        rows = subspaces.record(**options) if name == "subspaces" else experiments.record(name, **options)
        for row in tqdm(rows, total=left[name], desc=name, unit="run", mininterval=0):
            tqdm.write(f"{name}  " + "  ".join(f"{k} {v}" for k, v in row.items()), sys.stdout)
            sys.stdout.flush()
    rows = files.read_csv(paths.RESULTS / "ranks.csv") + at_best_rate(files.read_csv(paths.RESULTS / "facts.csv"))
    by_rank(rows, ("right", "after"), tasks=("facts", "shakespeare")).savefig(paths.RESULTS / "ranks.png", dpi=100)
    if rows := files.read_csv(paths.RESULTS / "relatives.csv"):
        compared(rows).savefig(paths.RESULTS / "relatives.png", dpi=100)


@app.command()
def copy_lora(out: Annotated[Path, Option(metavar="FILE", help="where to write it")] = Path("lora.py")):
    """Write LoRA as one file that needs only torch.

    The file joins `llm/lora.py` and `llm/surgery.py`.

    Example: python -m llm copy-lora --out ../mine/lora.py
    """
    from llm import files

    if (out := path(out)).exists():
        raise CourseError(f"{out} is there already: choose another --out")
    lora, surgery = ((paths.LESSON / name).read_text(encoding="utf-8") for name in ("lora.py", "surgery.py"))
    behind_docstring = surgery.split('"""\n', 1)[1]
    joined = re.sub(
        r"^from llm\.surgery import (\([^)]*\)|.*)\n", lambda _: behind_docstring, lora, count=1, flags=re.M
    )
    files.replace(out, lambda to: to.write_text(joined, encoding="utf-8"))
    print(f"{out} has LoraLinear, apply_lora, merge_lora, remove_lora and lora_disabled")


@app.command()
def site(out: Annotated[Path, Option(metavar="FOLDER", parser=path, help="where to write it")] = Path("build/site")):
    """Write the page that trains in a browser tab, as static files.

    The notebooks are beside it, for reading. Any web host will do.
    To see it on this machine: `python -m http.server --directory build/site`.

    Example: python -m llm site --out build/site
    """
    from llm.bases import load_base
    from llm.course import page
    from llm.course.tasks import load_task
    from llm.training import evaluate

    size = page.write_site(out)
    model = load_base(own=None)
    print(f"{out} has {size / 1e6:.1f} MB; the model's matrices are in bytes there. Held-out loss:")
    in_bytes = page.rounded(model)
    for name in ("records", "shakespeare"):
        held = load_task(name).heldout
        print(f"{name:12} {evaluate(model, held):.4f} as it is, {evaluate(in_bytes, held):.4f} in bytes")


@app.command("contents")
def order():
    """Update the notebooks to match the course's order.

    The order is in llm/course/contents.py. Names, titles, links and the README's table follow it. The first cell uses
    the address in pyproject.toml.

    Example: python -m llm contents
    """
    from llm.course import notebook_files

    changed = notebook_files.write(paths.ROOT)
    print(*changed or ["every notebook says so already"], sep="\n")


@app.command()
def pack(
    out: Annotated[Path, Option(metavar="FILE", help="where to write it", parser=path)] = Path("build/lora-course.zip"),
):
    """Pack what a notebook needs on Colab into one file.

    Drag the file into Colab's file pane. The first cell of every notebook unpacks it.

    Example: python -m llm pack
    """
    from llm.course import colab

    print(f"{out}, {colab.pack(out) / 1e6:.0f} MB: drag it into Colab's file pane, then run a notebook's first cell")
