"""Voices in a bare page; in JupyterLab, where the kernel answers: test_every_control.py."""

import pytest
from instrument import THEMES
from test_predictions import MODEL

from llm.course.widgets.explorer import bundle

NAMES = ["no adapter", "plays", "code", "records"]
ANSWER = {
    "adapter": "no adapter",
    "prompt": "My lord",
    "says": "no adapter: swapped in 1 ms",
    "heard": {"no adapter": "I say <b>no</b>"},
}


@pytest.fixture
def page(browser):
    contexts = []

    def opened(width, theme):
        contexts.append(browser.new_context(viewport={"width": width, "height": 700}))
        page = contexts[-1].new_page()
        page.set_content(f'<body style="{THEMES[theme]}"></body>')
        page.evaluate(
            f"""async ([script, state]) => {{
                const url = URL.createObjectURL(new Blob([script], {{ type: 'text/javascript' }}));
                window.model = {{ ...({MODEL})(state), save_changes() {{ window.asked = {{ ...state }}; }} }};
                const {{ default: bundle }} = await import(url);
                bundle.render({{ model: window.model, el: document.body.appendChild(document.createElement('div')) }});
            }}""",
            [
                bundle(),
                {"view": "voices", "names": NAMES, "adapter": "no adapter", "prompt": "My lord", "answer": ANSWER},
            ],
        )
        return page

    yield opened
    for context in contexts:
        context.close()


def asked(page):
    return page.evaluate("() => window.asked && [window.asked.adapter, window.asked.prompt]")


@pytest.mark.parametrize(("width", "theme"), [(360, "dark"), (760, "light"), (1280, "dark")])
def test_what_is_asked_and_what_is_heard(page, width, theme):
    page = page(width, theme)
    root = page.locator(".llm-explorer")
    choice, prompt, says = root.get_by_role("combobox"), root.get_by_role("textbox"), root.get_by_role("status")
    height = root.bounding_box()["height"]
    assert says.inner_text() == ANSWER["says"] and "I say <b>no</b>" in root.locator(".chosen").inner_text()
    choice.select_option(label="plays")
    assert asked(page) == ["plays", "My lord"] and says.inner_text() == "plays: answering"
    heard = ANSWER["heard"] | {"plays": "Anon. " * 200}
    page.evaluate(
        "(answer) => window.model.set('answer', answer)",
        ANSWER | {"adapter": "plays", "says": "plays: swapped in 2 ms", "heard": heard},
    )
    assert says.inner_text() == "plays: swapped in 2 ms" and "Anon. " in root.locator(".chosen").inner_text()
    prompt.fill("My lady")
    assert asked(page) == ["plays", "My lord"], "nothing is asked before Enter"
    page.evaluate("() => window.model.set('answer', {...window.model.get('answer')})")  # an answer comes meanwhile
    assert prompt.input_value() == "My lady"
    prompt.press("Enter")
    assert asked(page) == ["plays", "My lady"] and root.locator(".unheard").count() == 4
    root.locator("figure").last.click()
    assert asked(page) == ["records", "My lady"] and choice.input_value() == "3"
    assert root.bounding_box()["height"] == height
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.screenshot(path=f"build/voices-{width}-{theme}.png")
