"""An explorer: alpha's convention, the start of A, rank and learning rate, from recorded runs."""

from statistics import median

from llm.course.comparison import at_best, group
from llm.course.widgets.explorer import Explorer
from llm.lora import SCALING

WIDTH = 128  # inputs of a layer: the fan-in of the paper's A


def settings_explorer(rows: list[dict]) -> Explorer:
    """Loss over the rate by convention, start and rank. rows: of experiment "alphas", and full fine-tunes as long."""
    lora = [row for row in rows if row["method"] == "lora"]
    curves = []
    for (start, scaling, r), runs in group(lora, "start", "scaling", "r").items():
        by_rate = {lr: sorted(row["after"] for row in found) for (lr,), found in group(runs, "lr").items()}
        spread = (3 * {"chapter": r, "paper": WIDTH}[start]) ** -0.5  # Kaiming's, over the start's fan-in
        scale = SCALING[scaling](runs[0]["alpha"], r)
        points = [[lr, median(losses), losses[0], losses[-1]] for lr, losses in sorted(by_rate.items())]
        curves.append(dict(start=start, scaling=scaling, r=r, scale=scale, spread=spread, points=points))
    full = [row for row in rows if row["method"] == "full"]
    of_full = median(row["after"] for row in at_best(full)) if full else None
    about = "Held-out loss over the learning rate for each convention of alpha, start of A and rank; over the size of the first step, the curves' best points come together."
    return Explorer("settings", about, curves=curves, base=lora[0]["before"], full=of_full)
