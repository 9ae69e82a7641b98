"""Verify: how far the drafts hold, by the policy's own steps from evaluated states.

Nothing can accept more for a given set of drafts: a state outside the set was never
evaluated, so what follows it is unknown.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdave.core.config import Numerics
from jaxdave.core.draft_api import DraftSet
from jaxdave.core.prediction import ErrorBound, Prediction
from jaxdave.core.spec import DecodeSpec
from jaxdave.core.state import PolicyState, RowState, RuntimeParams
from jaxdave.decoding.accepted_path import (
    AcceptedPath,
    longest_accepted_path,
    longest_path_at_once,
)
from jaxdave.decoding.block_states import EvaluatedStates, KeptState
from jaxdave.decoding.policy_step import (
    choose_and_step,
    is_certain,
    remembers_nothing,
    row_policy_state,
    states_to_evaluate,
)
from jaxdave.decoding.step_record import StepRecord, record_path
from jaxdave.sampling.predictions import (
    predict_active_blocks,
    predict_vectors,
    reads_head_once,
)

ACCEPTANCE_DECAY = 0.95
"""What a call multiplies the counts of accepted and rejected drafts by."""


class StepInfo(NamedTuple):
    """What one step of a row did.

    Attributes:
        proposed: Drafts that were worth evaluating, int32.
        accepted: Policy steps that were confirmed, int32.
    """

    proposed: jax.Array
    accepted: jax.Array


class CallResult(NamedTuple):
    """The outcome of a call, in the same shapes whatever its draft length.

    Attributes:
        row: The row as before the call, which is counted.
        evaluated_L: The last accepted draft: the state that was evaluated, int32 [L].
        kept: What the call leaves of it.
        pred_DL: The prediction of its window that the next drafts are made of, where
            the head is read once a call; else None, and `commit` reads it.
        path: The accepted path, without `visited_K`, whose length is no common shape.
        info: Counts.
        record: What it commits; None if this decode records nothing.
    """

    row: RowState
    evaluated_L: jax.Array
    kept: KeptState
    pred_DL: Prediction | None
    path: AcceptedPath
    info: StepInfo
    record: StepRecord | None


def empty_info() -> StepInfo:
    """The counts of a step that did nothing."""
    return StepInfo(jnp.int32(0), jnp.int32(0))


def verify(
    spec: DecodeSpec,
    params: Any,
    runtime: RuntimeParams,
    row: RowState,
    drafts: DraftSet,
    evaluated: EvaluatedStates,
) -> CallResult:
    """Find how far evaluated drafts hold.

    Args:
        spec: Its policy confirms drafts.
        params: The model's parameters, for the output head.
        runtime: The error bound is read under guarded numerics.
        row: One row.
        drafts: What was proposed.
        evaluated: The states of the drafts after the call.

    Returns:
        The outcome; nothing is committed yet.
    """
    candidates = drafts.tokens_KNL.shape[1]
    # A draft is usable only if all N of its candidates were evaluated. [S] -> [K]
    fits_K = jnp.all(evaluated.fits_S.reshape(-1, candidates), axis=1)
    drafts = drafts._replace(valid_K=drafts.valid_K & fits_K)
    depth_S = jnp.repeat(drafts.depth_K, candidates)
    # Decisions are read from the active block only, always in the same shapes. The
    # prediction that the next drafts are made of is computed apart, after the commit,
    # unless one read of the head serves both.
    pred_R = None
    if reads_head_once(spec):
        pred_R = predict_vectors(spec, params, evaluated.hidden_RE)
        pred_SW = jax.tree.map(lambda a: a[evaluated.active_SW], pred_R)
    else:
        pred_SW = predict_active_blocks(
            spec, params, evaluated.hidden_SWE, evaluated.block_S, depth_S, row
        )
    is_guarded = spec.numerics is Numerics.GUARDED
    error_bound = runtime.error_bound if is_guarded else None
    path = verify_drafts(spec, params, row, drafts, evaluated, pred_SW, error_bound)
    kept = evaluated.keep(path.draft * candidates + path.candidate)
    return CallResult(
        row=count_call(spec, row, drafts, path),
        evaluated_L=drafts.tokens_KNL[path.draft, path.candidate],
        kept=kept,
        pred_DL=jax.tree.map(lambda a: a[kept.vector_L][None], pred_R),
        # As long as there are drafts: calls of other lengths have another shape.
        path=path._replace(visited_K=None),
        info=StepInfo(jnp.sum(drafts.valid_K, dtype=jnp.int32), path.accepted_length),
        record=record_path(spec, row, drafts, pred_SW, evaluated.block_S, path),
    )


def verify_drafts(
    spec: DecodeSpec,
    params: Any,
    row: RowState,
    drafts: DraftSet,
    evaluated: EvaluatedStates,
    pred_SW: Prediction,
    error_bound: ErrorBound | None,
) -> AcceptedPath:
    """The accepted path through drafts, by predictions of their active blocks.

    Args:
        spec: Its policy steps from draft to draft.
        params: The model's parameters, for policies that query it.
        row: One row.
        drafts: K drafts of N states.
        evaluated: The S = K N states after the call.
        pred_SW: The prediction of each state's active block.
        error_bound: How far the predictions may be off; None: they are trusted.

    Returns:
        The longest path; under an error bound it ends before the first uncertain step.
    """
    layout, candidates = spec.layout, drafts.tokens_KNL.shape[1]

    def step_from(draft, state: PolicyState):
        def read(candidate):
            # States are laid out draft by draft, S = K N.
            slot = draft * candidates + candidate
            pred = jax.tree.map(lambda a: a[slot], pred_SW)
            return pred, evaluated.hidden_SWE[slot]

        tokens_NL = drafts.tokens_KNL[draft]
        candidate, target = choose_and_step(spec, params, row, state, tokens_NL, read)
        chosen = state._replace(tokens_L=tokens_NL[candidate])
        certain = jnp.bool_(True)
        if error_bound is not None:
            certain = is_certain(
                spec, params, row, chosen, *read(candidate), error_bound
            )
        return candidate, target, certain

    def needed_next(state: PolicyState):
        # Candidates of an ended state may be states that some draft does not end at.
        is_over = layout.is_ended(state.tokens_L, row, state.progress)
        return jnp.where(is_over, -1, states_to_evaluate(spec, row, state))

    # Verification starts where the row stands. Draft 0 is that very state, so its step
    # is the one that plain decoding takes: a call never confirms less than that.
    first = row_policy_state(spec, row)
    # Predictions at a temperature depend on the step index, so that a state counts only
    # at the depth at which it was evaluated.
    in_order = spec.sampling.noisy
    pred_W = jax.tree.map(lambda part_SW: part_SW[0], pred_SW)
    count = drafts.depth_K.shape[0]
    if count == 1 or not remembers_nothing(spec, row, first, pred_W):
        return longest_accepted_path(
            step_from, needed_next, drafts, first, in_order, spec.records_steps
        )

    def steps_at(n_K):
        tokens_KL, progress_K = drafts.tokens_KNL[:, 0], drafts.progress_K
        state_K = PolicyState(tokens_KL, first.memory, n_K, progress_K)
        draft_K = jnp.arange(count, dtype=jnp.int32)
        return jax.vmap(step_from)(draft_K, state_K)[1:]

    return longest_path_at_once(
        steps_at, needed_next, drafts, first, in_order, spec.records_steps
    )


def count_call(
    spec: DecodeSpec, row: RowState, drafts: DraftSet, path: AcceptedPath
) -> RowState:
    """Count a verify call of a row, and how its drafts have fared.

    What is decayed feeds the choice of the next call's draft length (`draft_length`);
    the totals are for the results. A path that comes back to a draft, as one of a
    policy that takes tokens back may, has not accepted it twice.

    Args:
        spec: `num_drafts` says which draft length to count.
        row: The row before the call.
        drafts: What was evaluated.
        path: The accepted path.

    Returns:
        The row with its counts; nothing else is changed.
    """
    index = spec.draft_steps.index(spec.num_drafts)
    proposed = jnp.sum(drafts.valid_K[1:], dtype=jnp.int32)
    accepted = jnp.minimum(path.num_hops, proposed)
    stats = row.stats._replace(
        verify=row.stats.verify + 1,
        size_Z=row.stats.size_Z.at[index].add(1),
        drafts=row.stats.drafts + jnp.stack([proposed, accepted]),
    )
    # A rejection is a draft that was there for the next step and was
    # not taken. Where no draft lay one step deeper, the path ended
    # for want of drafts, which is no rejection.
    deeper_K = drafts.valid_K & (drafts.depth_K == drafts.depth_K[path.draft] + 1)
    # An uncertain step says nothing about the drafts behind it.
    is_missed = path.is_certain & jnp.any(deeper_K)
    counts = jnp.stack([path.num_hops, is_missed.astype(jnp.int32)])
    faded = row.acceptance_counts * ACCEPTANCE_DECAY
    return dataclasses.replace(
        row, stats=stats, acceptance_counts=faded + counts.astype(jnp.float32)
    )
