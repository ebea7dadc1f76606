"""What the curve of a run means, in one sentence, and what to try next: the same for the lab and the command line.

Knows no model: losses go in, words come out.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

# Shares, of the base's loss or of what was gained; `tests/test_verdict.py` tries them on curves of every kind.
MOVED = 0.01  # of the base's loss: less is no movement of a held-out loss
FELL = 0.95  # training losses come from one batch each: below this share they have fallen, above its inverse risen
SLOPE = 0.05  # of the whole gain: more than this in the last fifth of the run, and the loss is still on its way


@dataclass(frozen=True)
class Verdict:
    """kind: "too hot", "too cold", "overfitting", "falling" or "done"; sentence: what the curve shows; try_next: advice."""

    kind: str
    sentence: str
    try_next: str


def verdict(heldout: Sequence[tuple[int, float]], training: Sequence[float]) -> Verdict | None:
    """What a run's losses mean. None when nothing was measured after the start.

    heldout: (step, mean nats a token) on text that is not trained on, in the order of steps, the base's own first.
    training: the loss of each step, or of some at even distances.
    """
    if len(heldout) < 2:
        return None
    (_, base), (_, last) = heldout[0], heldout[-1]
    losses = [*(loss for _, loss in heldout), *training]
    if not all(map(math.isfinite, losses)):
        return _too_hot("the loss stopped being a number")
    best_at, best = min(heldout[1:], key=lambda point: point[1])
    peak_at, peak = max(heldout[1:], key=lambda point: point[1])
    if best > base:  # it never fell: what came first was the best
        best_at, best = heldout[0]
    moved = MOVED * base
    if last > best + moved:
        rose = f"the held-out loss rose from {best:.3f} (step {best_at}) to {last:.3f}"
        if _learns_by_heart(heldout, training, best_at):
            less = f"fewer steps, about {best_at}" if best_at else "a gentler rate or fewer steps"
            return Verdict(
                "overfitting",
                f"{rose} while the training loss fell: the adapter learns its text by heart",
                f"try {less}, more text, or a smaller rank",
            )
        return _too_hot(rose if last <= base else f"{rose}, above the base's {base:.3f}")
    if peak - base > max(moved, base - last):
        return _too_hot(f"the held-out loss rose above the base's {base:.3f} on the way ({peak:.3f} at step {peak_at})")
    if base - best < moved:
        if training and _last(training) < FELL**2 * _first(training):
            return Verdict(
                "overfitting",
                f"the training loss fell, but the held-out loss stayed at {last:.3f}: what is learned holds for this "
                "text alone",
                "try more text, and make sure that the held-out text is of the same kind",
            )
        return Verdict(
            "too cold",
            f"the held-out loss hardly moved, from {base:.3f} to {last:.3f}",
            "try three to ten times the rate; if it is high already, more steps or more layers",
        )
    if _at(heldout, 0.8) - last > SLOPE * (base - last):
        return Verdict(
            "falling",
            f"the held-out loss was still falling at the end, from {base:.3f} to {last:.3f} so far",
            "try twice the steps",
        )
    return Verdict(
        "done",
        f"the held-out loss fell from {base:.3f} to {last:.3f} and has settled",
        "compare what base and adapter answer; a higher rank or more text may find what is left",
    )


def _too_hot(seen):
    return Verdict("too hot", f"{seen}: the steps are too large", "try a third of the rate")


def _learns_by_heart(heldout, training, best_at):
    """Whether the training loss is below where it began, and has not risen since the held-out loss was best."""
    if not training:
        return False
    start, end = heldout[0][0], heldout[-1][0]
    then = round((best_at - start) / (end - start) * len(training))
    fell = _last(training) < FELL * _first(training)
    return fell and (not then or _last(training) < _last(training[:then]) / FELL)


def _first(training):
    return min(training[:3])  # a run that is too hot soars at once: the lowest of the first is the base's


def _last(training):
    return fmean(training[-max(1, len(training) // 5) :])


def _at(heldout, share):
    """The held-out loss after a share of the run, on the straight line between the measurements around it."""
    step = heldout[0][0] + share * (heldout[-1][0] - heldout[0][0])
    for (left, before), (right, after) in zip(heldout, heldout[1:]):
        if left <= step <= right:
            return before + (after - before) * (step - left) / max(1, right - left)
