"""The distinct states of a window's blocks, each of which one call evaluates once.

Drafts of a block-causal model share what they have in common: a draft is a chain of
block states, and what is said of a block depends on the chain up to it. With d drafts
of one token each that is about d + 2 d / P pieces of P tokens, where windows evaluated
draft by draft are d (1 + 2 d / P) of them.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxdave.types import Pieces


class Cut(NamedTuple):
    """States of a window, cut into pieces.

    seat_S: the piece that is a state's active block. fits_S: whether all pieces of the
    state found room. beyond_J: the piece to look ahead from in each block that lies
    past a state's active one; as many as there are pieces where there is none.
    """

    pieces: Pieces
    seat_S: jax.Array
    fits_S: jax.Array
    beyond_J: jax.Array


def most_pieces(slots: int, blocks: int) -> int:
    """Pieces that the states of one path never exceed, their look ahead included.

    Every state has an active block; of blocks that are complete or wholly masked one
    state each is seen, and one block is not among them.
    """
    return slots + blocks - 1


def cut(tokens_SJP, active_S, wanted_S, far: jax.Array, mask_id: int, most: int) -> Cut:
    """The pieces of the wanted states, first come first served.

    tokens_SJP: states by blocks; active_S: up to which block each is evaluated; far:
    the state whose blocks past that are evaluated too, to look ahead from.
    """
    states, blocks, _ = tokens_SJP.shape
    block_J = jnp.arange(blocks, dtype=jnp.int32)
    asked_SJ = wanted_S[:, None] & (block_J[None] <= active_S[:, None])
    # What looks ahead comes last: where room is short it makes way.
    tokens_SJP = jnp.concatenate([tokens_SJP, tokens_SJP[far][None]])
    asked_SJ = jnp.concatenate([asked_SJ, jnp.ones((1, blocks), bool)])
    piece_SJ, is_new_SJ = _numbered(tokens_SJP, asked_SJ)
    pieces = _gathered(tokens_SJP, piece_SJ, is_new_SJ, most)
    fits_S = jnp.all((piece_SJ < most) | ~asked_SJ, axis=1)[:states]
    seat_S = jnp.take_along_axis(piece_SJ[:states], active_S[:, None], axis=1)[:, 0]
    is_seat_SJ = (wanted_S & fits_S)[:, None] & (active_S[:, None] == block_J[None])
    masked_SJ = jnp.sum(tokens_SJP[:states] == mask_id, axis=2, dtype=jnp.int32)
    openest_J = jnp.argmax(jnp.where(is_seat_SJ, masked_SJ + 1, 0), axis=0)
    beyond_J = jnp.where(
        jnp.any(is_seat_SJ, axis=0), piece_SJ[openest_J, block_J], piece_SJ[states]
    )
    return Cut(pieces, jnp.minimum(seat_S, most - 1), fits_S, beyond_J)


def along(made: Cut, state: jax.Array, active: jax.Array) -> jax.Array:
    """The pieces of a window [J] whose state was chosen, as known as they can be."""
    block_J = jnp.arange(made.beyond_J.shape[0], dtype=jnp.int32)
    own_J = made.pieces.chain_MJ[made.seat_S[state]]
    return jnp.where(block_J <= active, own_J, made.beyond_J)


def _numbered(tokens_SJP, asked_SJ):
    """The piece of each block [S, J], and where it is seen for the first time."""
    states, blocks, _ = tokens_SJP.shape
    equal_SSJ = jnp.all(tokens_SJP[:, None] == tokens_SJP[None], axis=3)
    same_SSJ = jax.lax.associative_scan(jnp.logical_and, equal_SSJ, axis=2)
    first_SJ = jnp.argmax(same_SSJ & asked_SJ[None], axis=1)
    is_new_SJ = asked_SJ & (first_SJ == jnp.arange(states)[:, None])
    count_SJ = jnp.cumsum(is_new_SJ.reshape(-1), dtype=jnp.int32).reshape(states, -1)
    return count_SJ[first_SJ, jnp.arange(blocks)[None]] - 1, is_new_SJ


def _gathered(tokens_SJP, piece_SJ, is_new_SJ, most: int) -> Pieces:
    """The pieces by their numbers; numbers that nothing has repeat the first piece."""
    states, blocks, size = tokens_SJP.shape
    place_SJ = jnp.where(is_new_SJ, jnp.minimum(piece_SJ, most), most)
    source_M = jnp.zeros((most + 1,), jnp.int32)
    index_SJ = jnp.arange(states * blocks, dtype=jnp.int32)
    source_M = source_M.at[place_SJ.reshape(-1)].set(index_SJ)[:most]
    state_M, block_M = source_M // blocks, source_M % blocks
    # To the right of a piece nothing is seen, so anything may stand there.
    own_M = jnp.minimum(piece_SJ[state_M, block_M], most - 1)
    is_left_MJ = jnp.arange(blocks)[None] < block_M[:, None]
    chain_MJ = jnp.where(is_left_MJ, piece_SJ[state_M], own_M[:, None])
    return Pieces(tokens_SJP[state_M, block_M], block_M, chain_MJ)
