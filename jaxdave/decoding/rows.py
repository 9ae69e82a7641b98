"""Writing caches; reading them is the attention's business."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxdave.core.spec import DecodeSpec
from jaxdave.core.state import DecodeState


def replace_rows(function, rows: Any, cache: Any, chosen_B, one_by_one: bool):
    """Some rows and their caches replaced by function(row) -> (row, its cache).

    rows: arrays [B, ...]; cache: [N, B, ...]. one_by_one: in turn, rows that are not
    chosen costing nothing; otherwise side by side. One row alone has no axis B, and is
    always replaced.
    """
    if chosen_B.ndim == 0:
        return function(rows)
    if not one_by_one:
        moved, made = jax.vmap(function, out_axes=(0, 1))(rows)
        rows = jax.tree.map(lambda a, b: _select_rows(chosen_B, a, b, 0), moved, rows)
        return rows, jax.tree.map(
            lambda a, b: _select_rows(chosen_B, a, b, 1), made, cache
        )

    def put(index, held):
        def replaced():
            rows, cache = held
            moved, made = function(jax.tree.map(lambda a: a[index], rows))
            rows = jax.tree.map(lambda a, b: _put_row(a, b, index, 0), rows, moved)
            return rows, jax.tree.map(
                lambda a, b: _put_row(a, b, index, 1), cache, made
            )

        return jax.lax.cond(chosen_B[index], replaced, lambda: held)

    return jax.lax.fori_loop(0, chosen_B.shape[0], put, (rows, cache))


def update_rows(function, rows: Any, cache: Any, chosen_B):
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
        rows = jax.tree.map(lambda a, b: _put_row(a, b, index, 0), rows, moved)
        cache = jax.tree.map(lambda a, b: _put_row(a, b, index, 1), cache, made)
        return rows, cache, chosen_B.at[index].set(False)

    held = rows, cache, chosen_B
    return jax.lax.while_loop(lambda held: jnp.any(held[2]), put, held)[:2]


def _select_rows(chosen_B, new, old, axis: int):
    others = [i for i in range(old.ndim) if i != axis]
    return jnp.where(jnp.expand_dims(chosen_B, others), new, old)


def _put_row(stack, part, index, axis: int):
    part = jnp.expand_dims(part, axis)
    return jax.lax.dynamic_update_slice_in_dim(stack, part, index, axis)


def map_state_rows(spec: DecodeSpec, state: DecodeState):
    """How a function of (one row, its cache) becomes one of the state's rows.

    One row alone is not mapped: its slices stay slices, where those of many become
    gathers and scatters, and what it decides is a branch, where many select.
    """
    return (
        (lambda function: function)
        if state.is_one
        else functools.partial(map_rows, spec)
    )


def map_rows(spec: DecodeSpec, function):
    """A function of (one row, its cache) as a function of all rows."""
    if not spec.exact:
        return jax.vmap(function, in_axes=(0, 1))

    def mapped(rows, cache):
        def one(index):
            row = jax.tree.map(lambda a: a[index], rows)
            return function(row, jax.tree.map(lambda a: a[:, index], cache))

        count = jax.tree.leaves(rows)[0].shape[0]
        return jax.lax.map(one, jnp.arange(count))

    return mapped
