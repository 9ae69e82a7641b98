"""Functions of one tile of a canvas, applied to those that a row uses.

A canvas has room for the longest row of its bucket, often twice what the row at hand
needs. Its tiles are therefore visited by a loop that ends with the row, so that one
compiled program serves all lengths and computes at most one group of tiles too many.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

TileMap = Callable[[Callable[[Any], Any]], Callable[[Any], Any]]
"""Turns a function of one tile into one of all tiles, arrays [C, ...]."""


def map_used_tiles(used, group: int) -> TileMap:
    """Apply functions to the first tiles of a canvas only.

    Args:
        used: How many tiles are used, int32 scalar. Under a batch of rows it must be
            the same for all, see `most_of_all_rows`: else each round of the loop would
            copy what it has computed.
        group: How many tiles are computed side by side. Under exact numerics 1: a
            tile's bits must not depend on how many there are.

    Returns:
        The map. Results of tiles behind the last group that is used are zeros.
    """

    def over(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        # Traced once, although it is asked for its shapes first.
        of_one = jax.jit(function, inline=True)

        def of_group(tiles: Any) -> Any:
            if group > 1:
                return jax.vmap(of_one)(tiles)
            # A tile alone keeps its shape: an axis of one could change its bits.
            result = of_one(jax.tree.map(lambda a: a[0], tiles))
            return jax.tree.map(lambda a: a[None], result)

        def of_all(tiles: Any) -> Any:
            count = jax.tree.leaves(tiles)[0].shape[0]
            if count == group:
                return of_group(tiles)
            structs = jax.eval_shape(
                of_one,
                jax.tree.map(
                    lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), tiles
                ),
            )

            def add_group(index, results):
                at = index * group
                part = jax.tree.map(
                    lambda a: jax.lax.dynamic_slice_in_dim(a, at, group), tiles
                )
                return jax.tree.map(
                    lambda a, b: jax.lax.dynamic_update_slice_in_dim(a, b, at, 0),
                    results,
                    of_group(part),
                )

            empty = jax.tree.map(
                lambda s: jnp.zeros((count, *s.shape), s.dtype), structs
            )
            rounds = (used + group - 1) // group
            return jax.lax.fori_loop(0, rounds, add_group, empty)

        return of_all

    return over


def group_size(count: int, most: int) -> int:
    """The largest number of tiles that divides a canvas of so many.

    Args:
        count: Tiles of the canvas.
        most: The group is not larger.

    Returns:
        The size.

    Example:
        >>> group_size(12, 8)
        6
    """
    return next(size for size in range(min(count, most), 0, -1) if count % size == 0)


@jax.custom_batching.custom_vmap
def most_of_all_rows(number: jax.Array) -> jax.Array:
    """The largest of a number over the rows of a batch; alone, the number itself.

    Args:
        number: An int32 scalar of one row.

    Returns:
        The largest, the same for all rows.
    """
    return number


@most_of_all_rows.def_vmap
def _most_of_batch(axis_size: int, is_batched: list[bool], number: jax.Array):
    del axis_size
    most = jnp.max(number) if is_batched[0] else number
    # There may be more axes around this one.
    return most_of_all_rows(most), False
