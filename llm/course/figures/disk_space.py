"""What lies on disk, as a figure: a checkpoint each, or one base and an adapter each."""

from matplotlib.figure import Figure

from llm.course.figures.canvas import label_end, new_axes
from llm.course.figures.palette import COLOURS


def footprint(base: float, adapter: float, most: int = 1000) -> Figure:
    """Bytes on disk over the number of fine-tunes kept: a checkpoint each, or one base and an adapter each."""
    figure, (axes,) = new_axes(7.4, 3.4)
    x = range(1, most + 1)
    for size, first, text, color in (
        (base, 0.0, "a checkpoint each", "full"),
        (adapter, base, "one base, an adapter each", "lora"),
    ):
        y = [(first + size * n) / 1e6 for n in x]
        axes.plot(x, y, color=COLOURS[color], label=text)
        label_end(axes, x[-1], y[-1], f"{text}\n{y[-1]:,.0f} MB at {most:,}", color)
    axes.set_xscale("log"), axes.set_yscale("log")
    axes.xaxis.set_major_formatter("{x:,.0f}"), axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.set(xlim=(1, most), xlabel="fine-tunes kept", ylabel="on disk, MB")
    return figure
