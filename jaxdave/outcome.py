"""What a call's outcome means for a row: how far the policy has come, and its move."""

import dataclasses
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp

from jaxdave.evaluate import Evaluated, Kept
from jaxdave.predict import guess
from jaxdave.state import Drafts, RowState, Stand
from jaxdave.steps import ahead, arrive, sure
from jaxdave.verify import Walked, walk

if TYPE_CHECKING:
    from jaxdave.spec import Program

MEMORY = 0.95
"""What a call leaves of how earlier drafts have fared."""


class Info(NamedTuple):
    """What one step did: drafts worth evaluating, policy steps confirmed."""

    proposed: jax.Array
    accepted: jax.Array


class Judged(NamedTuple):
    """A call's outcome, in the same shapes whatever its size.

    row: as before the call, which is counted; evaluated_L: the state that the walk has
    reached; kept: what the call leaves of it.
    """

    row: RowState
    evaluated_L: jax.Array
    kept: Kept
    walked: Walked
    info: Info


def no_info() -> Info:
    """Nothing was done."""
    return Info(jnp.int32(0), jnp.int32(0))


def walked_from(
    program: "Program", params, seen: Evaluated, pred_SW, drafts, row, doubt
):
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


def counted(program: "Program", row: RowState, drafts: Drafts, walked: Walked):
    """The row with this verify call counted, and how its drafts have fared."""
    at = program.sizes.index(program.draft_steps)
    size_Z = row.stats.size_Z.at[at].add(1)
    stats = row.stats._replace(verify=row.stats.verify + 1, size_Z=size_Z)
    deeper_K = drafts.valid_K & (drafts.depth_K == drafts.depth_K[walked.at] + 1)
    missed = walked.sure & jnp.any(deeper_K)
    now = jnp.stack([walked.hops, missed.astype(jnp.int32)]).astype(jnp.float32)
    return dataclasses.replace(row, stats=stats, luck=row.luck * MEMORY + now)


def settle(program: "Program", params, judged: Judged) -> RowState:
    """The row after a call, whatever its size: what was confirmed is now known."""
    row, evaluated_L, kept, walked, _ = judged
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
