"""Time and memory of what a learner waits for, ours against transformers + PEFT (`make bench`).

Every arm is a process of its own, so that its peak memory is its own; the arms take turns, so that a machine whose
speed drifts drifts for all of them. Keeps what it measured in `data/results/bench.json`.

A key press is timed in a browser (`make browser`, printed at its end), the notebooks by `make notebooks`.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
import arms

from llm import files
from llm.loss import multiplies_bfloat16
from llm.paths import RESULTS

WARM = 2  # of each process the first actions are not counted
IMPORTS = """import time, torch
began = time.perf_counter()
import matplotlib.pyplot, ipywidgets, llm.bases, llm.adapters, llm.course.figures, llm.course.tasks, llm.training
print(time.perf_counter() - began)"""


def measure(arm: str, times: int) -> dict:
    """Seconds of each action after the first ones, and the peak of memory above what the imports took, in bytes."""
    import torch._dynamo  # noqa: F401 AdamW's first step would import it

    before, found = peak(), {}
    if arm == "import":
        seconds = subprocess.run([sys.executable, "-c", IMPORTS], check=True, capture_output=True, text=True).stdout
        return dict(seconds=[float(seconds)])
    if "PEFT" in arm or "SmolLM2" in arm or "swap" in arm:
        import peft  # noqa: F401
        import transformers  # noqa: F401

        before = peak()
    torch.manual_seed(0)
    if arm in arms.STEPS:
        for step in islice(arms.steps(**arms.STEPS[arm]), WARM, times + WARM):
            for key, value in step.items():
                found.setdefault(key, []).append(value)
    else:
        action = arms.ACTIONS[arm]()
        found["seconds"] = [arms.timed(action) for _ in range(times + WARM)][WARM:]
    return found | dict(peak=peak() - before)


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def machine() -> dict:
    """What the figures depend on."""
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return dict(
        processor=capabilities.get("cpu_name", "unknown"),
        threads=torch.get_num_threads(),
        multiplies_bfloat16=multiplies_bfloat16(torch.device("cpu")),
        amx=bool(capabilities.get("amx_bf16")),
        torch=torch.__version__,
        python=sys.version.split()[0],
    )


def goals(time_of: dict, peak_of: dict, bfloat16: bool) -> list[tuple[str, float, float]]:
    """(what against what, as measured, to reach); a smaller one is better."""
    peft = min(time_of["PEFT r=8"], time_of["PEFT r=8, autocast"])
    lean = min(peak_of["PEFT r=8"], peak_of["PEFT r=8, autocast"])
    smol = min(time_of["SmolLM2, PEFT"], time_of["SmolLM2, PEFT, autocast"])
    smol_peak = min(peak_of["SmolLM2, PEFT"], peak_of["SmolLM2, PEFT, autocast"])
    lora, tenth = time_of["LoRA r=8"], time_of["LoRA r=8, loss on a tenth"]
    proportional = tenth + (arms.KEPT - 0.1) / 0.9 * (lora - tenth)  # on the line through a tenth and all
    return [
        ("LoRA step / PEFT's", lora / peft, 0.42 if bfloat16 else 0.60),
        ("the same in float32", time_of["LoRA r=8, float32"] / peft, 0.60),
        ("LoRA step / its matrix products", lora / time_of["products of LoRA r=8"], 1.3),
        ("the same in float32", time_of["LoRA r=8, float32"] / time_of["products of LoRA r=8, float32"], 1.3),
        ("peak memory of it / PEFT's", peak_of["LoRA r=8"] / lean, 0.15),
        ("LoRA step / full step", lora / time_of["full"], 0.70),
        ("loss on a third / in proportion", time_of["LoRA r=8, loss on a third"] / proportional, 1.1),
        ("64 tokens, batch 1 / PEFT's", time_of["write, batch 1"] / time_of["write, batch 1, PEFT"], 0.50),
        ("64 tokens, batch 16 / PEFT's", time_of["write, batch 16"] / time_of["write, batch 16, PEFT"], 0.10),
        ("64 tokens, batch 1 / its products", time_of["write, batch 1"] / time_of["products of write, batch 1"], 1.3),
        (
            "64 tokens, batch 16 / its products",
            time_of["write, batch 16"] / time_of["products of write, batch 16"],
            1.3,
        ),
        ("unmerged / merged, batch 1", time_of["write, batch 1"] / time_of["write, batch 1, merged"], 1.10),
        ("unmerged / merged, batch 16", time_of["write, batch 16"] / time_of["write, batch 16, merged"], 1.10),
        ("SmolLM2, step / PEFT's", time_of["SmolLM2, LoRA"] / smol, 0.80),
        ("the same, both in bfloat16", time_of["SmolLM2, LoRA, bfloat16"] / time_of["SmolLM2, PEFT, autocast"], 0.80),
        ("SmolLM2, peak memory / PEFT's", peak_of["SmolLM2, LoRA"] / smol_peak, 0.70),
        ("step at r = 64 / at r = 1", time_of["LoRA r=64"] / time_of["LoRA r=1"], 1.10),
        ("swap / PEFT's hotswap", time_of["swap"] / time_of["swap, PEFT"], 0.50),
        ("imports above torch, seconds", time_of["import"], 0.4),
        ("pretraining / with torch's own loss", time_of["pretraining"] / time_of["pretraining, torch's own loss"], 0.5),
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--times", type=int, default=6)
    parser.add_argument("--arm", help="measure this arm alone and print it as JSON")
    args = parser.parse_args()
    if args.arm:
        print(json.dumps(measure(args.arm, args.times)))
        return
    began, runs = time.perf_counter(), {arm: [] for arm in [*arms.STEPS, *arms.ACTIONS, "import"]}
    for _ in range(args.rounds):
        for arm in runs:
            command = [sys.executable, __file__, "--arm", arm, "--times", str(args.times)]
            runs[arm].append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    seconds = {arm: [s for run in found for s in run["seconds"]] for arm, found in runs.items()}
    peaks = {arm: statistics.median(run["peak"] for run in found) for arm, found in runs.items() if "peak" in found[0]}
    rows = {}
    print(", ".join(f"{key} {value}" for key, value in machine().items()))
    for arm, found in seconds.items():
        low, mid, high = statistics.quantiles(found, n=4, method="inclusive")
        rows[arm] = dict(median=round(mid, 5), quartiles=[round(low, 5), round(high, 5)], peak=peaks.get(arm))
        memory = f"{peaks[arm] / 1e6:6.0f} MB above the imports" if arm in peaks else ""
        print(f"{arm:32} {mid:7.4f} s  ({low:.4f} to {high:.4f})  {memory}")
    table = goals({arm: row["median"] for arm, row in rows.items()}, peaks, machine()["multiplies_bfloat16"])
    for label, ratio, bar in table:
        print(f"{label:36} {ratio:6.3f}  to reach: {bar:.2f}  {'reached' if ratio <= bar else 'MISSED'}")
    goal_rows = [dict(what=label, measured=round(ratio, 4), goal=bar) for label, ratio, bar in table]
    report = dict(machine=machine(), minutes=round((time.perf_counter() - began) / 60, 1), arms=rows, goals=goal_rows)
    files.replace(RESULTS / "bench.json", lambda path: path.write_text(json.dumps(report, indent=1) + "\n", "utf-8"))


if __name__ == "__main__":
    main()
