"""Widgets that ask the kernel: what an earlier one of the same cell held is let go, and what one says is spoken."""

import html
import weakref

import ipywidgets as widgets

_latest: dict[str, weakref.ref] = {}  # by kind, of widgets that hold something large


def take_the_place_of_the_last(kind: str, made: widgets.Box) -> None:
    """Close the widget of this kind that was made before: its cell has run again.

    ipywidgets' registry would keep that one for ever, and with it a model, or the updates of every layer.
    """
    if kind in _latest and (last := _latest[kind]()):
        last.close()
    _latest[kind] = weakref.ref(made)


def close_parts(widget: widgets.Widget) -> None:
    """Close what a widget is made of: its children, and each one's layout and style."""
    for child in getattr(widget, "children", ()):
        close_parts(child)
        child.close()
    for name in ("layout", "style"):
        if isinstance(part := getattr(widget, name, None), widgets.Widget):
            part.close()


def live(text: str) -> str:
    """A live region: a screen reader speaks the new numbers as the slider moves."""
    return f'<div role="status" aria-live="polite">{html.escape(text)}</div>'
