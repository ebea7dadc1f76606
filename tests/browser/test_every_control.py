"""Every control of every widget in JupyterLab: a mouse and a key at three widths, on the light and on the dark theme."""

from collections import Counter
from itertools import product

from instrument import COLLISIONS
from test_explorers import contrast
from test_predictions import CELLS as PREDICTIONS
from test_predictions import commit, fill, said

# what there is to move, by kind, with small numbers, and a lab over a tiny model that trained on nonsense
CELLS = {
    "rank": "from llm.course.widgets.rank_explorer import layer_explorer, rank_explorer\nrank_explorer()",
    "layer": "layer_explorer()",
    "savings": "from llm.course.widgets.footprint_and_savings import Footprint, Savings\nSavings()",
    "footprint": "Footprint(model=54.7e6, adapter=266_935)",
    "delta": """import torch
from llm.course.widgets.spectrum_explorer import delta_explorer
torch.manual_seed(0)
delta_explorer({task: {name: torch.randn(64, 64) for name in ("a", "b")} for task in ("records", "plays")})""",
    "targets": """from llm.course.widgets.target_explorer import targets_explorer
targets_explorer({"full fine-tuning": lambda model: model.requires_grad_(True)})""",
    "settings": """from llm.course.widgets.settings_explorer import settings_explorer
from llm.files import read_csv
from llm.paths import RESULTS
settings_explorer(read_csv(RESULTS / "alphas.csv"))""",
    "rounding": """from llm.course.widgets.rounding_explorer import rounding_explorer
rounding_explorer({name: torch.randn(64, 32) for name in ("one", "two")})""",
    "rates": """from llm.course.widgets.method_explorer import rate_explorer
rate_explorer(read_csv(RESULTS / "relatives.csv"))""",
    "prefer": """from llm.course.widgets.prefer import prefer
prefer([(f"Question {i}?", "plain", "tuned") for i in range(12)])""",
    "number": PREDICTIONS[0],
    "choice": PREDICTIONS[2],
    "curve": PREDICTIONS[4],
    "voices": """from pathlib import Path
from tempfile import TemporaryDirectory
from llm.adapters import save_adapter
from llm.course.widgets.voices import Voices
from llm.lora import apply_lora
from llm.model import GPT, GPTConfig
small, folder = GPTConfig(n_layer=1, n_head=2, n_embd=16), TemporaryDirectory()
shelf = Path(folder.name)
for name in ("plays", "code"):
    save_adapter(apply_lora(GPT(small), r=2), shelf / name)
voices = Voices(GPT(small), {name: shelf / name for name in ("plays", "code")}, "My lord")
voices""",
    "lab": """from llm.course.tasks import Task
from llm.course.widgets import lab as labs
x = torch.randint(0, 50257, (2, 9))
def batches(seed):
    while True:
        yield x[:, :-1], x[:, 1:]
labs._task = lambda name: Task(name, batches, [(x[:, :-1], x[:, 1:])])
labs.Lab(GPT(small), shelf / "mine")""",
}
WHERE = {kind: f".llm-{kind} .llm-explorer" for kind in CELLS} | {
    "number": ".llm-predict >> nth=0",
    "choice": ".llm-predict >> nth=1",
    "curve": ".llm-predict >> nth=2",
    "voices": ".llm-explorer:has(.voices figure):not(.llm-lab)",
    "lab": ".llm-lab",
}
SIZES = (1000, 1280, 1600)
# what the driver asks of the page; what trains, or locks a prediction, has tests of its own
PAGE = (
    """() => {
    const collisions = COLLISIONS, LEFT_OUT = /^(Train|Stop|Reset|remove|Commit)/;
    const KINDS = 'input, select, button, [data-dot], [role=slider], [tabindex="0"]';
    const kind = (n) => 'dot' in n.dataset ? 'dot' : n.type ?? (n.localName === 'circle' ? 'point' : n.localName);
    const name = (n) => n.getAttribute('aria-label') ?? n.closest('label')?.textContent ?? n.textContent;
    const on = (n) => n && !n.disabled && n.ariaDisabled !== 'true' && n.length !== 1 // a list of one leaves no choice
        && n.checkVisibility({ visibilityProperty: true });
    const nodes = (root) => [...root.querySelectorAll(KINDS)].filter((n) => !LEFT_OUT.test(name(n)));
    const book = window.jupyterapp.shell.currentWidget.content;
    const cells = () => JSON.stringify(book.widgets.map((cell) => cell.model.sharedModel.source));
    const first = cells();
    // what is seen: without what stands under the pointer, and of controls that a picture follows the typed text alone
    const seen = (root) => {
        const copy = root.cloneNode(true);
        for (const node of copy.querySelectorAll('style, .tip, .controls')) node.remove();
        const values = [...root.querySelectorAll(root.querySelector('.controls') ? '[type=text]' : 'input, select')].map((n) => n.value);
        return JSON.stringify([copy.innerHTML, values, [...root.querySelectorAll('canvas')].map((c) => c.toDataURL())]);
    };
    let before = null, cell = 0;
    window.drive = {
        begin(root) {
            cell = book.widgets.findIndex(({ node }) => node.contains(root));
            book.activeCellIndex = cell;
            return nodes(root).map((n) => ({ kind: kind(n), name: name(n) }));
        },
        // null for what is off; else its place on the screen, once it stands still, and which way it can still go
        async look(root, i, focus, moves) {
            const n = nodes(root)[i];
            if (!on(n)) return null;
            const frame = () => new Promise(requestAnimationFrame), place = () => JSON.stringify(n.getBoundingClientRect());
            n.scrollIntoView({ block: 'center', inline: 'center' });
            if (focus) n.focus();
            for (let was = null; was !== place(); await frame(), await frame()) was = place();
            if (moves) before = seen(root);
            const { x, y, width, height } = n.getBoundingClientRect(), whole = root.getBoundingClientRect();
            const high = n.localName === 'select' ? n.selectedIndex === n.length - 1 : Number(n.value) >= Number(n.max);
            const half = (n.value - n.min) / (n.max - n.min) < 0.5;
            return { x, y, width, height, high, half, middle: [whole.x + whole.width / 2, whole.y + whole.height / 2] };
        },
        moved: (root) => seen(root) !== before,
        // what is wrong after an action
        check(root, moves, focus) {
            if (!root.isConnected) return ['the instrument is gone'];
            const wrong = collisions(root), output = root.closest('.jp-OutputArea-output'), frame = output.getBoundingClientRect();
            if (moves && seen(root) === before) wrong.push('nothing has changed');
            if (focus && !root.contains(document.activeElement)) wrong.push('the focus has left');
            if (book.activeCellIndex !== cell) wrong.push('another cell is active');
            if (cells() !== first) wrong.push('the cells are others');
            if (output.scrollWidth > output.clientWidth + 1) wrong.push('a scroll bar below the output');
            for (const n of root.querySelectorAll('*:not(style, option, svg *, table, table *, .tip)')) {
                const box = n.getBoundingClientRect(), edge = (k, way) => way * (box[k] - frame[k]) > 1;
                if (box.width && (edge('left', -1) || edge('right', 1) || edge('top', -1) || edge('bottom', 1)))
                    wrong.push(`${n.localName} ${n.className} leaves the frame`);
            }
            return wrong;
        },
    };
}"""
).replace("COLLISIONS", COLLISIONS)
UP = {"range": "ArrowRight", "number": "ArrowUp", "select-one": "ArrowDown", "point": "ArrowUp", "button": "Enter"}
DOWN = {"range": "ArrowLeft", "number": "ArrowDown", "select-one": "ArrowUp"}
# after these the picture is another, or the sentence
MOVES = {"range", "select-one", "checkbox", "number", "text", "dot", "point"}


