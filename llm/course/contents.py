"""The order of the notebooks, and the one place that knows it. A notebook is called by its subject; its place is its number.

To move a notebook, move its line, then run `python -m llm contents`: files, titles, links and the README's table follow.
"""

import re
from typing import NamedTuple


class Notebook(NamedTuple):
    """One notebook: its subject as in the file's name, its title, the minutes that it takes, and what the reader does."""

    subject: str
    title: str
    minutes: int
    does: str


PARTS = {
    "The idea": [
        Notebook(
            "one_page",
            "LoRA on one page",
            15,
            "write LoRA in thirty lines of PyTorch, train it, and compare the answers",
        ),
    ],
    "The chapter": [
        Notebook(
            "formula",
            "The formula",
            50,
            "squeeze a matrix into two thin ones, write the forward pass, count the savings",
        ),
        Notebook(
            "why_low_rank", "Why low rank", 60, "fine-tune every weight, look at what moved, and cut it to rank r"
        ),
        Notebook(
            "wrapper", "The wrapper", 60, "wrap the model, audit what trains, make the classic mistakes and fix them"
        ),
        Notebook(
            "fine_tune", "Fine-tune", 60, "train LoRA beside a full fine-tune and a control, and compare what they say"
        ),
        Notebook("rank_and_savings", "Rank and savings", 60, "find out how small r may be, and what it depends on"),
        Notebook("checkpoint_diet", "Checkpoint diet", 55, "save adapters, swap them in milliseconds, and merge them"),
        Notebook("real_model", "A real model", 45, "teach SmolLM2 verse and records, and open the adapter in PEFT"),
    ],
    "Knobs and costs": [
        Notebook(
            "alpha_and_rate",
            "Alpha and learning rate",
            50,
            "separate alpha, its conventions, the start of A, and the rate",
        ),
        Notebook("time_and_memory", "Time and memory", 50, "see where a step's time and memory go, and what helps"),
    ],
    "Smaller and other": [
        Notebook("four_bits", "Four bits", 55, "derive sixteen levels, round a model to them, and measure the cost"),
        Notebook("qlora", "QLoRA", 50, "train LoRA over four bits, and choose the base to merge into"),
        Notebook(
            "relatives",
            "LoRA's relatives",
            55,
            "see what DoRA, PiSSA, IA3 and others change, and write the main step of two",
        ),
        Notebook(
            "fair_comparison", "A fair comparison", 45, "compare twelve methods, each at its own best learning rate"
        ),
    ],
    "In use": [
        Notebook(
            "your_data",
            "Your data",
            60,
            "fine-tune on conversations, stop in time, check the answers, and take the adapter away",
        ),
    ],
}
NOTEBOOKS = [notebook for part in PARTS.values() for notebook in part]
TABLE = re.compile(r"^\| \| what you do in it.*?(?=\n\n|\Z)", re.M | re.S)
LINK = re.compile(
    r"\[(?P<before>[^\]\[]*?)\b\d\d\b(?P<after>[^\]\[]*)\]\((?P<to>[./]*(?:notebooks/)?)\d\d_(?P<subject>\w+)\.ipynb\)"
)


def number(subject: str) -> str:
    """Its two digits, "03"; KeyError where no notebook has this subject."""
    return f"{ {notebook.subject: i for i, notebook in enumerate(NOTEBOOKS)}[subject]:02}"


def file_name(subject: str) -> str:
    """The file that holds it in `notebooks/`, "03_wrapper.ipynb"."""
    return f"{number(subject)}_{subject}.ipynb"


def updated(text: str, folder: str = "") -> str:
    """`text` with today's order: in every link, "[notebook 03](03_wrapper.ipynb)", and in the table of all notebooks."""

    def present(link):
        subject = link["subject"]
        if subject not in {notebook.subject for notebook in NOTEBOOKS}:
            return link[0]
        return f"[{link['before']}{number(subject)}{link['after']}]({link['to']}{file_name(subject)})"

    return TABLE.sub(lambda _: table(folder), LINK.sub(present, text), count=1)


def table(folder: str) -> str:
    """All notebooks by part as a Markdown table, with the minutes that each takes; `folder` stands before each name."""
    lines = ["| | what you do in it | minutes |", "|---|---|---|"]
    for part, notebooks in PARTS.items():
        lines.append(f"| **{part}** | | |")
        for notebook in notebooks:
            name = f"[{number(notebook.subject)} {notebook.title}]({folder}{file_name(notebook.subject)})"
            lines.append(f"| {name} | {notebook.does} | {notebook.minutes} |")
    return "\n".join(lines)
