"""An unfinished run on disk: what its folder keeps, read with everything checked, and gone on with bit for bit."""

import json
import zipfile
from dataclasses import fields, replace
from pathlib import Path

import torch

from llm.adapters.folder import CONFIG
from llm.errors import RunError
from llm.finetune.run import REPORT, RESUME, VERSION, Run, learned, prepare
from llm.finetune.settings import Settings
from llm.finetune.torchrun import ALONE, Group

NEW_IN_2 = dict(start="chapter", dropout=0.0, skip_long=False) | dict(
    precision="float32", accumulate=1, checkpointing=False
)
NEW_IN_3 = dict(quantize=None, method="lora")


def resume(out: Path, given: dict | None = None, device: str = "cpu", group: Group = ALONE) -> Run:
    """The run in `out` where it was stopped. Settings that are `given` again must be the run's own; data and base may
    have moved, but must be the same inside.

    Raises RunError when there is nothing to resume, it is damaged, or a setting differs, and as `begin` does.
    """
    state, given = _read(out), given or {}
    own = Settings(**state["settings"])
    for name, value in given.items():
        if name not in ("data", "base") and value != getattr(own, name):
            raise RunError(
                f"--{name.replace('_', '-')} {value} is not what the run in {out} began with ({getattr(own, name)}): leave it "
                "out to go on, or choose another --out for a new run"
            )
    settings = replace(own, **{name: given[name] for name in ("data", "base") if name in given})
    run = prepare(settings, out, device, group)
    for name, digest in run.digests.items():
        if digest != state["digests"][name]:
            what = {"data": "text", "base": "base model"}[name]
            raise RunError(
                f"--{name} {getattr(settings, name)} is not the {what} that the run in {out} began with: bring that "
                "back to go on, or choose another --out for a new run"
            )
    try:
        with torch.no_grad():
            for path, own in learned(run.base.model).items():
                for factor, saved in zip(own, state["factors"][path], strict=True):
                    factor.copy_(saved.view_as(factor))
        run.optimizer.load_state_dict(state["optimizer"])
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError):
        raise _damaged(out) from None
    run.done = state["step"]
    run.curve, run.losses = [tuple(point) for point in state["curve"]], state["losses"]
    return run


def _read(out):
    path = out / RESUME
    if not path.is_file():
        why = "the run in it is through" if (out / CONFIG).exists() else "no run was begun there"
        raise RunError(f"there is nothing to resume in {out} ({why}): leave --resume out and choose an --out")
    try:
        with zipfile.ZipFile(path) as archive:  # torch itself checks no checksum
            sound = archive.testzip() is None
        state = torch.load(path, map_location="cpu", weights_only=True)
        version = state.setdefault("version", 1)
        if version == 1:  # what version 2 added did not exist: this is what was done without it
            state |= dict(curve=[], losses=[], settings=NEW_IN_2 | state["settings"])
        if version in (1, 2):
            state |= dict(settings=NEW_IN_3 | state["settings"])
        types = dict(settings=dict, digests=dict, step=int, factors=dict, optimizer=dict, curve=list, losses=list)
        sound = sound and all(type(state[key]) is kind for key, kind in types.items())
        own, found = {field.name for field in fields(Settings)}, state["settings"].keys()
        if sound and (version not in (1, 2, VERSION) or own != found):
            raise _of_another_version(out, sorted(own ^ found))
        sound = sound and state["digests"].keys() == {"data", "base"} and 0 <= state["step"]
    except RunError:
        raise
    except Exception:  # torch raises half a dozen kinds here
        sound = False
    if not sound:
        raise _damaged(out)
    return state


def _of_another_version(out, differ):
    why = f" (in the settings {', '.join(map(str, differ[:5]))})" if differ else ""
    return RunError(
        f"{out / RESUME} was written by another version of the course{why}: go on with that version, or choose another "
        "--out for a new run"
    )


def _damaged(out):
    return RunError(
        f"{out / RESUME} is damaged: the adapter beside it may be sound; for a new run choose another --out"
    )


def read_report(folder: Path | None) -> dict:
    """What `run.json` beside an adapter says of the run that made it; empty where there is none."""
    try:
        report = json.loads((folder.expanduser() / REPORT).read_text(encoding="utf-8")) if folder else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return report if isinstance(report, dict) and isinstance(report.get("base"), str) else {}
