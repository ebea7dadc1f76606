"""Interprets the loss curve of a run in one sentence, and says what to try next, for the lab and the command line.

Knows no model: it takes losses and returns text.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Thresholds as shares of a loss or of the total gain; `tests/test_verdict.py` tries them on curves of every kind.
MOVED = 0.01  # of the base's loss: a smaller change in a held-out loss does not count as movement
FELL = 0.95  # training losses are of single batches: below this share they have fallen, above its inverse risen
SLOPE = 0.05  # of the total gain: a larger gain in the last fifth of the run means that the loss is still falling


@dataclass(frozen=True)
class Verdict:
    """kind: "too hot", "too cold", "overfitting", "falling" or "done"; sentence: what the curve shows; try_next: advice."""

    kind: str
    sentence: str
    try_next: str


def verdict(heldout: Sequence[tuple[int, float]], training: Sequence[float]) -> Verdict | None:
    """Interpret a run's losses; None if nothing was measured after the start.

    heldout: (step, mean nats per token) on held-out text, in the order of steps, the base's first. training: the loss
    of each step, or of evenly spaced ones.
    """
    if len(heldout) < 2:
        return None
    steps, losses = zip(*heldout)
    base, last = losses[0], losses[-1]
    if not np.isfinite([*losses, *training]).all():
        return _too_hot("the loss stopped being a number")
    best_at, best = min(heldout, key=lambda point: point[1])
    peak_at, peak = max(heldout, key=lambda point: point[1])
    moved = MOVED * base
    first = min(training[:3], default=base)  # near the base's own, even if the run diverges at once
    end = _end(training, default=base)
    if last > best + moved:
        rose = f"the held-out loss rose from {best:.3f} (step {best_at}) to {last:.3f}"
        until_best = training[: round((best_at - steps[0]) / (steps[-1] - steps[0]) * len(training))]
        if end < FELL * first and (not until_best or end < _end(until_best, default=base) / FELL):
            by_heart = f"{rose} while the training loss fell: the adapter learns its text by heart"
            kept = "the best step was kept; for a better one " * (best_at > steps[0])
            return Verdict("overfitting", by_heart, f"{kept}try more text, a gentler rate, or a smaller rank")
        return _too_hot(rose if last <= base else f"{rose}, above the base's {base:.3f}")
    if peak - base > max(moved, base - last):
        return _too_hot(f"the held-out loss rose above the base's {base:.3f} on the way ({peak:.3f} at step {peak_at})")
    if base - best < moved:
        if end < FELL**2 * first:
            stayed = f"the training loss fell, but the held-out loss stayed at {last:.3f}"
            advice = "try more text, and make sure that the held-out text is of the same kind"
            return Verdict("overfitting", f"{stayed}: what is learned holds for this text alone", advice)
        advice = "try three to ten times the rate; if it is high already, more steps or more layers"
        return Verdict("too cold", f"the held-out loss hardly moved, from {base:.3f} to {last:.3f}", advice)
    way = f"from {base:.3f} to {last:.3f}"
    late = np.interp(steps[0] + 0.8 * (steps[-1] - steps[0]), steps, losses)  # when a fifth of the run is left
    if late - last > SLOPE * (base - last):
        falling = f"the held-out loss was still falling at the end, {way} so far"
        return Verdict("falling", falling, "try twice the steps")
    advice = "compare what base and adapter answer; a higher rank or more text may find what is left"
    return Verdict("done", f"the held-out loss fell {way} and has settled", advice)


def _too_hot(curve):
    return Verdict("too hot", f"{curve}: the steps are too large", "try a third of the rate")


def _end(losses, default):
    """The mean of the last fifth of the losses."""
    return np.mean(losses[-max(1, len(losses) // 5) :]) if losses else default
