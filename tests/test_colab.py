"""The course on Colab: one address, the same first cell everywhere, and nothing done where there is no Colab."""

import json
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from llm import paths
from llm.course import colab, contents, notebook_files

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
ELSEWHERE = "https://github.com/somebody/a-course.git"


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
        assert "".join(f', "{package}"' for package in packages) + "], check=True)" in colab.bootstrap(name)
        assert not {"torch", "numpy", "ipywidgets", "transformers", "peft"} & set(packages)
    assert "gguf" not in colab.bootstrap(contents.file_name("formula"))


def test_the_address_stands_in_pyproject_toml_and_nowhere_else_by_hand(monkeypatch):
    address = tomllib.loads(paths.PROJECT.read_text(encoding="utf-8"))["project"]["urls"]["Repository"]
    found = subprocess.run(["git", "grep", "-l", "--fixed-strings", address], cwd=ROOT, capture_output=True, text=True)
    if found.returncode > 1:
        pytest.skip("the course came without git")
    assert {name for name in found.stdout.split() if not name.endswith(".ipynb")} <= {"pyproject.toml"}


@pytest.mark.parametrize(
    ("address", "known"),
    [("https://lora-course.invalid/a.git", ""), ("https://github.com/b/a", "https://github.com/b/a")],
)
def test_a_placeholder_is_no_address(tmp_path, monkeypatch, address, known):
    (tmp_path / "pyproject.toml").write_text(f'[project.urls]\nRepository = "{address}"')
    monkeypatch.setattr(colab, "PROJECT", tmp_path / "pyproject.toml")
    assert colab.repository() == known


def test_the_packed_course_has_what_a_notebook_needs_and_stays_small(tmp_path):
    packed = tmp_path / "lora-course.zip"
    assert colab.pack(packed) == packed.stat().st_size < 40e6
    names = set(zipfile.ZipFile(packed).namelist())
    assert {"pyproject.toml", "README.md", "llm/lora.py", "data/sources.toml", "data/base/model.safetensors"} <= names
    assert {f"notebooks/{path.name}" for path in NOTEBOOKS} <= names
    assert not [
        name for name in names if name.startswith(("tests/", "data/cache/", "adapters/")) or "__pycache__" in name
    ]


def first_cell(folder, address=""):
    """What the first cell prints and where it ends, with a stand-in for Colab's module and for pip."""
    (folder / "google").mkdir(exist_ok=True)
    (folder / "google" / "colab.py").write_text(
        "class output:\n    def enable_custom_widget_manager():\n        print('widgets')"
    )
    code = colab.CELL.format(address=address, more="").replace('"-m", "pip"', '"-c", "import sys; print(sys.argv[1:])"')
    code = "import sys; sys.path.insert(0, '.')\n" + code + "\nprint(os.getcwd())"
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize("place", [".", "drive/MyDrive"])
def test_the_first_cell_unpacks_the_course_from_the_file_pane_or_from_drive(tmp_path, place):
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    colab.pack(tmp_path / place / "lora-course.zip")
    for _ in range(2):  # the second time there is nothing left to unpack
        done = first_cell(tmp_path)
        assert done.returncode == 0, done.stderr
        *_, here = done.stdout.split()
        assert here == str(tmp_path / "lora-course" / "notebooks")
    assert (tmp_path / "lora-course" / "llm" / "lora.py").exists()


def test_without_an_address_or_the_packed_course_the_first_cell_says_what_to_do(tmp_path):
    (tmp_path / "lora-course.zip").write_bytes(b"PK: an upload that has not come to its end")
    done = first_cell(tmp_path)
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.startswith("Make lora-course.zip on your computer with `make colab`, drag it into the file pane")


def test_with_an_address_the_first_cell_clones_it(tmp_path):
    source = tmp_path / "source"
    (source / "notebooks").mkdir(parents=True)
    (source / "notebooks" / "a.ipynb").write_text("{}")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "all"]):
        subprocess.run([*git, *words], cwd=source, check=True)
    (tmp_path / "here").mkdir()
    done = first_cell(tmp_path / "here", source.as_uri())
    assert done.stdout.split()[-1] == str(tmp_path / "here" / "lora-course" / "notebooks"), done.stderr


def test_a_new_address_reaches_every_notebook_and_a_second_writing_changes_nothing(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    shutil.copy(ROOT / "README.md", tmp_path)
    first, *rest = sorted((tmp_path / "notebooks").glob("*.ipynb"))
    assert notebook_files.write(tmp_path) == []
    monkeypatch.setattr(colab, "repository", lambda: ELSEWHERE)
    assert notebook_files.write(tmp_path) == [path.name for path in (first, *rest)]
    assert notebook_files.write(tmp_path) == []
    for path, before in zip((first, *rest), NOTEBOOKS):
        title, cell, *others = cells(path)
        assert f'"{ELSEWHERE}"' in "".join(cell["source"])
        assert title["source"][-1].endswith(f"/github/somebody/a-course/blob/main/notebooks/{path.name})")
        assert others == cells(before)[2:]
    notebook = json.loads(first.read_text(encoding="utf-8"))
    del notebook["cells"][1]
    first.write_text(json.dumps(notebook), encoding="utf-8")
    assert notebook_files.write(tmp_path) == [first.name]
    assert "".join(cells(first)[1]["source"]) == colab.bootstrap(first.name)
    monkeypatch.undo()
    notebook_files.write(tmp_path)
    assert [path.read_text() for path in rest] == [path.read_text() for path in NOTEBOOKS[1:]]


def test_the_first_cell_does_nothing_where_there_is_no_colab(tmp_path):
    code = (
        colab.bootstrap(NOTEBOOKS[0].name)
        + "\nprint(os.getcwd(), [m for m in ('subprocess', 'google') if m in set(vars())])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.split() == [str(tmp_path), "[]"] and not done.stderr and not list(tmp_path.iterdir())
