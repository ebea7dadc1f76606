"""Step and swap time, peak memory: LoRA against full fine-tuning, ours against transformers + PEFT (`make bench`).

Every arm is a process of its own, so that peak memory is its own; the arms take turns, so that a machine whose
speed drifts drifts for all of them. Times are medians over all the steps of an arm but each round's first two.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time

import torch

from llm.adapters import load_adapter, save_adapter
from llm.bases import transformers_models
from llm.lora import apply_lora, lora_layers
from llm.model import GPT, GPTConfig
from llm.training import own_loss, train

ROWS, BLOCK = 32, 64
REAL_ROWS = 4  # of a model of SmolLM2's size


def ours(r):
    """Our GPT, with LoRA at rank r, or fully trained at r = 0."""
    model = GPT(GPTConfig())
    return apply_lora(model, r=r) if r else model


class Theirs(torch.nn.Module):
    """transformers' GPT-2 at the same size, under PEFT's LoRA at rank r or fully trained, in our loop."""

    def __init__(self, r):
        super().__init__()
        from peft import LoraConfig, get_peft_model
        from transformers import GPT2Config, GPT2LMHeadModel

        config = GPT2Config(n_positions=BLOCK, n_layer=4, n_head=4, n_embd=128, tie_word_embeddings=False)
        config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.0
        self.model = GPT2LMHeadModel(config)
        if r:
            names = ["c_attn", "c_proj", "c_fc"]
            self.model = get_peft_model(self.model, LoraConfig(r=r, lora_alpha=16, target_modules=names))

    def forward(self, idx, targets):
        logits = self.model(input_ids=idx).logits
        return None, torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


ARMS = {
    "ours, full": lambda: ours(0),
    "ours, LoRA r=1": lambda: ours(1),
    "ours, LoRA r=8": lambda: ours(8),
    "ours, LoRA r=64": lambda: ours(64),
    "transformers, full": lambda: Theirs(0),
    "transformers + PEFT r=8": lambda: Theirs(8),
}


def smollm2():
    """A model of SmolLM2-135M's shape, its weights random."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = dict(hidden_size=576, intermediate_size=1536, num_hidden_layers=30, vocab_size=49152)
    heads = dict(num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True)
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads))


def ours_real():
    """SmolLM2's shape under our LoRA and our loss."""
    return apply_lora(smollm2(), r=8)


def theirs_real():
    """SmolLM2's shape under PEFT's LoRA on the same layers, its loss from whole logits, as transformers has it."""
    from peft import LoraConfig, get_peft_model

    names = "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj".split()
    return get_peft_model(smollm2(), LoraConfig(r=8, lora_alpha=16, target_modules=names))


def whole_logits(model, x, y):
    return torch.nn.functional.cross_entropy(model(input_ids=x).logits.flatten(0, 1), y.flatten())


REAL = {
    "SmolLM2, ours": (ours_real, transformers_models.loss),
    "SmolLM2, transformers + PEFT": (theirs_real, whole_logits),
}


def ours_swap(folder):
    model = apply_lora(smollm2(), r=8)
    return lambda: load_adapter(model, folder)


def peft_swap(folder):
    from peft import PeftModel
    from peft.utils.hotswap import hotswap_adapter

    model = PeftModel.from_pretrained(smollm2(), folder)
    return lambda: hotswap_adapter(model, folder, adapter_name="default", torch_device="cpu")


SWAPS = {"ours, swap": ours_swap, "PEFT hotswap": peft_swap}


def measure_swap(arm: str, swaps: int) -> dict:
    """Seconds of each swap of a whole adapter from disk, after the first two; the base has 210 adapted layers."""
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        trained = apply_lora(smollm2(), r=8)
        for layer in lora_layers(trained).values():
            torch.nn.init.normal_(layer.B)
        save_adapter(trained, folder)
        del trained
        torch.manual_seed(0)
        swap = SWAPS[arm](folder)
        seconds = []
        for _ in range(swaps + 2):
            began = time.perf_counter()
            swap()
            seconds.append(time.perf_counter() - began)
    return dict(seconds=seconds[2:], peak=_peak())


def measure(arm: str, steps: int) -> dict:
    """Seconds of each step after the first two, peak resident bytes, and what trains."""
    torch.manual_seed(0)
    make, loss = REAL[arm] if arm in REAL else (ARMS[arm], own_loss)
    model = make()
    x = torch.randint(49152, (REAL_ROWS if arm in REAL else ROWS, BLOCK + 1))
    batches = [(x[:, :-1], x[:, 1:])] * (steps + 2)
    seconds, began = [], time.perf_counter()
    for _ in train(model, batches, steps=steps + 2, lr=1e-4, loss=loss):
        now = time.perf_counter()
        seconds.append(now - began)
        began = now
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return dict(seconds=seconds[2:], peak=_peak(), trainable=trainable)


def _peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--swaps", type=int, default=20)
    parser.add_argument("--arm", choices=ARMS | REAL | SWAPS, help="measure this arm alone and print it as JSON")
    args = parser.parse_args()
    if args.arm:
        found = measure_swap(args.arm, args.swaps) if args.arm in SWAPS else measure(args.arm, args.steps)
        print(json.dumps(found))
        return
    runs = {arm: [] for arm in ARMS | REAL | SWAPS}
    for _ in range(args.rounds):
        for arm in runs:
            command = [sys.executable, __file__, "--arm", arm, "--steps", str(args.steps), "--swaps", str(args.swaps)]
            runs[arm].append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    time_of = {arm: statistics.median(s for run in found for s in run["seconds"]) for arm, found in runs.items()}
    peak_of = {arm: statistics.median(run["peak"] for run in found) for arm, found in runs.items()}
    sizes = f"{ROWS} x {BLOCK} tokens a step ({REAL_ROWS} x {BLOCK} for SmolLM2's shape)"
    print(f"{sizes}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for arm in ARMS | REAL:
        trainable = runs[arm][0]["trainable"]
        print(f"{arm:28} {time_of[arm]:6.3f} s a step  {peak_of[arm] / 1e9:5.2f} GB peak  {trainable:10,} trainable")
    for arm in SWAPS:
        print(f"{arm:28} {time_of[arm] * 1000:6.1f} ms to put 210 layers' factors from disk on a base of 134.5 M")
    lora, peft = "ours, LoRA r=8", "transformers + PEFT r=8"
    real, real_peft = REAL
    for label, ratio, bar in (
        ("LoRA / full, time", time_of[lora] / time_of["ours, full"], 0.75),
        ("ours / PEFT, time", time_of[lora] / time_of[peft], 0.60),
        ("ours / PEFT, peak memory", peak_of[lora] / peak_of[peft], 0.40),
        ("SmolLM2, ours / PEFT, time", time_of[real] / time_of[real_peft], 1.05),
        ("SmolLM2, ours / PEFT, peak", peak_of[real] / peak_of[real_peft], 1.00),
        ("a swap, seconds", time_of["ours, swap"], 0.02),
        ("ours / PEFT, swap", time_of["ours, swap"] / time_of["PEFT hotswap"], 0.50),
        ("r = 64 / r = 1, time", time_of["ours, LoRA r=64"] / time_of["ours, LoRA r=1"], 1.15),
    ):
        print(f"{label:28} {ratio:6.2f}  to reach: {bar:.2f}  {'reached' if ratio <= bar else 'MISSED'}")


if __name__ == "__main__":
    main()