class Hand:
    """Drives the controls of one widget, each by the mouse and by a key, and counts what it did and what went wrong."""

    def __init__(self, book, kind):
        self.kind, self.root, self.wrong, self.driven = kind, book.page.locator(WHERE[kind]), [], Counter()
        self.page, self.press, self.node = book.page, book.page.keyboard.press, self.root.element_handle()

    def do(self, what, *given):
        return self.node.evaluate(f"(root, given) => window.drive.{what}(root, ...given)", list(given))

    def all(self, where, shortcuts):
        """Every control that is on; `shortcuts`: JupyterLab's own keys too, on each."""
        for act in (self.by_mouse, self.by_key):
            for i, control in enumerate(self.do("begin")):
                by_key, kind = act == self.by_key, control["kind"]
                if by_key and kind == "dot":  # a slider does what a dragged dot does
                    continue
                if not (at := self.do("look", i, by_key, kind in MOVES)):
                    continue
                if by_key and shortcuts and kind != "text":
                    self.page.keyboard.type("dd")  # JupyterLab would delete the cell
                act(kind, at)
                self.driven[act.__name__, kind] += 1
                for found in self.do("check", kind in MOVES, by_key):
                    self.wrong.append((self.kind, act.__name__, kind, control["name"], found, where))
                if kind == "select-one":  # taken back, for other controls hang on it
                    self.press("ArrowUp" if not at["high"] else "ArrowDown")

    def by_mouse(self, kind, at):
        x, y, middle = at["x"] + at["width"] / 2, at["y"] + at["height"] / 2, at["middle"]
        if kind == "range":
            x = at["x"] + at["width"] * (0.8 if at["half"] else 0.2)
        if kind == "number":  # the arrows that it has while the pointer is over it
            x, y = at["x"] + at["width"] - 8, at["y"] + at["height"] * (0.75 if at["high"] else 0.25)
        if kind in ("dot", "point"):
            self.drag(x, y, (kind == "dot") * (60 if x < middle[0] else -60), 30 if y < middle[1] else -30)
        else:
            self.page.mouse.click(x, y)
        if kind == "select-one":  # its list is the browser's own
            self.press("ArrowUp" if at["high"] else "ArrowDown"), self.press("Enter")
        if kind == "text":
            self.typed("2")

    def drag(self, x, y, right, down):
        """Towards the middle of the widget, where there is room; back and beyond when its value is at its limit there."""
        self.page.mouse.move(x, y)
        self.page.mouse.down()
        for way in (1, -1):
            self.page.mouse.move(x + way * right, y + way * down)
            if self.do("moved"):
                break
        self.page.mouse.up()

    def by_key(self, kind, at):
        keys = UP | (DOWN if at["high"] else {})
        self.typed("3") if kind == "text" else self.press(keys.get(kind, "Space"))

    def typed(self, text):
        self.press(text)
        if self.kind != "number":  # Enter would commit
            self.press("Enter")


