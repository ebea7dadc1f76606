"""What `adapter_config.json` says: PEFT's settings, read with everything checked, refused by name, and written.

Knows nothing about tensors, files or models.
"""

import hashlib
import json
import re
import reprlib
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import regex

from llm.adapters.foreign import AGAIN, ELSEWHERE, bare_path
from llm.errors import AdapterError

READ = {
    *("peft_type", "r", "lora_alpha", "use_rslora", "target_modules", "bias", "init_lora_weights"),
    *(
        "use_dora",
        "rank_pattern",
        "alpha_pattern",
        "lora_dropout",
        "exclude_modules",
        "layers_to_transform",
        "layers_pattern",
    ),
}
READ_IA3 = {"peft_type", "target_modules", "exclude_modules", "feedforward_modules", "init_ia3_weights"}
# PEFT writes these too, but what a trained adapter computes does not depend on them; anything else must be empty
IGNORED = set(
    "task_type base_model_name_or_path inference_mode auto_mapping revision peft_version megatron_core "
    "qalora_group_size fan_in_fan_out ensure_weight_tying eva_config runtime_config".split()
)
# what PEFT can do and this package cannot, in a learner's words
EXPLAINED = {
    "modules_to_save": "whole layers of the base, trained along with the factors",
    "trainable_token_indices": "embeddings of single tokens, trained along with the factors",
    "lora_bias": "a bias beside B",
    "target_parameters": "LoRA on parameters that are no linear layer's, such as a mixture's experts",
    "layer_replication": "a base that runs through some of its layers twice",
    "alora_invocation_tokens": "aLoRA, which is switched on by certain tokens only",
    "use_qalora": "QA-LoRA, which pools the input before A",
    "use_bdlora": "BD-LoRA, whose factors are cut into blocks",
    "arrow_config": "Arrow, which mixes several adapters",
    "monteclora_config": "MonteCLoRA, which draws its factors at random",
    "velora_config": "VeLoRA, which compresses what it keeps for the backward pass",
    "megatron_config": "layers that Megatron splits over several GPUs",
}
# these take the start of A and B out of the base, whose weights are then no longer those that everybody has
TAKEN = {"pissa": "PiSSA", "olora": "OLoRA", "corda": "CorDA", "lora_ga": "LoRA-GA"}
STARTS = (True, False, None, "gaussian", "orthogonal", "eva", "mica")  # and these leave the base alone
ALL_LINEAR = "all-linear"  # every linear layer but the head, in capitals too
SECONDS = 2.0  # for all patterns of an adapter on all layers of a model; an honest one takes milliseconds


@dataclass(frozen=True)
class Targets:
    """Which layers a config means: module paths or their last parts; one string is a regular expression.

    blocks: only in blocks of these numbers, counted in a list of modules that one of `lists` (patterns) names.
    """

    names: list[str] | str
    exclude: list[str] | str = ""
    blocks: list[int] | None = None
    lists: tuple[str, ...] = ()

    def among(self, paths: Iterable[str]) -> set[str]:
        """Those of `paths` at which PEFT would wrap a layer. Raises AdapterError when a pattern takes for ever."""
        left = set(paths) - _named(self.exclude, paths, "exclude_modules")
        found = _named(self.names, left, "target_modules")
        if self.blocks is not None:
            found = {path for path, number in _blocks(found, self.lists).items() if number in self.blocks}
        return found


@dataclass(frozen=True)
class PeftSettings:
    """A config in our terms."""

    path: Path  # of the config, for messages
    r: int
    alpha: float
    scaling: str  # "alpha/r" or "alpha/sqrt(r)"
    targets: Targets
    dropout: float
    ranks: dict[str, int]  # PEFT's rank_pattern: for some layers another r
    alphas: dict[str, float]  # and its alpha_pattern
    dora: bool = False

    def of(self, paths: list[str]) -> dict[str, tuple[int, float]]:
        """r and alpha of the layers at `paths`, as PEFT would choose them.

        Raises AdapterError when a pattern takes for ever.
        """
        ranks, alphas = (
            _by_path(pattern, paths, f"{self.path}: {key}")
            for key, pattern in (("rank_pattern", self.ranks), ("alpha_pattern", self.alphas))
        )
        return {path: (ranks.get(path, self.r), alphas.get(path, self.alpha)) for path in paths}


def suffixes(path: str) -> list[str]:
    """The names by which a list of targets may mean `path`: "a.b.c", "b.c", "c"."""
    return [path] + [path[i + 1 :] for i, letter in enumerate(path) if letter == "."]


