"""Writing caches; reading them is the attention's business."""

from typing import Any

import jax


def write_row(cache: Any, window: Any, at) -> Any:
    """The window's keys and values [N, L, ...] written into one row's cache."""

    def put(a, b):
        return jax.lax.dynamic_update_slice(a, b, (0, at, *([0] * (a.ndim - 2))))

    return jax.tree.map(put, cache, window)


def write_windows(cache: Any, window: Any, start_B) -> Any:
    """Every row's window [B, N, L, ...] written at the row's own place, in place.

    A window of None adds nothing. One row alone has no axis B.
    """
    if window is None:
        return cache
    if start_B.ndim == 0:
        return write_row(cache, window, start_B)

    def put(row, held):
        return jax.tree.map(
            lambda a, b: jax.lax.dynamic_update_slice(
                a, b[row][:, None], (0, row, start_B[row], *([0] * (a.ndim - 3)))
            ),
            held,
            window,
        )

    return jax.lax.fori_loop(0, start_B.shape[0], put, cache)
