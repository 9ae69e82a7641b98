"""The network calls of one row, and what each one moves.

A call evaluates states and so makes the policy's next state known. There are three
kinds: `prime` evaluates the state that a row stands at from its tokens alone, and makes
the cache that later calls read (the prefill, and the refresh of a full-attention
model); `verify` evaluates drafts of the window against that cache; `recheck` evaluates
one state again where a verify call under guarded numerics was too close to call.

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
from jaxdave.predict import decide, difference, guess, nothing
from jaxdave.state import Drafts, Guess, RowState, Stand, Stats
from jaxdave.steps import ahead, arrive, simulate, sure
from jaxdave.types import Doubt, Prediction
from jaxdave.verify import Walked, walk

if TYPE_CHECKING:
    from jaxdave.decode import Program
    from jaxdave.terms import Terms

PRIMED = 8
"""A call from the tokens alone looks ahead as far as so many drafts reach."""
MEMORY = 0.95
"""What a call leaves of how earlier drafts have fared."""


def fresh_row(
    program: "Program", tokens_T, begin, end, told_T, key, hidden
) -> RowState:
    """A row before its first call. hidden: shape and dtype of its vectors [L, E]."""
    grid, policy = program.grid, program.policy
    zero, no, none = jnp.int32(0), jnp.bool_(False), jnp.float32(0)
    # With a guard call after every verify call there are two calls a position.
    calls = tokens_T.shape[0] * (2 if program.guarded else 1)
    stats = Stats(
        zero, zero, zero, jnp.zeros((len(program.sizes),), jnp.int32),
        Doubt.every(none), jnp.full(tokens_T.shape, -1, jnp.int32),
        jnp.zeros((calls,), jnp.int32),
    )  # fmt: skip
    return RowState(
        tokens_T, jnp.zeros(hidden.shape, hidden.dtype), nothing(program), begin, end,
        told_T, grid.first(begin), jnp.bool_(True), zero,
        policy.init(grid.length, hidden.shape[-1]), no, key, no, zero,
        jnp.zeros((2,), jnp.float32), stats,
    )  # fmt: skip


def prime(program: "Program", params, row: RowState, prompt_length: int):
    """One call from the tokens alone: (the row after it, its new cache [N, T, ...])."""
    near = program.grid.near(min(program.most, PRIMED))
    hidden_LE, cache = program.network.prime(
        params, row.tokens_T, row.begin, row.start, row.end, near, prompt_length
    )
    chex.assert_shape(hidden_LE, (near, None))
    row = dataclasses.replace(row, solid=row.start)
    return _from_tokens(program, params, row, hidden_LE)[0], cache


def recheck(program: "Program", params, row: RowState, cache):
    """One call that decides what a row doubts: (the row after it, its cache)."""
    again, near = program.network.recheck, program.grid.near(1)
    assert again is not None, "guarded numerics need a network that can recheck"
    hidden_LE, cache = again(
        params, row.tokens_T, row.solid, row.start, row.end, near, cache
    )
    # What other programs compute beside this must not be fused into it.
    hidden_LE = jax.lax.optimization_barrier(hidden_LE)
    chex.assert_shape(hidden_LE, (near, None))
    stats = row.stats._replace(guard=row.stats.guard + 1)
    row = dataclasses.replace(
        row, solid=row.start, stats=stats, doubted=jnp.bool_(False)
    )
    moved, pred_SW, seen = _from_tokens(program, params, row, hidden_LE)
    found = _apart(program, row, pred_SW, seen.block_S[0])
    error = jax.tree.map(jnp.maximum, stats.error, found)
    stats = moved.stats._replace(error=error)
    return dataclasses.replace(moved, stats=stats), cache


def _from_tokens(program: "Program", params, row: RowState, hidden_LE):
    """A row after the state that it stands at was evaluated, and the prediction."""
    window_L = program.grid.window(row)
    depth_K = jnp.zeros((1,), jnp.int32)
    sure_K, worth_K = jnp.ones((1,), bool), jnp.ones((1,))
    only = Drafts(window_L[None, None], depth_K, sure_K, worth_K)
    seen = window_only(program, row, hidden_LE)
    # The row has not taken the step of this state yet, so it stands at n itself.
    pred_SW = decide(program, params, seen.hidden_SWE, seen.block_S, depth_K, row)
    pred_SW = jax.lax.optimization_barrier(pred_SW)
    walked = _walked(program, params, seen, pred_SW, only, row, None)
    kept = seen.keep(jnp.int32(0))
    return _settle(program, params, row, window_L, kept, walked), pred_SW, seen


def _apart(program: "Program", row: RowState, pred_SW, block) -> Doubt:
    """How far the row's last prediction was from one in the trusted shape."""
    grid = program.grid
    then = Prediction(*(grid.cut(part[0], block) for part in row.pred))
    now = Prediction(*(part[0] for part in pred_SW))
    open_W = grid.cut(grid.active(grid.window(row), row)[1], block)
    return difference(now, then, open_W)


