"""A notebook run from JupyterLab's menu, and every explorer used as a person would: keys, mouse, extremes."""

import hashlib
import re
import time

HANG = 20 * 60  # seconds


def picture(part):
    """A fingerprint of what an image widget shows."""
    image = part.locator("img")
    return hashlib.sha256((image.get_attribute("src") or "").encode() + image.screenshot()).hexdigest()


def changed(read, before):
    """The new state, once `read()` differs from `before`."""
    until = time.monotonic() + HANG
    while (now := read()) == before:
        assert time.monotonic() < until, f"nothing changed in {HANG} s"
        time.sleep(0.02)  # between two polls of a state
    return now


def explorer(book, text):
    """The widget whose line of text matches, scrolled into sight."""
    line = book.page.locator("[role=status]").filter(has_text=re.compile(text))
    part = book.page.locator(".widget-vbox").filter(has=line).last
    part.scroll_into_view_if_needed()
    return part


def said(part):
    return part.locator("[role=status]").inner_text()


def labelled(part, label):
    """The handle of the slider that a person finds under `label`, and its track."""
    box = part.locator(".widget-slider").filter(has=part.page.locator(f"label:text-is('{label}')"))
    return box.get_by_role("slider"), box.locator(".noUi-base")


def use_slider(book, part, label, first, last, times):
    """A slider of a picture by key, by a drag beyond either end, in a burst: text and picture follow and settle."""
    handle, track = labelled(part, label)
    name = f"{book.name} {label}: key press to picture"
    handle.focus()
    for key in ("ArrowLeft", "ArrowRight") * 4:
        before, shown = said(part), picture(part)
        times(name, book.delay(part, "img", lambda key=key: book.page.keyboard.press(key)))
        changed(lambda: said(part), before)
        changed(lambda: picture(part), shown)
    wide = track.bounding_box()["width"]
    for to, expected in ((-1, first), (2, last)):
        shown, knob = picture(part), handle.bounding_box()
        x, y = knob["x"] + knob["width"] / 2, knob["y"] + knob["height"] / 2
        book.page.mouse.move(x, y)
        book.page.mouse.down()
        book.page.mouse.move(x + to * wide, y, steps=12)
        book.page.mouse.up()
        book.wait_for_text(part, expected)
        changed(lambda: picture(part), shown)
    for _ in range(3):  # from one end to the other as fast as keys can come
        for key, expected in (("End", last), ("Home", first)):
            for press in ["ArrowRight" if key == "End" else "ArrowLeft"] * 8 + [key]:
                book.page.keyboard.press(press)
            book.wait_for_text(part, expected)


def contrast(node, colour="color"):
    """WCAG's ratio between a text's colour and the first background behind it that is not transparent."""
    return node.evaluate(
        """(node, colour) => {
            const numbers = (text) => text.match(/[\\d.]+/g).map(Number);
            const light = (rgb) => {
                const [r, g, b] = rgb.map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
                return 0.2126 * r + 0.7152 * g + 0.0722 * b;
            };
            let behind = node, back;
            do back = numbers(getComputedStyle(behind).backgroundColor); while (back[3] === 0 && (behind = behind.parentElement));
            const both = [numbers(getComputedStyle(node)[colour]).slice(0, 3), back.slice(0, 3)].map(light).sort((a, b) => b - a);
            return (both[0] + 0.05) / (both[1] + 0.05);
        }""",
        colour,
    )


def test_rank_matrix_layer_and_the_savings_curve(open_notebook, times):
    with open_notebook("formula") as book:
        book.run_all()
        for kind, key, says in (("rank", "End", "r = 63:"), ("layer", "Home", "r = 1, d = 128:")):
            part = book.page.locator(f".llm-{kind}")
            part.get_by_role("slider", name="rank r").press(key)
            book.wait_for_text(part, says)
            book.shot(f"formula-{kind}", part)
        part = book.page.locator(".llm-rank")
        for key in ("d", "d", "Space"):  # to the drawing, and not to JupyterLab, where "d d" deletes the cell
            part.locator("canvas").first.press(key)
        assert part.locator(".cell").is_visible()

        part = book.page.locator(".llm-savings")
        part.scroll_into_view_if_needed()
        assert "r = 8, d = 128: 2,048 numbers in A and B for 16,384 in W, 8 times fewer" in said(part)
        rank, width = (part.get_by_role("slider", name=name) for name in ("rank r", "width d"))
        line = part.locator("svg polyline").last
        before = line.get_attribute("points")
        rank.focus()
        for key in ("ArrowRight", "ArrowLeft") * 4 + ("ArrowRight",):
            delay = book.delay(part, "svg", lambda key=key: book.page.keyboard.press(key))
            times("formula savings: key press to curve", delay)
        book.wait_for_text(part, "r = 16, d = 128")
        assert line.get_attribute("points") != before
        for key, r, d in (("End", 256, 16384), ("Home", 1, 32)):
            for slider in (rank, width):
                slider.focus()
                for _ in range(20):
                    book.page.keyboard.press("ArrowRight" if key == "End" else "ArrowLeft")
            book.wait_for_text(part, f"r = {r}, d = {d:,}")
        book.shot("formula-savings")

        dark = "() => window.jupyterapp.commands.execute('apputils:change-theme', { theme: 'JupyterLab Dark' })"
        book.page.evaluate(dark)
        book.wait_for("document.body.dataset.jpThemeLight === 'false'")
        assert contrast(part.locator("[role=status]")) > 4.5 and contrast(part.locator("svg text").first, "fill") > 4.5
        book.shot("formula-dark")
        assert not book.complaints()


def test_a_rank_on_a_layers_delta_w(open_notebook):
    """README shows the screenshot; for a real one, with `all_steps`."""
    with open_notebook("why_low_rank") as book:
        book.run(
            "from llm import spectra",
            "TASKS = {",
            "def full_finetune",
            'W1 = {"records"',
            'W1["plays"] =',
            "probe = load_base()",
            "D = {task:",
            "names = spectra.block_matrices",
            "delta_explorer(blocks)",
        )
        part = book.page.locator(".llm-delta .llm-explorer")
        part.scroll_into_view_if_needed()
        book.shot("explorer", part)
        part.get_by_role("slider", name="rank r").focus()
        for key in ("d", "d", "End", "ArrowDown"):  # JupyterLab deletes a cell, or leaves it, where it hears these keys
            book.page.keyboard.press(key)
        assert said(part).startswith("rank 63 of 128")
        assert not book.complaints()


def test_the_footprint_is_alive(open_notebook):
    with open_notebook("checkpoint_diet") as book:
        book.run(
            "from pathlib import Path",
            "W0 = snapshot(model)",
            "streams = {",
            "def learn(",
            "    learn(name)",
            "def weight(folder)",
            "How many adapters of rank 8 fit",
            'full, small = weight(shelf / "full")',
            "hundred = weight(",
            "Footprint(",
        )
        book.page.locator(".llm-footprint .llm-explorer").wait_for()
        assert not book.complaints()
