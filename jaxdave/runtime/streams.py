"""The standard streams: closed ones, and what libraries of C print past Python.

Python has None in place of a closed one, which nothing can be printed to or flushed,
and the next file that is opened takes its number: what C libraries print would be
written into it.

This module imports no package, so that it can be the first that a process loads.
"""

import contextlib
import os
import sys
from collections.abc import Iterator


def open_closed_streams() -> None:
    """Let standard streams that are closed read nothing, and lead nowhere.

    It must come before any file is opened that stays open. A closed standard input or
    output stays None in Python, so that a command can refuse to read nothing, or to
    work for nobody.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # The lowest number that is free, and those below are open by now.
            os.open(os.devnull, os.O_RDWR)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", closefd=False)


@contextlib.contextmanager
def silenced(number: int) -> Iterator[None]:
    """Let a standard stream lead nowhere, for libraries that print past Python.

    Args:
        number: 1 for standard output, 2 for standard error.

    Returns:
        A context manager.
    """
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    kept = os.dup(number)
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, number)
        os.close(nowhere)
        yield
    finally:
        os.dup2(kept, number)
        os.close(kept)
