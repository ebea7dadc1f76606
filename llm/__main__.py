"""`python -m llm`: every command of `llm/cli/`."""

import sys

from llm.cli import course, finetune, use_adapter  # noqa: F401 (each puts its commands on the app)
from llm.cli.app import app


def main(argv: list[str] | None = None) -> int:
    """Run a command; the exit code: 0, 1 for what is wrong, 2 for what is not a command, 130 after Ctrl-C."""
    try:
        app(args=argv, prog_name="python -m llm")
    except SystemExit as done:
        return done.code or 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
