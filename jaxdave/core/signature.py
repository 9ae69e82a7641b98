"""Whether a user's function can be called as the decode loop calls it."""

import inspect
from collections.abc import Sequence
from typing import Any


def accepts(function: Any, arguments: Sequence[str]) -> bool:
    """Whether a function takes so many positional arguments.

    Args:
        function: Any callable.
        arguments: Names of the arguments; only their number counts.

    Returns:
        False if it cannot be called so; True if it can, or if it has no signature that
        would tell (some functions written in C).

    Example:
        >>> accepts(lambda view, memory: view, ("view", "memory"))
        True
        >>> accepts(len, ("view", "memory"))
        False
    """
    try:
        signature = inspect.signature(function)
    except ValueError:
        return True
    except TypeError:
        return False  # not a callable
    try:
        signature.bind(*arguments)
    except TypeError:
        return False
    return True
