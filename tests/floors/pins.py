"""Print the lowest version of everything that pyproject.toml asks for, as pip's requirements; torch has a pin of its own (constraints.txt)."""

import re
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).resolve().parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
for asked in [*project["dependencies"], *sum(project["optional-dependencies"].values(), [])]:
    name, lowest = re.fullmatch(r"([\w.-]+)>=([\w.]+)", asked).groups()
    if name != "torch":
        print(f"{name}=={lowest}")
