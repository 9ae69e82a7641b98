"""Choices of experts, laid out in tiles of one expert each.

An expert's weights are then read once for many tokens, and all products have one shape.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

TILE_ROWS = 4
"""Tokens of a tile. A call of 48 tokens has one or two for most of 256 experts, and
products of 8 rows take a third longer than of 4, where an expert is large
(docs/lab_notes/loop.md). One number for all calls: a row's bits hang on it."""


class Tiles(NamedTuple):
    """Choices of tokens, laid out in tiles of one expert each.

    Attributes:
        expert_J: The expert of each tile, int32 [J].
        token_JR: The token of each row, int32 [J, R]; the number of tokens where the
            row is empty.
        row_SC: The row, of all tiles one after another, of each choice, int32 [S, C].
        used: How many tiles have rows, int32 scalar.
    """

    expert_J: jax.Array
    token_JR: jax.Array
    row_SC: jax.Array
    used: jax.Array


def lay_out_tiles(
    expert_SC: jax.Array, num_experts: int, tile_rows: int = TILE_ROWS
) -> Tiles:
    """Lay choices out in tiles, sorted by expert and then by token.

    Args:
        expert_SC: The experts of each token, int32 [S, C].
        num_experts: Experts of the layer.
        tile_rows: Rows of a tile, R.

    Returns:
        As many tiles as any choices of so many tokens can need.
    """
    tokens, choices = expert_SC.shape
    pairs = tokens * choices
    # Every expert may have one tile that is not full.
    num_tiles = min(num_experts, pairs) + pairs // tile_rows
    expert_P = expert_SC.reshape(-1)
    size_X = jnp.zeros(num_experts, jnp.int32).at[expert_P].add(1)
    tiles_X = (size_X + tile_rows - 1) // tile_rows
    last_tile_X = jnp.cumsum(tiles_X)
    # Sorted by expert, a pair's place among those of its expert is its distance from
    # the first of them.
    order_P = jnp.argsort(expert_P, stable=True)
    sorted_P = expert_P[order_P]
    first_X = jnp.cumsum(size_X) - size_X
    place_P = jnp.arange(pairs, dtype=jnp.int32) - first_X[sorted_P]
    row_P = (last_tile_X - tiles_X)[sorted_P] * tile_rows + place_P
    row_P = jnp.zeros(pairs, jnp.int32).at[order_P].set(row_P)
    token_P = jnp.arange(pairs, dtype=jnp.int32) // choices
    empty = jnp.full(num_tiles * tile_rows, tokens, jnp.int32)
    tile_J = jnp.arange(num_tiles, dtype=jnp.int32)
    expert_J = jnp.searchsorted(last_tile_X, tile_J, side="right").astype(jnp.int32)
    return Tiles(
        expert_J=jnp.minimum(expert_J, num_experts - 1),
        token_JR=empty.at[row_P].set(token_P).reshape(num_tiles, tile_rows),
        row_SC=row_P.reshape(tokens, choices),
        used=last_tile_X[-1],
    )
