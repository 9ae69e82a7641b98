"""The processes below this one, for programs that start some in groups of their own.

Like `interrupts`, which uses it, this module imports no package.
"""

import contextlib
import os
import signal
from collections.abc import Sequence
from pathlib import Path


def descendants() -> list[int]:
    """The processes below this one.

    Returns:
        Their ids, parents before their children. Where there is no /proc (macOS,
        Windows) it is empty.
    """
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            # The name of a program, in parentheses, may hold anything.
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    found = list(children.get(os.getpid(), ()))
    for process in found:  # grows while it is walked
        found.extend(children.get(process, ()))
    return found


def kill(processes: Sequence[int]) -> None:
    """Kill processes, as far as they are still there.

    Args:
        processes: Their ids.
    """
    for process in processes:
        with contextlib.suppress(OSError):
            os.kill(process, signal.SIGKILL)
