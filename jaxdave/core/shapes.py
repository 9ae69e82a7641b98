"""Assertions about the shapes of traced arrays: chex's, imported when first used.

A warm start traces nothing, and importing chex takes a tenth of its time.
"""

from collections.abc import Sequence
from typing import Any


def assert_shape(array: Any, shape: Sequence[int | None]) -> None:
    """Check the shape of an array while a function is traced.

    Args:
        array: The array.
        shape: Its sizes; None where any will do.

    Raises:
        AssertionError: It has another shape.
    """
    import chex

    chex.assert_shape(array, shape)


def assert_rank(array: Any, rank: int) -> None:
    """Check the number of axes of an array while a function is traced.

    Args:
        array: The array.
        rank: How many axes it has.

    Raises:
        AssertionError: It has more or fewer.
    """
    import chex

    chex.assert_rank(array, rank)
