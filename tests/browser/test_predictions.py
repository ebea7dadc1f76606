"""Predictions as a reader makes them: by mouse, by keyboard, before and after the truth, on a light and a dark page."""

import pytest

from llm.course.widgets import predict

CELLS = [
    'from llm.course.widgets import predict\nn = predict.number("How many train?", low=1_000, high=100_000_000, log=True)\nn',
    "n.compare(6_912_008)",
    'c = predict.choice("Which needs fewest?", ["the word", "the surface", "the noise"])\nc',
    'c.compare("the surface")',
    'k = predict.curve("Draw the loss.", x=[1, 4, 16], low=4.5, high=6, x_label="rank r", y_label="loss (nats)", log_x=True)\nk',
    "k.compare([5.05, 5.0, 4.9])",
]
MODEL = """(state) => { // as much of a widget's model as a page without a kernel has
    const heard = {};
    return {
        get: (name) => state[name],
        set: (name, value) => { state[name] = value; (heard['change:' + name] || []).forEach((tell) => tell()); },
        save_changes: () => { throw new Error('there is no kernel'); },
        on: (name, tell) => (heard[name] ??= []).push(tell),
        off: () => {},
    };
}"""


def fill(book, cells=CELLS):
    """The page's notebook with these cells in place of its own; nothing is saved."""
    book.page.evaluate(
        """(sources) => {
            const cells = window.jupyterapp.shell.currentWidget.content.model.sharedModel;
            cells.deleteCellRange(0, cells.cells.length);
            cells.insertCells(0, sources.map((source) => ({ cell_type: 'code', source, metadata: {}, outputs: [] })));
        }""",
        cells,
    )


def run(book, part):
    book.run_cell(part)
    book.wait_for("app.shell.currentWidget.sessionContext.session.kernel.status === 'idle'")


def sources(book):
    return book.page.evaluate(
        "() => window.jupyterapp.shell.currentWidget.content.widgets.map((cell) => cell.model.sharedModel.source)"
    )


def asked(book, question):
    part = book.page.locator(".llm-predict").filter(has_text=question)
    part.wait_for()
    part.scroll_into_view_if_needed()
    return part


def commit(part):
    return part.get_by_role("button", name="Commit")


def said(part):
    return part.locator("[role=status]").inner_text()


def draw(book, part, *heights):
    """A stroke through these heights (0: top, 1: bottom) from the first point to the last."""
    points = [part.get_by_role("slider").nth(i).bounding_box() for i in (0, 2)]
    frame = part.locator("svg").bounding_box()
    left, right = (box["x"] + box["width"] / 2 for box in points)
    for i, height in enumerate(heights):
        at = left + (right - left) * i / (len(heights) - 1), frame["y"] + height * frame["height"]
        book.page.mouse.move(*at, steps=5)
        if i == 0:
            book.page.mouse.down()
    book.page.mouse.up()


def test_all_three_by_keyboard_and_no_key_reaches_the_notebook(open_notebook):
    with open_notebook("formula") as book:
        fill(book)
        press = book.page.keyboard.press
        for source, truth, keys, committed, answer in (
            ("n = predict", "n.compare", ["ArrowRight"] * 3, "You said", "it is 6,912,008:"),
            ("c = predict", "c.compare", ["ArrowDown"], "You said the surface.", "Right: the surface."),
            ("k = predict", "k.compare", ["ArrowUp", "ArrowRight", "ArrowUp"], "You drew a curve.", "the measured one"),
        ):
            run(book, source)
            part = asked(book, {"n": "How many", "c": "Which needs", "k": "Draw the"}[source[0]])
            assert commit(part).is_disabled()
            part.get_by_role("radio" if source[0] == "c" else "slider").first.focus()
            for key in (*keys, "d", "d", "a", "x"):
                press(key)
            assert commit(part).is_enabled() and sources(book) == CELLS
            press("Enter")
            book.wait_for_text(part, committed)
            assert said(part).endswith("Run the next cell.") and not commit(part).is_visible()
            press("d"), press("d")  # the focus is on the sentence
            assert sources(book) == CELLS
            run(book, truth)
            book.wait_for_text(part, answer)
        assert "3 predictions close so far" in said(part)
        assert not book.complaints()


