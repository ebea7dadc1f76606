"""What fine-tuning moved, as figures: singular values, energy, and the loss by the rank that is kept."""

import math

from matplotlib.figure import Figure

from llm.course.figures.canvas import label_end, new_axes, note, spread
from llm.course.figures.low_rank_parts import show_matrix
from llm.course.figures.palette import COLOURS, task_name
from llm.spectra import Parts


def spectrum(found: tuple[Parts, int], name: str = "ΔW", bands: tuple[str, ...] = ()) -> Figure:
    """A matrix's singular values with the first r in color, the matrix, and its best rank-r part, both to scale.

    bands: names of the matrices of one height that are stacked in it, from the top.
    """
    parts, r = found
    full = parts.best(len(parts.s))
    height, width = full.shape
    room = min(2.0, max(0.5, width / height))  # of the pictures, beside 1.6 of the bars
    figure, (bars, whole, best) = new_axes(8.6, 4.0, columns=3, gridspec_kw=dict(width_ratios=(1.6, room, room)))
    shown = min(64, len(parts.s))
    colors = [COLOURS["full"] if i < r else COLOURS["control"] for i in range(shown)]
    bars.vlines(range(1, shown + 1), 0, parts.s[:shown].tolist(), colors, lw=2.4)
    bars.set_xlim(-2, shown + 3), bars.set_ylim(0, 1.05 * parts.s[0].item() or 1)
    bars.set_title(f"singular values, {r} kept", fontsize=10)
    bars.set_xlabel("index")
    limit = 3 * full.std().item()  # a few large entries would leave the rest white
    show_matrix(whole, full, f"{name}, {height} x {width}", limit)
    show_matrix(best, parts.best(r), f"its best rank-{r} part", limit)
    for axes in (whole, best):
        axes.set_aspect("equal")
    step = height / max(1, len(bands))
    whole.set_yticks([(i + 0.5) * step for i in range(len(bands))], bands)
    whole.tick_params(length=0)
    return figure


def fits(panels: dict[str, dict[int | str, list[float]]], floors: dict[str, dict[int, float]], low: float) -> Figure:
    """What is left of a target over steps, on a logarithmic axis that ends at `low`; a panel for each target.

    panels: title -> rank, or "full" -> losses (darker: higher rank); floors: title -> rank -> the least that a matrix
    of that rank can leave, dotted.
    """
    figure, axes = new_axes(8.6, 4.0, columns=len(panels), sharey=True)
    for panel, (title, curves) in zip(axes, panels.items()):
        ends = spread([math.log10(max(low, y[-1])) for y in curves.values()], 0.38, math.log10(low) + 0.25)
        for i, ((key, losses), end) in enumerate(zip(curves.items(), ends)):
            color, text = ("full", "full") if key == "full" else ("lora", f"r = {key}")
            shade = 1.0 if key == "full" else 0.35 + 0.65 * (i + 1) / len(curves)
            panel.plot([max(low, y) for y in losses], color=COLOURS[color], alpha=shade, label=text)
            label_end(panel, len(losses) - 1, 10**end, text, color)
        for floor in floors[title].values():
            panel.hlines(floor, 0, len(losses), color="black", lw=1, ls=":", zorder=3)
        panel.set(yscale="log", ylim=(low, 4), title=title, xlabel="steps")
        panel.set_xlim(0, len(losses) * 1.25)  # room for the labels
        panel.set_xticks([t for t in panel.get_xticks() if t <= len(losses)])
    axes[0].set_ylabel("energy missed (share of the target)")
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
    longest = max(len(s) for s in values.values())
    shown = f"the {show} largest of {longest}" if longest > show else "the largest first"
    for axis, (kind, title) in zip(panels, KINDS.items()):
        for name, s in values.items():
            if _kind(name)[0] == kind:
                layer = _kind(name)[1]
                x = range(1, min(show, len(s)) + 1)
                look = dict(alpha=0.4 + 0.6 * layer / max(1, depth - 1), lw=1.4, label=f"block {layer + 1}")
                axis.plot(x, s[:show], color=COLOURS["full"], **look)
                axis.plot(
                    x,
                    noise[name][:show],
                    color=COLOURS["control"],
                    ls="--",
                    lw=1,
                    label="noise" if layer == 0 else None,
                )
        axis.set_title(title)
        axis.set_ylim(bottom=0)
    top = panels[0]
    top.annotate("full fine-tune\n(darker: later block)", (0.22, 0.72), xycoords="axes fraction", color=COLOURS["full"])
    top.annotate("noise of the same length", (0.45, 0.4), xycoords="axes fraction", color=COLOURS["control"])
    figure.supxlabel(f"index of the singular value, {shown}")
    figure.supylabel("singular value of ΔW")
    return figure


def energy_table(energy: dict[str, dict], ranks: list[int]) -> Figure:
    """The share of delta W's energy at each rank: a table in color for each arm, a row for each matrix."""
    figure, axes = new_axes(8.4, 5.2, columns=len(energy), sharey=True)
    for axis, (arm, rows) in zip(axes, energy.items()):
        axis.imshow([list(r) for r in rows.values()], cmap="Blues", vmin=0, vmax=1.1, aspect="auto")
        for i, row in enumerate(rows.values()):
            for j, share in enumerate(row):
                color = "white" if share > 0.6 else "black"
                axis.text(j, i, f"{share:.0%}", ha="center", va="center", fontsize=7.5, color=color)
        axis.set_title(task_name(arm))
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
        axis.axhline(base[task], color=COLOURS["base"], lw=1, label="base")
        axis.axhline(full[task], color=COLOURS["full"], lw=1, ls=":", label="full fine-tune")
        axis.plot(x, kept[task], color=COLOURS["full"], marker="o", label="embeddings and head fine-tuned")
        axis.plot(x, alone[task], color=COLOURS["full"], marker="o", ls="--", mfc="white", label="those of the base")
        # each label where its line is far from the curves
        note(axis, "base", (x[-1], base[task]), (0, 2), "base", ha="right", va="bottom")
        note(axis, "full fine-tune", (x[-1], full[task]), (0, -4), "full", ha="right", va="top")
        axis.set_ylim(bottom=full[task] - 0.1 * (base[task] - full[task]))
        axis.set_title(task_name(task))
        axis.set_xticks(x, ranks)
    axes[0].set_ylabel("held-out loss, nats per token")
    lines = "embeddings and head: fine-tuned (solid), of the base (dashed)"
    figure.supxlabel(f"rank r kept in every block matrix; {lines}", fontsize=10)
    return figure
