"""`python -m llm data`: shows what a run would read of a file. Of a real model it loads only the tokenizer.

Imports torch and other slow packages only when it runs, so that help appears at once.
"""

import os
import re
import shlex
import sys
from typing import Annotated

from typer import Argument, Option

from llm.cli.app import AsJson, Base, app, number
from llm.cli.console import say, show_json
from llm.errors import TextError
from llm.paths import user_path

SHOWN, PART = 3, 600  # rows, and the most characters of each part
BARS, WIDTH = 10, 40  # the most bars of the histogram, and the characters of the longest
CONTROL = re.compile(r"[^\n\t -~\xa0-\U0010ffff]")  # a terminal would act on these


@app.command(short_help="Show what a run would read from your file.")
def data(
    file: Annotated[str, Argument(metavar="FILE", hidden=True)],
    base: Base = "course",
    fields: Annotated[str | None, Option("--map", metavar="PAIRS", help="field names: prompt=a,completion=b")] = None,
    train_on: Annotated[str, Option(metavar="WHAT", help="what to train on: answers, last or all")] = "answers",
    template: Annotated[str | None, Option(metavar="NAME", help="chat template: plain, chatml or a file")] = None,
    block: number("maximum tokens per row", int | None) = None,
    as_json: AsJson = False,
):
    """Show what a run would read of FILE, before it trains.

    Shows the format, three rows with the trained parts marked, the lengths, and what would be cut or left out.

    Example: python -m llm data chat.jsonl --base smollm2
    """
    from llm.bases.loading import load_tokenizer
    from llm.text import dataset
    from llm.text.chat import with_template
    from llm.text.formats import read_map
    from llm.text.tables import named, read_table

    if file in dataset.names():
        raise TextError(
            f"{file} is a corpus of the course, not a file: train on it with `python -m llm finetune {file}`"
        )
    tokenizer, context = load_tokenizer(base)
    tokenizer = with_template(tokenizer, template) if template else tokenizer
    dataset.check_block(block, context)
    path, limit = user_path(file), block or context
    if path.suffix.lower() == ".txt":
        text = dataset.load_dataset(file, tokenizer, context, block)
        x, y = next(text.batches(SHOWN, 0, 0))
        rows = [[[ids[:1], [*ids[1:], last]]] for ids, last in zip(x.tolist(), y[:, -1].tolist())]
        found = dict(format="text", train=text.size, heldout=None, limit=x.size(1), lengths=[], long=[])
        what, notes = f"text, {text.size:,} windows of {x.size(1)} tokens to train on, the end held out", text.notes
    else:
        table = read_table(path, tokenizer, limit, read_map(fields), train_on, dataset.names())
        rows, notes = table.train[:SHOWN], table.notes
        found = dict(format=table.kind, train=len(table.train), heldout=len(table.heldout), limit=limit)
        found |= dict(lengths=table.lengths, long=[*table.long], cut=table.cut, bare=table.bare)
        what = f"{table.kind}, {found['train']:,} rows to train on, {found['heldout']:,} held out"
        if table.long:
            notes = (f"too long, so that a run needs --skip-long: {len(table.long):,} ({named([*table.long])})", *notes)
    shown = [[(text, i % 2) for row in examples for i, text in enumerate(_texts(row, tokenizer))] for examples in rows]
    if as_json:
        rows = [[dict(text=text, graded=bool(graded)) for text, graded in row] for row in shown]
        return show_json(file=file, **found, notes=notes, rows=rows)
    say(f"{file}: {what}")
    before, behind = ("\033[7m", "\033[0m") if sys.stdout.isatty() and "NO_COLOR" not in os.environ else ("«", "»")
    for n, (examples, row) in enumerate(zip(rows, shown), start=1):
        tokens, graded = (
            sum(len(part) for example in examples for part in example[i::step]) for i, step in ((0, 1), (1, 2))
        )
        say(f"\nrow {n}, {tokens} tokens, {graded} of them graded, marked {before}like this{behind}:")
        say("".join(before + _short(text) + behind if graded else _short(text) for text, graded in row).rstrip("\n"))
    if found["lengths"]:
        say(f"\ntokens of a row, of which {limit:,} fit:")
        say("\n".join(_histogram(found["lengths"], limit)))
    if notes:
        say("\n" + "\n".join(notes))
    if path.suffix.lower() != ".txt":
        dataset.check_rows(path, table)
    given = {"--base": base, "--map": fields, "--train-on": train_on, "--template": template, "--block": block}
    usual = {"--base": "course", "--train-on": "answers"}
    options = [f"{name} {shlex.quote(str(x))}" for name, x in given.items() if x is not None and x != usual.get(name)]
    options += ["--skip-long"] if found["long"] else []
    say("\n" + " ".join(["to train on it: python -m llm finetune", shlex.quote(file), *options]))


def _texts(row, tokenizer):
    """Decode each part of a row after the parts before it, because many tokenizers drop a blank at a beginning."""
    ids, text = [], ""
    for part in row:
        ids += part
        whole = tokenizer.decode(ids)
        yield whole[len(text) :] if whole.startswith(text) else tokenizer.decode(part)
        text = whole


def _short(text):
    left = len(text) - PART
    text = f"{text[: PART // 2]} ... {left:,} characters ... {text[-PART // 2 :]}" if left > 0 else text
    return CONTROL.sub(lambda found: repr(found[0])[1:-1], text)


def _histogram(lengths, limit):
    """Yield a line for each bar: its round range of tokens, and its rows; the last line counts rows that do not fit."""
    fit = [n for n in lengths if n <= limit] or lengths
    sizes = (digit * 10**power for power in range(10) for digit in (1, 2, 5))
    size = next(size for size in sizes if max(fit) // size - min(fit) // size < BARS)
    bars = range(min(fit) // size, max(fit) // size + 1)
    counts = [sum(n // size == bar for n in fit) for bar in bars]
    for bar, n in zip(bars, counts):
        mark = "#" * -(-n * WIDTH // max(counts))
        yield f"{bar * size:7,} to {(bar + 1) * size - 1:7,}  {f'{mark} {n:,}'.lstrip()}"
    if len(fit) < len(lengths):
        yield f"more than {limit:,}  {len(lengths) - len(fit):,}, up to {max(lengths):,}"
