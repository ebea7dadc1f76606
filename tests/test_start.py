"""The ways in for everybody: no make and Windows, one core, a checkout that changes no byte."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
WINDOWS = r".venv\Scripts\python"


def lines():
    """The commands that the README gives where there is no make."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    return [line.strip() for line in readme.splitlines() if line.startswith("    ") and "python" in line][:4]


def run(*command, cwd=ROOT):
    done = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def here(line):
    """The words of a command of the README, with this machine's slashes and the Python that runs the tests."""
    python, *words = [word.strip('"') for word in line.split()]
    assert python == WINDOWS
    return [sys.executable, *(word.replace("\\", os.sep) for word in words)]


def test_without_make_three_lines_set_up_what_make_lab_does_and_the_fourth_opens_it():
    venv, install, fetch, opens = lines()
    assert venv == "python -m venv .venv"
    assert install == WINDOWS + ' -m pip install --constraint constraints.txt --editable ".[lab]"'
    assert fetch == WINDOWS + " -m llm fetch"
    assert opens == WINDOWS + r" -m jupyter lab notebooks\00_one_page.ipynb"
    dry_run = ["make", "--dry-run", "--always-make", "lab"]
    makes = subprocess.run(dry_run, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for part in (
        "-m venv .venv\n",
        "pip install --quiet --constraint constraints.txt --editable '.[lab]'",
        "-m llm fetch\n",
    ):
        assert part in makes
    assert "jupyter lab notebooks/00_one_page.ipynb\n" in makes


def test_the_first_line_makes_an_environment_that_has_pip(tmp_path):
    python, *words = lines()[0].split()
    run(sys.executable, *words, cwd=tmp_path)
    made = tmp_path / ".venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    assert "pip" in run(made, "-m", "pip", "--version")


def test_the_second_line_asks_for_what_the_course_is_tested_with():
    """Without the network: where all of it is installed, pip has nothing to fetch and nothing to change."""
    said = run(*here(lines()[1]), "--dry-run", "--no-index", "--no-build-isolation")
    assert re.findall(r"^Would install (.*)$", said, re.M) in ([], ["lora-course-0.1.0"]), said


def test_the_last_two_lines_fetch_the_texts_and_find_jupyterlab_and_the_notebook():
    run(*here(lines()[2]))
    *jupyter, notebook = here(lines()[3])
    assert re.match(r"\d+\.", run(*jupyter, "--version")) and (ROOT / notebook).exists()


def test_a_checkout_on_windows_changes_no_byte():
    """Git for Windows turns LF into CRLF; tiktoken would then find other tables than those whose sha256 it knows."""
    if not shutil.which("git") or not (ROOT / ".git").exists():
        pytest.skip("this is no git checkout")
    for path in ("data/tokenizer", "data/results/ranks.csv", "llm/lora.py", "notebooks/01_formula.ipynb"):
        for file in (ROOT / path).iterdir() if (ROOT / path).is_dir() else [ROOT / path]:
            assert run("git", "check-attr", "text", file).strip().endswith(": unset"), file


def test_the_package_needs_neither_docstrings_nor_asserts():
    """`python -OO` leaves out both."""
    for path in sorted((ROOT / "llm").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = getattr(node, "attr", getattr(node, "id", ""))
            assert not isinstance(node, ast.Assert) and name not in ("__doc__", "getdoc"), f"{path}:{node.lineno}"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot bind a process to one core")
def test_on_one_core_the_course_imports_and_trains():
    script = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import torch
from llm.course.tasks import load_task
from llm.course.widgets.lab import Lab
from llm.lora import apply_lora
from llm.model import GPT, GPTConfig
from llm.training import train
model = apply_lora(GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16)), r=2)
[step] = train(model, load_task("records", limit=1).batches(0), steps=1, lr=1e-3)
print(torch.get_num_threads(), step.loss > 0)
"""
    without = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, env=without)
    assert done.stdout.split() == ["1", "True"], done.stderr