def _named(targets, paths, what):
    """Those of `paths` that a list of names means, or a pattern."""
    if not targets:
        return set()
    if isinstance(targets, str) and targets.lower() == ALL_LINEAR:
        return set(paths)
    if isinstance(targets, str):
        found, compiled = _matcher(what), regex.compile(targets)
        return {path for path in paths if found(compiled, path)}
    names = set(targets)
    return {path for path in paths if not names.isdisjoint(suffixes(path))}


def _blocks(paths, lists):
    """{path: the number of the block that it is in}, by the first list that has it; without one by any list."""
    found = _matcher("layers_pattern")
    patterns = [regex.compile(rf".*?\.{name}\.(?P<number>\d+)\..*") for name in lists or [r"[^.]*"]]
    matches = {path: next((m for pattern in patterns if (m := found(pattern, path))), None) for path in paths}
    return {path: int(m["number"]) for path, m in matches.items() if m and m["number"]}


def write_settings(layers: dict[str, tuple[int, float]], scaling: str, dropout: float = 0.0, dora=False) -> dict:
    """PEFT's config for layers with their r and alpha: what most have is the rule, the others are in the patterns."""
    (r, alpha), (ranks, alphas) = zip(*(_rule({p: of[i] for p, of in layers.items()}) for i in (0, 1)))
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "bias": "none",
        "fan_in_fan_out": False,
        "r": r,
        "lora_alpha": _whole(alpha),
        "lora_dropout": dropout,
        "use_rslora": scaling == "alpha/sqrt(r)",
        "target_modules": sorted(layers),
    }
    more = {"rank_pattern": ranks, "alpha_pattern": {path: _whole(a) for path, a in alphas.items()}, "use_dora": dora}
    return config | {key: value for key, value in more.items() if value}


def _rule(values):
    """The commonest value, and a pattern for the paths that have another."""
    rule = Counter(values.values()).most_common(1)[0][0]
    pattern = {path: value for path, value in values.items() if value != rule}
    # a path alone reads best, and every PEFT takes it; but as a suffix, and a regular one, it may mean other layers too
    alone = all(re.fullmatch(r"[\w.-]+", path) for path in pattern) and _by_path(pattern, list(values)) == pattern
    return rule, pattern if alone else {"^" + re.escape(path): value for path, value in pattern.items()}


def _whole(alpha):
    return int(alpha) if float(alpha).is_integer() else alpha


def digest(config: dict) -> str:
    """Of all in a config that counts. The tensors carry it, so that they know their config, and an edit shows."""
    counts = {k: v for k, v in config.items() if k not in IGNORED and v}
    return hashlib.sha256(json.dumps(counts, sort_keys=True).encode()).hexdigest()[:16]


def _must(config, path):
    """A function that raises AdapterError with one sentence about a key of `config`, unless something holds."""

    def must(holds, key, what, do=AGAIN):
        if not holds:
            found = f"{reprlib.repr(key)[1:-1]}={reprlib.repr(config[key])}" if key in config else f"no {key}"
            raise AdapterError(f"{path} has {found}, but {what}: {do}")

    return must


def _no_more_than(known, config, must):
    for key in sorted(k for k, v in config.items() if v and k not in known | IGNORED):
        what = f"there is no support here for {EXPLAINED.get(key, 'this option')}"
        must(False, key, what, ELSEWHERE + "without it")


def read_ia3_settings(config: dict, path: Path) -> Targets:
    """Which layers an IA3 config means. Raises AdapterError for whatever is not plain IA3."""
    must = _must(config, path)
    must(config.get("peft_type") == "IA3", "peft_type", "it must be IA3 here")
    _no_more_than(READ_IA3, config, must)
    return _targets(config, must)