def test_all_three_by_mouse_after_run_all_and_nothing_is_told_before_the_guess(open_notebook):
    with open_notebook("formula") as book:
        fill(book)
        book.theme("Dark")
        book.run_all()
        number, choice, curve = (asked(book, words) for words in ("How many", "Which needs", "Draw the"))
        for part in (number, choice, curve):
            assert commit(part).is_disabled() and said(part) == "" and "6,912,008" not in part.inner_html()
        slider = number.get_by_role("slider")
        slider.scroll_into_view_if_needed()
        box = slider.bounding_box()
        book.page.mouse.click(box["x"] + 0.8 * box["width"], box["y"] + box["height"] / 2)
        book.shot("predictions-open")
        commit(number).click()
        book.wait_for_text(number, "it is 6,912,008: close")
        choice.get_by_text("the noise").click()
        commit(choice).click()
        book.wait_for_text(choice, "You said the noise; it is the surface.")
        curve.scroll_into_view_if_needed()
        assert curve.locator("svg polyline").count() == 1, "the measured curve is not there yet"
        draw(book, curve, 0.2, 0.5, 0.55)
        commit(curve).click()
        book.wait_for_text(curve, "nats from the measured one on average")
        assert curve.locator("svg polyline").count() == 2
        assert "of 3 predictions close so far" in said(curve)
        assert book.run_code("n.guess, c.guess, len(k.guess)").startswith("(")
        book.shot("predictions-answered")
        assert not book.complaints()


@pytest.fixture
def page(browser):
    context = browser.new_context(viewport={"width": 700, "height": 500})
    yield context.new_page()
    context.close()


def show(page, asked):
    """The widget in a page without JupyterLab and without a kernel; `window.model` is what it listens to."""
    state = {name: getattr(asked, name) for name in ("view", "kind", "question", "spec", "guess", "truth", "notebook")}
    page.set_content("<body></body>")
    page.evaluate(
        f"""async ([script, state]) => {{
            const url = URL.createObjectURL(new Blob([script], {{ type: 'text/javascript' }}));
            const el = document.body.appendChild(document.createElement('div'));
            window.model = ({MODEL})(state);
            window.module = await import(url);
            window.module.default.render({{ model: window.model, el }});
        }}""",
        [asked._esm, state],
    )
    return page.locator(".llm-predict")


def test_a_typed_number_counts_and_what_is_no_number_cannot_be_committed(page):
    part = show(page, predict.number("How many?", low=1_000, high=100_000_000, log=True, unit="numbers"))
    box = part.get_by_role("textbox")
    for text, works in (("many", False), ("65,536", True), ("", False), ("-3", False), ("0", False), ("65 536", True)):
        box.fill(text)
        assert commit(part).is_enabled() == works, text
    box.press("Enter")
    assert said(part) == "You said 65,536. Run the next cell."
    assert page.evaluate("() => window.model.get('guess')") == 65_536, "without a kernel the page keeps the guess"
    page.evaluate("() => window.model.set('truth', 6912008)")
    assert said(part).startswith("You said 65,536; it is 6,912,008: 105 times more.")


@pytest.mark.parametrize(
    "kind, spec, guess, truth, close, words",
    [
        ("number", dict(log=True, close=2), 65_536, 65_536, True, "You said 65,536; exactly right."),
        (
            "number",
            dict(log=True, close=2),
            60_000,
            65_536,
            True,
            "You said 60,000; it is 65,536: close, 9.2 percent more.",
        ),
        ("number", dict(log=True, close=2), 65_536, 400, False, "You said 65,536; it is 400: 164 times less."),
        ("number", dict(log=True, close=2), 30, 100, False, "You said 30; it is 100: 3.3 times more."),
        ("number", dict(close=0.1, unit="nats"), 4.5, 4.951, False, "You said 4.5; it is 4.951: 0.451 nats more."),
        ("number", dict(close=10, unit="%"), 70, 62, True, "You said 70; it is 62: close, 8 percentage points less."),
        ("number", dict(close=10, unit=""), 0, 62, False, "You said 0; it is 62: 62 more."),
        ("choice", {}, "a", "a", True, "Right: a."),
        ("choice", {}, "a", "b", False, "You said a; it is b."),
        (
            "curve",
            dict(close=0.1, y_label="loss (nats)"),
            [5, 5],
            [5.05, 5.1],
            True,
            "Close: your curve is 0.075 nats from the measured one on average.",
        ),
        (
            "curve",
            dict(close=0.01, y_label="loss"),
            [5, 5],
            [5.5, 5],
            False,
            "Your curve is 0.25 from the measured one on average.",
        ),
    ],
)
def test_a_sentence_sets_the_guess_against_the_truth(page, kind, spec, guess, truth, close, words):
    show(page, predict.choice("Which?", ["a", "b"]))
    found = page.evaluate("(all) => window.module.verdict(...all)", [kind, spec, guess, truth])
    assert found == {"close": close, "words": words}


def test_the_first_answer_counts_and_each_question_once(page):
    question = predict.choice("Which?", ["a", "b"])
    for guess, score in (("a", "1 of 1 prediction close"), ("b", "1 of 1 prediction close")):
        part = show(page, question)
        part.get_by_label(guess, exact=True).check()
        commit(part).click()
        page.evaluate("() => window.model.set('truth', 'a')")
        assert score in said(part)
