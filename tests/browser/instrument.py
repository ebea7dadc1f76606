"""Drives one instrument of the bundle in a bare page: no Jupyter and no kernel, by mouse and by keyboard."""

THEMES = {"light": "background: #fff; color: #222", "dark": "background: #111; color: #eee; color-scheme: dark"}
COLLISIONS = """root => {
    const texts = [...root.querySelectorAll('svg text, figcaption')].filter(t => t.textContent.trim());
    const boxes = texts.map(t => [t.textContent, t.getBoundingClientRect()]);
    const wide = document.documentElement.clientWidth;
    const out = boxes.filter(([, b]) => b.left < -1 || b.right > wide + 1).map(([t]) => t + ' leaves the page');
    for (const [i, [t, a]] of boxes.entries()) for (const [u, b] of boxes.slice(i + 1))
        if (a.left < b.right - 2 && b.left < a.right - 2 && a.top < b.bottom - 4 && b.top < a.bottom - 4)
            out.push(t + ' over ' + u);
    return out;
}"""


class Instrument:
    """One explorer in a page: its controls by their labels, what it says, how long a frame takes."""

    def __init__(self, page, address, kind, times):
        self.page, self.kind, self.times, self.errors = page, kind, times, []
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        page.on("request", lambda request: self.errors.append(request.url) if request.url[:4] == "http" else None)
        page.set_default_timeout(1000 * 20 * 60)  # a machine may be slow, and that is no failure
        page.goto(address)
        self.root = page.locator(".llm-explorer")
        self.root.wait_for()

    @property
    def says(self):
        return self.root.get_by_role("status").inner_text()

    def slider(self, label):
        return self.root.get_by_role("slider", name=label, exact=True)

    def choose(self, label, text):
        self.root.get_by_role("combobox", name=label, exact=True).select_option(label=text)

    def press(self, control, *keys):
        control.focus()
        for key in keys:
            self.page.keyboard.press(key)

    def picture(self):
        """Marks and pixels: what would be another picture if one of them moved."""
        return self.root.evaluate(
            "root => [...root.querySelectorAll('svg')].map(s => s.innerHTML).join('')"
            " + [...root.querySelectorAll('canvas')].map(c => c.toDataURL()).join('')"
        )

    def sweep(self, label):
        """A slider by keys from end to end: each step is drawn, nothing jumps, no text leaves the page or meets another.

        Returns what is said at either end.
        """
        slider, said = self.slider(label), []
        self.press(slider, "Home")
        height, places = self.root.bounding_box()["height"], int(slider.get_attribute("max"))
        said.append(self.says)
        for _ in range(min(places, 40)):
            before = self.picture(), self.says
            self.times(f"{self.kind} {label}: input to layout", self.frame(slider, "ArrowRight"))
            assert (self.picture(), self.says) != before or self.says == before[1]
            assert self.root.bounding_box()["height"] == height, "the layout jumps"
            assert not (found := self.collisions()), found
        self.press(slider, "End")
        said.append(self.says)
        return said

    def frame(self, control, key):
        """Milliseconds from the input to the laid-out picture: the work in a frame, without the wait for the screen."""
        control.evaluate(
            """node => node.addEventListener('input', () => {
                const began = performance.now();
                node.addEventListener('input', () => {  // the instrument's own listener has drawn by now
                    document.body.getBoundingClientRect();
                    window.frame = performance.now() - began;
                }, { once: true });
            }, { once: true, capture: true })"""
        )
        self.press(control, key)
        return self.page.evaluate("() => window.frame ?? 0")

    def drag(self, dot, right, down):
        """The point `dot` of a picture by mouse, so many pixels to the right and down."""
        box = self.root.locator("[data-dot]").nth(dot).bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        self.page.mouse.move(x, y)
        self.page.mouse.down()
        self.page.mouse.move(x + right, y + down, steps=6)
        self.page.mouse.up()

    def value_at(self, x, y, svg=0):
        """What the tip says over a picture, at a place from 0 to 1 in its width and height; "" where it says nothing."""
        box = self.root.locator("svg").nth(svg).bounding_box()
        self.page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
        return "".join(self.root.locator(".tip:visible").all_inner_texts())

    def collisions(self):
        """Texts of the pictures that lie over each other, or outside of the page."""
        return self.root.evaluate(COLLISIONS)

    def shot(self, name, to):
        to.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=to / f"{name}.png")
