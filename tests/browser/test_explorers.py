"""A notebook run from JupyterLab's menu, and every explorer used as a person would: keys, mouse, extremes."""

HANG = 20 * 60  # seconds


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
