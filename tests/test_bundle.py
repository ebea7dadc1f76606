"""The bundle of all instruments is what its JavaScript builds."""

import shutil
import subprocess

import pytest

from llm.course.widgets.explorer import BUNDLE

SOURCE = BUNDLE.parent / "browser"


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory):
    """A copy of the sources in which `npm` has installed and built, as `make bundle` does."""
    if not shutil.which("npm"):
        pytest.skip("no npm on this machine")
    copy = tmp_path_factory.mktemp("bundle") / "browser"
    shutil.copytree(SOURCE, copy, ignore=shutil.ignore_patterns("node_modules"))
    for command in (
        "npm ci --no-audit --no-fund",
        "npm run build",
        "npm install --package-lock-only --no-audit --no-fund",
    ):
        subprocess.run(command.split(), cwd=copy, check=True, capture_output=True)
    return copy


def test_a_rebuild_gives_the_bundle_byte_for_byte(rebuilt):
    assert (rebuilt.parent / "bundle.js").read_bytes() == BUNDLE.read_bytes(), "run `make bundle`"


def test_npm_leaves_the_lock_as_it_is_without_an_address(rebuilt):
    lock = (SOURCE / "package-lock.json").read_text()
    assert (rebuilt / "package-lock.json").read_text() == lock and "://" not in lock and '"resolved"' not in lock


def test_the_bundle_is_small():
    assert len(BUNDLE.read_bytes()) < 400_000
