"""Time and memory on a GPU, ours against transformers + PEFT: printed, and kept in `data/results/gpu.json` (`make gpu`)."""

import gc
import json
import statistics
import sys
from functools import partial
from itertools import islice
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))
import arms

from llm import files
from llm.bases import transformers_models
from llm.lora import apply_lora
from llm.model import GPTConfig
from llm.paths import RESULTS

GPU = torch.device("cuda")
WARM, TIMES = 5, 20
GPT2 = GPTConfig(n_layer=12, n_head=12, n_embd=768, block_size=1024, bias=True, tied_lm_head=True)
PEFT = dict(loss=arms.whole_logits, precision="float32")
AUTOCAST = dict(loss=arms.under_autocast, precision="float32")
SMOLLM2 = dict(make=lambda: apply_lora(arms.smollm2(), r=8), loss=transformers_models.loss)

STEPS = {  # model, batch, method -> what `arms.steps` takes
    (model, f"{rows} x {block}", method): dict(rows=rows, block=block, **options)
    for model, rows, block, methods in [
        (
            name,
            rows,
            block,
            {
                "LoRA": dict(make=partial(arms.ours, 8, config)),
                "LoRA, float32": dict(make=partial(arms.ours, 8, config), precision="float32"),
                "full": dict(make=partial(arms.ours, 0, config)),
                "PEFT": dict(make=partial(arms.theirs, 8, config), **PEFT),
                "PEFT, autocast": dict(make=partial(arms.theirs, 8, config), **AUTOCAST),
            },
        )
        for name, config, rows, block in [
            ("chapter-12 model", GPTConfig(), 32, 64),
            ("chapter-12 model", GPTConfig(), 512, 64),
            ("GPT-2's shape", GPT2, 16, 1024),
        ]
    ]
    + [
        (
            "SmolLM2's shape",
            16,
            512,
            {
                "LoRA": SMOLLM2,
                "LoRA, float32": SMOLLM2 | dict(precision="float32"),
                "PEFT": dict(make=arms.smollm2_theirs, **PEFT),
                "PEFT, autocast": dict(make=arms.smollm2_theirs, **AUTOCAST),
            },
        )
    ]
    for method, options in methods.items()
}
TEXT = {
    ("64 tokens", f"batch {batch}", method): partial(make, batch, *merged)
    for batch in (1, 16)
    for method, make, merged in [
        ("LoRA", arms.writing, (False,)),
        ("merged", arms.writing, (True,)),
        ("PEFT", arms.writing_theirs, ()),
    ]
}


def step_figures(options) -> dict:
    """Seconds a step, its wait for the GPU included, and the most memory that was taken."""
    seconds = [step["seconds"] for step in islice(arms.steps(device=GPU, **options), WARM, WARM + TIMES)]
    return dict(seconds=statistics.median(seconds), bytes=torch.cuda.max_memory_allocated())


def text_figures(make) -> dict:
    action = make(device=GPU)

    def through():
        action()
        torch.cuda.synchronize()

    return dict(seconds=statistics.median([arms.timed(through) for _ in range(2 + 5)][2:]), bytes=None)


def main():
    card, rows = torch.cuda.get_device_name(), []
    print(f"{card}, torch {torch.__version__}", flush=True)
    for measure, plan in ((step_figures, STEPS), (text_figures, TEXT)):
        for (model, batch, method), how in plan.items():
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            torch.manual_seed(0)
            found = measure(how)
            rows.append(dict(model=model, batch=batch, method=method, **found))
            memory = f"{found['bytes'] / 2**30:7.2f} GiB" if found["bytes"] else ""
            report = dict(card=card, torch=torch.__version__, warm=WARM, times=TIMES, rows=rows)
            text = json.dumps(report, indent=1) + "\n"
            files.replace(RESULTS / "gpu.json", partial(Path.write_text, data=text, encoding="utf-8"))
            print(f"{model:18} {batch:10} {method:16} {1000 * found['seconds']:8.1f} ms {memory}", flush=True)


if __name__ == "__main__":
    main()
