"""The live lab: its page alone, with a model that no kernel answers, and in JupyterLab, where it trains."""

import json
import re

import pytest
from conftest import SHOTS
from instrument import THEMES, Instrument

from llm.course.widgets import lab as labs
from llm.course.widgets.explorer import bundle
from llm.course.widgets.lab_choices import BEGIN
from llm.text.batches import UNSEEN
from llm.text.records import make_records

BASE = 5.2205
# as much of a widget's model as a page without a kernel has
PAGE = """<!doctype html><meta charset="utf-8"><body style="%s"><div id="lab"></div><script type="module">
const state = %s, heard = {};
window.sent = []; window.leaked = [];
addEventListener("keydown", (event) => window.leaked.push(event.key));
window.model = {
  get: (name) => state[name],
  set: (name, value) => { state[name] = value; (heard["change:" + name] || []).forEach((tell) => tell()); },
  save_changes() {}, send: (message) => window.sent.push(message),
  on: (name, tell) => (heard[name] ??= []).push(tell), off() {},
};
const { default: view } = await import(URL.createObjectURL(new Blob([%s], { type: "text/javascript" })));
view.render({ model: window.model, el: document.getElementById("lab") });
</script>"""


@pytest.fixture(scope="module")
def state():
    made = labs.Lab(task="shakespeare", folder="../adapters/mine")
    found = {name: getattr(made, name) for name in ("view", "setup", "settings", "runs", "voices", "says", "pace")}
    made.close()
    return found


@pytest.fixture
def open_lab(browser, tmp_path, times, state):
    """open_lab(width, theme, runs=..., says=...): the lab's page alone."""
    contexts = []

    def opened(width=1020, theme="light", **more):
        path = tmp_path / "lab.html"
        given = state | dict(pace={"shakespeare": dict(base=BASE, step=0.4, measure=1.0)}) | more
        path.write_text(PAGE % (THEMES[theme], json.dumps(given), json.dumps(bundle())))
        contexts.append(browser.new_context(viewport={"width": width, "height": 720}))
        return Instrument(contexts[-1].new_page(), path.as_uri(), "lab", times)

    yield opened
    for context in contexts:
        context.close()


A_STEP = 0.4  # seconds that the kernel says a step takes


def run(number, end, best=None, top=None, done=40, **more):
    """A run as the kernel describes it: from the base to `end` in a straight line, over `top` when it soars."""
    settings = BEGIN | dict(task="shakespeare") | more
    at = [step for step in range(0, done + 1, 10)]
    heldout = [[step, BASE + (end - BASE) * step / 40] for step in at]
    if top:
        heldout[2][1] = top
    losses = dict(map(tuple, heldout[1:]))
    best = best or (min(losses, key=losses.get) if losses else None)
    measured = dict(heldout=heldout, training=[[i, 5.8 - 0.01 * i] for i in range(1, done + 1)], best=best)
    ended = dict(ended="done" if done == settings["steps"] else "training", meant="" if done < 40 else "done")
    return settings | measured | ended | dict(number=number, done=done, kept=losses.get(best), seconds=A_STEP, seed=0)


RUNS = [run(1, 5.01), run(2, 5.19, top=14.1, lr=0.1), run(3, 4.95, r=64, alpha=64.0, lr=3e-3)]
LONG = (
    "done after 2000 steps: the held-out loss rose from 4.912 (step 140) to 5.104 while the training loss fell: the "
    "adapter learns its text by heart; try fewer steps, about 140, more text, or a smaller rank; kept: step 140 (4.91)"
)
SAVED = (
    "../adapters/mine is taken: saved run 3, step 40, to ../adapters/mine-2 (524,288 numbers, 2,100,000 bytes). "
    "run 3 is worse than the base, with 5.30 against 5.22"
)
LINE = "python -m llm generate 'The people of the United States,' --adapter adapters/mine-2"
VOICES = {"base": dict(text="The people " * 40), "3": dict(step=40, text="The people of the United States,\nyet")}


def put(shown, **traits):
    """What the kernel sends."""
    for name, value in traits.items():
        shown.page.evaluate("([name, value]) => window.model.set(name, value)", [name, value])


def sent(shown):
    return shown.page.evaluate("() => window.sent.splice(0)")


def columns(shown):
    """The table, a dict a row."""
    heads = shown.root.locator("thead th").all_inner_texts()
    return [dict(zip(heads, row.locator("td").all_inner_texts())) for row in shown.root.locator("tbody tr").all()]


def labels(shown):
    return shown.root.locator("svg text").all_text_contents()


