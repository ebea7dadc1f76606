"""Read, check and write PEFT's `adapter_config.json`: what an adapter's tensors do not tell.

Knows nothing about tensors, files or models. The tensors tell which layers are adapted, and at which rank. No regular
expression from a file is compiled, because it may run forever.
"""

import hashlib
import json
import re
import reprlib
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from llm.adapters.foreign import AGAIN, MERGE, bare_path, shown
from llm.errors import AdapterError

# PEFT writes these too, but they do not affect what a trained adapter computes
IGNORED = set(
    "task_type base_model_name_or_path inference_mode auto_mapping revision peft_version megatron_core "
    "qalora_group_size fan_in_fan_out ensure_weight_tying eva_config runtime_config".split()
)
READ = IGNORED | set(  # these are read here, or the tensors give the same information
    "peft_type r lora_alpha lora_dropout rank_pattern alpha_pattern target_modules exclude_modules "
    "layers_to_transform layers_pattern feedforward_modules init_ia3_weights".split()
)
NEUTRAL = {  # the values of other settings that are supported here; a setting that is not listed must be empty
    "bias": ("none",),
    "init_lora_weights": (True, "gaussian", "orthogonal", "eva", "mica"),  # the other initializations change the base
    "use_dora": (True,),
    "use_rslora": (True,),
}
NAME = re.compile(r"\^?([\w.-]|\\\W)+")  # a pattern's key that is a path or the end of one, escaped or not


def suffixes(path: str) -> list[str]:
    """Return the names by which a list of targets may mean `path`: "a.b.c", "b.c", "c"."""
    return [path] + [path[i + 1 :] for i, letter in enumerate(path) if letter == "."]


def among(names: Iterable[str], paths: Iterable[str]) -> set[str]:
    """Return those of `paths` that a list of targets selects by PEFT's rule: a path, or the end of one."""
    names = set(names)
    return {path for path in paths if not names.isdisjoint(suffixes(path))}


def write_settings(
    method: str, layers: dict[str, tuple[int, float]], scaling: str, dropout: float, inward: list[str], base: str | None
) -> dict:
    """Return PEFT's config for layers with their r and alpha: the most common values, and patterns for the others.

    inward: the layers whose inputs IA3 scales. base: the name by which others find the base.
    """
    config = {
        "peft_type": "IA3" if method == "ia3" else "LORA",
        "task_type": "CAUSAL_LM" if base else None,
        "base_model_name_or_path": base or None,
        "inference_mode": True,
    }
    if method == "ia3":
        return config | dict(fan_in_fan_out=False, target_modules=sorted(layers), feedforward_modules=sorted(inward))
    r, ranks = _rule({path: r for path, (r, _) in layers.items()})
    alpha, alphas = _rule({path: alpha for path, (_, alpha) in layers.items()})
    config |= {
        "bias": "none",
        "fan_in_fan_out": False,
        "r": r,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "use_rslora": scaling == "alpha/sqrt(r)",
        "target_modules": sorted(layers),
    }
    more = dict(rank_pattern=ranks, alpha_pattern=alphas, use_dora=method == "dora")
    return config | {key: value for key, value in more.items() if value}


def _rule(numbers):
    """Return the most common number, and full paths with the others: a path's end could match other layers too."""
    numbers = {path: int(x) if float(x).is_integer() else x for path, x in numbers.items()}
    [(rule, _)] = Counter(numbers.values()).most_common(1)
    return rule, {"^" + re.escape(path): x for path, x in numbers.items() if x != rule}


def digest(config: dict) -> str:
    """Hash the settings that matter. The tensors carry it, so that they know their config and an edit is detected."""
    counts = {k: v for k, v in config.items() if k not in IGNORED and v}
    try:
        return hashlib.sha256(json.dumps(counts, sort_keys=True).encode()).hexdigest()[:16]
    except RecursionError:  # nested too deeply to be ours
        return ""


def read_settings(config: dict, path: Path) -> dict:
    """Return what a config read from `path` says besides alpha. Raises AdapterError unless it is for LoRA, DoRA or IA3.

    method: "lora", "dora" or "ia3"; scaling: "alpha/r", "alpha/sqrt(r)" or "" for IA3; dropout; targets: the paths, or
    ends of paths, of the layers and of those left out, or None where only the tensors tell; base: its name, or None.
    """

    def must(holds, key, what, cure=AGAIN):
        if not holds:
            value = f"{reprlib.repr(key)[1:-1]}={reprlib.repr(config[key])}" if key in config else f"no {key}"
            raise AdapterError(f"{path} has {value}, but {what}: {cure}")

    kind, names, base = (config.get(key) for key in ("peft_type", "target_modules", "base_model_name_or_path"))
    cure = "open it in PEFT (PeftModel.from_pretrained), or train again with LoRA" if isinstance(kind, str) else AGAIN
    must(kind in ("LORA", "IA3"), "peft_type", "only adapters of the types LORA and IA3 load here", cure)
    for key in sorted(key for key, value in config.items() if value and key not in READ):
        must(config[key] in NEUTRAL.get(key, ()), key, "there is no support here for this option", MERGE)
    dropout, pattern = config.get("lora_dropout") or 0.0, config.get("alpha_pattern") or {}
    must(kind == "IA3" or _finite(config.get("lora_alpha")), "lora_alpha", "alpha must be a finite number")
    must(_finite(dropout) and 0 <= dropout < 1, "lora_dropout", "it must be a share from 0 up to 1")
    plain = isinstance(pattern, dict) and all(map(NAME.fullmatch, pattern)) and all(map(_finite, pattern.values()))
    what = "it must give module paths finite numbers, as no regular expression of a file is run here"
    must(plain, "alpha_pattern", what, MERGE)
    excluded = config.get("exclude_modules") or []
    listed = all(isinstance(x, list) and all(isinstance(name, str) for name in x) for x in (names, excluded))
    by_number = config.get("layers_to_transform") not in (None, [])
    return dict(
        method="ia3" if kind == "IA3" else "dora" if config.get("use_dora") else "lora",
        scaling="" if kind == "IA3" else "alpha/sqrt(r)" if config.get("use_rslora") else "alpha/r",
        dropout=float(dropout),
        targets=tuple([bare_path(name) for name in x] for x in (names, excluded)) if listed and not by_number else None,
        base=shown(base, 1000) if isinstance(base, str) and base else None,
    )


def read_alphas(config: dict, paths: Iterable[str]) -> dict[str, float]:
    """Return alpha by path: that of the first key in PEFT's alpha_pattern that is the path or the end of it."""
    pattern = config.get("alpha_pattern") or {}
    places, rule = {}, (len(pattern), config["lora_alpha"])
    for place, (key, alpha) in enumerate(pattern.items()):
        places.setdefault(re.sub(r"\\(\W)", r"\1", key), (place, alpha))
    return {path: min(places.get(name, rule) for name in ("^" + path, *suffixes(path)))[1] for path in paths}


def _finite(number):
    return type(number) in (int, float) and abs(number) <= sys.float_info.max  # False for NaN
