"""The course on Colab: one address, the same first cell everywhere, and nothing done where there is no Colab."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llm import paths
from llm.__main__ import main
from llm.course import colab

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
ELSEWHERE = "https://github.com/somebody/a-course.git"


@pytest.fixture
def copies(tmp_path):
    for path in NOTEBOOKS[:2]:
        shutil.copy(path, tmp_path)
    return tmp_path


def cells(path):
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_the_first_code_cell_and_the_badge_are_made_from_the_address_in_pyproject_toml(path):
    title, first, *rest = cells(path)
    assert "".join(first["source"]) == colab.bootstrap(path.name) and first["metadata"]["tags"] == ["bootstrap"]
    assert first["metadata"]["jupyter"]["source_hidden"] and not first["outputs"]
    badges = [line for line in title["source"] if "colab-badge" in line]
    assert badges == ([colab.badge(path.name)] if colab.badge(path.name) else [])
    assert not [cell for cell in rest if "bootstrap" in cell["metadata"].get("tags", [])]


def test_a_notebook_that_needs_what_colab_lacks_brings_it_and_nothing_that_colab_has():
    for name, packages in colab.MORE.items():
        assert name in {path.name for path in NOTEBOOKS}
        assert all(f', "{package}"], check=True)' in colab.bootstrap(name) for package in packages)
        assert not {"torch", "numpy", "ipywidgets", "transformers", "peft"} & set(packages)
    assert "gguf" not in colab.bootstrap("01_formula.ipynb")


def test_the_address_stands_in_pyproject_toml_and_nowhere_else_by_hand():
    found = subprocess.run(
        ["git", "grep", "-l", "--fixed-strings", colab.repository()], cwd=ROOT, capture_output=True, text=True
    )
    if found.returncode > 1:
        pytest.skip("the course came without git")
    assert {name for name in found.stdout.split() if not name.endswith(".ipynb")} <= {"pyproject.toml"}


def test_a_new_address_reaches_every_notebook_and_a_second_writing_changes_nothing(copies, monkeypatch):
    assert colab.write(copies) == []
    monkeypatch.setattr(colab, "repository", lambda: ELSEWHERE)
    assert colab.write(copies) == [path.name for path in NOTEBOOKS[:2]]
    assert colab.write(copies) == []
    for path, before in zip(sorted(copies.glob("*.ipynb")), NOTEBOOKS):
        title, first, *rest = cells(path)
        assert f'"{ELSEWHERE}"' in "".join(first["source"])
        assert title["source"][-1].endswith(f"/github/somebody/a-course/blob/main/notebooks/{path.name})")
        assert rest == cells(before)[2:]
    monkeypatch.undo()
    colab.write(copies)
    assert [path.read_text() for path in sorted(copies.glob("*.ipynb"))] == [p.read_text() for p in NOTEBOOKS[:2]]


def test_a_notebook_without_the_first_cell_gets_it(copies):
    path = copies / NOTEBOOKS[0].name
    notebook = json.loads(path.read_text(encoding="utf-8"))
    del notebook["cells"][1]
    path.write_text(json.dumps(notebook))
    assert colab.write(copies) == [path.name]
    assert "".join(cells(path)[1]["source"]) == colab.bootstrap(path.name)


def test_the_command_says_what_it_changed(copies, monkeypatch, capsys):
    monkeypatch.setattr(paths, "NOTEBOOKS", copies / "notebooks")
    monkeypatch.setattr(colab, "repository", lambda: ELSEWHERE)
    (copies / "notebooks").mkdir()
    shutil.copy(NOTEBOOKS[0], copies / "notebooks")
    assert main(["colab"]) == 0
    assert ELSEWHERE in (said := capsys.readouterr().out) and NOTEBOOKS[0].name in said


def test_the_first_cell_does_nothing_where_there_is_no_colab(tmp_path):
    code = (
        colab.bootstrap(NOTEBOOKS[0].name)
        + "\nprint(os.getcwd(), [m for m in ('subprocess', 'google') if m in set(vars())])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.split() == [str(tmp_path), "[]"] and not done.stderr and not list(tmp_path.iterdir())