@pytest.mark.parametrize(
    "width, theme", [(640, "dark"), (1020, "light"), (1020, "dark"), (1280, "light"), (1600, "dark")]
)
def test_one_screen_on_which_nothing_jumps_or_is_cut(open_lab, state, width, theme):
    shown = open_lab(width, theme)
    empty = shown.root.bounding_box()["height"]
    voices = state["voices"] | dict(of=VOICES)
    many = RUNS + [run(n, 5.0 - 0.002 * n) for n in range(4, 15)]
    for runs in (RUNS[:1], RUNS, [*RUNS, run(4, 5.0, done=20)], many):
        put(
            shown,
            runs=runs,
            voices=voices,
            says=dict(train=LONG, ask="run 2 is worse than the base", save=SAVED, line=LINE),
        )
        assert shown.root.bounding_box()["height"] == empty
        assert not (found := shown.collisions()), found
    put(shown, runs=RUNS)
    cut = shown.root.locator("[role=status], .fixed").evaluate_all(
        "nodes => nodes.filter((n) => n.scrollHeight > n.clientHeight + 1).map((n) => n.textContent)"
    )
    assert not cut
    inside = "nodes => nodes.every((n) => n.getBoundingClientRect().right <= document.documentElement.clientWidth)"
    assert shown.root.locator("*:not(table, table *)").evaluate_all(inside)
    if width > 700:
        assert empty <= 565, "one screen of a laptop, less JupyterLab's own bars"
        table = shown.root.locator(".runs")
        assert width < 1000 or table.evaluate("n => n.scrollWidth <= n.clientWidth"), "the table needs no scrolling"
    shown.page.set_viewport_size(dict(width=width, height=max(640, int(empty) + 20)))
    shown.shot(f"lab-{width}-{theme}", SHOTS)
    assert not shown.errors


def test_the_axis_stays_near_the_base_and_an_arrow_names_what_leaves_it(open_lab):
    shown = open_lab(runs=RUNS)
    said = labels(shown)
    assert "↑ run 2 to 14.10" in said and "base 5.22" in said and "full 4.93" in said
    ticks = [float(text) for text in said if re.fullmatch(r"\d\.\d\d", text)]
    assert ticks and max(ticks) < 5.5
    lines = shown.root.locator("svg polyline").count()
    shown.choose("loss", "training")
    assert "training loss, nats per token" in labels(shown) and not {"base 5.22", "full 4.93"} & set(labels(shown))
    assert shown.root.locator("svg polyline").count() == lines == 3
    shown.choose("loss", "held-out")
    box = shown.root.locator("svg").bounding_box()
    for x in range(60, 800, 8):  # along the height at which run 3 ends
        shown.page.mouse.move(box["x"] + x, box["y"] + box["height"] * 0.70)
        if shown.root.locator(".tip:visible").count():
            break
    assert re.match(r"run \d, step \d+: \d\.\d\d", shown.root.locator(".tip").inner_text())


def test_runs_are_sorted_chosen_compared_and_removed(open_lab, state):
    shown = open_lab(runs=RUNS, voices=state["voices"] | dict(of=VOICES))
    first = columns(shown)[0]
    assert list(first)[:-1] == [
        *("run", "held-out", "at step", "end"),
        *("rate", "rank r", "task", "method", "alpha", "scale", "A's start", "targets", "steps", "s/step"),
    ]
    assert first["task"] == "plays" and first["held-out"] == "5.01" and first["at step"] == "40"
    for _ in range(2):
        shown.root.get_by_role("button", name="held-out", exact=True).click()
    assert [row["run"] for row in columns(shown)] == ["2", "1", "3"]
    assert shown.root.locator("th[aria-sort=descending]").inner_text() == "held-out"
    shown.root.get_by_role("button", name="held-out", exact=True).click()
    assert [row["run"] for row in columns(shown)] == ["3", "1", "2"]
    sent(shown)
    voice = shown.root.locator("pre")
    assert voice.nth(1).inner_text() == VOICES["3"]["text"] and voice.nth(0).inner_text().startswith("The people The")
    shown.root.locator("tbody tr").nth(1).click()
    assert sent(shown) == [dict(do="ask", run=1, prompt=state["voices"]["prompt"], task="shakespeare")]
    assert "run 1, step 40 (kept, loss 5.01)" in shown.root.inner_text()
    shown.choose("compare with", "run 3")
    assert voice.nth(0).inner_text() == VOICES["3"]["text"]
    shown.root.get_by_role("button", name="Save run 1").click()
    assert sent(shown) == [dict(do="save", run=1, folder="../adapters/mine")]
    shown.root.get_by_role("button", name="remove run 3").click()
    assert sent(shown) == [dict(do="remove", run=3)]
    put(shown, runs=RUNS[:2])
    assert [row["run"] for row in columns(shown)] == ["1", "2"] and "↑ run 2 to 14.10" in labels(shown)
    put(shown, runs=[])
    assert not columns(shown) and shown.root.get_by_role("button", name="Save").is_disabled()


