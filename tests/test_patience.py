"""A slow machine fails nothing: what limits a test in seconds is a limit against a hang, 20 minutes or more."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HANG = 20 * 60
LIMIT = re.compile(r"timeout$|^seconds$")
CLOCK = re.compile(r"perf_counter|monotonic|\bseconds\b")


def limits(tree):
    """What every `timeout=` and `seconds=` that is given or preset is set to, and every `seconds < this`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and LIMIT.search(node.arg or ""):
            yield node.value
        elif isinstance(node, ast.arguments):
            preset = zip(node.args[::-1], node.defaults[::-1])
            yield from (value for arg, value in preset if LIMIT.search(arg.arg))
        elif isinstance(node, ast.Compare) and CLOCK.search(ast.unparse(node.left)):
            yield from (most for sign, most in zip(node.ops, node.comparators) if isinstance(sign, ast.Lt | ast.LtE))


def test_no_test_gives_up_before_twenty_minutes():
    short = []
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for node in limits(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and node.value is not None and 0 < node.value < HANG:
                short.append(f"{path.relative_to(ROOT)}:{node.lineno}: {node.value} s")
    assert not short, short


def test_every_notebook_gives_each_cell_and_each_kernel_twenty_minutes():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    given = re.findall(r"((?:cell|startup|iopub).timeout)=(\d+)", makefile)
    assert {name.replace("-", "_") for name, _ in given} == {"cell_timeout", "startup_timeout", "iopub_timeout"}
    assert all(int(seconds) >= HANG for _, seconds in given), given
