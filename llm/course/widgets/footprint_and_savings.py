"""Curves that have a formula: what LoRA saves of a matrix, and on disk."""

from llm.course.widgets.explorer import Explorer


def Savings(r: int = 8, d: int = 128) -> Explorer:
    """d / (2r): how many times fewer numbers a square d x d matrix trains at rank r."""
    return Explorer("savings", "A curve: how many times fewer numbers LoRA trains, by width and rank.", r=r, d=d)


def Footprint(model: float, adapter: float, n: int = 10) -> Explorer:
    """Room on disk for `n` fine-tunes, 1 to 10,000: a checkpoint each, or one base and an adapter each.

    model, adapter: bytes of one model and of one adapter. Raises ValueError for what has no place on the axes.
    """
    if model <= 0 or adapter <= 0 or not 1 <= n <= 10_000:
        raise ValueError(f"{n} fine-tunes of {model} and {adapter} bytes: sizes are above 0, and n is 1 to 10,000")
    about = "Two curves: room on disk over the number of fine-tunes kept, with a checkpoint each, and with one base and an adapter each."
    return Explorer("footprint", about, model=model, adapter=adapter, n=n)
