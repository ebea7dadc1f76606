"""Figures: numbers in, a matplotlib Figure out. No training, no files, no widgets.

`palette.py` the colors of the whole course; `canvas.py` sizes, style, labels; then a file a subject: `losses.py`,
`low_rank_parts.py`, `update_spectra.py`, `trainable.py`, `disk_space.py`, `bars.py`, `rounding.py`,
`results.py`, `compared_methods.py`; `tables.py`, numbers in columns, and `graded_tokens.py`, tokens in color. Notebooks
say `figures.savings(...)` and need not know which.
"""

from llm.course.figures.bars import side_by_side, stacked
from llm.course.figures.canvas import label_end, new_axes, spread
from llm.course.figures.compared_methods import (
    compared,
    forgetting,
    largest_parts,
    lengths_and_turns,
    order,
    rates,
    sizes_by_rank,
)
from llm.course.figures.disk_space import footprint
from llm.course.figures.graded_tokens import graded_tokens
from llm.course.figures.losses import loss_curves, score_bars, training_log, turn
from llm.course.figures.low_rank_parts import layer, rank_strip
from llm.course.figures.palette import COLOURS, NAMES
from llm.course.figures.results import (
    at_best_rate,
    by_rank,
    by_seed,
    by_target,
    curves,
    frontier,
    grouped,
)
from llm.course.figures.rounding import kept_updates, levels, rounding_errors
from llm.course.figures.tables import table
from llm.course.figures.trainable import savings, shares
from llm.course.figures.update_spectra import energy_table, fits, loss_by_rank, singular_values, spectrum
