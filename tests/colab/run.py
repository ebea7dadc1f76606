"""Run each notebook as Colab would: alone in an empty folder, on Colab's versions, the course fetched by its first cell.

torch alone is newer here: what Colab's lacks is taken away in `stand_in/sitecustomize.py`.

Called by `make test-colab` with the Python of an environment made from pins.txt.
"""

import os
import subprocess
import sys
import tempfile
import time
from importlib.metadata import distributions
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


def installed(but):
    return {d.metadata["Name"]: d.version for d in distributions() if d.metadata["Name"] not in but}


def run(path, address):
    """Execute a copy of the notebook whose first cell clones from `address`; the clone is what it must have used."""
    notebook = nbformat.read(path, as_version=4)
    first = next(cell for cell in notebook.cells if "bootstrap" in cell.metadata.get("tags", []))
    assert first.source.count(address) == 1, f"{path.name}: the first cell does not clone from {address}"
    first.source = first.source.replace(address, ROOT.as_uri())
    last = (
        "import llm, os, torch\n"
        "assert not hasattr(torch.nn.functional, 'linear_cross_entropy')\n"
        "print(os.path.realpath(llm.__path__[0]))"
    )
    notebook.cells.append(nbformat.v4.new_code_cell(last))
    with tempfile.TemporaryDirectory() as empty:
        patient = dict(timeout=1200, startup_timeout=1200, iopub_timeout=1200)  # against a hang: slowness is no failure
        resources = {"metadata": {"path": empty}}
        NotebookClient(notebook, kernel_name="python3", resources=resources, **patient).execute()
        [output] = notebook.cells[-1].outputs
        assert output.text.strip() == os.path.realpath(f"{empty}/lora-course/llm"), output.text


def main():
    sys.path.insert(0, str(ROOT))
    from llm.course.colab import MORE, repository

    os.environ |= {"PYTHONPATH": str(HERE / "stand_in"), "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    brought = {"lora-course"}.union(*MORE.values())
    before = installed(but=brought)
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        if sys.argv[1:] and path.name not in sys.argv[1:]:
            continue
        began = time.perf_counter()
        run(path, repository())
        print(f"{path.name:28} runs on Colab's versions, {time.perf_counter() - began:.0f} s", flush=True)
    subprocess.run([sys.executable, "-m", "pip", "uninstall", "--quiet", "--yes", *brought], check=True)
    changed = dict(set(installed(but=brought).items()) ^ set(before.items()))
    assert not changed, f"the first cell has changed what Colab brings along: {changed}"


if __name__ == "__main__":
    main()
