"""The promises of the project as a whole: one way in that says the same everywhere, rooms in order, nothing unpickled."""

import ast
import os
import re
import shutil
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
    found = subprocess.run(["git", "ls-files", f":(glob){pattern}"], cwd=ROOT, capture_output=True, text=True)
    names = found.stdout.split() if not found.returncode else []
    return sorted(ROOT / name for name in names) or sorted(ROOT.glob(pattern))


FILES = tracked("llm/**/*.py")
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
    extras = PROJECT["optional-dependencies"]
    real = requirements(extras["real"] + extras["data"] + extras["lab"]).keys()
    real |= {"huggingface_hub", "pyarrow"}  # they come with transformers and datasets
    for path in FILES:
        top_level = set(imported(path, ast.parse(path.read_text(encoding="utf-8")).body))
        for module in imported(path):
            top = module.split(".")[0].removesuffix("_ext")  # tiktoken_ext is tiktoken's
            known = top in sys.stdlib_module_names or top == "llm" or top in COURSE
            assert known or (top in real and module not in top_level), f"{path.name} imports {top}"


def commands(*targets):
    """What make would run for these targets in a folder where nothing is set up yet, a line a command."""
    dry_run = ["make", "--no-print-directory", "--dry-run", "--always-make", *targets]
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(dry_run, cwd=ROOT, capture_output=True, text=True, check=True, env=outside)
    return done.stdout.splitlines()


def first(lines, part):
    return next(i for i, line in enumerate(lines) if part in line)


def test_make_test_sets_up_first_and_then_proves_everything():
    lines = commands("test")
    installed, fetched = first(lines, ".[lab,real,data,test]"), first(lines, "llm fetch --real")
    for part in ("ruff check", "ruff format --check", "lint-imports", "pytest", "--nbval", "tests/browser"):
        assert first(lines, part) > installed, part
    for part in ("pytest", "--nbval", "tests/browser"):
        assert first(lines, part) > fetched, part
    (nbval,) = (line for line in lines if "--nbval " in line)
    assert all(path.name in nbval for path in tracked("notebooks/*.ipynb"))


def test_a_learner_is_asked_for_no_more_than_the_lab():
    lines = commands("lab")
    assert "jupyter lab" in lines[-1] and first(lines, "llm fetch") < len(lines) - 1
    assert not any(word in line for line in lines for word in ("[lab,real", "--real"))


def test_several_targets_at_a_time_never_install_into_one_environment_at_once():
    """Each environment is made by one chain of files: with every target asked for at once, the order is still the same."""
    lines = commands("unit", "setup", "real", "browser", "lint")
    extras = [re.search(r"\.\[([\w,]+)\]", line)[1] for line in lines if " --editable " in line]
    assert extras == ["lab", "lab,real", "lab,real,data,test"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    rules = dict(re.findall(r"^\.venv/\.(\w+): (\..*)$", makefile, re.M))
    assert ".venv/.lab" in rules["real"] and ".venv/.real" in rules["test"]


def test_everything_is_installed_with_the_constraints_and_by_pip_where_there_is_no_uv():
    lines = [line for line in commands("test") if "install" in line and "install --quiet uv" not in line]
    assert len(lines) == 4
    for line in lines:
        assert line.count(" install ") == line.count("--constraint constraints.txt")
        assert ".venv/bin/pip install" in line


def test_ci_calls_what_the_readme_names_and_the_two_suites_beside_it():
    run = ROOT / ".ci" / "run"
    words = run.read_text(encoding="utf-8").split()
    assert {"test", "test-colab", "test-floors"} <= set(words) and run.stat().st_mode & 0o111


def test_the_floors_are_the_lowest_versions_that_pyproject_admits():
    done = subprocess.run(
        [sys.executable, "tests/floors/pins.py"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    floors = {pin.replace("==", ">=") for pin in done.stdout.split()}
    extras = PROJECT["optional-dependencies"].values()
    asked = set(PROJECT["dependencies"]).union(*extras)
    assert asked - floors == {next(one for one in asked if one.startswith("torch>="))} and floors < asked


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


def test_a_backward_import_would_be_found(tmp_path):
    """The contracts are held against a copy in which the lesson looks up into the course."""
    shutil.copytree(ROOT / "llm", tmp_path / "llm", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)

    def kept():
        command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()", "--no-cache"]
        return subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": "."}
        )

    assert kept().returncode == 0
    for room, line in {
        "lora.py": "from llm import paths",
        "training.py": "import llm.lora",
        "quantize.py": "from llm.errors import SettingError",
        "text/corpora.py": "from llm.bases import load",
        "course/figures/trainable.py": "from llm.training import train",
        "course/experiments.py": "from llm.course.widgets import lab",
        "adapters/folder.py": "from llm.adapters import on_model",
    }.items():
        whole = (tmp_path / "llm" / room).read_text(encoding="utf-8")
        (tmp_path / "llm" / room).write_text(f"{whole}\n{line}\n", encoding="utf-8")
        assert (found := kept()).returncode == 1 and "BROKEN" in found.stdout, room
        (tmp_path / "llm" / room).write_text(whole, encoding="utf-8")


def test_only_figures_and_widgets_draw():
    drawing = [p for p in FILES if any(module.startswith("matplotlib") for module in imported(p))]
    assert drawing and {p.parent.name for p in drawing} <= {"figures", "widgets"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT / "llm")))
