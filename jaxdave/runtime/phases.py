"""Phases of a start that take seconds, for whoever shows them.

Loading weights, compiling and measuring say what they begin; by default nobody listens,
and it costs nothing.
"""

import contextlib
from collections.abc import Callable, Iterator

Listener = Callable[[str], None]

_listeners: list[Listener] = []


def begin_phase(title: str) -> None:
    """Say that something slow begins.

    Args:
        title: What, in a few words: "compiling the decode loop".
    """
    for listener in tuple(_listeners):
        listener(title)


@contextlib.contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Have a function called with the title of every phase that begins.

    Args:
        listener: Called in the thread in which the phase begins.

    Returns:
        A context manager, in which it listens.
    """
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)
