"""The page that trains, on the site as `python -m llm site` writes it: used as a visitor would, by mouse and by keyboard."""

import functools
import http.server
import json
import re
import threading
import zipfile

import pytest
from conftest import SHOTS

from llm.adapters import load_adapter, save_adapter
from llm.bases import load_base
from llm.course import contents, page
from llm.course.tasks import respond
from llm.lora import apply_lora

HANG = 20 * 60 * 1000  # milliseconds
MOST = 8_500_000  # bytes of all that the page loads


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site under a sub-path of a server on loopback: its address and its folder."""
    root = tmp_path_factory.mktemp("host")
    page.write_site(root / "course" / "lora")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=root))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/course/lora/", root / "course" / "lora"
    server.shutdown()


@pytest.fixture
def visit(site, browser):
    """visit(path, width, scheme): a page of the site; the test fails when it complained or asked another host."""
    contexts, complaints = [], []

    def visited(path="index.html", width=1280, scheme="light"):
        contexts.append(browser.new_context(viewport=dict(width=width, height=800), color_scheme=scheme))
        tab = contexts[-1].new_page()
        tab.set_default_timeout(HANG)
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
        tab.on(
            "request", lambda r: complaints.append(r.url) if not r.url.startswith((site[0], "data:", "blob:")) else None
        )
        tab.goto(site[0] + path)
        return tab

    yield visited
    for context in contexts:
        context.close()
    assert not complaints


def ready(tab):
    tab.locator("#ready", has_text="The model is here").wait_for()
    tab.wait_for_function("() => document.getElementById('before').textContent.trim().endsWith('}')")


def train(tab):
    tab.get_by_role("button", name="Train").click()
    tab.locator("#score", has_text="with your adapter").wait_for()
    return tab.locator("#score").inner_text()


def outside(tab):
    """What stands out of the page to the right."""
    return tab.evaluate(
        """() => [...document.querySelectorAll('main *')].filter(n => n.getBoundingClientRect().right >
            document.documentElement.clientWidth + 1 && n.closest('.output_area, pre') === null).map(n => n.outerHTML.slice(0, 80))"""
    )


def test_a_visitor_trains_takes_apart_mixes_and_carries_away(visit, site, times, tmp_path):
    tab = visit()
    ready(tab)
    arrived = tab.evaluate(
        "() => performance.getEntriesByType('resource').find(e => e.name.endsWith('base.safetensors')).responseEnd"
    )
    times("page: model ready after its last byte", tab.evaluate("() => performance.now()") - arrived)
    tab.get_by_label("train a control beside it").check()
    score = train(tab)
    found = re.match(
        r"(\d+) of 100 unseen records right with your adapter, (\d+) without it, (\d+) with the final norm", score
    )
    mine, base, norm = map(int, found.groups())
    assert mine >= 95 and base == 0 and norm <= 5
    progress = tab.locator("#progress").inner_text()
    assert progress.startswith("40 steps in") and "65,536 numbers trained, 208.5 times fewer" in progress
    times("page: 40 steps of rank 8 with the control", 1000 * float(re.search(r"in ([\d.]+) s", progress)[1]))
    asked = tab.get_by_role("textbox", name="sentence").input_value()
    answer = json.loads(tab.locator("#after").inner_text())
    assert list(answer) == ["destination", "item", "day", "origin"] and f'"{answer["item"]}"' in asked
    assert tab.locator("#before-is").inner_text() == "✗ wrong"
    exact = tab.locator("#after").inner_text() == tab.locator("#wanted").inner_text()
    assert tab.locator("#after-is").inner_text() == ("✓ right" if exact else "✗ wrong")

    SHOTS.mkdir(parents=True, exist_ok=True)
    tab.locator("section").first.screenshot(path=SHOTS / "page.png")  # README's

    apart = tab.locator("#take")
    said, keep = apart.get_by_role("status"), apart.get_by_role("slider", name="keep rank")
    assert said.inner_text() == f"The whole update, rank 8: {mine} of 100 right."
    keep.focus()
    tab.keyboard.press("Home")
    said.filter(has_text="Without the update: 0 of 100").wait_for()
    tab.keyboard.press("ArrowRight")
    said.filter(has_text=re.compile(r"Cut to rank 1: \d+ of 100")).wait_for()
    assert int(re.search(r": (\d+) of", said.inner_text())[1]) < mine
    tab.keyboard.press("End")
    said.filter(has_text="The whole update").wait_for()
    apart.get_by_label("adapter on").uncheck()
    said.filter(has_text="Without the update: 0 of 100").wait_for()
    drawn = tab.evaluate("() => document.querySelector('#take canvas').toDataURL()")
    apart.get_by_role("combobox", name="layer").select_option(index=0)
    apart.get_by_label("adapter on").check()
    assert tab.evaluate("() => document.querySelector('#take canvas').toDataURL()") != drawn

    tab.get_by_role("slider", name="yours").focus()
    for _ in range(5):
        tab.keyboard.press("ArrowRight")
    assert tab.locator("#whose").inner_text() == "with the plays at 1 and yours at 0.5"
    tab.get_by_role("textbox", name="opening").press("Enter")
    tab.wait_for_function("() => document.getElementById('write').disabled")
    tab.wait_for_function("() => !document.getElementById('write').disabled")
    for name in ("plain", "voiced"):
        assert len(tab.locator(f"#{name}").inner_text()) > 60
    assert tab.locator("#plain").inner_text() != tab.locator("#voiced").inner_text()

    with tab.expect_download() as download:
        tab.get_by_role("button", name="Download my adapter").click()
    with zipfile.ZipFile(download.value.path()) as packed:
        assert packed.testzip() is None
        packed.extractall(tmp_path)
    model = load_adapter(load_base(own=None), tmp_path / "lora-from-a-tab")
    assert json.loads(respond(model, "records", asked)) == answer
    loaded = tab.evaluate("() => performance.getEntries().reduce((sum, e) => sum + (e.encodedBodySize ?? 0), 0)")
    assert 7_000_000 < loaded < MOST, f"{loaded:,} bytes"


def test_an_adapter_of_the_notebooks_opens_and_a_broken_one_is_one_sentence(visit, tmp_path):
    tab = visit(width=760, scheme="dark")
    ready(tab)
    model = apply_lora(load_base(own=None), r=2)
    save_adapter(model, tmp_path / "mine")
    both = [tmp_path / "mine" / name for name in ("adapter_config.json", "adapter_model.safetensors")]
    said = tab.locator("#kept")
    tab.locator("#open").set_input_files(both[:1])
    said.filter(has_text="An adapter is two files").wait_for()
    tab.locator("#open").set_input_files(both)
    said.filter(has_text="Opened: rank 2, 16,384 numbers, 0 of 100 unseen records right.").wait_for()
    both[1].write_bytes(both[1].read_bytes()[:100])
    tab.locator("#open").set_input_files(both)
    said.filter(has_text="This is not a safetensors file").wait_for()


def test_rank_1_learns_too_and_a_run_can_be_stopped(visit, times):
    tab = visit()
    ready(tab)
    tab.get_by_role("combobox", name="rank").select_option(label="1")
    score = train(tab)
    assert int(score.split()[0]) >= 60
    tab.get_by_role("button", name="Train").click()
    tab.locator("#progress", has_text=re.compile("^step [2-9]")).wait_for()
    tab.locator("#when", has_text=re.compile(r"with your adapter, after step \d+")).wait_for()
    tab.get_by_role("button", name="Stop").click()
    tab.locator("#progress", has_text=re.compile(r"^\d\d? steps in")).wait_for()
    assert int(tab.locator("#progress").inner_text().split()[0]) < 40
    tab.get_by_role("textbox", name="sentence").fill("Send “tea” to “London” at 05 from “Paris”.")
    tab.get_by_role("button", name="Ask").click()
    tab.locator("#wanted", has_text='{"destination": "London", "item": "tea", "day": 5, "origin": "Paris"}').wait_for()
    tab.get_by_role("textbox", name="sentence").fill("Hello.")
    tab.get_by_role("button", name="Ask").click()
    tab.locator("#wanted", has_text="Only sentences like").wait_for()
    tab.get_by_role("textbox", name="sentence").fill(" ")
    tab.get_by_role("button", name="Ask").click()
    tab.locator("#before", has_text="Type a sentence first.").wait_for()


@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (760, "light"), (1600, "dark")])
def test_everything_fits_and_is_reached_by_keyboard(visit, width, scheme):
    tab = visit(width=width, scheme=scheme)
    ready(tab)
    train(tab)
    assert not outside(tab)
    names = "n => n.id || n.getAttribute('aria-label') || n.innerText"
    wanted = set(
        tab.evaluate(
            f"() => [...document.querySelectorAll('input, select, button, summary, a')].filter(n => !n.disabled).map({names})"
        )
    )
    tab.locator("h1").click()
    reached = set()
    for _ in range(len(wanted) + 5):
        tab.keyboard.press("Tab")
        reached.add(tab.evaluate(f"() => ({names})(document.activeElement)"))
    assert wanted <= reached, wanted - reached
    unnamed = tab.evaluate(
        "() => [...document.querySelectorAll('input, select')].filter(n => !n.labels?.length && !n.ariaLabel).length"
    )
    assert not unnamed


def test_every_notebook_can_be_read_and_its_explorers_move_without_a_kernel(visit, site):
    for notebook in contents.NOTEBOOKS:
        name = contents.file_name(notebook.subject).removesuffix(".ipynb")
        text = (site[1] / "notebooks" / f"{name}.html").read_text(encoding="utf-8")
        assert not re.search(r'(src|href)="(https?:)?//', re.sub(r"<a [^>]*>", "", text)), "fetched from elsewhere"
        for link in re.findall(r'href="([^"#:]+)"', text):
            assert (site[1] / "notebooks" / link).resolve().is_file(), f"{name}: {link}"
    name = contents.file_name("formula").removesuffix(".ipynb")
    tab = visit(f"notebooks/{name}.html", width=1000, scheme="dark")
    for part in tab.locator(".llm-explorer").all():
        before = part.get_by_role("status").inner_text()
        part.get_by_role("slider").first.focus()
        tab.keyboard.press("ArrowLeft")  # one of them begins at its right end
        assert part.get_by_role("status").inner_text() != before
    assert tab.locator(".llm-explorer").count() >= 1 and not outside(tab)
    visit("results.html")
