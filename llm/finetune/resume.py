"""Resumes a stopped run bit for bit from the checkpoint in its folder, after checking that checkpoint in full."""

import shutil
import zipfile
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from llm import files
from llm.errors import RunError
from llm.finetune.run import RESUME, Run, learned, prepare, put, read_report
from llm.finetune.settings import Settings
from llm.finetune.torchrun import ALONE, Group
from llm.text.chat import with_template
from llm.tokenizer import GPT2

# each value has the type that a checkpoint's must have, unless that is None
SOME = Settings("", steps=1, lr=1.0, block=1, quantize="", epochs=1.0, measure=1, patience=1, map="", template="")
KINDS = {name: (float, int) if type(value) is float else (type(value),) for name, value in vars(SOME).items()}


def resume(out: Path, given: dict | None = None, device: str = "cpu", group: Group = ALONE) -> Run:
    """Resume the run in `out` where it stopped. The caller must hold the folder's lock, as in `together`.

    given: settings that are given again and must equal the run's. Text and base may have moved, but not changed. Raises
    RunError when there is nothing to resume, it is damaged, or a setting differs, and whatever `begin` raises.
    """
    path, given = out / RESUME, dict(given or {})
    if not path.is_file():
        if done := read_report(out).get("done"):
            raise RunError(
                f"the run in {out} has finished, after step {done}: start a new one with more --steps and another --out"
            )
        raise RunError(f"there is nothing to resume in {out}, as no run was started there: leave --resume out")
    for unfinished in out.glob(f"{files.UNFINISHED}*") if group.rank == 0 else ():  # left by a killed run
        shutil.rmtree(unfinished, ignore_errors=True)
    with _sound(path):
        with zipfile.ZipFile(path) as archive:  # torch verifies no checksums
            damaged = archive.testzip()
        state = torch.load(path, map_location="cpu", weights_only=True)
        settings, digests = Settings(**state["settings"]), dict(state["digests"])
        odd = [x for name, x in vars(settings).items() if type(x) not in (*KINDS[name], type(None))]
        if damaged or odd or state["step"] < 0:
            raise ValueError
    if given.get("template") is not None:  # a run stores the template's text, not its file name
        given["template"] = with_template(GPT2, given["template"]).template
    moved = {name: given.pop(name) for name in ("data", "base") if name in given}
    anew = "to go on, or choose another --out for a new run"
    for name, value in given.items():
        if value != (before := getattr(settings, name)):
            option = f"--{name.replace('_', '-')} {value}"
            raise RunError(f"{option} is not what the run in {out} began with ({before}): leave it out {anew}")
    run = prepare(replace(settings, **moved), out, device, group)
    data, base = run.settings.data, run.settings.base
    parts = dict(data=f"the text {data}", base=f"the base {base}", tokenizer=f"the tokenizer of {base}")
    for name, what in parts.items():
        if run.digests[name] != digests.get(name):
            raise RunError(
                f"{what} is not the one that the run in {out} began with: bring that back, or leave it out, {anew}"
            )
    with _sound(path):
        layers = learned(run.base.model)
        factors, run.kept = (
            {
                layer: [t.view_as(p) for t, p in zip(saved[layer], layers[layer], strict=True)]
                for layer in layers
                if saved
            }
            for saved in (state["factors"], state["kept"])
        )
        put(run.base.model, factors)
        run.optimizer.load_state_dict(state["optimizer"])
        run.done, run.best, run.log = int(state["step"]), state["best"], list(state["log"])
        run.curve = [tuple(point) for point in state["curve"]]
    return run


@contextmanager
def _sound(path):
    """Turn any error inside the `with` into a RunError that blames the checkpoint."""
    try:
        yield
    except Exception:  # torch raises many types of errors here
        raise RunError(
            f"{path} is damaged, or another version of the course wrote it: the adapter beside it may be sound; for a "
            "new run choose another --out"
        ) from None
