"""The promises of the project as a whole: one way in that says the same everywhere, rooms in order, nothing unpickled."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent


def tracked(pattern):
    """The files that belong to the course: what git knows, or all there are where the course came without it."""
    found = subprocess.run(["git", "ls-files", pattern], cwd=ROOT, capture_output=True, text=True)
    names = found.stdout.split() if not found.returncode else []
    return sorted(ROOT / name for name in names) or sorted(ROOT.glob(pattern))


FILES = tracked("llm/*.py")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# what Colab brings along; pip must never be made to replace one of them
COLAB = {
    "torch": "2.11.0",
    "numpy": "2.1.3",
    "tiktoken": "0.14.0",
    "matplotlib": "3.10.0",
    "ipywidgets": "7.7.1",
    "transformers": "5.15.0",
    "peft": "0.20.0",
    "anywidget": "0.9.21",
    "ipykernel": "6.17.1",
    "ipython": "7.34.0",
}
# ground floor first: a file imports only what stands before it
ROOMS = """lora audit tokenizer loss gpt2 model hf files corpora records training pretrained bases tasks spectra matrices
adapter_config adapter_files fingerprints adapters settings datasets distributed finetune sweep plots diagrams charts curves
widgets lab exercises exercises_model exercises_rank exercises_adapter colab doctor console commands __main__""".split()


def requirements(lines):
    return {canonicalize_name(Requirement(line).name): Requirement(line).specifier for line in lines}


DIRECT = requirements(PROJECT["dependencies"] + sum(PROJECT["optional-dependencies"].values(), []))
COURSE = requirements(PROJECT["dependencies"])


# the way in


def test_environment_yml_says_the_same_as_pyproject_toml():
    made = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    *conda, pip = made["dependencies"]
    assert made["name"] == PROJECT["name"] and made["channels"] == ["conda-forge"]
    assert conda == [f"python{PROJECT['requires-python']}", "pip"]
    *lines, editable = pip["pip"]
    assert editable == "--editable ." and requirements(lines) == DIRECT and len(lines) == len(DIRECT)


def test_every_pin_lies_within_its_range_and_every_direct_requirement_is_pinned():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = requirements(line for line in lines if not line.startswith("#"))
    assert all(re.fullmatch(r"==[\w.]+", str(pin)) for pin in pins.values())
    for name, allowed in DIRECT.items():
        assert allowed.contains(str(pins[name])[2:]), f"{name} {pins[name]} is outside {allowed}"
    assert str(pins["torch"]) == "==2.13.0"


def test_every_requirement_admits_what_colab_brings_along():
    assert SpecifierSet(PROJECT["requires-python"]).contains("3.13")
    for name, allowed in DIRECT.items():
        assert name not in COLAB or allowed.contains(COLAB[name]), f"{name}{allowed} shuts out {COLAB[name]}"
    assert {"torch", "numpy", "tiktoken", "matplotlib", "ipywidgets"} <= COURSE.keys() & COLAB.keys()


def test_no_requirement_has_an_upper_end_that_would_age():
    assert all(spec.operator == ">=" for allowed in DIRECT.values() for spec in allowed)


def test_all_that_the_package_imports_is_required_and_what_only_some_need_is_imported_where_it_is_used():
    real = requirements(PROJECT["optional-dependencies"]["real"]).keys() | {
        "huggingface_hub"
    }  # comes with transformers
    for path in FILES:
        top_level = set(imported(path, ast.parse(path.read_text(encoding="utf-8")).body))
        for module in imported(path):
            top = module.split(".")[0]
            known = top in sys.stdlib_module_names or top == "llm" or top in COURSE
            assert known or (top in real and module not in top_level), f"{path.name} imports {top}"


def test_make_test_sets_up_first_and_ci_calls_it():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (line,) = re.findall(r"^test:(.*)$", makefile, re.M)
    assert line.split() == ["real", "lint", "unit", "notebooks", "browser"]
    assert re.search(r"^setup: \.venv/\.done$", makefile, re.M) and re.search(r"^real: setup ", makefile, re.M)
    run = ROOT / ".ci" / "run"
    made = [line for line in run.read_text(encoding="utf-8").splitlines() if line.startswith("make ")]
    assert made == ["make test", "make test-colab"] and run.stat().st_mode & 0o111


def test_everything_is_installed_with_the_constraints():
    installs = re.findall(r"pip install .*", (ROOT / "Makefile").read_text(encoding="utf-8"))
    of_colab = [line for line in installs if line.endswith("--requirement tests/colab/pins.txt")]  # has pins of its own
    assert len(of_colab) == 1 and len(installs) >= 3
    assert all("--constraint constraints.txt" in line for line in installs if line not in of_colab)


def test_the_environment_for_colab_has_the_versions_that_colab_has():
    lines = (ROOT / "tests" / "colab" / "pins.txt").read_text(encoding="utf-8").splitlines()
    pins = requirements(line for line in lines if not line.startswith("#"))
    assert {name: str(pin)[2:] for name, pin in pins.items() if str(pin)} == {
        name: version for name, version in COLAB.items() if name != "torch"
    }
    assert COURSE.keys() <= pins.keys() | {"torch"}


# the rooms


def imported(path, nodes=None):
    """The modules that a file imports, anywhere in it or in some of its nodes."""
    for node in nodes or ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path.name}: say `from llm import ...`"
            yield from (f"llm.{a.name}" for a in node.names) if node.module == "llm" else [node.module]


def rooms(path):
    return {module.split(".")[1] for module in imported(path) if module.startswith("llm.")}


@pytest.mark.parametrize("path", [p for p in FILES if p.stem != "__init__"], ids=lambda p: p.stem)
def test_a_room_imports_only_rooms_above_it(path):
    assert path.stem in ROOMS, f"{path.name} has no place in the order of rooms yet"
    above = set(ROOMS[: ROOMS.index(path.stem)])
    assert rooms(path) <= above, f"{path.stem} looks down to {rooms(path) - above}"


def test_nothing_imports_widgets_or_exercises():
    for path in FILES:
        forbidden = {room for room in ROOMS if room in ("widgets", "lab") or room.startswith("exercises")}
        if path.stem.startswith("exercises_"):
            forbidden.remove("exercises")  # how a check speaks
        assert not rooms(path) & forbidden, path.name


def test_lora_and_loss_import_torch_and_nothing_of_ours():
    for name in ("lora", "loss", "tokenizer"):
        assert not rooms(ROOT / "llm" / f"{name}.py")


def test_drawing_does_not_train_and_training_does_not_draw():
    for name in ("plots", "diagrams", "charts"):
        if (path := ROOT / "llm" / f"{name}.py").exists():
            assert not rooms(path) & {"training", "pretrained", "tasks", "adapters"}, name
    for path in FILES:
        draws = any(module.startswith("matplotlib") for module in imported(path))
        assert not draws or path.stem in {"plots", "diagrams", "charts", "widgets", "lab"}, path.name


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_no_file_is_longer_than_250_lines_and_each_says_what_it_is_for(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 250
    assert ast.get_docstring(ast.parse(text))


# what is never done


def calls(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_nothing_is_unpickled(path):
    banned = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    assert not banned & {module.split(".")[0] for module in imported(path)}
    for name, options in calls(path):
        if name == "torch.load":
            assert options.get("weights_only") == "True"
        if name == "np.load":
            assert options.get("allow_pickle") == "False"
        assert name not in {"torch.jit.load", "eval", "exec", "os.system"}


def test_importing_the_package_does_nothing_slow_and_changes_nothing():
    script = "import os, llm; before = dict(os.environ); import llm.corpora, llm.tasks; assert os.environ == before"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT).returncode == 0


# the front page


def readme():
    return (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_names_every_file_of_the_package_once_and_none_that_is_not_there():
    named = re.findall(r"`llm/(\w+\.py)`", readme())
    assert {p.name for p in FILES if p.stem != "__init__"} <= set(named)
    assert len(set(named)) == len(named) and all((ROOT / "llm" / name).exists() for name in named)


def test_the_readme_links_every_notebook_once():
    linked = re.findall(r"\]\(notebooks/(\w+\.ipynb)\)", readme())
    assert {p.name for p in tracked("notebooks/*.ipynb")} <= set(linked) and len(set(linked)) == len(linked)


def test_what_the_readme_links_is_there_and_its_commands_exist():
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", readme()):
        assert (ROOT / target).exists(), target
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"\bmake (lab|test|bench|refresh|\w+)(?=`|  )", readme())):
        assert re.search(rf"^{target}:", makefile, re.M), target
