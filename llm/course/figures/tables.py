"""A table of numbers that a person compares: HTML in a notebook, aligned columns of text elsewhere."""

import html
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llm.errors import SettingError

DIGIT, POINT = "\u2007", "\u2008"  # spaces as wide as a digit and as a point: they hold places in a column


@dataclass
class Table:
    """What `table` returns, for a cell's last expression. Each column: header, cells, is it of numbers, which are best."""

    columns: list[tuple[str, list[str], bool, list[bool]]]

    def _repr_html_(self) -> str:  # the page's own style gives colors and lines, so it follows the theme
        columns = []
        for header, cells, numeric, best in self.columns:
            style = 'align="right" style="text-align: right"' if numeric else 'align="left" style="text-align: left"'
            texts = (f"<b>{in_place(cell)}</b>" if top else in_place(cell) for cell, top in zip(cells, best))
            columns.append([f"<th {style}>{html.escape(header)}</th>", *(f"<td {style}>{text}</td>" for text in texts)])
        head, *body = ["<tr>" + "".join(row) + "</tr>\n" for row in zip(*columns)] or [""]
        digits = 'style="font-variant-numeric: tabular-nums"'
        return f"<table {digits}>\n<thead>{head}</thead>\n<tbody>{''.join(body)}</tbody>\n</table>"

    def __repr__(self) -> str:  # the best is starred
        columns = []
        for header, cells, numeric, best in self.columns:
            marked = [cell + ("*" if top else " ") for cell, top in zip(cells, best)] if any(best) else cells
            width = max(len(text) for text in (header, *marked))
            columns.append([text.rjust(width) if numeric else text.ljust(width) for text in (header, *marked)])
        return "\n".join("  ".join(row).rstrip() for row in zip(*columns))


def table(rows: Sequence[Mapping], best: Mapping[str, Callable] | None = None, formats: Mapping | None = None) -> Table:
    """Rows (header -> value) as a table, its numbers aligned on the decimal point. A header names its unit.

    best: `min` or `max` by header; that value is set in bold, and so is whatever reads the same.
    formats: format codes by header; else whole numbers get commas, and others two decimals. None is an empty cell.
    """
    best, formats = best or {}, formats or {}
    headers = list(dict.fromkeys(header for row in rows for header in row))
    if unknown := [header for header in (*best, *formats) if header not in headers]:
        raise SettingError(f"no column is called {unknown[0]!r}: the columns are {', '.join(headers) or 'none'}")
    columns = []
    for header in headers:
        values = [plain(row.get(header)) for row in rows]
        numbers = [value for value in values if not isinstance(value, str)]
        cells = [written(value, formats.get(header)) for value in values]
        top = written(best[header](numbers), formats.get(header)) if header in best and numbers else None
        # what stands behind the units, in characters: shorter ones are filled up with spaces
        tails = [0 if isinstance(v, str) else len(re.sub(r"^[-+]?[\d,]*", "", cell)) for v, cell in zip(values, cells)]
        padded = [v if isinstance(v, str) else c + " " * (max(tails) - t) for v, c, t in zip(values, cells, tails)]
        columns.append((header, padded, bool(numbers), [cell == top for cell in cells]))
    return Table(columns)


def plain(value: Any) -> str | int | float:
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value
    return "" if value is None else {"True": "yes", "False": "no"}.get(str(value), str(value))


def written(value: str | int | float, code: str | None) -> str:
    default = ",d" if isinstance(value, int) else "z,.2f"  # z: no minus before 0.00
    return value if isinstance(value, str) else format(value, code or default)


def in_place(cell: str) -> str:
    """Escaped, and its last spaces as wide as the digits that stand there in other rows."""
    text = cell.rstrip(" ")
    spaces = len(cell) - len(text)
    return html.escape(text) + (POINT + (spaces - 1) * DIGIT if spaces and "." not in text else spaces * DIGIT)