def verify(program: "Program", params, terms: "Terms", row: RowState, cache):
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
    allowed_K &= jnp.arange(budget) < terms.cap
    drafts = drafts._replace(valid_K=allowed_K)
    seen = evaluate(program, params, row, drafts, cache)
    branches = drafts.tokens_KNL.shape[1]
    fits_K = jnp.all(seen.fits_S.reshape(-1, branches), axis=1)
    drafts = drafts._replace(valid_K=drafts.valid_K & fits_K)
    depth_S = jnp.repeat(drafts.depth_K, branches)
    pred_SW = decide(program, params, seen.hidden_SWE, seen.block_S, depth_S, row)
    doubt = terms.doubt if program.guarded else None
    walked = _walked(program, params, seen, pred_SW, drafts, row, doubt)
    row = _counted(program, row, drafts, walked)
    kept = seen.keep(walked.at * branches + walked.branch)
    evaluated_L = drafts.tokens_KNL[walked.at, walked.branch]
    moved = _settle(program, params, row, evaluated_L, kept, walked)
    info = jnp.sum(drafts.valid_K, dtype=jnp.int32), walked.steps
    return moved, kept.added, info


def _counted(program: "Program", row: RowState, drafts: Drafts, walked: Walked):
    """The row with this verify call counted, and how its drafts have fared."""
    at = program.sizes.index(program.draft_steps)
    size_Z = row.stats.size_Z.at[at].add(1)
    stats = row.stats._replace(verify=row.stats.verify + 1, size_Z=size_Z)
    deeper_K = drafts.valid_K & (drafts.depth_K == drafts.depth_K[walked.at] + 1)
    missed = walked.sure & jnp.any(deeper_K)
    now = jnp.stack([walked.hops, missed.astype(jnp.int32)]).astype(jnp.float32)
    return dataclasses.replace(row, stats=stats, luck=row.luck * MEMORY + now)


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


def _walked(program: "Program", params, seen: Evaluated, pred_SW, drafts, row, doubt):
    """How far the drafts hold, by predictions that may be off by `doubt` if any."""
    grid, hidden_SWE = program.grid, seen.hidden_SWE
    branches = drafts.tokens_KNL.shape[1]

    def step_from(at, stand: Stand):
        def read(branch):
            slot = at * branches + branch
            return jax.tree.map(lambda a: a[slot], pred_SW), hidden_SWE[slot]

        tokens_NL = drafts.tokens_KNL[at]
        branch, target = arrive(program, params, row, stand, tokens_NL, read)
        here = stand._replace(tokens_L=tokens_NL[branch])
        is_sure = jnp.bool_(True)
        if doubt is not None:
            is_sure = sure(program, params, row, here, *read(branch), doubt)
        return branch, target, is_sure

    def onward(stand: Stand):
        # Candidates of an ended state may be states that some draft does not end at.
        is_over = grid.ended(stand.tokens_L, row)
        return jnp.where(is_over, -1, ahead(program, row, stand))

    first = Stand(grid.window(row), row.memory, row.n)
    return walk(step_from, onward, drafts, first, program.sampling.noisy)


def _settle(program, params, row: RowState, evaluated_L, kept: Kept, walked: Walked):
    """The row after `evaluated_L` was confirmed and the walk's outcome became known."""
    grid, known = program.grid, walked.known
    target_L, stats = known.tokens_L, row.stats
    # Calls are counted from 0, the prefill; revised positions keep their last call.
    call = stats.verify + stats.refresh + stats.guard
    known_L = (grid.window(row) != target_L) & (target_L != grid.mask_id)
    call_L = jnp.where(known_L, call, grid.along(stats.call_T, row))
    put = lambda a, part: jax.lax.dynamic_update_slice(a, part, (row.start,))  # noqa: E731
    confirmed = stats.accepted_C.at[jnp.maximum(call - 1, 0)]
    accepted_C = jnp.where(call > 0, confirmed.set(walked.steps), stats.accepted_C)
    moved = dataclasses.replace(
        row,
        tokens_T=put(row.tokens_T, target_L),
        n=known.n,
        memory=known.memory,
        done=grid.ended(target_L, row),
        doubted=~walked.sure,
        stats=stats._replace(call_T=put(stats.call_T, call_L), accepted_C=accepted_C),
    )
    blocks, stale = grid.slide(grid, evaluated_L, target_L, row)
    shift = blocks * grid.length
    slide = lambda a: jax.lax.dynamic_slice_in_dim(  # noqa: E731
        jnp.concatenate([a, jnp.zeros_like(a)]), shift, grid.window_length
    )
    hidden_LE, seen_L = slide(kept.hidden_LE), slide(kept.seen_L)
    moved = dataclasses.replace(moved, start=row.start + shift, stale=stale)
    pred = guess(program, params, hidden_LE, moved)
    pred = pred._replace(token=jnp.where(seen_L[None], pred.token, -1))
    return dataclasses.replace(moved, hidden_LE=hidden_LE, pred=pred)
