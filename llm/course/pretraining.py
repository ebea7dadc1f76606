"""How the base model of the course was made: `python -m llm pretrain`."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save

from llm import files
from llm.course.pretraining_mixture import heldout, mixture
from llm.loss import multiplies_bfloat16
from llm.model import GPT, GPTConfig
from llm.text.batches import Batch, seed_of
from llm.training import evaluate, make_optimizer, train

CPU = torch.device("cpu")
DROPOUT = 0.1  # every text is read seven to ten times: without it the plays are at their best before the end
BLOCK_RATE, EMBEDDING_RATE = 2e-3, 3e-2
# The softmax pushes the row of every word that is not the next one, a little, always the same way, and Adam makes a
# full step of any push however small: in 1,300 steps with its usual eps of 1e-8 rare words drifted to twice the norm
# of common ones, all in one direction, and could not be told apart or copied.
EMBEDDING_EPS = 1e-4


def pretraining_rate(name: str) -> float:
    """Peak learning rate by parameter: an embedding row is touched by few tokens, so it may move further at each."""
    return EMBEDDING_RATE if name in ("transformer.wte.weight", "transformer.wpe.weight") else BLOCK_RATE


def pretrain(out: Path, steps: int, seed: int = 0, every: int = 100, device: torch.device = CPU) -> Iterator[dict]:
    """Train the base from scratch into `out`, one log row yielded every `every` steps; a killed run resumes.

    Embedding and head are one matrix while it trains, and two equal ones in what it writes: apart, each of the
    vocabulary's words has to be seen in many records before it can be copied; together, one circuit copies them all.
    The head's products are in bfloat16 where the processor multiplies it, though the head trains: half of a step is
    there. On a GPU all products are.
    Writes `log.csv` and `resume.pt` as it goes, `model.safetensors` (fp16) and `config.json` at the end.
    """
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    model = GPT(GPTConfig(tied_lm_head=True, dropout=DROPOUT)).to(device)
    optimizer = make_optimizer(model, pretraining_rate, weight_decay=0.1)
    for group in optimizer.param_groups:
        group["eps"] = EMBEDDING_EPS if group["peak_lr"] == EMBEDDING_RATE else group["eps"]
    rows, seconds, tokens, resume = [], 0.0, 0, out / "resume.pt"
    if resume.exists():
        saved = torch.load(resume, map_location=device, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        rows, seconds, tokens = saved["rows"], saved["seconds"], saved["tokens"]
    start = rows[-1]["step"] if rows else 0
    held = heldout()
    stream = mixture(seed, start)
    options = dict(steps=steps, lr=pretraining_rate, warmup=30, optimizer=optimizer, start=start)
    precision = "bfloat16" if multiplies_bfloat16(device) else "float32"
    for step in train(model, seeded(stream, seed, start), **options, precision=precision):
        seconds, tokens = seconds + step.seconds, tokens + step.tokens
        done = step.index + 1
        if done % every == 0 or done == steps:
            losses = {name: round(evaluate(model, batches), 4) for name, batches in held.items()}
            rows.append(dict(step=done, tokens=tokens, seconds=round(seconds), train=round(step.loss, 4), **losses))
            state = dict(model=model.state_dict(), optimizer=optimizer.state_dict())
            state |= dict(rows=rows, seconds=seconds, tokens=tokens)
            files.replace(resume, partial(torch.save, state))
            files.write_csv(out / "log.csv", rows)
            yield rows[-1]
    half = {k: v.half().cpu().clone() for k, v in model.state_dict().items()}
    files.replace(out / "model.safetensors", lambda path: path.write_bytes(save(half)))
    files.replace(out / "config.json", lambda path: path.write_text(json.dumps(asdict(GPTConfig()), indent=2) + "\n"))
    resume.unlink(missing_ok=True)


def seeded(stream: Iterator[Batch], seed: int, start: int) -> Iterator[Batch]:
    """The batches of `stream`; dropout's draws at step i depend on (seed, i) alone, so that a killed run resumes."""
    for i, batch in enumerate(stream, start):
        torch.manual_seed(seed_of(seed, i))
        yield batch
