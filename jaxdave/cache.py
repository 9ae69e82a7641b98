"""Writing keys and values into the cache; reading it is the attention's business."""

import jax

from jaxdave.types import KVCache


def put_row(cache: KVCache, window: KVCache, at) -> KVCache:
    """The window's keys and values [N, L, G, D] written into one row's cache."""
    return jax.tree.map(
        lambda a, b: jax.lax.dynamic_update_slice(a, b, (0, at, 0, 0)),
        cache,
        window,
    )


def put_windows(cache: KVCache, window: KVCache, start_B) -> KVCache:
    """Every row's window [B, N, L, G, D] written at the row's own place, in place."""

    def put(row, held):
        return jax.tree.map(
            lambda a, b: jax.lax.dynamic_update_slice(
                a, b[row][:, None], (0, row, start_B[row], 0, 0)
            ),
            held,
            window,
        )

    return jax.lax.fori_loop(0, start_B.shape[0], put, cache)
