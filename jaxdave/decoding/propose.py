"""Propose: the drafts of a row, made of what its last call has left.

It costs no network call. Whatever is proposed, the text stays the same: the first draft
is the policy's own next state, and the others count only if the policy confirms them.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxdave.core.draft_api import DraftContext, DraftSet, DraftState, draft_params
from jaxdave.core.spec import DecodeSpec
from jaxdave.core.state import RowState, RuntimeParams
from jaxdave.core.window import CacheRule
from jaxdave.decoding.policy_step import (
    has_pending,
    row_policy_state,
    states_to_evaluate,
)
from jaxdave.decoding.simulate import simulate_step, simulate_steps
from jaxdave.drafting.validation import check_draft_set


def propose(
    spec: DecodeSpec, params: Any, runtime: RuntimeParams, row: RowState
) -> DraftSet:
    """The drafts that the next call of a row evaluates.

    Args:
        spec: Its draft function proposes `spec.num_drafts` drafts.
        params: Parameters; only a draft function that takes some reads them.
        runtime: At most `max_num_drafts` of the drafts stay valid.
        row: One row.

    Returns:
        Drafts [K, N, L]; those that may not be evaluated are not valid.
    """
    drafts = propose_all(spec, params, row)
    layout = spec.layout

    def has_open(tokens_NL, progress):
        return jax.vmap(lambda t: has_pending(spec, row, t, progress))(tokens_NL)

    # From a draft that leaves nothing open the policy can only stand still, which is
    # no step: its accepted path must end before it.
    open_KN = jax.vmap(has_open)(drafts.tokens_KNL, drafts.progress_K)
    valid_K = drafts.valid_K & jnp.any(open_KN, axis=1)
    if spec.policy.scoring is not None and layout.cache_rule is CacheRule.EXACT:
        # A candidate may fill all that is left of the window. What follows it lies in a
        # block that no prediction of this call reaches, so if it were chosen, the
        # policy would have nothing to step from: the next call evaluates it.
        ended_KN = jax.vmap(jax.vmap(lambda t: layout.is_ended(t, row, None)))(
            drafts.tokens_KNL
        )
        valid_K &= jnp.all(open_KN | ended_KN, axis=1)
    valid_K &= jnp.arange(spec.num_drafts) < runtime.max_num_drafts
    return drafts._replace(valid_K=valid_K)


def propose_all(spec: DecodeSpec, params: Any, row: RowState) -> DraftSet:
    """What the draft function proposes, before any limit.

    Args:
        spec: Its draft function proposes.
        params: Parameters; only a draft function that takes some reads them.
        row: One row.

    Returns:
        Drafts [K, N, L], of which the first is the policy's own next state.
    """
    state = row_policy_state(spec, row)
    first = DraftState(
        policy_state=state,
        tokens_NL=states_to_evaluate(spec, row, state),
        valid=jnp.bool_(True),
    )
    context = draft_context(spec, params, row)
    drafts = spec.draft.propose(context, first, spec.num_drafts)
    edits = spec.policy.edits
    return check_draft_set(drafts, first.tokens_NL.shape, spec.num_drafts, edits)


def draft_context(spec: DecodeSpec, params: Any, row: RowState) -> DraftContext:
    """What the drafts of a row may be made of.

    Args:
        spec: What is decoded.
        params: Parameters, for policies that query the model and for draft functions.
        row: One row; its stale prediction stands for a fresh one.

    Returns:
        The context that a draft function gets.
    """
    layout = spec.layout

    def simulate(policy_state, depth):
        return simulate_step(spec, params, row, policy_state, depth)

    def run_ahead(first, num_steps):
        return simulate_steps(spec, params, row, first, num_steps)

    def is_ended(tokens_L):
        return layout.is_ended(tokens_L, row, row.progress)

    def with_tokens(token_L):
        token_DL = jnp.where((token_L >= 0)[None], token_L[None], row.pred.token)
        pred = row.pred._replace(token=token_DL)
        return draft_context(spec, params, dataclasses.replace(row, pred=pred))

    return DraftContext(
        simulate=simulate,
        run_ahead=run_ahead,
        pred=row.pred,
        open_L=layout.open_positions(layout.window_tokens(row), row),
        block_L=layout.block_indices(),
        is_ended=is_ended,
        row=row,
        mask_id=layout.mask_id,
        params=draft_params(params),
        memory=row.draft_memory,
        with_tokens=with_tokens,
    )
