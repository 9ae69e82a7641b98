"""Running a typer app: exit codes, and one line on stderr for what is wrong."""

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, cast

import typer

from jaxdave.runtime.interrupts import INTERRUPTED
from jaxdave.runtime.messages import one_line

# The base of everything that typer raises for a wrong command line.
_UsageError = cast(type[Exception], typer.BadParameter.__base__)


def run_app(app: typer.Typer, name: str, argv: Sequence[str] | None) -> int:
    """Run a command line.

    Args:
        app: The commands.
        name: The program's name, which errors begin with.
        argv: The words after the name; None: this process's.

    Returns:
        The exit code: 0, 2 for bad input (after one line on stderr), 130 when
        interrupted.
    """
    command = typer.main.get_command(app)
    return run(name, lambda: command.main(argv, prog_name=name, standalone_mode=False))


def run(name: str, call: Callable[[], object]) -> int:
    """Make a call that may fail as a command line does.

    Args:
        name: The program's name, which errors begin with.
        call: The call; a whole number that it returns is an exit code.

    Returns:
        The exit code, as of `run_app`.
    """
    # Said before the work is done, not when there is nowhere for it to go.
    if sys.stdout is None:
        message = "standard output is closed; send it to /dev/null if it is not wanted"
        return _print_error(name, message, 2)
    try:
        code = call()
        sys.stdout.flush()
        if code == INTERRUPTED:
            # So typer answers a KeyboardInterrupt, without a word.
            return _print_error(name, "interrupted", INTERRUPTED)
        return code if isinstance(code, int) else 0
    except BrokenPipeError:
        # The reader has left (`| head`); nothing more may be written, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (KeyboardInterrupt, typer.Abort):
        return _print_error(name, "interrupted", INTERRUPTED)
    except _UsageError as error:
        return _print_error(name, _usage_message(name, error), 2)
    except (ValueError, OSError) as error:
        return _print_error(name, str(error), 2)


def _usage_message(name: str, error: Any) -> str:
    """What is wrong with a command line, and where to read how it should look."""
    path = error.ctx.command_path if error.ctx else name
    return f"{error.format_message().rstrip('.')}; see `{path} --help`"


def _print_error(name: str, message: str, code: int) -> int:
    print(f"{name}: {one_line(message)}", file=sys.stderr)
    return code
