"""The order of the notebooks: one line moved, and names, titles, links and the README follow."""

import re
import shutil
from pathlib import Path

import nbformat
import pytest

from llm.course import contents, notebook_files
from llm.errors import CourseError

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def course(tmp_path):
    """The course's notebooks and its README, to be changed."""
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    for readme in ("README.md", "data/base/README.md", "data/results/README.md"):
        (tmp_path / readme).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / readme, tmp_path / readme)
    return tmp_path


def write(course):
    return notebook_files.write(course)


def text(path):
    return "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown")


def test_the_course_says_what_its_order_says(course):
    assert write(course) == []
    names = sorted(path.name for path in (course / "notebooks").glob("*.ipynb"))
    assert names == [contents.file_name(notebook.subject) for notebook in contents.NOTEBOOKS]


def test_a_notebook_that_moves_takes_its_name_its_title_and_every_link_along(course, monkeypatch):
    moved = contents.NOTEBOOKS[:]
    moved.insert(2, moved.pop(contents.NOTEBOOKS.index(next(n for n in moved if n.subject == "wrapper"))))
    monkeypatch.setattr(contents, "NOTEBOOKS", moved)
    monkeypatch.setattr(contents, "PARTS", {"All": moved})
    changed = write(course)
    assert "03_wrapper.ipynb -> 02_wrapper.ipynb" in changed and write(course) == []
    there = sorted(path.name for path in (course / "notebooks").glob("*.ipynb"))
    assert there[2:4] == ["02_wrapper.ipynb", "03_why_low_rank.ipynb"]
    assert text(course / "notebooks" / "02_wrapper.ipynb").startswith("# 02 · The wrapper\n")
    for name in there:
        for shown, subject in re.findall(
            r"\[([^\]]*\d\d[^\]]*)\]\(\d\d_(\w+)\.ipynb", text(course / "notebooks" / name)
        ):
            assert contents.number(subject) in shown, (name, shown)
    readme = (course / "README.md").read_text(encoding="utf-8")
    assert "[02 The wrapper](notebooks/02_wrapper.ipynb)" in readme and "03_wrapper" not in readme
    evidence = (course / "data" / "results" / "README.md").read_text(encoding="utf-8")
    assert "[03](../../notebooks/03_why_low_rank.ipynb)" in evidence and "02_why_low_rank" not in evidence


def test_a_notebook_without_a_line_is_refused_before_anything_changes(course):
    stray = course / "notebooks" / "42_stray.ipynb"
    shutil.copy(course / "notebooks" / "01_formula.ipynb", stray)
    with pytest.raises(CourseError, match="has no line for stray: add one"):
        write(course)
    assert stray.exists() and len(list((course / "notebooks").glob("*.ipynb"))) == len(contents.NOTEBOOKS) + 1


@pytest.mark.parametrize("place", range(len(contents.NOTEBOOKS)), ids=lambda i: contents.NOTEBOOKS[i].subject)
def test_a_notebook_says_where_the_reader_is_and_leads_to_the_next(place):
    notebook = contents.NOTEBOOKS[place]
    words = text(ROOT / "notebooks" / contents.file_name(notebook.subject))
    for line in ("- **You know by now:** ", "- **This notebook shows:** ", f"- **Time:** {notebook.minutes} minutes"):
        assert line in words.partition("\n## ")[0], line
    for after in contents.NOTEBOOKS[place + 1 : place + 2]:
        last = [line for line in words.splitlines() if line.startswith("Next: ")]
        assert len(last) == 1
        assert last[0].startswith(
            f"Next: [{contents.number(after.subject)} · {after.title}]({contents.file_name(after.subject)})"
        )


@pytest.mark.parametrize("notebook", contents.NOTEBOOKS, ids=lambda notebook: notebook.subject)
def test_every_mention_of_another_notebook_is_a_link(notebook):
    words = re.sub(r"\[[^\]]*\]\([^)]*\)", "", text(ROOT / "notebooks" / contents.file_name(notebook.subject)))
    assert not re.search(r"\bnotebooks? \d\d\b", words, re.I)
