"""The network calls of one row, and what each one moves.

A call evaluates states and so makes the policy's next state known. There are two kinds:
`prime` evaluates the state that a row stands at from its tokens alone, and makes the
cache that later calls read (the prefill, and the refresh of a full-attention model);
`verify` evaluates drafts of the window against that cache.

What decides (the targets) is read from the active block only, always in the same
shapes; what merely guesses (the stale prediction of the whole window) is read apart
from it, so that no draft can touch a decision.
"""

import dataclasses
from typing import TYPE_CHECKING

import chex
import jax
import jax.numpy as jnp

from jaxdave.predict import decide, guess, nothing
from jaxdave.steps import simulate, step
from jaxdave.types import Drafts, RowState, Stand, Stats
from jaxdave.verify import Walked, walk

if TYPE_CHECKING:
    from jaxdave.decode import Program


def fresh_row(program: "Program", tokens_T, begin, end, key, hidden) -> RowState:
    """A row before its first call. hidden: shape and dtype of its vectors [L, E]."""
    grid, policy = program.grid, program.policy
    zero = jnp.int32(0)
    stats = Stats(
        zero,
        zero,
        jnp.full(tokens_T.shape, -1, jnp.int32),
        jnp.zeros(tokens_T.shape, jnp.int32),
    )
    return RowState(
        tokens_T, jnp.zeros(hidden.shape, hidden.dtype), nothing(program), begin, end,
        grid.first(begin), jnp.bool_(True), zero,
        policy.init(grid.length, hidden.shape[-1]), jnp.bool_(False), key, stats,
    )  # fmt: skip


def prime(program: "Program", params, row: RowState, prompt_length: int):
    """One call from the tokens alone: (the row after it, its new cache [N, T, ...])."""
    grid = program.grid
    hidden_LE, cache = program.network.prime(
        params, row.tokens_T, row.begin, row.start, row.end, grid.window_length,
        prompt_length,
    )  # fmt: skip
    chex.assert_shape(hidden_LE, (grid.window_length, None))
    window_L = grid.window(row)
    only = Drafts(window_L[None], jnp.zeros((1,), jnp.int32), jnp.ones((1,), bool))
    # The row has not taken the step of this state yet, so it stands at n itself.
    walked = _walked(program, params, hidden_LE[None], only, row)
    return _settle(program, params, row, window_L, hidden_LE, walked), cache


def verify(program: "Program", params, cap, row: RowState, cache):
    """One call on drafts: (the row after it, what it adds to the cache, info).

    info: drafts worth evaluating, policy steps confirmed.
    """
    grid, budget = program.grid, program.draft_steps
    drafts = drafted(program, params, row)
    # From a draft that leaves nothing open the policy can only stand still, which is
    # no step: its walk must end before it.
    open_K = jax.vmap(lambda t: jnp.any(grid.active(t, row)[1]))(drafts.tokens_KL)
    allowed_K = drafts.valid_K & open_K & (jnp.arange(budget) < cap)
    drafts = drafts._replace(valid_K=allowed_K)
    hidden_KLE, added = program.network.forward(
        params, drafts.tokens_KL, row.start, row.end, cache
    )
    chex.assert_shape(hidden_KLE, (budget, grid.window_length, None))
    walked = _walked(program, params, hidden_KLE, drafts, row)
    stats = row.stats._replace(verify=row.stats.verify + 1)
    row = dataclasses.replace(row, stats=stats)
    at = walked.at
    moved = _settle(program, params, row, drafts.tokens_KL[at], hidden_KLE[at], walked)
    added = jax.tree.map(lambda a: a[:, at], added)
    info = jnp.sum(allowed_K, dtype=jnp.int32), walked.hops + 1
    return moved, added, info


def drafted(program: "Program", params, row: RowState) -> Drafts:
    """The drafts of a row, made of what its last call has left."""
    grid, budget = program.grid, program.draft_steps
    first = Stand(grid.window(row), row.memory, row.n)
    ahead = lambda stand, depth: simulate(program, params, row, stand, depth)  # noqa: E731
    drafts = program.draft(ahead, first, budget)
    chex.assert_shape(drafts.tokens_KL, (budget, grid.window_length))
    return drafts


def _walked(program: "Program", params, hidden_KLE, drafts: Drafts, row) -> Walked:
    """How far the drafts hold, decided by predictions read from the hidden states."""
    grid = program.grid
    block_K, _ = jax.vmap(lambda t: grid.active(t, row))(drafts.tokens_KL)
    hidden_KWE = jax.vmap(grid.cut)(hidden_KLE, block_K)
    pred_KW = decide(program, params, hidden_KWE, block_K, drafts, row)

    def step_from(at, stand: Stand) -> Stand:
        pred_W = jax.tree.map(lambda a: a[at], pred_KW)
        return step(program, params, row, stand, pred_W, hidden_KWE[at])

    first = Stand(drafts.tokens_KL[0], row.memory, row.n)
    return walk(step_from, drafts, first, program.sampling.noisy)


def _settle(program, params, row: RowState, evaluated_L, hidden_LE, walked: Walked):
    """The row after `evaluated_L` was confirmed and the walk's target became known."""
    grid, target_L = program.grid, walked.target.tokens_L
    stats = row.stats
    # Calls are counted from 0, the prefill; revised positions keep their last call.
    call = stats.verify + stats.refresh
    known_L = (grid.window(row) != target_L) & (target_L != grid.mask_id)
    call_L = jnp.where(known_L, call, grid.along(stats.call_T, row))
    put = lambda a, part: jax.lax.dynamic_update_slice(a, part, (row.start,))  # noqa: E731
    confirmed = stats.accepted_C.at[jnp.maximum(call - 1, 0)]
    accepted_C = jnp.where(call > 0, confirmed.set(walked.hops + 1), stats.accepted_C)
    moved = dataclasses.replace(
        row,
        tokens_T=put(row.tokens_T, target_L),
        n=walked.target.n,
        memory=walked.target.memory,
        done=grid.ended(target_L, row),
        stats=stats._replace(call_T=put(stats.call_T, call_L), accepted_C=accepted_C),
    )
    pred = guess(program, params, hidden_LE, moved)
    blocks, stale = grid.slide(grid, evaluated_L, target_L, row)
    shift = blocks * grid.length
    slide = lambda a, b, axis: jax.lax.dynamic_slice_in_dim(  # noqa: E731
        jnp.concatenate([a, b], axis=axis), shift, grid.window_length, axis=axis
    )
    beyond = nothing(program)
    return dataclasses.replace(
        moved,
        start=row.start + shift,
        stale=stale,
        hidden_LE=slide(hidden_LE, jnp.zeros_like(hidden_LE), 0),
        pred=jax.tree.map(lambda a, b: slide(a, b, 1), pred, beyond),
    )