def read_settings(config: dict, path: Path) -> PeftSettings:
    """The settings in a config that was read from `path`. Raises AdapterError for whatever is not LoRA or DoRA."""
    must = _must(config, path)
    method, start = config.get("peft_type"), config.get("init_lora_weights")
    do = ELSEWHERE + "with LoRA" if isinstance(method, str) else AGAIN
    must(method == "LORA", "peft_type", "only adapters of the types LORA and IA3 load here", do)
    biases = "biases of the base that were trained along do not load here"
    must(config.get("bias", "none") == "none", "bias", biases, ELSEWHERE + 'with bias="none"')
    taken = next((TAKEN[key] for key in TAKEN if isinstance(start, str) and start.startswith(key)), None)
    fit = f"{taken} starts by changing the base weights, so the adapter does not fit the base that you have"
    do = "save it from PEFT with path_initial_model_for_weight_conversion, which makes it plain LoRA"
    must(not taken, "init_lora_weights", fit, do)
    name = "LoftQ" if start == "loftq" else "a start that is not known here"
    do = "train again with init_lora_weights=True"
    must(start in STARTS, "init_lora_weights", f"{name} may have changed the base weights", do)
    r, alpha = config.get("r"), config.get("lora_alpha")
    must(_rank(r), "r", "the rank must be a whole number from 1 up")
    must(_alpha(alpha), "lora_alpha", "alpha must be a finite number")
    must(type(config.get("use_rslora", False)) is bool, "use_rslora", "it must be true or false")
    must(type(config.get("use_dora") or False) is bool, "use_dora", "it must be true or false")
    _no_more_than(READ, config, must)
    ranks, alphas = (config.get(key) or {} for key in ("rank_pattern", "alpha_pattern"))
    for pattern, key, fine, what in (
        (ranks, "rank_pattern", _rank, "it gives layers a whole number from 1 up"),
        (alphas, "alpha_pattern", _alpha, "it gives layers a finite number"),
    ):
        must(isinstance(pattern, dict) and all(map(fine, pattern.values())), key, what)
        must(len(pattern) < 10**4, key, "it names no more than 9,999 layers")
        must(all(map(_valid, pattern)), key, "each pattern in it must be a valid regular expression")
    dropout = config.get("lora_dropout") or 0.0
    must(type(dropout) in (int, float) and 0 <= dropout < 1, "lora_dropout", "it must be a share from 0 up to 1")
    scaling = "alpha/sqrt(r)" if config.get("use_rslora") else "alpha/r"
    return PeftSettings(
        path, r, alpha, scaling, _targets(config, must), float(dropout), ranks, alphas, bool(config.get("use_dora"))
    )


def _targets(config, must):
    """Which layers a config means; `must` raises AdapterError for what is no sense."""
    for key in ("target_modules", "exclude_modules"):
        said = config.get(key)
        if isinstance(said, str):
            must(_valid(said), key, "a pattern must be a valid regular expression")
        elif said or key == "target_modules":
            listed = isinstance(said, list) and said and all(isinstance(name, str) and name for name in said)
            must(listed, key, "it must be a list of module names or a pattern")
    blocks, lists = config.get("layers_to_transform"), config.get("layers_pattern") or []
    blocks, lists = [blocks] if type(blocks) is int else blocks or None, [lists] if isinstance(lists, str) else lists
    numbers = blocks is None or isinstance(blocks, list) and all(type(n) is int for n in blocks)
    must(numbers, "layers_to_transform", "it must be the number of a block, or a list of them")
    valid = isinstance(lists, list) and all(isinstance(name, str) and _valid(name) for name in lists)
    must(valid, "layers_pattern", "it must be the name of a list of blocks, or a list of such names")
    names = config["target_modules"]
    must(blocks is None or isinstance(names, list), "layers_to_transform", "that needs a list in target_modules")
    names = names if isinstance(names, str) else [bare_path(name) for name in names]
    return Targets(names, config.get("exclude_modules") or "", blocks, tuple(lists))


def _rank(r):
    return type(r) is int and r >= 1


def _alpha(alpha):
    return type(alpha) in (int, float) and abs(alpha) < 1e30  # which NaN is not either


# patterns: regular expressions from a stranger, which may run for ever


def _valid(pattern):
    try:
        return bool(regex.compile(pattern)) and bool(_suffix(pattern))
    except (regex.error, RecursionError, OverflowError, MemoryError):
        return False


def _suffix(key):
    return regex.compile(rf"(.*\.)?({key})")  # PEFT's get_pattern_key


def _matcher(what):
    """A function that matches a compiled pattern with a whole path, all calls within `SECONDS` together."""
    end = time.monotonic() + SECONDS

    def found(compiled, path):
        try:
            return compiled.fullmatch(path, timeout=max(1e-3, end - time.monotonic()))
        except TimeoutError:
            raise AdapterError(f"{what} has a pattern that takes for ever: give full module paths in it") from None

    return found


def _by_path(pattern, paths, what="a pattern"):
    """{path: value} for the paths that a rank or alpha pattern names; the first key that matches counts."""
    if not pattern:
        return {}
    found, compiled = _matcher(what), [(value, _suffix(key)) for key, value in pattern.items()]
    firsts = {path: next(((value,) for value, key in compiled if found(key, path)), None) for path in paths}
    return {path: first[0] for path, first in firsts.items() if first}
