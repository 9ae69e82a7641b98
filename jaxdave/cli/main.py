"""The command line: options in, one line on stderr and exit code 2 for bad input.

Nothing is imported here that takes time: Ctrl-C is answered before the commands and
what they are made of are loaded.
"""

from collections.abc import Sequence
from typing import Any, NoReturn

from jaxdave.runtime import interrupts, streams

NAME = "jaxdave"


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run a command line and exit with its code.

    Args:
        argv: The words after the program's name; None: this process's.
    """
    streams.open_closed_streams()
    interrupts.install_for_program(NAME)
    from jaxdave.cli.commands import app
    from jaxdave.cli.console import run_app

    interrupts.exit_program(run_app(app, NAME, argv))


def __getattr__(name: str) -> Any:
    # The commands, for who wants them without running one.
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from jaxdave.cli.commands import app

    return app


if __name__ == "__main__":
    main()
