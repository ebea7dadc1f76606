"""`python -m llm`: every command of `llm/cli/`."""

import signal
import sys

from llm.cli.interrupts import stopped


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit code: 0 for success, 1 for an error, 2 for bad usage, 130 after Ctrl-C."""
    try:  # includes the imports, which take long enough to be interrupted
        from llm.cli import data, export, finetune, maintenance, use_adapter  # noqa: F401 (each registers its commands)
        from llm.cli.app import app

        app(args=argv, prog_name="python -m llm")
    except SystemExit as done:
        return done.code or 0
    except KeyboardInterrupt:
        return stopped()
    return 0


if __name__ == "__main__":
    code = main()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the work is done: let Ctrl-C cut Python's cleanup short
    sys.exit(code)
