"""Functions of one tile of a canvas, applied to those that a row uses.

A canvas has room for the longest row of its bucket, often twice what the row at hand
needs. Its tiles are therefore visited by a loop that ends with the row, so that one
compiled program serves all lengths and computes at most one group of tiles too many.
Where any shape will do, a row that has just begun a tile makes the one before it longer
instead (`map_used_positions`).
"""

import functools
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


def map_tiles_of_positions(size: int, over: TileMap) -> TileMap:
    """Apply functions of tiles to arrays of a canvas that is not cut yet.

    Args:
        size: Positions of a tile, S.
        over: A map of arrays [C, S, ...].

    Returns:
        A map of arrays [T, ...] with T = C S, to such.
    """

    def over_positions(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def of_all(canvas: Any) -> Any:
            tiles = jax.tree.map(lambda a: a.reshape(-1, size, *a.shape[1:]), canvas)
            results = over(function)(tiles)
            return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), results)

        return of_all

    return over_positions


def map_used_positions(used, size: int) -> TileMap:
    """Apply functions of a tile to the first positions of a canvas, in any shape.

    All tiles but the last are of one size. The last one covers up to half a tile more
    where the row ends there, in steps of a quarter: one token behind a tile then costs
    a quarter of it. A tile of a quarter alone would cost more, as every tile reads all
    weights.

    Args:
        used: How many positions are used, int32 scalar; as for `map_used_tiles` the
            same for all rows of a batch.
        size: Positions of a tile, a multiple of four that divides the canvas.

    Returns:
        A map of arrays [T, ...], to such. Results behind the last tile are zeros.
    """
    step = size // 4
    last_sizes = (size, size + step, size + 2 * step)

    def over(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def add_tile(length: int, canvas: Any, results: Any, at) -> Any:
            part = jax.tree.map(
                lambda a: jax.lax.dynamic_slice_in_dim(a, at, length), canvas
            )
            return jax.tree.map(
                lambda a, b: jax.lax.dynamic_update_slice_in_dim(a, b, at, 0),
                results,
                function(part),
            )

        def of_all(canvas: Any) -> Any:
            count = jax.tree.leaves(canvas)[0].shape[0]
            first = jax.tree.map(
                lambda a: jax.ShapeDtypeStruct((size, *a.shape[1:]), a.dtype), canvas
            )
            results = jax.tree.map(
                lambda s: jnp.zeros((count, *s.shape[1:]), s.dtype),
                jax.eval_shape(function, first),
            )
            if count == size:
                return add_tile(size, canvas, results, 0)
            # Whole tiles before the one that holds the last position, and what is used
            # of that one: little is left to the tile before it.
            whole = jnp.maximum(used - 1, 0) // size
            rest = used - whole * size
            joins = (whole > 0) & (rest <= 2 * step)
            whole = jnp.where(joins, whole - 1, whole)
            results = jax.lax.fori_loop(
                0,
                whole,
                lambda index, done: add_tile(size, canvas, done, index * size),
                results,
            )
            choice = jnp.where(joins, (rest + step - 1) // step, 0)
            branches = [
                functools.partial(add_tile, length, canvas) for length in last_sizes
            ]
            return jax.lax.switch(choice, branches, results, whole * size)

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
