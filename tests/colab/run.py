"""Run each notebook as Colab would: alone in a folder with the packed course, unpacked by its first cell, on Colab's versions.

The notebooks must run to their ends there. Their numbers are nbval's affair: here whatever trains takes three steps, and
the cells' asserts are left out. torch alone is newer than Colab's: what that lacks is taken away in
`stand_in/sitecustomize.py`. Each notebook has an environment of its own above the one that is made from pins.txt, so that
several run at once, and what the first cell has installed is seen.

Called by `make test-colab` with the Python of the environment made from pins.txt.
"""

import os
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import distributions
from pathlib import Path

import nbformat
from nbclient import NotebookClient

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
FEW_STEPS = (TESTS / "few_steps.py").read_text(encoding="utf-8")
NO_ASSERTS = """
import ast

class NoAsserts(ast.NodeTransformer):
    def visit_Assert(self, node):
        return ast.Pass()

get_ipython().ast_transformers.append(NoAsserts())
"""
PACKED = ROOT / "build" / "lora-course.zip"
WHOSE = "import llm, os; print(os.path.realpath(llm.__path__[0]))"


def run(path):
    """Execute a copy of the notebook, whose first cell unpacks the course that lies here; that is what it must have used."""
    sys.path.insert(0, str(ROOT))
    from llm.course.colab import MORE

    notebook = nbformat.read(path, as_version=4)
    at = next(i for i, cell in enumerate(notebook.cells) if "bootstrap" in cell.metadata.get("tags", []))
    notebook.cells.insert(at + 1, nbformat.v4.new_code_cell(FEW_STEPS + NO_ASSERTS))
    notebook.cells.append(nbformat.v4.new_code_cell(WHOSE))
    patient = dict(timeout=1200, startup_timeout=1200, iopub_timeout=1200)  # against a hang: slowness is no failure
    resources = {"metadata": {"path": os.getcwd()}}
    NotebookClient(notebook, kernel_name="python3", resources=resources, **patient).execute()
    [output] = notebook.cells[-1].outputs
    assert output.text.strip() == os.path.realpath("lora-course/llm"), output.text
    mine = {d.metadata["Name"] for d in distributions(path=[sysconfig.get_path("purelib")])}
    brought = {"lora-course", *MORE.get(path.name, ())}
    assert mine == brought, f"the first cell has installed {mine}, not {brought}"


def run_apart(path):
    """`run(path)` in an empty folder, by the Python of a new environment that sees this one's packages; whether it did."""
    with tempfile.TemporaryDirectory() as folder:
        environment, empty = Path(folder) / "environment", Path(folder) / "empty"
        empty.mkdir()
        (empty / PACKED.name).symlink_to(PACKED)
        venv.create(environment, symlinks=True)
        python = environment / "bin" / "python"
        packages = next(environment.glob("lib/python*/site-packages"))
        (packages / "colab.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
        settings = dict(PYTHONPATH=str(TESTS / "colab" / "stand_in"), OMP_NUM_THREADS="1")
        settings |= dict(PYDEVD_DISABLE_FILE_VALIDATION="1", JUPYTER_PATH=f"{sys.prefix}/share/jupyter")
        began = time.perf_counter()
        command = [str(python), str(Path(__file__)), "--one", str(path)]
        done = subprocess.run(command, cwd=empty, env=os.environ | settings, capture_output=True, text=True)
    seconds = time.perf_counter() - began
    print(f"{path.name:28} {'fails' if done.returncode else 'runs'} on Colab's versions, {seconds:.0f} s", flush=True)
    if done.returncode:
        print(done.stderr, flush=True)
    return done.returncode == 0


def main():
    sys.path.insert(0, str(ROOT))
    from llm.course import colab

    colab.pack(PACKED)
    names = sys.argv[1:] or [path.name for path in sorted((ROOT / "notebooks").glob("*.ipynb"))]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return 0 if all(list(pool.map(run_apart, [ROOT / "notebooks" / name for name in names]))) else 1


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[2])) if sys.argv[1:2] == ["--one"] else main())
