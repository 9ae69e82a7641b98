"""What a call's outcome means for a row: how far the policy has come, and its move."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp

from jaxdave.core.draft_api import DraftSet
from jaxdave.core.state import PolicyState, RowState
from jaxdave.decoding.block_states import EvaluatedStates, KeptState, evaluate
from jaxdave.decoding.policy_step import choose_and_step, is_certain, states_to_evaluate
from jaxdave.decoding.propose import propose
from jaxdave.sampling.predictions import predict_active_blocks

if TYPE_CHECKING:
    from jaxdave.core.spec import DecodeSpec
    from jaxdave.core.state import RuntimeParams


class StepInfo(NamedTuple):
    """What one step did: drafts worth evaluating, policy steps confirmed."""

    proposed: jax.Array
    accepted: jax.Array


class AcceptedPath(NamedTuple):
    """Where a walk ends: the last draft reached and the policy's stand there, which of
    its branches the policy goes to, its step from there, whether that is sure, hops."""

    at: jax.Array
    policy_state: PolicyState
    branch: jax.Array
    target: PolicyState
    is_certain: jax.Array
    hops: jax.Array

    @property
    def known(self) -> PolicyState:
        """The policy's next state: the target, or where it is too close to call the
        draft itself, which must be evaluated once more."""
        pick = lambda a, b: jnp.where(self.is_certain, a, b)  # noqa: E731
        return jax.tree.map(pick, self.target, self.policy_state)

    @property
    def steps(self) -> jax.Array:
        """Policy steps that the walk has confirmed."""
        return self.hops + self.is_certain.astype(jnp.int32)


class CallResult(NamedTuple):
    """A call's outcome, in the same shapes whatever its size.

    row: as before the call, which is counted; evaluated_L: the state that the walk has
    reached; kept: what the call leaves of it.
    """

    row: RowState
    evaluated_L: jax.Array
    kept: KeptState
    path: AcceptedPath
    info: StepInfo


def verify_call(
    spec: "DecodeSpec", params, runtime: "RuntimeParams", row: RowState, cache
) -> CallResult:
    """One call on drafts, and how far they hold; `settle` makes the row move."""
    layout, budget = spec.layout, spec.draft_steps
    drafts = propose(spec, params, row)
    # From a draft that leaves nothing open the policy can only stand still, which is
    # no step: its walk must end before it.
    is_open = lambda tokens_L: jnp.any(layout.active(tokens_L, row)[1])  # noqa: E731
    open_KN = jax.vmap(jax.vmap(is_open))(drafts.tokens_KNL)
    allowed_K = drafts.valid_K & jnp.any(open_KN, axis=1)
    allowed_K &= jnp.arange(budget) < runtime.max_num_drafts
    drafts = drafts._replace(valid_K=allowed_K)
    seen = evaluate(spec, params, row, drafts, cache)
    branches = drafts.tokens_KNL.shape[1]
    fits_K = jnp.all(seen.fits_S.reshape(-1, branches), axis=1)
    drafts = drafts._replace(valid_K=drafts.valid_K & fits_K)
    depth_S = jnp.repeat(drafts.depth_K, branches)
    pred_SW = predict_active_blocks(
        spec, params, seen.hidden_SWE, seen.block_S, depth_S, row
    )
    doubt = runtime.error_bound if spec.guarded else None
    path = verify_drafts(spec, params, seen, pred_SW, drafts, row, doubt)
    return CallResult(
        count_call(spec, row, drafts, path),
        drafts.tokens_KNL[path.at, path.branch],
        seen.keep(path.at * branches + path.branch),
        path,
        StepInfo(jnp.sum(drafts.valid_K, dtype=jnp.int32), path.steps),
    )


ACCEPTANCE_DECAY = 0.95
"""What a call leaves of how earlier drafts have fared."""


def empty_info() -> StepInfo:
    """Nothing was done."""
    return StepInfo(jnp.int32(0), jnp.int32(0))


def verify_drafts(
    spec: "DecodeSpec", params, seen: EvaluatedStates, pred_SW, drafts, row, doubt
):
    """How far the drafts hold, by predictions that may be off by `doubt` if any."""
    layout, hidden_SWE = spec.layout, seen.hidden_SWE
    branches = drafts.tokens_KNL.shape[1]

    def step_from(at, policy_state: PolicyState):
        def read(branch):
            slot = at * branches + branch
            return jax.tree.map(lambda a: a[slot], pred_SW), hidden_SWE[slot]

        tokens_NL = drafts.tokens_KNL[at]
        branch, target = choose_and_step(
            spec, params, row, policy_state, tokens_NL, read
        )
        here = policy_state._replace(tokens_L=tokens_NL[branch])
        is_sure = jnp.bool_(True)
        if doubt is not None:
            is_sure = is_certain(spec, params, row, here, *read(branch), doubt)
        return branch, target, is_sure

    def onward(policy_state: PolicyState):
        # Candidates of an ended state may be states that some draft does not end at.
        is_over = layout.ended(policy_state.tokens_L, row)
        return jnp.where(is_over, -1, states_to_evaluate(spec, row, policy_state))

    first = PolicyState(layout.window(row), row.memory, row.n)
    return longest_accepted_path(step_from, onward, drafts, first, spec.sampling.noisy)


def count_call(spec: "DecodeSpec", row: RowState, drafts: DraftSet, path: AcceptedPath):
    """The row with this verify call counted, and how its drafts have fared."""
    at = spec.draft_lengths.index(spec.draft_steps)
    size_Z = row.stats.size_Z.at[at].add(1)
    stats = row.stats._replace(verify=row.stats.verify + 1, size_Z=size_Z)
    deeper_K = drafts.valid_K & (drafts.depth_K == drafts.depth_K[path.at] + 1)
    missed = path.is_certain & jnp.any(deeper_K)
    now = jnp.stack([path.hops, missed.astype(jnp.int32)]).astype(jnp.float32)
    return dataclasses.replace(
        row,
        stats=stats,
        acceptance_counts=row.acceptance_counts * ACCEPTANCE_DECAY + now,
    )


StepFn = Callable[[jax.Array, PolicyState], tuple[jax.Array, PolicyState, jax.Array]]
AheadFn = Callable[[PolicyState], jax.Array]


def longest_accepted_path(
    step_from: StepFn,
    ahead: AheadFn,
    drafts: DraftSet,
    first: PolicyState,
    in_order: bool,
) -> AcceptedPath:
    """From draft 0 take the policy's step while that leads to another draft.

    step_from(draft, its stand) -> the branch taken, where the policy stands next, and
    whether that is sure, from fresh predictions; ahead(stand) -> the states [N, L] that
    must be evaluated to go on. The policy's memory follows the path. Equality is of
    whole states. in_order: the next draft must lie one step deeper, as it must when
    predictions depend on the step index. At most K - 1 hops, none from an unsure step.
    """
    count = drafts.depth_K.shape[0]
    index_K = jnp.arange(count, dtype=jnp.int32)

    def successors(held: AcceptedPath):
        same_KNL = drafts.tokens_KNL == ahead(held.target)[None]
        same_K = jnp.all(same_KNL, axis=(1, 2))
        same_K &= drafts.valid_K & drafts.valid_K[held.at]
        if in_order:
            return same_K & (drafts.depth_K == drafts.depth_K[held.at] + 1)
        # A target never equals its own draft unless a policy stands still.
        return same_K & (index_K != held.at)

    def on(held: AcceptedPath):
        further = held.is_certain & (held.hops < count - 1) & jnp.any(successors(held))
        return (held.hops < 0) | further

    def hop(held: AcceptedPath):
        # The step is compiled once: the first draft is reached by a hop as well.
        at = jnp.where(held.hops < 0, 0, jnp.argmax(successors(held)))
        at = at.astype(jnp.int32)
        return AcceptedPath(at, held.target, *step_from(at, held.target), held.hops + 1)

    zero = jnp.int32(0)
    begun = AcceptedPath(zero, first, zero, first, jnp.bool_(True), jnp.int32(-1))
    return hop(begun) if count == 1 else jax.lax.while_loop(on, hop, begun)