def test_the_sentence_goes_with_the_run_that_is_shown(open_lab):
    shown = open_lab(runs=[])
    said = shown.root.locator(".said")
    for number, words in ((1, "done after 40 steps: one"), (2, "done after 40 steps: two")):
        put(shown, runs=RUNS[:number])
        put(shown, says=dict(train=words))
        assert said.inner_text() == words
    shown.root.locator("tbody tr").first.click()
    assert said.inner_text() == "done after 40 steps: one"
    shown.root.locator("tbody tr").nth(1).click()
    put(shown, runs=RUNS[:1])  # the one that is shown has been removed
    assert said.inner_text() == "done after 40 steps: one"
    shown.choose("task", "records")
    assert said.inner_text() == "no run of this task yet: press Train"
    shown.choose("task", "plays")
    assert said.inner_text() == "done after 40 steps: one"


def test_a_ready_setting_sets_all_controls_and_says_what_to_look_for(open_lab, state):
    shown = open_lab()
    for ready in state["setup"]["ready"]:
        link = shown.root.get_by_role("button", name=ready["name"], exact=True)
        link.click()
        assert (
            link.get_attribute("aria-pressed") == "true" and shown.root.locator(".look").inner_text() == ready["look"]
        )
        sent(shown)
        shown.root.get_by_role("button", name="Train").click()
        typed = dict(task="shakespeare", prompt=state["setup"]["prompts"]["shakespeare"])
        assert sent(shown) == [dict(do="train") | typed | BEGIN | ready["change"]]
        settings = BEGIN | ready["change"]
        fixed, each = state["setup"]["costs"][settings["method"]][settings["targets"]]
        cost = shown.root.locator(".cost").inner_text()
        assert cost.startswith(f"{fixed + each * settings['r']:,} numbers train")
        seconds = settings["steps"] * A_STEP + settings["steps"] // labs.EVERY + len(labs.EARLY)
        assert f"About {round(seconds)} s for {settings['steps']} steps here" in cost


def test_an_answer_is_dim_while_another_is_asked_for(open_lab, state):
    shown = open_lab(runs=RUNS, voices=state["voices"] | dict(of=VOICES))
    prompt, stale, voice = shown.root.get_by_role("textbox", name="prompt"), shown.root.locator("pre.stale"), "pre"
    assert stale.count() == 0
    prompt.fill("My lord,")
    assert stale.count() == 2, "what was heard is of another prompt"
    shown.press(prompt, "Enter")
    put(shown, voices=dict(prompt="My lord,", task="shakespeare", of={}))
    assert shown.root.locator(voice).all_inner_texts() == ["answering"] * 2
    put(shown, voices=dict(prompt="My lord,", task="shakespeare", of=VOICES))
    assert stale.count() == 0
    put(shown, voices=dict(prompt="My lord,", task="shakespeare", of=VOICES | {"3": dict(step=20, text="Nay")}))
    assert stale.all_inner_texts() == ["Nay"], "of a step that is no longer kept"


def test_every_control_works_by_keyboard_and_no_key_leaves_the_lab(open_lab, state):
    shown = open_lab(runs=RUNS)
    keys = ("d", "d", "a", "b", "x", "0", "0")
    for control in shown.root.locator("select:visible, input:visible, button:visible, pre, .runs").all():
        if control.is_enabled():
            shown.press(control, *keys)
    assert shown.page.evaluate("() => window.leaked") == []
    prompt = shown.root.get_by_role("textbox", name="prompt")
    prompt.fill("My lord,")
    sent(shown)
    shown.press(prompt, "Enter")
    assert sent(shown) == [dict(do="ask", run=3, prompt="My lord,", task="shakespeare")]
    steps = shown.root.get_by_role("spinbutton", name="steps")
    for typed, counts in (("9999", "2000"), ("0", "1"), ("12", "12"), ("", "12")):
        steps.fill(typed)
        steps.press("Tab")
        assert steps.input_value() == counts
    shown.choose("method", "ia3")
    off = {"rank r", "scale", "A's start", "targets"}
    for label in ("task", "method", "rank r", "scale", "A's start", "targets", "rate"):
        box = shown.root.get_by_role("combobox", name=label, exact=True)
        assert box.is_disabled() == (label in off), label
    shown.choose("task", "records")
    assert prompt.input_value() == "My lord,", "the learner's own words stay"
    prompt.fill(state["setup"]["prompts"]["shakespeare"])
    shown.choose("task", "plays"), shown.choose("task", "records")
    assert prompt.input_value() == state["setup"]["prompts"]["records"]
    assert "A step is being timed" in shown.root.locator(".cost").inner_text()
    assert [message["do"] for message in sent(shown)] == ["estimate"]