def test_each_file_says_what_it_is_for(path):
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("room", [p for p in FILES if p.name == "__init__.py"], ids=lambda p: p.parent.name)
def test_each_room_says_who_lives_there(room):
    said = ast.get_docstring(ast.parse(room.read_text(encoding="utf-8")))
    there = {p.name for p in room.parent.iterdir() if p.suffix in (".py", ".js")} - {"__init__.py"}
    named = set(re.findall(r"`([\w.]+\.(?:py|js))`", said))
    if room.parent == ROOT / "llm":  # the lesson, in the order of reading
        there = {
            "lora.py",
            "surgery.py",
            "model.py",
            "loss.py",
            "training.py",
            "generation.py",
            "tokenizer.py",
            "spectra.py",
            "quantize.py",
        }
    assert there <= named, f"{room.parent.name}/__init__.py does not name {there - named}"
    assert all((room.parent / name).exists() for name in named if "/" not in name)


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


def test_importing_what_a_notebook_imports_reads_no_data_starts_nothing_and_changes_no_environment():
    script = """
import os, sys, threading, torch
before, threads, opened = dict(os.environ), threading.active_count(), []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
import llm.adapters, llm.bases, llm.course.experiments, llm.course.tasks, llm.text.dataset
assert "transformers" not in sys.modules and "matplotlib" not in sys.modules
import llm.course.widgets.lab
assert dict(os.environ) == before and threading.active_count() == threads
data = [p for p in opened if os.path.abspath(p).startswith(os.path.abspath("data"))]
assert not data, data
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert not done.returncode, done.stderr


def test_importing_what_a_notebook_imports_takes_less_than_torch_itself():
    """In one process and in this order, so that a busy machine slows both."""
    script = """
import time
began = time.perf_counter(); import torch
torchs = time.perf_counter() - began
import matplotlib.pyplot, ipywidgets, tiktoken, numpy
began = time.perf_counter()
import llm.adapters, llm.bases, llm.course.tasks, llm.course.figures, llm.course.widgets.lab
print((time.perf_counter() - began) / torchs)
"""
    shares = [
        float(subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True).stdout)
        for _ in range(3)
    ]
    assert min(shares) < 1, shares


# the front page


def readme():
    return (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readmes_map_has_a_row_for_each_room_and_each_file_beside_them():
    named = re.findall(r"^\| `llm/([\w.]+)/?`", readme(), re.M)
    there = {p.relative_to(ROOT / "llm").parts[0] for p in FILES} - {"__init__.py"}
    assert sorted(named) == sorted(there)


def test_the_readme_links_every_notebook():
    linked = re.findall(r"\]\(notebooks/(\w+\.ipynb)\)", readme())
    assert {p.name for p in tracked("notebooks/*.ipynb")} == set(linked)


def test_what_the_readme_links_is_there_and_its_commands_exist():
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", readme()):
        assert (ROOT / target).exists(), target
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"\bmake (lab|test|bench|refresh|\w+)(?=`|  )", readme())):
        assert re.search(rf"^{target}:", makefile, re.M), target
