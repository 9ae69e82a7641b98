"""Running a typer app: exit codes, and one line on stderr for what is wrong."""

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, cast

import typer

# The base of everything that typer raises for a wrong command line.
_UsageError = cast(type[Exception], typer.BadParameter.__base__)

INTERRUPTED = 130


def run_app(app: typer.Typer, name: str, argv: Sequence[str] | None) -> int:
    """The exit code of a command line: 2 for bad input, 130 when interrupted."""
    command = typer.main.get_command(app)
    return run(name, lambda: command.main(argv, prog_name=name, standalone_mode=False))


def run(name: str, call: Callable[[], object]) -> int:
    """The exit code of a call; codes as in `run_app`."""
    try:
        code = call()
        sys.stdout.flush()
        if code == INTERRUPTED:
            # So typer answers a KeyboardInterrupt, without a word.
            return _complain(name, "interrupted", INTERRUPTED)
        return code if isinstance(code, int) else 0
    except BrokenPipeError:
        # The reader has left (`| head`); nothing more may be written, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (KeyboardInterrupt, typer.Abort):
        return _complain(name, "interrupted", INTERRUPTED)
    except _UsageError as error:
        return _complain(name, _usage(name, error), 2)
    except (ValueError, OSError) as error:
        return _complain(name, str(error), 2)


def _usage(name: str, error: Any) -> str:
    """What is wrong with a command line, and where to read how it should look."""
    path = error.ctx.command_path if error.ctx else name
    return f"{error.format_message().rstrip('.')}; see `{path} --help`"


def _complain(name: str, message: str, code: int) -> int:
    print(f"{name}: {' '.join(message.split())}", file=sys.stderr)
    return code
