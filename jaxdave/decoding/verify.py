"""Verify: how far the drafts hold, by the policy's own steps from evaluated states.

Nothing can accept more for a given set of drafts: a state outside the set was never
evaluated, so what follows it is unknown.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdave.core.config import Numerics
from jaxdave.core.draft_api import DraftSet
from jaxdave.core.prediction import ErrorBound, Prediction
from jaxdave.core.spec import DecodeSpec
from jaxdave.core.state import PolicyState, RowState, RuntimeParams
from jaxdave.decoding.block_states import EvaluatedStates, KeptState
from jaxdave.decoding.policy_step import choose_and_step, is_certain, states_to_evaluate
from jaxdave.sampling.predictions import predict_active_blocks

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


class AcceptedPath(NamedTuple):
    """The longest path of drafts that the policy confirms.

    Attributes:
        draft: Index of the last draft on the path, int32.
        policy_state: The policy's state there.
        candidate: Which of the draft's candidates the policy chooses, int32.
        target: The policy's state after its step from there.
        is_certain: No numerical error within the bound can change that step, bool.
        num_hops: Drafts accepted after the first, int32.
    """

    draft: jax.Array
    policy_state: PolicyState
    candidate: jax.Array
    target: PolicyState
    is_certain: jax.Array
    num_hops: jax.Array

    @property
    def committed(self) -> PolicyState:
        """The state to commit.

        That is the target; or the last draft itself where the step from it is too close
        to call, so that it must be evaluated once more.
        """

        def choose(a, b):
            return jnp.where(self.is_certain, a, b)

        return jax.tree.map(choose, self.target, self.policy_state)

    @property
    def accepted_length(self) -> jax.Array:
        """Policy steps that the path confirms, int32."""
        return self.num_hops + self.is_certain.astype(jnp.int32)


class CallResult(NamedTuple):
    """The outcome of a call, in the same shapes whatever its draft length.

    Attributes:
        row: The row as before the call, which is counted.
        evaluated_L: The last accepted draft: the state that was evaluated, int32 [L].
        kept: What the call leaves of it.
        path: The accepted path.
        info: Counts.
    """

    row: RowState
    evaluated_L: jax.Array
    kept: KeptState
    path: AcceptedPath
    info: StepInfo


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
    # prediction that the next drafts are made of is computed apart, after the commit.
    pred_SW = predict_active_blocks(
        spec, params, evaluated.hidden_SWE, evaluated.block_S, depth_S, row
    )
    is_guarded = spec.numerics is Numerics.GUARDED
    error_bound = runtime.error_bound if is_guarded else None
    path = verify_drafts(spec, params, row, drafts, evaluated, pred_SW, error_bound)
    return CallResult(
        row=count_call(spec, row, drafts, path),
        evaluated_L=drafts.tokens_KNL[path.draft, path.candidate],
        kept=evaluated.keep(path.draft * candidates + path.candidate),
        path=path,
        info=StepInfo(jnp.sum(drafts.valid_K, dtype=jnp.int32), path.accepted_length),
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
        is_over = layout.is_ended(state.tokens_L, row)
        return jnp.where(is_over, -1, states_to_evaluate(spec, row, state))

    # Verification starts where the row stands. Draft 0 is that very state, so its step
    # is the one that plain decoding takes: a call never confirms less than that.
    first = PolicyState(layout.window_tokens(row), row.memory, row.n)
    # Predictions at a temperature depend on the step index, so that a state counts only
    # at the depth at which it was evaluated.
    in_order = spec.sampling.noisy
    return longest_accepted_path(step_from, needed_next, drafts, first, in_order)


StepFn = Callable[[jax.Array, PolicyState], tuple[jax.Array, PolicyState, jax.Array]]
"""(draft, the policy's state there) -> (chosen candidate, its next state, certain)."""
NeededFn = Callable[[PolicyState], jax.Array]
"""policy state -> the states [N, L] that must be evaluated to go on from it."""


def longest_accepted_path(
    step_from: StepFn,
    needed_next: NeededFn,
    drafts: DraftSet,
    first: PolicyState,
    in_order: bool,
) -> AcceptedPath:
    """From draft 0, take the policy's step while that leads to another draft.

    Acceptance is equality of whole states, which is what makes decoding lossless. The
    policy's memory follows the path. There are at most K - 1 hops, and none from an
    uncertain step.

    Args:
        step_from: The policy's step, by fresh predictions.
        needed_next: What a draft has to hold to be the next on the path.
        drafts: K drafts; the first is the policy's own next state.
        first: The policy's state at draft 0.
        in_order: The next draft must lie one step deeper.

    Returns:
        Where the path ends.

    Source: FreeDave, arXiv 2510.00294, Algorithm 2, for any graph of drafts.
    """
    count = drafts.depth_K.shape[0]
    index_K = jnp.arange(count, dtype=jnp.int32)

    # Which drafts the path may go on to: valid ones whose states are exactly those that
    # the policy needs next, bool [K].
    def successors(path: AcceptedPath):
        equal_KNL = drafts.tokens_KNL == needed_next(path.target)[None]
        equal_K = jnp.all(equal_KNL, axis=(1, 2))
        equal_K &= drafts.valid_K & drafts.valid_K[path.draft]
        if in_order:
            return equal_K & (drafts.depth_K == drafts.depth_K[path.draft] + 1)
        # A target never equals its own draft unless a policy stands still.
        return equal_K & (index_K != path.draft)

    # num_hops is -1 before draft 0. The bound of count - 1 hops stops a policy that
    # would revisit states; without it such a loop would not end.
    def goes_on(path: AcceptedPath):
        is_open = path.is_certain & (path.num_hops < count - 1)
        return (path.num_hops < 0) | (is_open & jnp.any(successors(path)))

    def hop(path: AcceptedPath):
        # The first draft is reached by a hop as well: the step is compiled once.
        draft = jnp.where(path.num_hops < 0, 0, jnp.argmax(successors(path)))
        draft = draft.astype(jnp.int32)
        candidate, target, certain = step_from(draft, path.target)
        return AcceptedPath(
            draft, path.target, candidate, target, certain, path.num_hops + 1
        )

    # Of the start only `target` and `num_hops` matter; the rest has
    # the right types for the carry of the loop.
    zero = jnp.int32(0)
    start = AcceptedPath(zero, first, zero, first, jnp.bool_(True), jnp.int32(-1))
    return hop(start) if count == 1 else jax.lax.while_loop(goes_on, hop, start)


def count_call(
    spec: DecodeSpec, row: RowState, drafts: DraftSet, path: AcceptedPath
) -> RowState:
    """Count a verify call of a row, and how its drafts have fared.

    The counts feed the choice of the next call's draft length (`draft_length`).

    Args:
        spec: `num_drafts` says which draft length to count.
        row: The row before the call.
        drafts: What was evaluated.
        path: The accepted path.

    Returns:
        The row with its counts; nothing else is changed.
    """
    index = spec.draft_steps.index(spec.num_drafts)
    stats = row.stats._replace(
        verify=row.stats.verify + 1, size_Z=row.stats.size_Z.at[index].add(1)
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
