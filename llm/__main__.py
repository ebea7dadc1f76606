"""`python -m llm`: every command of `llm/cli/`."""

import signal
import sys

from llm.cli.interrupts import stopped


def main(argv: list[str] | None = None) -> int:
    """Run a command; the exit code: 0, 1 for what is wrong, 2 for what is not a command, 130 after Ctrl-C."""
    try:  # the imports take long enough for a Ctrl-C
        from llm.cli import data, export, finetune, maintenance, use_adapter  # noqa: F401 (each puts its commands on the app)
        from llm.cli.app import app

        app(args=argv, prog_name="python -m llm")
    except SystemExit as done:
        return done.code or 0
    except KeyboardInterrupt:
        return stopped()
    return 0


if __name__ == "__main__":
    code = main()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the work is done: Ctrl-C ends what Python still has to clear away
    sys.exit(code)
