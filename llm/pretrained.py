"""The base model: how it is trained, how it is loaded, and the reader's own checkpoint in its place.

Weights are read from safetensors; a learner's own `.pt` is unpickled with `weights_only=True`, nothing else ever is.
"""

import json
import zlib
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from llm import corpora, files, records
from llm.corpora import Batch
from llm.model import GPT, GPTConfig
from llm.training import evaluate, make_optimizer, train

ROOT = Path(__file__).resolve().parent.parent
BASE = ROOT / "data" / "base"
CHECKPOINT = ROOT / "checkpoints" / "model.pt"  # where the earlier chapters save theirs

# Rows of a pretraining batch by corpus: 24 windows of text and 12 records, about 2,000 tokens a step.
MIXTURE = {"speeches": 12, "shakespeare": 6, "python": 6, "records": 12}
EMBEDDING_RATE = 3e-2
# The softmax pushes the row of every word that is not the next one, a little, always the same way, and Adam makes a
# full step of any push however small: in 1,300 steps with its usual eps of 1e-8 rare words drifted to twice the norm
# of common ones, all in one direction, and could not be told apart or copied.
EMBEDDING_EPS = 1e-4


def pretraining_rate(name: str) -> float:
    """Peak learning rate by parameter: an embedding row is touched by few tokens, so it may move further at each."""
    return EMBEDDING_RATE if name in ("transformer.wte.weight", "transformer.wpe.weight") else 1e-3


class BaseError(Exception):
    """A base model cannot be loaded; the message says what to do."""


def load_base(own: Path = CHECKPOINT, shipped: Path = BASE) -> GPT:
    """The chapter-12 model in float32: the learner's own checkpoint when there is one, else the one that ships.

    Raises BaseError when a file is damaged or of another shape, or when one that was asked for is missing.
    """
    if own.is_file():
        return fill(own, _read_pt(own))
    if own != CHECKPOINT:
        raise BaseError(f"there is no checkpoint {own}: check the path, or leave it out for the shipped base")
    path = shipped / "model.safetensors"
    if not path.is_file():
        raise BaseError(f"the base model {path} is missing: restore it with `git checkout data/base`")
    try:
        return fill(path, load_file(path))
    except SafetensorError as error:
        raise BaseError(f"{path} is damaged ({error}): restore it with `git checkout data/base`") from None


def _read_pt(path):
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # torch raises half a dozen kinds here, for damage and for pickles that it refuses
        raise BaseError(
            f"{path} is not a plain PyTorch state dict: save one with torch.save(model.state_dict(), path), "
            "or move it away to use the shipped base"
        ) from None
    state = state.get("model", state) if isinstance(state, dict) else state
    return state if isinstance(state, dict) else {}


def fill(path: Path, state: dict, config: GPTConfig | None = None) -> GPT:
    """A GPT in float32 and eval mode, by default the chapter-12 one, with the tensors of `state`, which came from `path`.

    Raises BaseError when they are not just those that `config` asks for, before anything is allocated.
    """
    what, cure = "the chapter-12 model", "move it away to use the shipped base"
    if config:
        what, cure = "the model that its config.json says", "copy or save the model again"
    config = config or GPTConfig()
    with torch.device("meta"):
        shapes = {k: v.shape for k, v in GPT(config).state_dict().items()}
    found = {str(k): getattr(v, "shape", None) for k, v in state.items()}
    wrong = sorted(k for k in shapes.keys() | found.keys() if shapes.get(k) != found.get(k))
    if wrong:
        raise BaseError(f"{path} does not hold {what}: {len(wrong)} tensors differ, {wrong[0]} first; {cure}")
    model = GPT(config)
    model.load_state_dict(state)
    return model.eval()


def mixture(seed: int = 0, start: int = 0) -> Iterator[Batch]:
    """Pretraining batches: rows of every register, in the proportions of `MIXTURE`; batch i depends on (seed, i)."""
    streams = []
    for name, rows in MIXTURE.items():
        own_seed = seed * 1009 + zlib.crc32(name.encode()) % 1000
        if name == "records":
            streams.append(records.record_batches(rows, seed=own_seed, schemas=records.BASE_SCHEMAS, start=start))
        else:
            streams.append(corpora.batches(corpora.load(name).train, rows, seed=own_seed, start=start))
    for parts in zip(*streams):
        yield torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])


def heldout(limit: int = 4) -> dict[str, list[Batch]]:
    """Held-out batches of each register in the mixture: documents, and records, that training never sees."""
    text = [name for name in MIXTURE if name != "records"]
    found = {name: corpora.heldout_batches(corpora.load(name).heldout, limit=limit) for name in text}
    unseen = records.record_batches(32, seed=-1, schemas=records.BASE_SCHEMAS)
    return found | {"records": [next(unseen) for _ in range(limit)]}


def pretrain(out: Path, steps: int = 4200, seed: int = 0, every: int = 100) -> Iterator[dict]:
    """Train the base from scratch into `out`, one log row yielded every `every` steps; a killed run resumes.

    Embedding and head are one matrix while it trains, and two equal ones in what it writes: apart, each of the
    vocabulary's words has to be seen in many records before it can be copied; together, one circuit copies them all.
    Writes `log.csv` and `resume.pt` as it goes, `model.safetensors` (fp16) and `config.json` at the end.
    """
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    model = GPT(GPTConfig(tied_lm_head=True))
    optimizer = make_optimizer(model, pretraining_rate, weight_decay=0.1)
    for group in optimizer.param_groups:
        group["eps"] = EMBEDDING_EPS if group["peak_lr"] == EMBEDDING_RATE else group["eps"]
    rows, seconds, tokens, resume = [], 0.0, 0, out / "resume.pt"
    if resume.exists():
        saved = torch.load(resume, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        rows, seconds, tokens = saved["rows"], saved["seconds"], saved["tokens"]
    start = rows[-1]["step"] if rows else 0
    held = heldout()
    stream = mixture(seed, start)
    for step in train(model, stream, steps=steps, lr=pretraining_rate, warmup=30, optimizer=optimizer, start=start):
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
    half = {k: v.half().clone() for k, v in model.state_dict().items()}
    files.replace(out / "model.safetensors", lambda path: path.write_bytes(save(half)))
    files.replace(out / "config.json", lambda path: path.write_text(json.dumps(asdict(GPTConfig()), indent=2) + "\n"))
    resume.unlink(missing_ok=True)
