"""Windows of caches: cut out and written; attention reads caches whole."""

from typing import Any

import jax

from jaxdave.core.model_api import KVCache


def write_row(cache: Any, window: Any, start) -> Any:
    """Write a window into the cache of one row.

    Args:
        cache: Arrays [N, T, ...].
        window: Arrays [N, L, ...], in a tree of the same structure.
        start: The window's first position, int32 scalar.

    Returns:
        The updated cache.
    """

    def write(array, update):
        offsets = (0, start, *([0] * (array.ndim - 2)))
        return jax.lax.dynamic_update_slice(array, update, offsets)

    return jax.tree.map(write, cache, window)


def write_windows(cache: Any, window: Any, start_B) -> Any:
    """Write the window of every row into the rows' common cache, in place.

    Args:
        cache: Arrays [N, B, T, ...].
        window: Arrays [B, N, L, ...], or None, which adds nothing.
        start_B: Each row's first position, int32 [B]. A scalar means one row alone,
            whose arrays have no axis B.

    Returns:
        The updated cache.
    """
    if window is None:
        return cache
    if start_B.ndim == 0:
        return write_row(cache, window, start_B)

    # A loop over rows: XLA updates the carry in place, where a scatter or a vmapped
    # update would write a new cache.
    def write(row, carry):
        return jax.tree.map(
            # [N, L, ...] of row b gets its batch axis back:
            # [N, 1, L, ...] at (0, row, start, 0...).
            lambda a, b: jax.lax.dynamic_update_slice(
                a, b[row][:, None], (0, row, start_B[row], *([0] * (a.ndim - 3)))
            ),
            carry,
            window,
        )

    return jax.lax.fori_loop(0, start_B.shape[0], write, cache)


def window_cache(cache: KVCache, start, size: int) -> KVCache:
    """The keys and values that a cache holds of a window.

    Args:
        cache: A row's cache, [N, T, ...].
        start: The window's first position, int32 scalar.
        size: Its length L.

    Returns:
        Keys and values [N, 1, L, ...], with an axis of one draft.
    """

    def cut(a: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(a, start, size, axis=1)[:, None]

    return jax.tree.map(cut, cache)