def test_every_control_in_jupyterlab(open_notebook):
    with open_notebook("formula") as book:
        fill(book, list(CELLS.values()))
        book.run_all()
        lab = book.page.locator(WHERE["lab"])
        lab.get_by_role("spinbutton", name="steps").fill("3")
        for row in range(2):
            lab.get_by_role("button", name="Train").click()
            lab.locator("tbody tr").nth(row).filter(has_not_text="training").wait_for()
        book.page.evaluate(PAGE)
        hands = {kind: Hand(book, kind) for kind in CELLS}
        for look, width in product(("Light", "Dark"), SIZES):
            book.theme(look)
            book.page.set_viewport_size({"width": width, "height": 800})
            for kind, hand in hands.items():
                hand.all((look, width), shortcuts=width == SIZES[0])
                assert not hand.wrong, "\n".join(map(str, hand.wrong))
                assert contrast(hand.root.locator("[role=status]").first) > 4.5, (kind, look)
            if (look, width) in (("Light", SIZES[0]), ("Dark", SIZES[-1])):
                book.page.set_viewport_size({"width": width, "height": 1400})  # the tallest as a whole
                for kind, hand in hands.items():
                    book.shot(f"every-{kind}-{look}-{width}", hand.root)
        driven = sum((hand.driven for hand in hands.values()), Counter())
        assert {kind for _, kind in driven} >= MOVES | {"button", "radio", "canvas", "pre"}
        for kind in ("number", "choice", "curve"):
            commit(hands[kind].root).click()
            assert said(hands[kind].root).endswith("Run the next cell.")
        prompt = hands["voices"].root.get_by_role("textbox")
        prompt.fill("My lady"), prompt.press("Enter")
        book.wait_for_text(hands["voices"].root, "answered in")
        assert book.run_code("voices.prompt") == "'My lady'"
        assert not book.complaints()
