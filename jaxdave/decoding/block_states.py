"""One network call on the drafts of a row, by whole windows or by distinct pieces."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxdave.core.draft_api import DraftSet
from jaxdave.core.model_api import BlockStates
from jaxdave.core.state import RowState

if TYPE_CHECKING:
    from jaxdave.core.spec import DecodeSpec


class KeptState(NamedTuple):
    """What a call leaves of the state that it moves to.

    hidden_LE: vectors of the window; seen_L: where there are any; added: what the
    window adds to the cache, [N, L, ...] or None.
    """

    hidden_LE: jax.Array
    seen_L: jax.Array
    added: Any


class EvaluatedStates(NamedTuple):
    """States after a call.

    hidden_SWE: vectors of each state's active block, block_S; fits_S: whether a state
    was evaluated at all. keep(state) -> Kept.
    """

    hidden_SWE: jax.Array
    block_S: jax.Array
    fits_S: jax.Array
    keep: Callable[[jax.Array], KeptState]


def evaluate(spec: "DecodeSpec", params, row: RowState, drafts: DraftSet, cache):
    """The states of the drafts evaluated, in the least the network can do."""
    asked = states_to_query(spec, row, drafts)
    answer = query_model(spec, params, row, asked, cache)
    block_S = _active_blocks(spec, row, drafts)
    if isinstance(asked, BlockStateSet):
        return _from_block_states(spec, asked, block_S, *answer)
    return _from_windows(spec, block_S, *answer)


class BlockStateSet(NamedTuple):
    """States of a window, cut into pieces.

    seat_S: the piece that is a state's active block. fits_S: whether all pieces of the
    state found room. beyond_J: the piece to look ahead from in each block that lies
    past a state's active one; as many as there are pieces where there is none.
    """

    block_states: BlockStates
    seat_S: jax.Array
    fits_S: jax.Array
    beyond_J: jax.Array


def states_to_query(
    spec: "DecodeSpec", row: RowState, drafts: DraftSet
) -> jax.Array | BlockStateSet:
    """What the network is asked: windows [S, L], or pieces where it can tell those."""
    layout = spec.layout
    tokens_SL = drafts.tokens_KNL.reshape(-1, layout.window_length)
    if spec.model.evaluate_blocks is None:
        return tokens_SL
    branches = drafts.tokens_KNL.shape[1]
    depth_K = jnp.where(drafts.valid_K, drafts.depth_K, -1)
    # The policy's own next state is evaluated in any case.
    wanted_S = jnp.repeat(drafts.valid_K.at[0].set(True), branches)
    far = jnp.argmax(depth_K).astype(jnp.int32) * branches
    tokens_SJP = tokens_SL.reshape(-1, layout.blocks, layout.length)
    block_S = _active_blocks(spec, row, drafts)
    most = max_block_states(spec.num_states, spec.window_used // layout.length)
    return distinct_block_states(
        tokens_SJP, block_S, wanted_S, far, layout.mask_id, most
    )


def query_model(
    spec: "DecodeSpec",
    params,
    row: RowState,
    asked: jax.Array | BlockStateSet,
    cache,
):
    """The network call: vectors of what was asked, and what it adds to the cache."""
    network = spec.model
    if isinstance(asked, BlockStateSet):
        assert network.evaluate_blocks is not None
        tokens = asked.block_states.tokens_MP
        found = network.evaluate_blocks(
            params, asked.block_states, row.start, row.end, cache
        )
    else:
        tokens = asked
        found = network.forward(params, tokens, row.start, row.end, cache)
    chex.assert_shape(found[0], (*tokens.shape, None))
    return found


def _active_blocks(spec: "DecodeSpec", row: RowState, drafts: DraftSet) -> jax.Array:
    """The active block of every state, [S]."""
    tokens_SL = drafts.tokens_KNL.reshape(-1, spec.layout.window_length)
    return jax.vmap(lambda t: spec.layout.active(t, row)[0])(tokens_SL)


def evaluated_window(spec: "DecodeSpec", row: RowState, hidden_LE) -> EvaluatedStates:
    """The front of the row's own window, evaluated from its tokens alone.

    hidden_LE: of as many positions as were evaluated.
    """
    layout = spec.layout
    block, _ = layout.active(layout.window(row), row)
    size = hidden_LE.shape[0]
    seen_L = jnp.arange(layout.window_length) < size
    rest = jnp.zeros((layout.window_length - size, hidden_LE.shape[1]), hidden_LE.dtype)
    hidden_LE = jnp.concatenate([hidden_LE, rest])
    return EvaluatedStates(
        layout.cut(hidden_LE, block)[None], block[None], jnp.ones((1,), bool),
        lambda state: KeptState(hidden_LE, seen_L, None),
    )  # fmt: skip


def _from_windows(spec: "DecodeSpec", block_S, hidden_SLE, added) -> EvaluatedStates:
    seen_L = jnp.ones(hidden_SLE.shape[1:2], bool)

    def keep(state) -> KeptState:
        own = jax.tree.map(lambda a: a[:, state], added)
        return KeptState(hidden_SLE[state], seen_L, own)

    hidden_SWE = jax.vmap(spec.layout.cut)(hidden_SLE, block_S)
    return EvaluatedStates(hidden_SWE, block_S, jnp.ones(block_S.shape, bool), keep)


def _from_block_states(
    spec: "DecodeSpec", made: BlockStateSet, block_S, hidden_MPE, added
) -> EvaluatedStates:
    layout, most = spec.layout, hidden_MPE.shape[0]

    def keep(state) -> KeptState:
        piece_J = chosen_chain(made, state, block_S[state])
        at_J = jnp.minimum(piece_J, most - 1)
        flat = lambda a: a[at_J].reshape(layout.window_length, *a.shape[2:])  # noqa: E731
        own = jax.tree.map(jax.vmap(flat), added)
        return KeptState(
            flat(hidden_MPE), jnp.repeat(piece_J < most, layout.length), own
        )

    return EvaluatedStates(hidden_MPE[made.seat_S], block_S, made.fits_S, keep)


def max_block_states(slots: int, blocks: int) -> int:
    """Pieces that the states of one path never exceed, their look ahead included.

    Every state has an active block; of blocks that are complete or wholly masked one
    state each is seen, and one block is not among them.
    """
    return slots + blocks - 1


def distinct_block_states(
    tokens_SJP, active_S, wanted_S, far: jax.Array, mask_id: int, most: int
) -> BlockStateSet:
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
    piece_SJ, is_new_SJ = _number_states(tokens_SJP, asked_SJ)
    pieces = _gather_states(tokens_SJP, piece_SJ, is_new_SJ, most)
    fits_S = jnp.all((piece_SJ < most) | ~asked_SJ, axis=1)[:states]
    seat_S = jnp.take_along_axis(piece_SJ[:states], active_S[:, None], axis=1)[:, 0]
    is_seat_SJ = (wanted_S & fits_S)[:, None] & (active_S[:, None] == block_J[None])
    masked_SJ = jnp.sum(tokens_SJP[:states] == mask_id, axis=2, dtype=jnp.int32)
    openest_J = jnp.argmax(jnp.where(is_seat_SJ, masked_SJ + 1, 0), axis=0)
    beyond_J = jnp.where(
        jnp.any(is_seat_SJ, axis=0), piece_SJ[openest_J, block_J], piece_SJ[states]
    )
    return BlockStateSet(pieces, jnp.minimum(seat_S, most - 1), fits_S, beyond_J)


def chosen_chain(made: BlockStateSet, state: jax.Array, active: jax.Array) -> jax.Array:
    """The pieces of a window [J] whose state was chosen, as known as they can be."""
    block_J = jnp.arange(made.beyond_J.shape[0], dtype=jnp.int32)
    own_J = made.block_states.chain_MJ[made.seat_S[state]]
    return jnp.where(block_J <= active, own_J, made.beyond_J)


def _number_states(tokens_SJP, asked_SJ):
    """The piece of each block [S, J], and where it is seen for the first time."""
    states, blocks, _ = tokens_SJP.shape
    equal_SSJ = jnp.all(tokens_SJP[:, None] == tokens_SJP[None], axis=3)
    same_SSJ = jax.lax.associative_scan(jnp.logical_and, equal_SSJ, axis=2)
    first_SJ = jnp.argmax(same_SSJ & asked_SJ[None], axis=1)
    is_new_SJ = asked_SJ & (first_SJ == jnp.arange(states)[:, None])
    count_SJ = jnp.cumsum(is_new_SJ.reshape(-1), dtype=jnp.int32).reshape(states, -1)
    return count_SJ[first_SJ, jnp.arange(blocks)[None]] - 1, is_new_SJ


def _gather_states(tokens_SJP, piece_SJ, is_new_SJ, most: int) -> BlockStates:
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
    return BlockStates(tokens_SJP[state_M, block_M], block_M, chain_MJ)
