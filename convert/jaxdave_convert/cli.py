"""The command line: `jaxdave-convert SRC DST`, and `--export DST OUT` back.

Nothing is imported here that takes time, so that Ctrl-C is answered from the start.
"""

from collections.abc import Sequence
from typing import NoReturn

from jaxdave.runtime import interrupts, streams

NAME = "jaxdave-convert"


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run a command line and exit with its code.

    Args:
      argv: the arguments; None: those of this process.
    """
    streams.open_closed_streams()
    interrupts.install_for_program(NAME)
    from jaxdave.cli.console import run_app
    from jaxdave_convert.commands import app

    interrupts.exit_program(run_app(app, NAME, argv))


if __name__ == "__main__":
    main()
