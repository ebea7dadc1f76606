"""The notebooks' files, brought up to date with the course's order and with its address for Colab."""

from pathlib import Path

from llm import files
from llm.course import colab, contents
from llm.errors import CourseError


def write(course: Path) -> list[str]:
    """Bring the notebooks of the folder `course` up to date, and every README that links one; what changed.

    Names, titles, links, tables, badges and first cells follow. Raises CourseError where a notebook has no line in
    `contents.py`, before anything is changed.
    """
    import nbformat

    folder, changed = course / "notebooks", []
    there = {path.stem.partition("_")[2]: path for path in sorted(folder.glob("[0-9][0-9]_*.ipynb"))}
    if unknown := set(there) - {notebook.subject for notebook in contents.NOTEBOOKS}:
        raise CourseError(f"llm/course/contents.py has no line for {', '.join(sorted(unknown))}: add one")
    aside = {subject: path.rename(path.with_name(f".{path.name}")) for subject, path in there.items()}
    for subject, path in aside.items():  # first aside, as its name may be that of another one
        path.rename(folder / contents.file_name(subject))
        if there[subject].name != contents.file_name(subject):
            changed.append(f"{there[subject].name} -> {contents.file_name(subject)}")

    def update(path, after):
        if after != path.read_text(encoding="utf-8"):
            files.replace(path, lambda to: to.write_text(after, encoding="utf-8"))
            changed.append(path.name)

    for notebook in contents.NOTEBOOKS:
        if notebook.subject in there:
            path = folder / contents.file_name(notebook.subject)
            content = nbformat.read(path, as_version=4)
            _update(content.cells, notebook)
            update(path, nbformat.writes(content) + "\n")
    for path in (course / "README.md", *sorted(course.glob("data/*/README.md"))):
        update(path, contents.updated(path.read_text(encoding="utf-8"), "notebooks/"))
    return changed


def _update(cells, notebook):
    """Bring a notebook's cells up to date: its title and badge, its first cell, its links."""
    from nbformat.v4 import new_code_cell

    for cell in cells:
        if cell.cell_type == "markdown":
            cell.source = contents.updated(cell.source)
    name, (title, first, *_) = contents.file_name(notebook.subject), cells
    lines = [line for line in title.source.splitlines() if not line.startswith("[![Open in Colab]")]
    lines[0] = f"# {contents.number(notebook.subject)} · {notebook.title}"
    title.source = "\n".join([*lines, colab.badge(name)]).strip()
    if colab.TAG not in first.metadata.get("tags", []):
        # folded away in JupyterLab and on Colab: nobody comes here to read it
        metadata = {"cellView": "form", "jupyter": {"source_hidden": True}, "tags": [colab.TAG]}
        first = new_code_cell(id=colab.TAG, metadata=metadata)
        cells.insert(1, first)
    first.source = colab.bootstrap(name)
