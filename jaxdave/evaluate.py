"""One network call on the drafts of a row, by whole windows or by distinct pieces."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxdave import pieces
from jaxdave.types import Drafts, RowState

if TYPE_CHECKING:
    from jaxdave.decode import Program


class Kept(NamedTuple):
    """What a call leaves of the state that it moves to.

    hidden_LE: vectors of the window; seen_L: where there are any; added: what the
    window adds to the cache, [N, L, ...] or None.
    """

    hidden_LE: jax.Array
    seen_L: jax.Array
    added: Any


class Evaluated(NamedTuple):
    """States after a call.

    hidden_SWE: vectors of each state's active block, block_S; fits_S: whether a state
    was evaluated at all. keep(state) -> Kept.
    """

    hidden_SWE: jax.Array
    block_S: jax.Array
    fits_S: jax.Array
    keep: Callable[[jax.Array], Kept]


def evaluate(program: "Program", params, row: RowState, drafts: Drafts, cache):
    """The states of the drafts evaluated, in the least the network can do."""
    tokens_SL = drafts.tokens_KNL.reshape(-1, program.grid.window_length)
    block_S, _ = jax.vmap(lambda t: program.grid.active(t, row))(tokens_SL)
    if program.network.pieces is None:
        return _by_windows(program, params, row, tokens_SL, block_S, cache)
    return _by_pieces(program, params, row, drafts, block_S, cache)


def window_only(program: "Program", row: RowState, hidden_LE) -> Evaluated:
    """The row's own window, evaluated by a call that makes the cache anew."""
    grid = program.grid
    block, _ = grid.active(grid.window(row), row)
    seen_L = jnp.ones((grid.window_length,), bool)
    return Evaluated(
        grid.cut(hidden_LE, block)[None], block[None], jnp.ones((1,), bool),
        lambda state: Kept(hidden_LE, seen_L, None),
    )  # fmt: skip


def _by_windows(program: "Program", params, row, tokens_SL, block_S, cache):
    hidden_SLE, added = program.network.forward(
        params, tokens_SL, row.start, row.end, cache
    )
    chex.assert_shape(hidden_SLE, (*tokens_SL.shape, None))
    seen_L = jnp.ones(tokens_SL.shape[1:], bool)

    def keep(state) -> Kept:
        own = jax.tree.map(lambda a: a[:, state], added)
        return Kept(hidden_SLE[state], seen_L, own)

    hidden_SWE = jax.vmap(program.grid.cut)(hidden_SLE, block_S)
    return Evaluated(hidden_SWE, block_S, jnp.ones(block_S.shape, bool), keep)


def _by_pieces(program: "Program", params, row, drafts: Drafts, block_S, cache):
    grid = program.grid
    branches, size = drafts.tokens_KNL.shape[1:]
    depth_K = jnp.where(drafts.valid_K, drafts.depth_K, -1)
    # The policy's own next state is evaluated in any case.
    wanted_K = drafts.valid_K.at[0].set(True)
    wanted_S = jnp.repeat(wanted_K, branches)
    far = jnp.argmax(depth_K).astype(jnp.int32) * branches
    tokens_SJP = drafts.tokens_KNL.reshape(-1, grid.blocks, grid.length)
    most = pieces.most_pieces(program.slots, grid.blocks)
    made = pieces.cut(tokens_SJP, block_S, wanted_S, far, grid.mask_id, most)
    assert program.network.pieces is not None
    hidden_MPE, added = program.network.pieces(
        params, made.pieces, row.start, row.end, cache
    )
    chex.assert_shape(hidden_MPE, (most, grid.length, None))

    def keep(state) -> Kept:
        piece_J = pieces.along(made, state, block_S[state])
        at_J = jnp.minimum(piece_J, most - 1)
        flat = lambda a: a.reshape(size, *a.shape[2:])  # noqa: E731
        own = jax.tree.map(
            lambda a: a[:, at_J].reshape(a.shape[0], size, *a.shape[3:]), added
        )
        seen_L = jnp.repeat(piece_J < most, grid.length)
        return Kept(flat(hidden_MPE[at_J]), seen_L, own)

    return Evaluated(hidden_MPE[made.seat_S], block_S, made.fits_S, keep)
