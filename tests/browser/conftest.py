"""A private JupyterLab on loopback and a Chromium that uses it as a person would: menus, keys, mouse."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import pytest
from instrument import THEMES, Instrument

from llm.course import contents

ROOT = Path(__file__).resolve().parents[2]
SHOTS = ROOT / "build" / "screenshots"
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
)
HANG = 20 * 60  # seconds without an answer: a machine may be slow, and that is no failure
FEW_STEPS = (ROOT / "tests" / "few_steps.py").read_text(encoding="utf-8")
REQUIRED = os.environ.get("COURSE_NEEDS_BROWSER") == "1"  # set where a missing browser is a failure, not a skip
QUIET = [
    f"--{flag}"
    for flag in (
        "no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-component-update "
        "disable-sync disable-dev-shm-usage"
    ).split()
]


def pytest_collection_modifyitems(items):
    here = [item for item in items if Path(__file__).parent in Path(item.fspath).parents]
    if here and not CHROMIUM and not REQUIRED:
        for item in here:
            item.add_marker(pytest.mark.skip(reason="no Chromium on this machine: install chromium to run these"))


def pytest_terminal_summary(terminalreporter):
    """What the tests measured, of whichever process each ran in."""
    found = {}
    for report in terminalreporter.stats.get("passed", []) + terminalreporter.stats.get("failed", []):
        for what, value in report.user_properties if report.when == "call" else ():
            found.setdefault(what, []).append(value)
    if found:
        terminalreporter.section("measured in the browser, milliseconds (median, slowest, of how many)")
    for what, values in found.items():
        terminalreporter.write_line(f"{what:50} {median(values):6.0f} {max(values):6.0f} {len(values):4}")


@pytest.fixture
def times(request):
    """times(what, milliseconds): kept for the summary."""
    return lambda what, value: request.node.user_properties.append((what, value))


@dataclass
class Server:
    url: str
    token: str
    folder: Path
    log: Path


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """JupyterLab over a copy of the notebooks, with settings, workspaces and runtime files of its own."""
    home = tmp_path_factory.mktemp("jupyter")
    folder, settings, log = home / "notebooks", home / "settings", home / "server.log"
    shutil.copytree(ROOT / "notebooks", folder, ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    for plugin, options in {
        "notebook-extension/tracker": {"windowingMode": "none"},  # else cells out of sight are not in the page
        "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},  # else it asks
    }.items():
        path = settings / "@jupyterlab" / f"{plugin}.jupyterlab-settings"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(options))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    private = {f"JUPYTER_{name}_DIR": str(home / name.lower()) for name in ("CONFIG", "RUNTIME")}
    private |= {"JUPYTERLAB_SETTINGS_DIR": str(settings), "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces")}
    command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root", f"--port={port}"]
    command += ["--ServerApp.ip=127.0.0.1", f"--ServerApp.root_dir={folder}", f"--IdentityProvider.token={token}"]
    command += ["--LabApp.expose_app_in_browser=True", "--LabApp.news_url=", "--ServerApp.port_retries=0"]
    with log.open("w") as out:
        process = subprocess.Popen(command, env=os.environ | private, stdout=out, stderr=subprocess.STDOUT)
    found = Server(f"http://127.0.0.1:{port}", token, folder, log)
    try:
        _wait_for(found, process)
        yield found
    finally:
        process.terminate()
        process.wait(HANG)


def _wait_for(server, process):
    until = time.monotonic() + HANG
    while time.monotonic() < until and process.poll() is None:
        try:
            urllib.request.urlopen(f"{server.url}/api/status?token={server.token}", timeout=HANG).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)  # between two polls of a state, not in place of one
    raise RuntimeError(f"JupyterLab did not start:\n{server.log.read_text()[-2000:]}")


@pytest.fixture(scope="session")
def browser():
    if not CHROMIUM:
        pytest.fail("no Chromium, and COURSE_NEEDS_BROWSER=1 says that there must be one")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=CHROMIUM, args=QUIET, timeout=1000 * HANG)
        yield chromium
        chromium.close()


class Notebook:
    """One notebook in JupyterLab: run it, find its widgets, see what the page and the kernel complained of."""

    def __init__(self, page, server, name):
        self.name = name.removesuffix(".ipynb")[3:]
        self.page, self.server, self.folder, self.errors = page, server, server.folder, []
        self.logged = len(server.log.read_text())  # what came before is another notebook's, its kernel's end included
        page.set_default_timeout(1000 * HANG)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)
        page.goto(f"{server.url}/lab/tree/{name}?token={server.token}&reset")
        self.wait_for("app.shell.currentWidget?.sessionContext?.isReady")
        self.wait_for("app.shell.currentWidget.sessionContext.session?.kernel?.status === 'idle'")
        # an exception in a widget's callback belongs to no cell: only the kernel's messages tell of it
        page.evaluate(
            """() => {
                window.kernelErrors = [];
                const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
                kernel.iopubMessage.connect((_, m) => {
                    if (m.header.msg_type === 'error') window.kernelErrors.push(m.content.traceback.join('\\n'));
                });
            }"""
        )

    def complaints(self):
        """What the page's console, the kernel and the server have said of errors so far."""
        said = self.server.log.read_text()[self.logged :].splitlines()
        log = [line for line in said if "Traceback" in line or " ERROR " in line]
        return self.errors + self.page.evaluate("() => window.kernelErrors") + log

    def wait_for(self, condition):
        self.page.wait_for_function(f"() => {{ const app = window.jupyterapp; return app && ({condition}); }}")

    def clear(self):
        """Take the stored outputs away, and with them the widgets whose kernel is gone."""
        self.page.evaluate("() => window.jupyterapp.commands.execute('notebook:clear-all-cell-outputs')")

    def run_all(self):
        """Run All from the menu, to the end; fails when a cell did."""
        # stored outputs bring their execution counts along: without them a count says that a cell has run just now
        self.clear()
        self.page.get_by_role("menuitem", name="Run", exact=True).click()
        self.page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        code = "[...app.shell.currentWidget.content.widgets].filter(c => c.model.type === 'code')"
        cells = self.page.evaluate(f"() => {{ const app = window.jupyterapp; return {code}.length; }}")
        for i in range(cells):  # as long as it takes, while cell after cell comes to its end
            self.wait_for(f"{code}[{i}].model.executionCount !== null || window.kernelErrors.length")
        self.wait_for("app.shell.currentWidget.sessionContext.session.kernel.status === 'idle'")
        assert not self.complaints()

    def run(self, *parts, all_steps=False):
        """On cleared outputs, run the one code cell that has each of these parts of a source, in this order.

        What a widget needs, and no more: nbval runs each notebook as a whole. What trains in these cells takes three
        steps unless `all_steps`.
        """
        self.clear()
        if not all_steps:
            self.run_code(FEW_STEPS)
        for part in parts:
            self.run_cell(part)
            count = "app.shell.currentWidget.content.activeCell.model.executionCount"
            self.wait_for(f"{count} !== null || window.kernelErrors.length")
            self.wait_for("app.shell.currentWidget.sessionContext.session.kernel.status === 'idle'")
        assert not self.complaints()

    def run_code(self, code):
        """What the kernel answers to an expression: that it still does, whatever trains meanwhile."""
        return self.page.evaluate(
            """async (code) => {
                let said;
                const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
                const asked = kernel.requestExecute({ code });
                asked.onIOPub = (m) => { if (m.header.msg_type === 'execute_result') said = m.content.data['text/plain']; };
                await asked.done;
                return said;
            }""",
            code,
        )

    def run_cell(self, part):
        """Run the one code cell whose source has `part`, as with Shift and Enter."""
        self.page.evaluate(
            """(part) => {
                const notebook = window.jupyterapp.shell.currentWidget.content;
                const found = notebook.widgets.flatMap((cell, i) =>
                    cell.model.type === 'code' && cell.model.sharedModel.source.includes(part) ? [i] : []);
                if (found.length !== 1) throw new Error(`${found.length} cells have ${part}`);
                notebook.activeCellIndex = found[0];
                window.jupyterapp.commands.execute('notebook:run-cell');
            }""",
            part,
        )

    def theme(self, look):
        """JupyterLab's own "Light" or "Dark", while the widgets stand."""
        change = "(theme) => window.jupyterapp.commands.execute('apputils:change-theme', { theme })"
        self.page.evaluate(change, f"JupyterLab {look}")
        self.wait_for(f"document.body.dataset.jpThemeLight === '{str(look == 'Light').lower()}'")
        self.wait_for("!document.getElementById('jupyterlab-splash')")  # it takes the mouse while the sheet is loaded

    def interrupt(self):
        """The kernel's own button with the square."""
        self.page.evaluate("() => window.jupyterapp.commands.execute('notebook:interrupt-kernel')")

    def wait_for_text(self, part, text):
        """Until the widget `part` says `text`."""
        part.locator("[role=status]").filter(has_text=text).first.wait_for()

    def delay(self, part, watched, act, says=""):
        """Milliseconds from a key or button pressed in `act` until `watched` shows something else, or what it `says`."""
        part.locator(watched).first.evaluate(
            """(node, says) => {
                window.delay = null;
                let began = null;
                const painted = new MessageChannel();  // its message comes after the frame that a callback prepares
                painted.port1.onmessage = () => { window.delay = performance.now() - began; };
                const drawn = () => requestAnimationFrame(() => painted.port2.postMessage(null));
                for (const name of ['keydown', 'pointerdown'])
                    addEventListener(name, () => { began ??= performance.now(); }, { once: true, capture: true });
                if (node.tagName === 'IMG') return node.addEventListener('load', drawn, { once: true });
                new MutationObserver((_, observer) => {
                    if (node.textContent.includes(says)) { observer.disconnect(); drawn(); }
                }).observe(node, { childList: true, subtree: true, characterData: true });
            }""",
            says,
        )
        act()
        self.page.wait_for_function("() => window.delay !== null")
        return self.page.evaluate("() => window.delay")

    def shot(self, name, part=None):
        SHOTS.mkdir(parents=True, exist_ok=True)
        (part or self.page).screenshot(path=SHOTS / f"{name}.png")

    def close(self):
        self.page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.shutdown()")


@pytest.fixture
def open_notebook(server, browser):
    """open_notebook(subject) as a context: a fresh page and a fresh kernel, shut down after it."""

    @contextmanager
    def opened(subject):
        name = contents.file_name(subject)
        # as it is stored: what JupyterLab saved of another test has widgets whose kernel is gone
        shutil.copyfile(ROOT / "notebooks" / name, server.folder / name)
        context = browser.new_context(viewport={"width": 1280, "height": 1000})
        book = Notebook(context.new_page(), server, name)
        try:
            yield book
        finally:
            book.close()
            context.close()

    return opened


@pytest.fixture
def open_page(browser, tmp_path, times):
    """open_page(explorer, width, theme): the explorer's output alone in a page, as `Instrument`."""
    contexts = []

    def opened(explorer, width=760, theme="light"):
        page = tmp_path / f"{explorer.kind}.html"
        page.write_text(f'<!doctype html><meta charset="utf-8"><body style="{THEMES[theme]}">{explorer._repr_html_()}')
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}))
        return Instrument(contexts[-1].new_page(), page.as_uri(), explorer.kind, times)

    yield opened
    for context in contexts:
        context.close()
