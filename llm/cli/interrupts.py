"""Handles Ctrl-C and SIGTERM; the exit code is 128 plus the signal's number: 130 after Ctrl-C, 143 after SIGTERM.

A run finishes its current step, saves and ends; every other command ends at once.
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager


def stopped() -> int:
    """Report that Ctrl-C has ended a command; returns the exit code."""
    print("stopped", file=sys.stderr)
    return 128 + signal.SIGINT


@contextmanager
def asked_to_stop(speaks: bool = True) -> Iterator[list[int]]:
    """Collect the signals that arrive inside the `with`; the first Ctrl-C or SIGTERM only asks to stop.

    A second one stops at once, except under torchrun, which forwards signals that the process has already received.
    """
    signals = []

    def note(number, _):
        if signals and "TORCHELASTIC_RUN_ID" not in os.environ:
            raise KeyboardInterrupt
        if speaks and not signals:
            os.write(2, b"\nstopping after this step\n")  # print is unsafe here: the signal may have interrupted one
        signals.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
