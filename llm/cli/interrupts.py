"""What Ctrl-C and SIGTERM do: the exit code is 128 plus the signal's number, 130 after Ctrl-C and 143 after SIGTERM.

A run saves what there is and ends after the step at work; every other command ends at once.
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager


def stopped() -> int:
    """Say that Ctrl-C has ended a command, and give its exit code."""
    print("stopped", file=sys.stderr)
    return 128 + signal.SIGINT


@contextmanager
def asked_to_stop(speaks: bool = True) -> Iterator[list[int]]:
    """The signals that have come inside the `with`: the first Ctrl-C or SIGTERM only asks to stop.

    The second one stops at once, but not under torchrun, which passes on each signal that the process has had already.
    """
    signals = []

    def note(number, _):
        if signals and "TORCHELASTIC_RUN_ID" not in os.environ:
            raise KeyboardInterrupt
        if speaks and not signals:
            os.write(2, b"\nstopping after this step\n")  # print may be busy with a line of its own
        signals.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
