"""How a LoRA step grows, and what many adapters cost (`make growth`): one thing changed at a time, a process a point.

Keeps `data/results/growth.json`, a row a point, and draws `growth.png` from it.
"""

import json
import subprocess
import sys
import time
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch

sys.path.insert(0, str(Path(__file__).parent))
import arms
from bench import machine, peak

from llm import files
from llm.adapters import load_adapter, save_adapter
from llm.bases import load_base
from llm.course.figures.canvas import new_axes
from llm.course.figures.palette import COLOURS
from llm.lora import apply_lora, remove_lora
from llm.model import GPTConfig
from llm.paths import RESULTS

USUAL = dict(rank=8, context=64, width=128, layers=4, tokens=2048)
POINTS = {
    "rank": (1, 4, 8, 16, 32, 64),
    "context": (64, 256, 1024),  # the tokens of a step stay as many, in fewer rows
    "width": (128, 256, 512, 1024),
    "layers": (4, 8, 16, 32),
    "tokens": (512, 1024, 2048, 4096, 8192),
}
ADAPTERS = (1, 10, 100, 1000)
NAMES = {"context": "context, tokens", "tokens": "tokens a step", "width": "width d"}


def step(rank, context, width, layers, tokens) -> dict:
    """Median seconds of five LoRA steps, the peak of memory above the imports, the numbers in the model."""
    import torch._dynamo  # noqa: F401 AdamW's first step would import it

    before = peak()
    config = GPTConfig(block_size=context, n_embd=width, n_layer=layers, n_head=max(4, width // 64))
    make = partial(arms.ours, rank, config)
    ran = islice(arms.steps(make, rows=tokens // context, block=context), 2, 7)
    seconds = median([found["seconds"] for found in ran])
    parameters = sum(p.numel() for p in make().parameters())
    return dict(seconds=seconds, bytes=peak() - before, parameters=parameters)


def adapters(count) -> dict:
    """Median seconds of a swap among `count` adapters in folders, and their bytes on disk."""
    model = load_base()
    with TemporaryDirectory() as shelf:
        save_adapter(apply_lora(model, r=8), Path(shelf) / "0")
        for i in range(1, count):
            files.whole_folder(Path(shelf) / str(i), lambda to: [_copy(f, to) for f in (Path(shelf) / "0").iterdir()])
        remove_lora(model)
        seconds = []
        for i in torch.randint(count, (30,)).tolist():
            began = time.perf_counter()
            load_adapter(model, Path(shelf) / str(i))
            seconds.append(time.perf_counter() - began)
        size = sum(f.stat().st_size for f in Path(shelf).rglob("*") if f.is_file())
    return dict(seconds=median(seconds[1:]), bytes=size, parameters=count * 65_536)


def _copy(file, to):
    (to / file.name).write_bytes(file.read_bytes())


def measured(what, value) -> dict:
    """The point in a process of its own, so that its peak of memory is its own."""
    command = [sys.executable, __file__, what, str(value)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def picture(rows):
    """Seconds above, memory below, a column for each thing that grows."""
    figure, axes = new_axes(11.0, 4.6, 2, len(POINTS))
    for column, what in enumerate(POINTS):
        here = [row for row in rows if row["what"] == what]
        for line, (measure, unit) in enumerate({"seconds": 1, "bytes": 1e6}.items()):
            panel = axes[line * len(POINTS) + column]
            x = [row["value"] for row in here]
            panel.plot(x, [row[measure] / unit for row in here], "o-", color=COLOURS["lora"], ms=4)
            panel.set_xscale("log", base=2)
            panel.set_xticks(x, [f"{value:,}" for value in x], fontsize=7)
            panel.minorticks_off()
            panel.set_ylim(0, 1.1 * max(row[measure] for row in here) / unit)
            if line:
                panel.set_xlabel(NAMES.get(what, what))
    axes[0].set_ylabel("seconds a step")
    axes[len(POINTS)].set_ylabel("MB above the imports")
    return figure


def main():
    if len(sys.argv) > 1:
        what, value = sys.argv[1], int(sys.argv[2])
        torch.manual_seed(0)
        print(json.dumps(adapters(value) if what == "adapters" else step(**USUAL | {what: value})))
        return
    rows = []
    for what, values in [*POINTS.items(), ("adapters", ADAPTERS)]:
        for value in values:
            rows.append(row := dict(what=what, value=value) | measured(what, value))
            print(f"{what:9} {value:6,}  {row['seconds']:8.4f} s  {row['bytes'] / 1e6:8.1f} MB", flush=True)
    report = json.dumps(dict(machine=machine(), rows=rows), indent=1) + "\n"
    files.replace(RESULTS / "growth.json", partial(Path.write_text, data=report, encoding="utf-8"))
    picture(rows).savefig(RESULTS / "growth.png", dpi=100)


if __name__ == "__main__":
    main()
