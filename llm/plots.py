"""Numbers in, a matplotlib Figure out: no training, no files, no widgets.

One colour is one method in every notebook (Okabe and Ito's palette, which colour-blind readers tell apart).
"""

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = {
    "full": "#D55E00",  # full fine-tuning
    "lora": "#0072B2",  # LoRA, and anything with A and B in it
    "norm": "#009E73",  # the final norm only: the cheap control
    "base": "#555555",  # the model before training
    "control": "#999999",  # noise, chance, the wrong way round
    "other": "#CC79A7",  # a further arm of a comparison
}
STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.labelsize": 10,
    "font.size": 10,
    "lines.linewidth": 1.8,
    "figure.constrained_layout.use": True,
    "figure.dpi": 100,
}


def new_figure(width: float = 7.0, height: float = 3.6) -> Figure:
    """An empty figure in the course's style (inches): shown when it is a cell's value, and only then."""
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(width, height))
    plt.close(figure)  # pyplot would show every open figure a second time at the end of the cell
    return figure


def new_axes(
    width: float = 7.0, height: float = 3.6, rows: int = 1, columns: int = 1, **share
) -> tuple[Figure, list[Axes]]:
    """A figure and its axes as a flat list, row by row; `share` goes to `Figure.subplots`."""
    figure = new_figure(width, height)
    with plt.rc_context(STYLE):
        return figure, list(figure.subplots(rows, columns, squeeze=False, **share).flat)


def label_end(axes: Axes, x: float, y: float, text: str, colour: str, dy: float = 0) -> None:
    """A label beside a curve's last point, in the curve's colour; `dy` in points keeps neighbours apart."""
    axes.annotate(
        text,
        (x, y),
        (6, dy),
        textcoords="offset points",
        va="center",
        color=COLOURS.get(colour, colour),
        annotation_clip=False,
    )


NAMES = {"full": "full fine-tune", "lora": "LoRA", "norm": "final norm only", "base": "base"}


def loss_curves(curves: dict[str, dict[str, tuple[list, list]]], start: dict[str, float]) -> Figure:
    """Held-out loss over steps, a panel for each task, a curve for each arm.

    curves: task -> arm -> (steps, losses); start: task -> the base's loss.
    """
    figure, panels = new_axes(8.6, 3.6, columns=len(curves))
    for axes, (task, arms) in zip(panels, curves.items()):
        last = max(steps[-1] for steps, _ in arms.values())
        axes.axhline(start[task], color=COLOURS["base"], lw=1, ls=":")
        axes.annotate(
            "base", (last, start[task]), (0, 3), textcoords="offset points", ha="right", color=COLOURS["base"]
        )
        ends = spread([losses[-1] for _, losses in arms.values()], axes_gap([y for _, y in arms.values()], start[task]))
        for (arm, (steps, losses)), y in zip(arms.items(), ends):
            axes.plot([0, *steps], [start[task], *losses], color=COLOURS[arm], marker="o", ms=4)
            label_end(axes, last, y, NAMES[arm], arm)
        axes.set_title(task)
        axes.set_xlabel("training steps")
        axes.set_xlim(0, last * 1.42)  # room for the labels
        axes.set_xticks([t for t in axes.get_xticks() if t <= last])
    panels[0].set_ylabel("held-out loss, nats a token")
    return figure


def axes_gap(curves: list[list[float]], start: float) -> float:
    """The least distance at which two labels beside curves of this height do not touch."""
    values = [start, *(y for curve in curves for y in curve)]
    return 0.07 * (max(values) - min(values))


def spread(values: list[float], gap: float) -> list[float]:
    """The values, in their order, moved apart until neighbours are `gap` away: where labels can stand."""
    order = sorted(range(len(values)), key=values.__getitem__)
    moved = list(values)
    for low, high in zip(order, order[1:]):
        moved[high] = max(moved[high], moved[low] + gap)
    return moved


def score_bars(scores: dict[str, dict[str, float]]) -> Figure:
    """Shares from 0 to 1, a group of bars for each measure, a bar for each arm."""
    figure, (axes,) = new_axes(8.0, 3.4)
    measures = list(next(iter(scores.values())))
    width = 0.8 / len(scores)
    for i, (arm, shares) in enumerate(scores.items()):
        x = [m + (i - (len(scores) - 1) / 2) * width for m in range(len(measures))]
        bars = axes.bar(x, [shares[m] for m in measures], width * 0.92, color=COLOURS[arm], label=NAMES[arm])
        axes.bar_label(bars, [f"{shares[m]:.0%}" for m in measures], fontsize=9, color=COLOURS[arm], padding=2)
    axes.set_xticks(range(len(measures)), measures)
    axes.set_ylim(0, 1.12)
    axes.yaxis.set_major_formatter("{x:.0%}")
    axes.set_yticks([0, 0.5, 1])
    axes.set_ylabel("share of the answers")
    axes.legend(frameon=False, ncols=len(scores), loc="upper center", bbox_to_anchor=(0.5, 1.16))
    return figure


def arm_bars(values: dict[str, dict[str, float]], label: str) -> Figure:
    """One number for each task and arm: a panel for each task, a bar for each arm."""
    figure, panels = new_axes(8.0, 0.9 + 0.5 * len(next(iter(values.values()))), columns=len(values), sharex=True)
    for axes, (task, arms) in zip(panels, values.items()):
        names = list(arms)[::-1]
        bars = axes.barh([NAMES[a] for a in names], [arms[a] for a in names], color=[COLOURS[a] for a in names])
        axes.bar_label(bars, [f"{arms[a]:+.2f}" for a in names], padding=4)
        axes.axvline(0, color=COLOURS["base"], lw=0.8)
        axes.set_title(task)
        axes.margins(x=0.22)
    panels[-1].tick_params(labelleft=False)
    figure.supxlabel(label, fontsize=10)
    return figure


