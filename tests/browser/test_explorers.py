"""A notebook run from JupyterLab's menu, and its explorers behind it; every control: test_every_control.py."""


def said(part):
    return part.locator("[role=status]").inner_text()


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


def test_the_explorers_live_in_their_notebook_after_run_all(open_notebook, times):
    with open_notebook("formula") as book:
        book.run_all()
        for kind, key, says in (("rank", "End", "r = 63:"), ("layer", "Home", "r = 1, d = 128:")):
            part = book.page.locator(f".llm-{kind}")
            part.get_by_role("slider", name="rank r").press(key)
            book.wait_for_text(part, says)
        part = book.page.locator(".llm-rank")
        for key in ("d", "d", "Space"):  # to the drawing, and not to JupyterLab, where "d d" deletes the cell
            part.locator("canvas").first.press(key)
        assert part.locator(".cell").is_visible()
        part = book.page.locator(".llm-savings")
        part.scroll_into_view_if_needed()
        assert "r = 8, d = 128: 2,048 numbers in A and B for 16,384 in W, 8 times fewer" in said(part)
        part.get_by_role("slider", name="rank r").focus()
        for key in ("ArrowRight", "ArrowLeft") * 4 + ("ArrowRight",):
            delay = book.delay(part, "svg", lambda key=key: book.page.keyboard.press(key))
            times("formula savings: key press to curve", delay)
        book.wait_for_text(part, "r = 16, d = 128")
        assert contrast(part.locator("svg text").first, "fill") > 4.5
        assert not book.complaints()
