"""Evaluate: one network call on the drafts of a row.

A model of full attention evaluates whole windows, draft by draft. The output of a
block-causal model at a block depends only on the blocks up to it, so drafts share what
they have in common: a draft is a chain of block states, and a call evaluates every
*distinct* block state once. With d drafts of one token each, blocks of W tokens and
windows of J blocks, that is about d + 2 d / W block states instead of d J of them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdave.core.draft_api import DraftSet
from jaxdave.core.model_api import BlockStates
from jaxdave.core.shapes import assert_shape
from jaxdave.core.spec import DecodeSpec
from jaxdave.core.state import RowState


class KeptState(NamedTuple):
    """What a call leaves of the state that a row moves to.

    Attributes:
        hidden_LE: Hidden vectors of the window, [L, E].
        evaluated_L: Positions that have such a vector, bool [L].
        cache_window: What the window adds to the KV cache, arrays [N, L, ...]; None
            where the cache stays as it is.
        vector_L: Which of the call's vectors stands at each position, int32 [L].
    """

    hidden_LE: jax.Array
    evaluated_L: jax.Array
    cache_window: Any
    vector_L: jax.Array


class EvaluatedStates(NamedTuple):
    """The S = K N states of a call, after it.

    Attributes:
        hidden_SWE: Hidden vectors of each state's active block, [S, W, E].
        hidden_RE: All hidden vectors of the call, [R, E].
        active_SW: Which of them are those of each state's active block, int32 [S, W].
        block_S: Index of each state's active block, int32 [S].
        fits_S: True where a state was evaluated at all, bool [S].
        keep: state index -> `KeptState`.
    """

    hidden_SWE: jax.Array
    hidden_RE: jax.Array
    active_SW: jax.Array
    block_S: jax.Array
    fits_S: jax.Array
    keep: Callable[[jax.Array], KeptState]


class BlockStateSet(NamedTuple):
    """The distinct block states of a call, and where each state finds its own.

    Attributes:
        block_states: What the model evaluates, M block states.
        active_S: The block state that is each state's active block, int32 [S].
        fits_S: True where all blocks of the state are among the M, bool [S].
        lookahead_J: The block state to look ahead from in each block of the window that
            lies past a state's active one, int32 [J]; M where there is none.
    """

    block_states: BlockStates
    active_S: jax.Array
    fits_S: jax.Array
    lookahead_J: jax.Array


def evaluate(
    spec: DecodeSpec, params: Any, row: RowState, drafts: DraftSet, cache: Any
) -> EvaluatedStates:
    """Evaluate all drafts of a row in one network call.

    Args:
        spec: Its model evaluates block states where it can, else whole windows.
        params: The model's parameters.
        row: One row.
        drafts: Drafts [K, N, L]; those that are not valid may come out as anything.
        cache: The row's KV cache, shared by all drafts.

    Returns:
        The states after the call.
    """
    query = states_to_query(spec, row, drafts)
    hidden, cache_window = query_model(spec, params, row, query, cache)
    block_S = _active_blocks(spec, row, drafts)
    if isinstance(query, BlockStateSet):
        return _from_block_states(spec, query, block_S, hidden, cache_window)
    return _from_windows(spec, block_S, hidden, cache_window)


def states_to_query(
    spec: DecodeSpec, row: RowState, drafts: DraftSet
) -> jax.Array | BlockStateSet:
    """What a call evaluates.

    Args:
        spec: Its model decides: one that evaluates block states gets distinct ones.
        row: One row.
        drafts: Drafts [K, N, L].

    Returns:
        The distinct block states, or whole windows int32 [S, L] with S = K N.
    """
    layout = spec.layout
    tokens_SL = drafts.tokens_KNL.reshape(-1, layout.window_length)
    if spec.model.evaluate_blocks is None:
        return tokens_SL
    candidates = drafts.tokens_KNL.shape[1]
    depth_K = jnp.where(drafts.valid_K, drafts.depth_K, -1)
    # The policy's own next state is evaluated in any case.
    needed_S = jnp.repeat(drafts.valid_K.at[0].set(True), candidates)
    # The next drafts are made of what the deepest draft sees to its right.
    deepest = jnp.argmax(depth_K).astype(jnp.int32) * candidates
    # The number of block states is fixed by the draft length, so that one program
    # serves any drafts; states that do not fit are marked and cannot be accepted.
    return distinct_block_states(
        tokens_SL.reshape(-1, layout.num_blocks, layout.block_length),
        _active_blocks(spec, row, drafts),
        needed_S,
        deepest,
        layout.mask_id,
        max_block_states(spec.num_states, spec.used_length // layout.block_length),
    )


def query_model(
    spec: DecodeSpec,
    params: Any,
    row: RowState,
    query: jax.Array | BlockStateSet,
    cache: Any,
) -> tuple[jax.Array, Any]:
    """The network call.

    Args:
        spec: Its model is called.
        params: The model's parameters.
        row: One row.
        query: What to evaluate (see `states_to_query`).
        cache: The row's KV cache, [N, T, ...].

    Returns:
        (hidden vectors of the query, [M, P, E] or [S, L, E]; what the query adds to the
        cache, with the query's axes after that of the layers, or None).
    """
    model = spec.model
    if isinstance(query, BlockStateSet):
        assert model.evaluate_blocks is not None
        tokens = query.block_states.tokens_MP
        result = model.evaluate_blocks(
            params, query.block_states, row.start, row.end, cache
        )
    else:
        tokens = query
        result = model.forward(params, tokens, row.start, row.end, cache)
    # [M, P, E] or [S, L, E]: a model from elsewhere is caught here, not in a reshape.
    assert_shape(result[0], (*tokens.shape, None))
    return result


def evaluated_window(
    spec: DecodeSpec, row: RowState, hidden_LE: jax.Array
) -> EvaluatedStates:
    """The row's own window after a call from its tokens alone (prefill, refresh).

    Args:
        spec: Its layout says which block is active.
        row: One row.
        hidden_LE: Hidden vectors of the front of the window, as far as evaluated.

    Returns:
        The one state, in the shape of a verify call's.
    """
    layout = spec.layout
    block, _ = layout.active_block(layout.window_tokens(row), row, row.progress)
    size = hidden_LE.shape[0]
    evaluated_L = jnp.arange(layout.window_length) < size
    # Positions behind the lookahead get zeros in place of vectors; `evaluated_L` keeps
    # them from being predicted.
    rest = jnp.zeros((layout.window_length - size, hidden_LE.shape[1]), hidden_LE.dtype)
    hidden_LE = jnp.concatenate([hidden_LE, rest])
    vector_L = jnp.arange(layout.window_length, dtype=jnp.int32)
    return EvaluatedStates(
        hidden_SWE=layout.block_slice(hidden_LE, block)[None],
        hidden_RE=hidden_LE,
        active_SW=layout.block_slice(vector_L, block)[None],
        block_S=block[None],
        fits_S=jnp.ones((1,), bool),
        # `cache_window` is None, as these calls have written the cache themselves.
        keep=lambda state: KeptState(hidden_LE, evaluated_L, None, vector_L),
    )


def _active_blocks(spec: DecodeSpec, row: RowState, drafts: DraftSet) -> jax.Array:
    """The active block of every state, int32 [S]."""
    tokens_SL = drafts.tokens_KNL.reshape(-1, spec.layout.window_length)
    # A policy that edits has one candidate a draft, S = K.
    return jax.vmap(lambda t, p: spec.layout.active_block(t, row, p)[0])(
        tokens_SL, drafts.progress_K
    )


def _from_windows(
    spec: DecodeSpec, block_S, hidden_SLE, cache_window
) -> EvaluatedStates:
    """States of which whole windows were evaluated."""
    states, size = hidden_SLE.shape[:2]
    evaluated_L = jnp.ones((size,), bool)
    vector_SL = jnp.arange(states * size, dtype=jnp.int32).reshape(states, size)

    def keep(state) -> KeptState:
        # [N, S, L, ...] -> [N, L, ...]: layers first, then states.
        own = jax.tree.map(lambda a: a[:, state], cache_window)
        return KeptState(hidden_SLE[state], evaluated_L, own, vector_SL[state])

    return EvaluatedStates(
        hidden_SWE=jax.vmap(spec.layout.block_slice)(hidden_SLE, block_S),
        hidden_RE=hidden_SLE.reshape(states * size, -1),
        active_SW=jax.vmap(spec.layout.block_slice)(vector_SL, block_S),
        block_S=block_S,
        fits_S=jnp.ones(block_S.shape, bool),
        keep=keep,
    )


def _from_block_states(
    spec: DecodeSpec, states: BlockStateSet, block_S, hidden_MPE, cache_window
) -> EvaluatedStates:
    """States of which distinct block states were evaluated."""
    layout, (size, length, width) = spec.layout, hidden_MPE.shape
    vector_MP = jnp.arange(size * length, dtype=jnp.int32).reshape(size, length)

    def keep(state) -> KeptState:
        # The window of the chosen state is put together from block states, [J] of [M].
        # M stands for "none": its place is filled with some state's vectors, which
        # `evaluated_L` excludes and which later calls overwrite in the cache.
        chain_J = chosen_chain(states, state, block_S[state])
        index_J = jnp.minimum(chain_J, size - 1)

        def flat(a):
            return a[index_J].reshape(layout.window_length, *a.shape[2:])

        return KeptState(
            hidden_LE=flat(hidden_MPE),
            evaluated_L=jnp.repeat(chain_J < size, layout.block_length),
            cache_window=jax.tree.map(jax.vmap(flat), cache_window),
            vector_L=flat(vector_MP),
        )

    return EvaluatedStates(
        hidden_SWE=hidden_MPE[states.active_S],
        hidden_RE=hidden_MPE.reshape(size * length, width),
        active_SW=vector_MP[states.active_S],
        block_S=block_S,
        fits_S=states.fits_S,
        keep=keep,
    )


def max_block_states(num_states: int, num_blocks: int) -> int:
    """How many distinct block states one decoding path and its lookahead can have.

    Every state has an active block; of blocks that are complete or wholly masked one
    state each is seen, and one block is not among them.

    Args:
        num_states: States of a call.
        num_blocks: Blocks of the window that calls of this size make use of.

    Returns:
        The bound; drafts off the path may need more, and then do not fit.
    """
    return num_states + num_blocks - 1


def distinct_block_states(
    tokens_SJP: jax.Array,
    active_S: jax.Array,
    needed_S: jax.Array,
    deepest: jax.Array,
    mask_id: int,
    size: int,
) -> BlockStateSet:
    """The distinct block states of some states, first come first served.

    For example three nested drafts over blocks of two tokens, `_` a mask:

        state 0: [a b | _ _ | _ _]   active block 1
        state 1: [a b | c _ | _ _]   active block 1
        state 2: [a b | c d | _ _]   active block 2, the deepest

    The pairs (state, block) up to the active blocks, with their ids in [ ]:

        state 0: (a b)[0] (_ _)[1]
        state 1: (a b)[0] (c _)[2]
        state 2: (a b)[0] (c d)[3] (_ _ after a b c d)[4]

    So five block states are evaluated in place of nine. The chain of id 4 is (0, 3, 4):
    its queries see the keys of block states 0 and 3.

    Args:
        tokens_SJP: The states by blocks, int32 [S, J, P].
        active_S: Index of each state's active block; blocks after it are not evaluated,
            except those of `deepest`.
        needed_S: States to evaluate, bool [S].
        deepest: The state whose later blocks are evaluated too; they supply the
            predictions that the next drafts are made of.
        mask_id: Token id of a masked position.
        size: Room for so many block states, M.

    Returns:
        The block states and who uses which.
    """
    num_states, num_blocks, _ = tokens_SJP.shape
    block_J = jnp.arange(num_blocks, dtype=jnp.int32)
    # 1. Which (state, block) pairs must be evaluated, [S, J]: those up to the active
    # block, as blocks behind it decide nothing.
    needed_SJ = needed_S[:, None] & (block_J[None] <= active_S[:, None])
    # The lookahead comes last: where room is short it makes way.
    tokens_SJP = jnp.concatenate([tokens_SJP, tokens_SJP[deepest][None]])
    needed_SJ = jnp.concatenate([needed_SJ, jnp.ones((1, num_blocks), bool)])
    # 2. Number the distinct pairs in order of states: earlier drafts are served first.
    # The first draft comes first of all and always fits, so decoding cannot stall.
    id_SJ, is_first_SJ = _number_block_states(tokens_SJP, needed_SJ)
    block_states = _gather_block_states(tokens_SJP, id_SJ, is_first_SJ, size)
    # A state counts only if its whole chain was evaluated; [:num_states] drops the
    # lookahead.
    fits_S = jnp.all((id_SJ < size) | ~needed_SJ, axis=1)[:num_states]
    # 3. For each state the id of its active block, and for each block of the window the
    # block state whose vectors the next drafts are made of.
    active_id_S = jnp.take_along_axis(id_SJ[:num_states], active_S[:, None], axis=1)
    # In a block that is active in some state, the least decoded such state looks ahead:
    # it predicts the most positions.
    is_active_SJ = (needed_S & fits_S)[:, None] & (active_S[:, None] == block_J[None])
    masked_SJ = jnp.sum(tokens_SJP[:num_states] == mask_id, axis=2, dtype=jnp.int32)
    least_decoded_J = jnp.argmax(jnp.where(is_active_SJ, masked_SJ + 1, 0), axis=0)
    lookahead_J = jnp.where(
        jnp.any(is_active_SJ, axis=0),
        id_SJ[least_decoded_J, block_J],
        id_SJ[num_states],
    )
    return BlockStateSet(
        block_states=block_states,
        active_S=jnp.minimum(active_id_S[:, 0], size - 1),
        fits_S=fits_S,
        lookahead_J=lookahead_J,
    )


def chosen_chain(
    states: BlockStateSet, state: jax.Array, active: jax.Array
) -> jax.Array:
    """The block states of the window of a chosen state.

    Args:
        states: The distinct block states.
        state: Index of the chosen state, int32.
        active: Index of its active block, int32; later blocks come from the lookahead.

    Returns:
        Indices of block states, int32 [J]; M where there is none.
    """
    block_J = jnp.arange(states.lookahead_J.shape[0], dtype=jnp.int32)
    own_J = states.block_states.chain_MJ[states.active_S[state]]
    return jnp.where(block_J <= active, own_J, states.lookahead_J)


def _number_block_states(tokens_SJP, needed_SJ):
    """The id of each block's state [S, J], and where it is seen for the first time.

    Two states share a block state if they are equal up to and including that block.
    """
    num_states, num_blocks, _ = tokens_SJP.shape
    # Equality of prefixes, [S, S, J]: equal in block j and, by the scan, in all before
    # it. Attention is block-causal, so that decides whether two outputs are equal.
    equal_SSJ = jnp.all(tokens_SJP[:, None] == tokens_SJP[None], axis=3)
    same_SSJ = jax.lax.associative_scan(jnp.logical_and, equal_SSJ, axis=2)
    # The first state (axis 1 of 3) that needs an equal block state computes it for all.
    first_SJ = jnp.argmax(same_SSJ & needed_SJ[None], axis=1)
    is_first_SJ = needed_SJ & (first_SJ == jnp.arange(num_states)[:, None])
    # Ids count the first ones in row-major order of (state, block).
    count_SJ = jnp.cumsum(is_first_SJ.reshape(-1), dtype=jnp.int32)
    count_SJ = count_SJ.reshape(num_states, -1)
    return count_SJ[first_SJ, jnp.arange(num_blocks)[None]] - 1, is_first_SJ


def _gather_block_states(tokens_SJP, id_SJ, is_first_SJ, size: int) -> BlockStates:
    """The block states in order of their ids; unused ids repeat id 0."""
    num_states, num_blocks, _ = tokens_SJP.shape
    # The flat (state, block) index of each id; what does not fit has no place. Found by
    # looking at all of them: a scatter takes three launches on a GPU.
    place_X = jnp.where(is_first_SJ, id_SJ, size).reshape(-1)
    index_X = jnp.arange(num_states * num_blocks, dtype=jnp.int32)
    is_place_MX = place_X[None] == jnp.arange(size, dtype=jnp.int32)[:, None]
    source_M = jnp.max(jnp.where(is_place_MX, index_X[None], 0), axis=1)
    state_M, block_M = source_M // num_blocks, source_M % num_blocks
    # Nothing to the right of a block state is seen, so anything may stand there.
    id_M = jnp.minimum(id_SJ[state_M, block_M], size - 1)
    is_left_MJ = jnp.arange(num_blocks)[None] < block_M[:, None]
    chain_MJ = jnp.where(is_left_MJ, id_SJ[state_M], id_M[:, None])
    return BlockStates(tokens_SJP[state_M, block_M], block_M, chain_MJ)
