"""One network call on the drafts of a row, by whole windows or by distinct pieces."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxdave.pieces import Cut, along, cut, most_pieces
from jaxdave.state import Drafts, RowState

if TYPE_CHECKING:
    from jaxdave.spec import Program


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
    asked = question(program, row, drafts)
    answer = ask(program, params, row, asked, cache)
    block_S = _blocks(program, row, drafts)
    if isinstance(asked, Cut):
        return _of_pieces(program, asked, block_S, *answer)
    return _of_windows(program, block_S, *answer)


def question(program: "Program", row: RowState, drafts: Drafts) -> jax.Array | Cut:
    """What the network is asked: windows [S, L], or pieces where it can tell those."""
    grid = program.grid
    tokens_SL = drafts.tokens_KNL.reshape(-1, grid.window_length)
    if program.network.pieces is None:
        return tokens_SL
    branches = drafts.tokens_KNL.shape[1]
    depth_K = jnp.where(drafts.valid_K, drafts.depth_K, -1)
    # The policy's own next state is evaluated in any case.
    wanted_S = jnp.repeat(drafts.valid_K.at[0].set(True), branches)
    far = jnp.argmax(depth_K).astype(jnp.int32) * branches
    tokens_SJP = tokens_SL.reshape(-1, grid.blocks, grid.length)
    block_S = _blocks(program, row, drafts)
    most = most_pieces(program.slots, program.near // grid.length)
    return cut(tokens_SJP, block_S, wanted_S, far, grid.mask_id, most)


def ask(program: "Program", params, row: RowState, asked: jax.Array | Cut, cache):
    """The network call: vectors of what was asked, and what it adds to the cache."""
    network = program.network
    if isinstance(asked, Cut):
        assert network.pieces is not None
        tokens = asked.pieces.tokens_MP
        found = network.pieces(params, asked.pieces, row.start, row.end, cache)
    else:
        tokens = asked
        found = network.forward(params, tokens, row.start, row.end, cache)
    chex.assert_shape(found[0], (*tokens.shape, None))
    return found


def _blocks(program: "Program", row: RowState, drafts: Drafts) -> jax.Array:
    """The active block of every state, [S]."""
    tokens_SL = drafts.tokens_KNL.reshape(-1, program.grid.window_length)
    return jax.vmap(lambda t: program.grid.active(t, row)[0])(tokens_SL)


def window_only(program: "Program", row: RowState, hidden_LE) -> Evaluated:
    """The front of the row's own window, evaluated from its tokens alone.

    hidden_LE: of as many positions as were evaluated.
    """
    grid = program.grid
    block, _ = grid.active(grid.window(row), row)
    size = hidden_LE.shape[0]
    seen_L = jnp.arange(grid.window_length) < size
    rest = jnp.zeros((grid.window_length - size, hidden_LE.shape[1]), hidden_LE.dtype)
    hidden_LE = jnp.concatenate([hidden_LE, rest])
    return Evaluated(
        grid.cut(hidden_LE, block)[None], block[None], jnp.ones((1,), bool),
        lambda state: Kept(hidden_LE, seen_L, None),
    )  # fmt: skip


def _of_windows(program: "Program", block_S, hidden_SLE, added) -> Evaluated:
    seen_L = jnp.ones(hidden_SLE.shape[1:2], bool)

    def keep(state) -> Kept:
        own = jax.tree.map(lambda a: a[:, state], added)
        return Kept(hidden_SLE[state], seen_L, own)

    hidden_SWE = jax.vmap(program.grid.cut)(hidden_SLE, block_S)
    return Evaluated(hidden_SWE, block_S, jnp.ones(block_S.shape, bool), keep)


def _of_pieces(program: "Program", made: Cut, block_S, hidden_MPE, added) -> Evaluated:
    grid, most = program.grid, hidden_MPE.shape[0]

    def keep(state) -> Kept:
        piece_J = along(made, state, block_S[state])
        at_J = jnp.minimum(piece_J, most - 1)
        flat = lambda a: a[at_J].reshape(grid.window_length, *a.shape[2:])  # noqa: E731
        own = jax.tree.map(jax.vmap(flat), added)
        return Kept(flat(hidden_MPE), jnp.repeat(piece_J < most, grid.length), own)

    return Evaluated(hidden_MPE[made.seat_S], block_S, made.fits_S, keep)
