"""The course on Colab: the badge and the first cell of each notebook, both made from the one address in pyproject.toml."""

import tomllib
from pathlib import Path

from llm import files
from llm.paths import PROJECT

TAG = "bootstrap"
BADGE = "https://colab.research.google.com/assets/colab-badge.svg"

MORE = {"07_real_model.ipynb": ("gguf",)}  # packages that a notebook needs and Colab lacks

CELL = """\
# On Colab this brings the course; anywhere else it does nothing.
import os

try:
    from google.colab import output
except ImportError:
    output = None
if output and not os.path.isdir("../llm"):
    import subprocess
    import sys

    course = "{address}"
    if not os.path.isdir("lora-course"):
        clone = ["git", "clone", "--quiet", "--depth=1", course, "lora-course"]
        subprocess.run(clone, check=True)
    # --no-deps: Colab's torch and widgets stay
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--editable", "lora-course"{more}], check=True)
    os.chdir("lora-course/notebooks")
    sys.path.insert(0, os.path.dirname(os.getcwd()))
    output.enable_custom_widget_manager()"""


def repository() -> str:
    """The address that git clones the course from: `project.urls.Repository` in pyproject.toml."""
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    return project["urls"]["Repository"]


def bootstrap(name: str) -> str:
    """The source of the first code cell of notebooks/`name`."""
    return CELL.format(address=repository(), more="".join(f', "{package}"' for package in MORE.get(name, ())))


def badge(name: str) -> str:
    """A link that opens notebooks/`name` on Colab, as markdown; empty when the address is not one that Colab opens."""
    host, _, path = repository().removeprefix("https://").partition("/")
    if host != "github.com":
        return ""
    there = f"https://colab.research.google.com/github/{path.removesuffix('.git')}/blob/main/notebooks/{name}"
    return f"[![Open in Colab]({BADGE})]({there})"


def write(folder: Path) -> list[str]:
    """Put badge and first cell into each notebook of `folder`, or bring them up to date; the names of those changed."""
    import nbformat

    changed = []
    for path in sorted(folder.glob("*.ipynb")):
        before = path.read_text(encoding="utf-8")
        notebook = nbformat.reads(before, as_version=4)
        title, first = notebook.cells[:2]
        lines = [line for line in title.source.splitlines() if not line.startswith("[![Open in Colab]")]
        title.source = "\n".join([*lines, badge(path.name)]).strip()
        if TAG not in first.metadata.get("tags", []):
            # folded away in JupyterLab and on Colab: nobody comes here to read it
            metadata = {"cellView": "form", "jupyter": {"source_hidden": True}, "tags": [TAG]}
            first = nbformat.v4.new_code_cell(id=TAG, metadata=metadata)
            notebook.cells.insert(1, first)
        first.source = bootstrap(path.name)
        after = nbformat.writes(notebook) + "\n"
        if after != before:
            files.replace(path, lambda to, text=after: to.write_text(text, encoding="utf-8"))
            changed.append(path.name)
    return changed