KINDS = {
    "attn.c_attn": "query, key, value",
    "attn.c_proj": "attention output",
    "mlp.c_fc": "MLP in",
    "mlp.c_proj": "MLP out",
}


def _kind(name: str) -> tuple[str, int]:
    """ "transformer.h.2.mlp.c_fc.weight" -> ("mlp.c_fc", 2)."""
    parts = name.removesuffix(".weight").split(".")
    return ".".join(parts[-2:]), int(parts[2])


def singular_values(values: dict, noise: dict, show: int = 64) -> Figure:
    """Singular values of each block matrix's delta W, a panel for each kind of matrix, over those of a random one.

    values, noise: singular values (largest first) by weight name.
    """
    figure, panels = new_axes(7.6, 5.2, rows=2, columns=2, sharex=True)
    depth = 1 + max(_kind(name)[1] for name in values)
    for axis, (kind, title) in zip(panels, KINDS.items()):
        for name, s in values.items():
            if _kind(name)[0] == kind:
                layer = _kind(name)[1]
                x = range(1, min(show, len(s)) + 1)
                axis.plot(x, s[:show], color=COLOURS["full"], alpha=0.4 + 0.6 * layer / max(1, depth - 1), lw=1.4)
                axis.plot(x, noise[name][:show], color=COLOURS["control"], ls="--", lw=1)
        axis.set_title(title)
        axis.set_ylim(bottom=0)
    top = panels[0]
    top.annotate("full fine-tune\n(darker: later block)", (0.22, 0.72), xycoords="axes fraction", color=COLOURS["full"])
    top.annotate("noise of the same norm", (0.45, 0.4), xycoords="axes fraction", color=COLOURS["control"])
    figure.supxlabel("index of the singular value")
    figure.supylabel("singular value of ΔW")
    return figure


def energy_table(energy: dict[str, dict], ranks: list[int]) -> Figure:
    """The share of delta W's energy at each rank: a table in colour for each arm, a row for each matrix."""
    figure, axes = new_axes(8.4, 5.2, columns=len(energy), sharey=True)
    for axis, (arm, rows) in zip(axes, energy.items()):
        axis.imshow([list(r) for r in rows.values()], cmap="Blues", vmin=0, vmax=1.1, aspect="auto")
        for i, row in enumerate(rows.values()):
            for j, share in enumerate(row):
                axis.text(
                    j,
                    i,
                    f"{share:.0%}",
                    ha="center",
                    va="center",
                    fontsize=7.5,
                    color="white" if share > 0.6 else "black",
                )
        axis.set_title(arm)
        axis.set_xticks(range(len(ranks)), ranks)
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
    labels = [f"block {_kind(n)[1] + 1} {KINDS[_kind(n)[0]]}" for n in next(iter(energy.values()))]
    axes[0].set_yticks(range(len(labels)), labels, fontsize=8)
    figure.supxlabel("rank r: share of ΔW's energy held by its best rank-r part")
    return figure


def loss_by_rank(ranks: list[int], kept: dict, alone: dict, base: dict, full: dict) -> Figure:
    """Held-out loss with each block's delta W cut to rank r, a panel for each task.

    kept, alone: task -> losses by rank, with embeddings and head as fine-tuned, and as in the base.
    base, full: task -> the loss of the two models between which the curves run.
    """
    figure, axes = new_axes(8.4, 3.6, columns=len(kept))
    x = range(len(ranks))
    for axis, task in zip(axes, kept):
        axis.axhline(base[task], color=COLOURS["base"], lw=1)
        axis.axhline(full[task], color=COLOURS["full"], lw=1, ls=":")
        axis.plot(x, kept[task], color=COLOURS["full"], marker="o")
        axis.plot(x, alone[task], color=COLOURS["full"], marker="o", ls="--", mfc="white")
        # each label where its line is far from the curves
        for at, y, label, colour, ha in (
            (x[-1], base[task], "base", "base", "right"),
            (x[0], full[task], "full fine-tune", "full", "left"),
        ):
            axis.annotate(label, (at, y), (0, 3), textcoords="offset points", ha=ha, color=COLOURS[colour])
        axis.set_title(task)
        axis.set_xticks(x, ranks)
        axis.set_xlabel("rank r kept in every block matrix")
    axes[0].set_ylabel("held-out loss, nats a token")
    axes[0].annotate(
        "solid: embeddings and head fine-tuned\ndashed: embeddings and head of the base",
        (0.28, 0.6),
        xycoords="axes fraction",
        fontsize=9,
    )
    return figure


def training_log(rows: list[dict], registers: list[str]) -> Figure:
    """Held-out loss of each register over the tokens read: one row of the log a point."""
    figure, (axes,) = new_axes(7.0, 3.8)
    colours = [COLOURS[name] for name in ("full", "lora", "norm", "other")]
    tokens = [row["tokens"] / 1e6 for row in rows]
    ends = spread([rows[-1][r] for r in registers], 0.35)
    for register, colour, end in zip(registers, colours, ends):
        axes.plot(tokens, [row[register] for row in rows], color=colour)
        label_end(axes, tokens[-1], end, f"{register} {rows[-1][register]:.2f}", colour)
    axes.set_xlabel("tokens read, millions")
    axes.set_ylabel("held-out loss, nats a token")
    axes.set_ylim(bottom=0)
    return figure
