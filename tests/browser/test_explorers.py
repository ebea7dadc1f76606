"""Every notebook run from JupyterLab's menu, and every explorer in it used as a person would."""

import hashlib
import re
import time

import pytest


def picture(part):
    """A fingerprint of what an image widget shows."""
    image = part.locator("img")
    return hashlib.sha256((image.get_attribute("src") or "").encode() + image.screenshot()).hexdigest()


def changed(read, before, seconds=15):
    """The new state, once `read()` differs from `before`."""
    until = time.monotonic() + seconds
    while (now := read()) == before:
        assert time.monotonic() < until, f"nothing changed in {seconds} s"
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


def use_slider(book, part, first, last):
    """A key, a drag to either end, and a burst of keys: text and picture follow each, and settle where they should."""
    handle, track = part.get_by_role("slider"), part.locator(".noUi-base").bounding_box()
    before, shown = said(part), picture(part)
    handle.focus()
    book.page.keyboard.press("ArrowRight")
    changed(lambda: said(part), before)
    shown = changed(lambda: picture(part), shown)
    knob = handle.bounding_box()
    x, y = knob["x"] + knob["width"] / 2, knob["y"] + knob["height"] / 2
    for to, expected in ((x + 2 * track["width"], last), (x - track["width"], first)):
        book.page.mouse.move(x, y)
        book.page.mouse.down()
        book.page.mouse.move(to, y, steps=6)
        book.page.mouse.up()
        book.wait_for_text(part, expected)
        shown = changed(lambda: picture(part), shown)
        knob = handle.bounding_box()
        x = knob["x"] + knob["width"] / 2
    for _ in range(20):
        book.page.keyboard.press("ArrowRight")
    book.wait_for_text(part, re.sub(r"\d+", str(int(re.search(r"\d+", first)[0]) + 20), first))


def test_01_a_rank_on_a_matrix_of_ones_choice(open_notebook):
    with open_notebook("01_formula.ipynb") as book:
        book.run_all()
        part = explorer(book, "numbers in A and B for")
        use_slider(book, part, "rank 1:", "rank 32:")
        before = picture(part)
        part.locator("select").select_option(index=2)
        changed(lambda: picture(part), before)
        book.shot("01")
        assert not book.errors


def test_02_a_rank_on_a_layers_delta_w(open_notebook):
    with open_notebook("02_why_low_rank.ipynb") as book:
        book.run_all()
        part = explorer(book, "of the energy in")
        use_slider(book, part, "rank 1 of", "rank 64 of")
        for which in (0, 1):
            before = picture(part)
            part.locator("select").nth(which).select_option(index=1)
            changed(lambda: picture(part), before)
        book.shot("02")
        assert not book.errors


@pytest.mark.parametrize("name", ["03_wrapper.ipynb", "06_checkpoint_diet.ipynb"])
def test_it_runs_from_the_menu(open_notebook, name):
    with open_notebook(name) as book:
        book.run_all()
        book.shot(name[:2])
        assert not book.errors


@pytest.mark.parametrize("name", ["04_fine_tune.ipynb", "05_rank_and_savings.ipynb"])
def test_the_live_lab_trains_stops_answers_saves_and_resets(open_notebook, name):
    with open_notebook(name) as book:
        book.run_all()
        part = book.page.locator(".widget-vbox").filter(has=book.page.get_by_role("button", name="Train")).last
        part.scroll_into_view_if_needed()

        def press(button):
            part.get_by_role("button", name=button).click()

        press("Stop")
        book.wait_for_text(part, "nothing is training")
        empty = picture(part)
        press("Train")
        book.wait_for_text(part, "step 2:", 60)
        press("Train")  # twice: said, not done
        press("Stop")
        book.wait_for_text(part, "stopped after")
        steps = int(re.search(r"stopped after (\d+) steps", said(part))[1])
        assert 2 <= steps < 40, f"{steps} of 40 steps: Stop did not stop"
        changed(lambda: picture(part), empty)
        part.locator("pre").nth(1).wait_for()  # the base answers, then the adapter
        press("Save")
        book.wait_for_text(part, "saved to")
        assert (book.folder.parent / "adapters" / "mine" / "adapter_model.safetensors").exists()
        book.shot(f"{name[:2]}-lab")
        press("Reset")
        book.wait_for_text(part, "ready")
        assert not part.locator("pre").count()
        assert not book.errors


def test_01_the_savings_curve_is_drawn_in_the_browser(open_notebook):
    with open_notebook("01_formula.ipynb") as book:
        book.run_all()
        part = book.page.locator(".llm-savings")
        part.scroll_into_view_if_needed()
        assert "r = 8, d = 128: 2,048 numbers in A and B for 16,384 in W, 8 times fewer" in said(part)
        rank, width = (part.get_by_role("slider", name=name) for name in ("rank r", "width d"))
        line = part.locator("svg line").last
        before = line.get_attribute("y1")
        rank.focus()
        book.page.keyboard.press("ArrowRight")
        book.wait_for_text(part, "r = 16, d = 128")
        assert line.get_attribute("y1") != before
        for key, r, d in (("End", 256, 16384), ("Home", 1, 32)):
            for slider in (rank, width):
                slider.focus()
                book.page.keyboard.press(key)
            book.wait_for_text(part, f"r = {r}, d = {d:,}")
        book.shot("01-savings")
        assert not book.errors
