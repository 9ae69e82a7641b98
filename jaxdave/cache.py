"""Writing caches; reading them is the attention's business."""

from typing import Any

import jax
import jax.numpy as jnp


def put_row(cache: Any, window: Any, at) -> Any:
    """The window's keys and values [N, L, ...] written into one row's cache."""

    def put(a, b):
        return jax.lax.dynamic_update_slice(a, b, (0, at, *([0] * (a.ndim - 2))))

    return jax.tree.map(put, cache, window)


def put_windows(cache: Any, window: Any, start_B) -> Any:
    """Every row's window [B, N, L, ...] written at the row's own place, in place.

    A window of None adds nothing. One row alone has no axis B.
    """
    if window is None:
        return cache
    if start_B.ndim == 0:
        return put_row(cache, window, start_B)

    def put(row, held):
        return jax.tree.map(
            lambda a, b: jax.lax.dynamic_update_slice(
                a, b[row][:, None], (0, row, start_B[row], *([0] * (a.ndim - 3)))
            ),
            held,
            window,
        )

    return jax.lax.fori_loop(0, start_B.shape[0], put, cache)


def put_rows(function, rows: Any, cache: Any, chosen_B, one_by_one: bool):
    """Some rows and their caches replaced by function(row) -> (row, its cache).

    rows: arrays [B, ...]; cache: [N, B, ...]. one_by_one: in turn, rows that are not
    chosen costing nothing; otherwise side by side. One row alone has no axis B, and is
    always replaced.
    """
    if chosen_B.ndim == 0:
        return function(rows)
    if not one_by_one:
        moved, made = jax.vmap(function, out_axes=(0, 1))(rows)
        rows = jax.tree.map(lambda a, b: _chosen(chosen_B, a, b, 0), moved, rows)
        return rows, jax.tree.map(lambda a, b: _chosen(chosen_B, a, b, 1), made, cache)

    def put(index, held):
        def replaced():
            rows, cache = held
            moved, made = function(jax.tree.map(lambda a: a[index], rows))
            rows = jax.tree.map(lambda a, b: _put(a, b, index, 0), rows, moved)
            return rows, jax.tree.map(lambda a, b: _put(a, b, index, 1), cache, made)

        return jax.lax.cond(chosen_B[index], replaced, lambda: held)

    return jax.lax.fori_loop(0, chosen_B.shape[0], put, (rows, cache))


def put_some(function, rows: Any, cache: Any, chosen_B):
    """Chosen rows and their caches replaced by function(row, its cache), in turn.

    A loop of no turns copies nothing, as a cond might. One row alone has no axis B.
    """
    if chosen_B.ndim == 0:
        again = lambda held: (*function(*held[:2]), jnp.bool_(False))  # noqa: E731
        held = rows, cache, chosen_B
        return jax.lax.while_loop(lambda held: held[2], again, held)[:2]

    def put(held):
        rows, cache, chosen_B = held
        index = jnp.argmax(chosen_B).astype(jnp.int32)
        row = jax.tree.map(lambda a: a[index], rows)
        moved, made = function(row, jax.tree.map(lambda a: a[:, index], cache))
        rows = jax.tree.map(lambda a, b: _put(a, b, index, 0), rows, moved)
        cache = jax.tree.map(lambda a, b: _put(a, b, index, 1), cache, made)
        return rows, cache, chosen_B.at[index].set(False)

    held = rows, cache, chosen_B
    return jax.lax.while_loop(lambda held: jnp.any(held[2]), put, held)[:2]


def _chosen(chosen_B, new, old, axis: int):
    others = [i for i in range(old.ndim) if i != axis]
    return jnp.where(jnp.expand_dims(chosen_B, others), new, old)


def _put(stack, part, index, axis: int):
    part = jnp.expand_dims(part, axis)
    return jax.lax.dynamic_update_slice_in_dim(stack, part, index, axis)
