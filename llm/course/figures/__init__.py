"""Figures: numbers in, a matplotlib Figure out. No training, no files, no widgets.

`palette.py` the colours of the whole course; `canvas.py` sizes, style, labels; then a file a subject: `training.py`,
`matrices.py`, `spectra.py`, `results.py`, `counts.py`, `costs.py`, `quantization.py`,
`relatives.py`. Notebooks say `figures.savings(...)` and need not know which.
"""

from llm.course.figures.canvas import DRAWING, label_end, new_axes, png, spread
from llm.course.figures.costs import side_by_side, stacked
from llm.course.figures.counts import audit, footprint, savings, shares
from llm.course.figures.matrices import factors, layer, rank_strip
from llm.course.figures.palette import COLOURS, NAMES
from llm.course.figures.quantization import kept_updates, levels, rounding_errors, scheme
from llm.course.figures.relatives import compared, largest_parts, lengths_and_turns, order, rates, sizes_by_rank
from llm.course.figures.results import (
    at_best_rate,
    by_rank,
    by_seed,
    by_target,
    curves,
    frontier,
    grouped,
    rates_by_scaling,
)
from llm.course.figures.spectra import energy_table, fits, loss_by_rank, singular_values, spectrum
from llm.course.figures.training import arm_bars, loss_curves, score_bars, training_log, trials
