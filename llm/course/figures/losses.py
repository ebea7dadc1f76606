"""Training runs as figures: losses over steps, arms side by side."""

from matplotlib.figure import Figure

from llm.course.figures.canvas import axes_gap, label_end, new_axes, note, spread
from llm.course.figures.palette import COLOURS, NAMES, task_name


def loss_curves(curves: dict[str, dict[str, tuple[list, list]]], start: dict[str, float]) -> Figure:
    """Held-out loss over steps, a panel for each task, a curve for each arm.

    curves: task -> arm -> (steps, losses); start: task -> the base's loss.
    """
    figure, panels = new_axes(8.6, 3.6, columns=len(curves))
    for axes, (task, arms) in zip(panels, curves.items()):
        last = max(steps[-1] for steps, _ in arms.values())
        axes.axhline(start[task], color=COLOURS["base"], lw=1, ls=":")
        note(axes, "base", (last, start[task]), (0, 3), "base", ha="right")
        ends = spread([losses[-1] for _, losses in arms.values()], axes_gap([y for _, y in arms.values()], start[task]))
        for (arm, (steps, losses)), y in zip(arms.items(), ends):
            axes.plot([0, *steps], [start[task], *losses], color=COLOURS[arm], marker="o", ms=4, label=NAMES[arm])
            label_end(axes, last, y, NAMES[arm], arm)
        axes.set(title=task_name(task), xlabel="training steps", xlim=(0, last * 1.42))  # room for the labels
        axes.set_xticks([t for t in axes.get_xticks() if t <= last])
    panels[0].set_ylabel("held-out loss, nats per token")
    return figure


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


def turn(training: list[list[float]], heldout: list[list[float]], every: int) -> Figure:
    """The training loss of each step and the held-out loss of every few, the first before step 1: a panel a seed, with a
    ring where its held-out loss is lowest. The first steps lie above the picture."""
    figure, panels = new_axes(8.6, 3.2, columns=len(heldout), sharey=True)
    for seed, (axes, trained, held) in enumerate(zip(panels, training, heldout)):
        steps = range(0, every * len(held), every)
        axes.plot(range(1, len(trained) + 1), trained, color=COLOURS["control"], label="training")
        axes.plot(steps, held, color=COLOURS["lora"], label="held out")
        best = min(range(len(held)), key=held.__getitem__)
        axes.plot(steps[best], held[best], "o", ms=11, mfc="none", color=COLOURS["lora"])
        side = "left" if best < 0.7 * len(held) else "right"
        words = f"lowest: {held[best]:.2f}\nat step {steps[best]}"
        note(axes, words, (steps[best], held[best]), (0, 30), "lora", ha=side, fontsize=9)
        axes.set_title(f"seed {seed}", fontsize=10), axes.set_xlabel("training steps")
        axes.set_xlim(0, steps[-1] + 1.5)
    panels[0].set(ylabel="loss, nats per token", ylim=(0, 2.4 * max(map(min, heldout))))
    panels[0].legend(frameon=False, loc="upper right", labelcolor="linecolor", fontsize=9)
    return figure


def training_log(rows: list[dict], registers: list[str]) -> Figure:
    """Held-out loss of each register over the tokens read: one row of the log a point."""
    figure, (axes,) = new_axes(7.0, 3.8)
    colors = [COLOURS[name] for name in ("full", "lora", "norm", "other")]
    tokens = [row["tokens"] / 1e6 for row in rows]
    ends = spread([rows[-1][r] for r in registers], 0.35)
    for register, color, end in zip(registers, colors, ends):
        axes.plot(tokens, [row[register] for row in rows], color=color, label=register)
        label_end(axes, tokens[-1], end, f"{register} {rows[-1][register]:.2f}", color)
    axes.set(xlabel="tokens read, millions", ylabel="held-out loss, nats per token")
    axes.set_ylim(bottom=0)
    return figure
