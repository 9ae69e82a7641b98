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

from jaxdave.draft import Outlook
from jaxdave.evaluate import Evaluated, Kept, evaluate, window_only
from jaxdave.predict import decide, guess, nothing
from jaxdave.steps import ahead, arrive, simulate
from jaxdave.types import Drafts, Guess, RowState, Stand, Stats
from jaxdave.verify import Walked, walk

if TYPE_CHECKING:
    from jaxdave.decode import Program


def fresh_row(
    program: "Program", tokens_T, begin, end, told_T, key, hidden
) -> RowState:
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
        told_T, grid.first(begin), jnp.bool_(True), zero,
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
    tokens_KNL = window_L[None, None]
    only = Drafts(
        tokens_KNL, jnp.zeros((1,), jnp.int32), jnp.ones((1,), bool), jnp.ones((1,))
    )
    seen = window_only(program, row, hidden_LE)
    # The row has not taken the step of this state yet, so it stands at n itself.
    walked = _walked(program, params, seen, only, row)
    kept = seen.keep(jnp.int32(0))
    return _settle(program, params, row, window_L, kept, walked), cache


def verify(program: "Program", params, cap, row: RowState, cache):
    """One call on drafts: (the row after it, what it adds to the cache, info).

    info: drafts worth evaluating, policy steps confirmed.
    """
    grid, budget = program.grid, program.draft_steps
    drafts = drafted(program, params, row)
    # From a draft that leaves nothing open the policy can only stand still, which is
    # no step: its walk must end before it.
    is_open = lambda tokens_L: jnp.any(grid.active(tokens_L, row)[1])  # noqa: E731
    open_KN = jax.vmap(jax.vmap(is_open))(drafts.tokens_KNL)
    allowed_K = drafts.valid_K & jnp.any(open_KN, axis=1)
    allowed_K &= jnp.arange(budget) < cap
    drafts = drafts._replace(valid_K=allowed_K)
    seen = evaluate(program, params, row, drafts, cache)
    branches = drafts.tokens_KNL.shape[1]
    fits_K = jnp.all(seen.fits_S.reshape(-1, branches), axis=1)
    drafts = drafts._replace(valid_K=drafts.valid_K & fits_K)
    walked = _walked(program, params, seen, drafts, row)
    stats = row.stats._replace(verify=row.stats.verify + 1)
    row = dataclasses.replace(row, stats=stats)
    kept = seen.keep(walked.at * branches + walked.branch)
    evaluated_L = drafts.tokens_KNL[walked.at, walked.branch]
    moved = _settle(program, params, row, evaluated_L, kept, walked)
    info = jnp.sum(drafts.valid_K, dtype=jnp.int32), walked.hops + 1
    return moved, kept.added, info


def drafted(program: "Program", params, row: RowState) -> Drafts:
    """The drafts of a row, made of what its last call has left."""
    grid, budget = program.grid, program.draft_steps
    first = Stand(grid.window(row), row.memory, row.n)
    known = Guess(first, ahead(program, row, first), jnp.bool_(True))
    drafts = program.draft(outlook(program, params, row), known, budget)
    chex.assert_shape(drafts.tokens_KNL, (budget, *known.tokens_NL.shape))
    return drafts


def outlook(program: "Program", params, row: RowState) -> Outlook:
    """What drafts of a row may be made of."""
    grid = program.grid
    further = lambda stand, depth: simulate(program, params, row, stand, depth)  # noqa: E731
    is_end = lambda tokens_L: grid.ended(tokens_L, row)  # noqa: E731
    open_L = grid.open(grid.window(row), row)

    def believing(token_L):
        told_DL = jnp.where((token_L >= 0)[None], token_L[None], row.pred.token)
        pred = row.pred._replace(token=told_DL)
        return outlook(program, params, dataclasses.replace(row, pred=pred))

    return Outlook(
        further, row.pred, open_L, grid.block_of(), is_end, row, grid.mask_id, believing
    )


def _walked(program: "Program", params, seen: Evaluated, drafts: Drafts, row) -> Walked:
    """How far the drafts hold, decided by predictions read from the hidden states."""
    grid, hidden_SWE = program.grid, seen.hidden_SWE
    branches = drafts.tokens_KNL.shape[1]
    depth_S = jnp.repeat(drafts.depth_K, branches)
    pred_SW = decide(program, params, hidden_SWE, seen.block_S, depth_S, row)

    def step_from(at, stand: Stand):
        def read(branch):
            slot = at * branches + branch
            return jax.tree.map(lambda a: a[slot], pred_SW), hidden_SWE[slot]

        return arrive(program, params, row, stand, drafts.tokens_KNL[at], read)

    def onward(stand: Stand):
        # Candidates of an ended state may be states that some draft does not end at.
        is_over = grid.ended(stand.tokens_L, row)
        return jnp.where(is_over, -1, ahead(program, row, stand))

    first = Stand(grid.window(row), row.memory, row.n)
    return walk(step_from, onward, drafts, first, program.sampling.noisy)


def _settle(program, params, row: RowState, evaluated_L, kept: Kept, walked: Walked):
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
    hidden_LE = kept.hidden_LE
    pred = guess(program, params, hidden_LE, moved)
    pred = pred._replace(token=jnp.where(kept.seen_L[None], pred.token, -1))
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
