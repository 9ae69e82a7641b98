"""Writing caches; reading them is the attention's business."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxdave.types import KVCache


def side_by_side(function):
    """A function of one row (and its cache) as a function of all, by `vmap`.

    A single row goes as it is: its slices stay slices, where those of many become
    gathers and scatters, and what it decides is a branch, where many select.
    rows: arrays [B, ...]; cache: [N, B, ...].
    """

    def mapped(rows, *cache):
        if jax.tree.leaves(rows)[0].shape[0] > 1:
            return jax.vmap(function, (0, 1)[: 1 + len(cache)])(rows, *cache)
        only = lambda axis: lambda a: jax.lax.squeeze(a, (axis,))  # noqa: E731
        made = function(jax.tree.map(only(0), rows), *jax.tree.map(only(1), cache))
        return jax.tree.map(lambda a: a[None], made)

    return mapped


def put_row(cache: KVCache, window: KVCache, at) -> KVCache:
    """The window's keys and values [N, L, G, D] written into one row's cache."""
    return jax.tree.map(
        lambda a, b: jax.lax.dynamic_update_slice(a, b, (0, at, 0, 0)),
        cache,
        window,
    )


def put_windows(cache: Any, window: Any, start_B) -> Any:
    """Every row's window [B, N, L, ...] written at the row's own place, in place.

    A window of None adds nothing.
    """
    if window is None:
        return cache

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
    chosen costing nothing; otherwise side by side.
    """
    if not one_by_one:
        moved, made = side_by_side(function)(rows)
        made = jax.tree.map(lambda a: jnp.moveaxis(a, 0, 1), made)
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

    A loop of no turns copies nothing, as a cond might.
    """

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
