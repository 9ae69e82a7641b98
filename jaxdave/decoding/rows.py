"""From a function of one row to all rows of a batch.

The loop is written for one row and its cache. Here, and only here, is how it becomes a
loop over a batch, and that a single row has no batch axis: its slices stay slices,
where those of many rows become gathers and scatters; what it decides is a branch, where
many rows select; and its cache is never copied.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxdave.core.config import Numerics
from jaxdave.core.spec import DecodeSpec
from jaxdave.core.state import DecodeState
from jaxdave.decoding.packed_numbers import while_packed

RowFn = Callable[[Any, Any], Any]
"""(one row, its cache [N, T, ...]) -> a pytree."""


def map_rows(spec: DecodeSpec, state: DecodeState, function: RowFn) -> RowFn:
    """A function of one row as a function of all rows of a state.

    Args:
        spec: Under exact numerics rows go one after another through one body.
        state: Only its layout is looked at: a single row is not mapped.
        function: (row, cache) -> a pytree.

    Returns:
        (rows [B, ...], caches [N, B, ...]) -> the pytree with a leading axis B.
    """
    return function if state.is_single else map_batch(spec, function)


def map_batch(spec: DecodeSpec, function: RowFn) -> RowFn:
    """A function of one row as a function of the rows of a batch (see `map_rows`).

    Args:
        spec: Under exact numerics rows go one after another through one body.
        function: (row, cache) -> a pytree.

    Returns:
        (rows [B, ...], caches [N, B, ...]) -> the pytree with a leading axis B.
    """
    if spec.numerics is not Numerics.EXACT:
        return jax.vmap(function, in_axes=(0, 1))

    # `lax.map` compiles one body of one row's shapes. `vmap` would give products of
    # another shape for every batch size, and with it other roundings.
    def mapped(rows, cache):
        def one(index):
            row = jax.tree.map(lambda a: a[index], rows)
            return function(row, jax.tree.map(lambda a: a[:, index], cache))

        # The cache may be an empty tuple, so the number of rows is read from the rows.
        count = jax.tree.leaves(rows)[0].shape[0]
        return jax.lax.map(one, jnp.arange(count))

    return mapped


def replace_rows(
    function: Callable[[Any], tuple[Any, Any]],
    rows: Any,
    cache: Any,
    chosen_B: jax.Array,
    one_by_one: bool,
) -> tuple[Any, Any]:
    """Replace chosen rows and their caches by what a function computes from the row.

    Args:
        function: row -> (row, its cache).
        rows: Arrays [B, ...]; a single row has no axis B and is always replaced.
        cache: Arrays [N, B, ...].
        chosen_B: Which rows to replace, bool [B].
        one_by_one: In turn, others costing nothing; otherwise side by side.

    Returns:
        (rows, cache).
    """
    # The caller has branched on whether the row needs it (`lax.cond` on any row).
    if chosen_B.ndim == 0:
        return function(rows)
    if not one_by_one:
        # Side by side every row is computed and most results may be dropped: wasteful
        # in arithmetic, but a branch per row is not possible in one batched program.
        new_rows, new_cache = jax.vmap(function, out_axes=(0, 1))(rows)
        return (
            _select(chosen_B, new_rows, rows, axis=0),
            _select(chosen_B, new_cache, cache, axis=1),
        )

    def replace(index, carry):
        def replaced():
            rows, cache = carry
            row, row_cache = function(jax.tree.map(lambda a: a[index], rows))
            return _put(rows, row, index, axis=0), _put(cache, row_cache, index, axis=1)

        return jax.lax.cond(chosen_B[index], replaced, lambda: carry)

    return jax.lax.fori_loop(0, chosen_B.shape[0], replace, (rows, cache))


def update_rows(
    function: RowFn, rows: Any, cache: Any, chosen_B: jax.Array, *, packs: bool = False
) -> tuple[Any, Any]:
    """Replace chosen rows by what a function computes from row and cache, in turn.

    Args:
        function: (row, its cache) -> (row, its cache).
        rows: Arrays [B, ...]; a single row has no axis B.
        cache: Arrays [N, B, ...].
        chosen_B: Which rows to update, bool [B].
        packs: Carry the numbers of a single row side by side.

    Returns:
        (rows, cache).
    """
    # A while loop of no turns copies nothing, where a cond may copy the whole cache.
    if chosen_B.ndim == 0:

        def update_single(carry):
            rows, cache, _ = carry
            return *function(rows, cache), jnp.bool_(False)

        carry = rows, cache, chosen_B
        last = while_packed(lambda carry: carry[2], update_single, carry, packs=packs)
        return last[:2]

    # Rows are taken off the list one by one, so that
    # the cost is that of the chosen rows only.
    def update(carry):
        rows, cache, chosen_B = carry
        index = jnp.argmax(chosen_B).astype(jnp.int32)
        row = jax.tree.map(lambda a: a[index], rows)
        row, row_cache = function(row, jax.tree.map(lambda a: a[:, index], cache))
        rows = _put(rows, row, index, axis=0)
        cache = _put(cache, row_cache, index, axis=1)
        return rows, cache, chosen_B.at[index].set(False)

    carry = rows, cache, chosen_B
    return jax.lax.while_loop(lambda carry: jnp.any(carry[2]), update, carry)[:2]


def _select(chosen_B, new: Any, old: Any, axis: int) -> Any:
    """Arrays of `new` where a row was chosen, else of `old`; rows lie along `axis`."""

    def select(new, old):
        others = [i for i in range(old.ndim) if i != axis]
        return jnp.where(jnp.expand_dims(chosen_B, others), new, old)

    return jax.tree.map(select, new, old)


def _put(batch: Any, row: Any, index, axis: int) -> Any:
    """The batch with one row replaced; rows lie along `axis`."""

    def put(stack, part):
        part = jnp.expand_dims(part, axis)
        return jax.lax.dynamic_update_slice_in_dim(stack, part, index, axis)

    return jax.tree.map(put, batch, row)
