"""The course on Colab: what packs it, and the badge and the first cell of each notebook, from one address in pyproject.toml."""

import tomllib
import zipfile
from pathlib import Path

from llm import files
from llm.course import contents
from llm.paths import PROJECT, ROOT

TAG = "bootstrap"
BADGE = "https://colab.research.google.com/assets/colab-badge.svg"
PACKED = ("llm", "notebooks", "data", "pyproject.toml", "README.md")  # what a notebook needs, and no tests
LEFT_OUT = {"__pycache__", "cache", ".ipynb_checkpoints", "node_modules"}  # made again there

# packages that a notebook needs and Colab lacks
MORE = {contents.file_name("real_model"): ("gguf",), contents.file_name("your_data"): ("gguf", "xllamacpp")}

CELL = """\
# On Colab this brings the course; anywhere else it does nothing.
import os

try:
    from google.colab import output
except ImportError:
    output = None
if output and not os.path.isdir("../llm"):
    import shutil
    import subprocess
    import sys
    import zipfile

    course, address = "lora-course", "{address}"
    places = (f"{{course}}.zip", f"drive/MyDrive/{{course}}.zip")
    packed = [place for place in places if zipfile.is_zipfile(place)]
    if packed and not os.path.isdir(course):
        shutil.unpack_archive(packed[0], f".{{course}}")
        os.rename(f".{{course}}", course)
    elif address and not os.path.isdir(course):
        clone = ["git", "clone", "--quiet", "--depth=1", address, course]
        subprocess.run(clone, check=True)
    if not os.path.isdir(course):
        sys.exit(
            "Make lora-course.zip on your computer with `make colab`, drag it into "
            "the file pane at the left, and run this cell again."
        )
    # --no-deps: Colab's torch and widgets stay
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--editable", course{more}], check=True)
    os.chdir(f"{{course}}/notebooks")
    sys.path.insert(0, os.path.dirname(os.getcwd()))
    output.enable_custom_widget_manager()"""


def repository() -> str:
    """The address that git clones the course from: `project.urls.Repository` in pyproject.toml; empty for a placeholder."""
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    address = project["urls"]["Repository"]
    return "" if address.split("/")[2].endswith(".invalid") else address


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


def pack(out: Path) -> int:
    """Put what a notebook needs into the zip file `out`, which the first cell unpacks; its bytes. Raises WriteError."""
    there = [path.relative_to(ROOT) for name in PACKED for path in ((ROOT / name), *sorted((ROOT / name).rglob("*")))]

    def write(to):
        with zipfile.ZipFile(to, "w", zipfile.ZIP_DEFLATED) as packed:
            for path in there:
                if (ROOT / path).is_file() and not LEFT_OUT & set(path.parts):
                    packed.write(ROOT / path, path)

    files.replace(out, write)
    return out.stat().st_size
