"""Where LoRA's updates point (Hu et al. 2021, section 7): `python -m llm experiments subspaces`, `data/results/subspaces.json`.

The same task at a small and at a large rank, three seeds each: do the two find the same directions, do two seeds, and does
an update strengthen what W already does most?
"""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

from llm import files
from llm.bases import load_base
from llm.course.experiments import SEEDS, grid, in_processes, trained
from llm.lora import lora_layers
from llm.paths import RESULTS
from llm.spectra import amplification, overlap

SMALL, LARGE = 8, 64
LEADING = (1, 2, 4, 8)  # how many directions are compared
# the paper's own three ranks
RUNS = grid(task="shakespeare", r=(4, SMALL, LARGE), start="paper", precision="bfloat16", rows=8)


def record(results: Path = RESULTS, processes: int = 1, device: str = "cpu") -> Iterator[dict]:
    """Do the runs, one said as it comes, then write what `compare` finds. Nothing is done where the file is there."""
    if (path := results / "subspaces.json").exists():
        return
    factors = {}
    for run, found in in_processes(_factors, RUNS, processes, device):
        factors[run.r, run.seed] = found
        yield dict(r=run.r, seed=run.seed, matrices=len(found))
    weights = {name: m.weight for name, m in load_base().named_modules() if name in found}
    text = json.dumps(compare(factors, weights), indent=1)
    files.replace(path, partial(Path.write_text, data=text + "\n", encoding="utf-8"))


def _factors(run, device):
    model, _ = trained(run, device)
    return {path: (layer.A.detach().cpu(), layer.update().detach().cpu()) for path, layer in lora_layers(model).items()}


def compare(factors: dict, weights: dict[str, torch.Tensor]) -> dict[str, list[dict]]:
    """Overlaps and amplifications, a row for each matrix and seed.

    factors: {(rank, seed): {matrix: (A (in, r), update (out, in))}}; weights: {matrix: W (out, in)}.
    """
    chance = torch.Generator().manual_seed(0)
    overlaps, amplified = [], []
    for path, W in weights.items():
        for s in SEEDS:
            small, large = factors[SMALL, s][path][0], factors[LARGE, s][path][0]
            other = factors[LARGE, SEEDS[s - 1]][path][0]
            noise = torch.randn(large.shape, generator=chance)
            for pair, a, b in (
                ("r = 8 and r = 64", small, large),
                ("two seeds of r = 64", large, other),
                ("chance", noise, large),
            ):
                found = {str(i): round(overlap(a, b, i, i), 4) for i in LEADING}
                overlaps.append(dict(pair=pair, matrix=path, seed=s, **found))
        for (r, s), layers in factors.items():
            amplified.append(dict(r=r, matrix=path, seed=s, factor=round(amplification(W, layers[path][1], r), 3)))
    return dict(overlaps=overlaps, amplified=amplified)