def in_jupyter(book, task="shakespeare"):
    book.run("from llm.course.widgets.lab import Lab", "Lab(task=", all_steps=True)
    part = book.page.locator(".llm-lab").last
    part.wait_for()
    part.scroll_into_view_if_needed()
    return part


def test_the_live_lab_trains_stops_answers_saves_and_resets(open_notebook, times):
    with open_notebook("fine_tune") as book:
        part = in_jupyter(book)

        def press(button):
            part.get_by_role("button", name=button).first.click()

        def train():
            """Train for far more steps than a test lasts, until the second of them."""
            steps = part.get_by_role("spinbutton", name="steps")
            steps.fill("2000")
            steps.press("Enter")
            press("Train")
            book.wait_for_text(part, re.compile(r"step ([2-9]|\d\d+):"))

        part.get_by_text(re.compile(r"About \d+ (s|min) for 40 steps here")).wait_for()  # timed before anything trains
        part.get_by_role("button", name="the course's own").click()
        train()
        press("Train")  # twice: said, not done
        part.get_by_role("combobox", name="rank r").select_option(index=0)  # mid-run: for the next one
        book.interrupt()  # the kernel's own button is for cells: neither it nor a cell that runs meanwhile ends a run
        assert book.run_code("6 * 7") == "42"
        book.wait_for_text(part, re.compile(r"step ([3-9]|\d\d+):"))
        book.shot("fine-tune-lab-trains", part)
        stopped = book.delay(part, ":scope", lambda: press("Stop"), says="stopped after")
        times("lab: Stop pressed to stopped", stopped)
        book.wait_for_text(part, re.compile("kept: step"))
        part.locator("pre").nth(1).filter(has_text="The people").wait_for()
        prompt = part.get_by_role("textbox", name="prompt")
        prompt.fill("My lord,")
        prompt.press("Enter")
        for voice in range(2):
            part.locator("pre").nth(voice).filter(has_text="My lord,").wait_for()
        press("Save run 1")
        book.wait_for_text(part, "saved run 1, step")
        assert re.search(r"--adapter \S*adapters/mine$", part.locator(".line").inner_text())
        assert (book.folder.parent / "adapters" / "mine" / "adapter_model.safetensors").exists()
        book.shot("fine-tune-lab", part)
        train()
        press("Reset")
        book.wait_for_text(part, "ready")
        assert not part.locator("tbody tr").count()
        train()
        book.run_cell("Lab(task=")  # again, mid-run: the old lab gives way to a new one
        book.wait_for_text(part, "ready")
        train()
        press("Stop")
        book.wait_for_text(part, "stopped after")
        assert not book.complaints()


def test_two_runs_of_the_lab_stand_in_one_picture_and_the_better_one_answers(open_notebook):
    """A rate that is too hot, then rank and rate as the course sets them; README shows the screenshot."""
    with open_notebook("fine_tune") as book:
        part = in_jupyter(book)
        book.wait_for_text(part, "ready")
        part.get_by_role("combobox", name="task").select_option(label="records")
        voice = part.locator("pre")
        for ready, meant, steps in (("too hot", "too hot", 12), ("the course's own", "", 40)):
            part.get_by_role("button", name=ready, exact=True).click()
            part.get_by_role("spinbutton", name="steps").fill(str(steps))
            part.get_by_role("button", name="Train").click()
            number = 1 + (ready != "too hot")
            row = part.locator("tbody tr").nth(number - 1)
            row.filter(has_not_text=re.compile("training")).wait_for()
            book.wait_for_text(part, re.compile(f"done after {steps} steps: .*kept"))
            assert meant in row.inner_text()
        right = make_records(2, seed=UNSEEN)[1].answer
        voice.nth(1).filter(has_text=right).wait_for()
        assert voice.nth(0).inner_text().strip() != right
        assert float(row.locator("td").nth(1).inner_text()) < 0.05
        book.shot("lab", part)
        assert not book.complaints()
