"""The network calls of one row, and what each one moves.

A call evaluates states and so makes the policy's next state known. There are three
kinds: `opened` and `refresh` evaluate the state that a row stands at from its tokens
alone, and make the cache that later calls read (the prefill, and what a full-attention
model needs at a new block); `judge` evaluates drafts of the window against that cache;
`recheck` evaluates one state again where a call under guarded numerics was too close to
call.

What decides (the targets) is read from the active block only, always in the same
shapes; what merely guesses (the stale prediction of the whole window) is read apart
from it, so that no draft can touch a decision.
"""

import dataclasses
from typing import TYPE_CHECKING

import chex
import jax.numpy as jnp

from jaxdave.core.draft_api import DraftContext, DraftSet, DraftState
from jaxdave.core.state import PolicyState, RowState
from jaxdave.decoding.policy_step import simulate_step, states_to_evaluate

if TYPE_CHECKING:
    from jaxdave.core.spec import DecodeSpec


def propose(spec: "DecodeSpec", params, row: RowState) -> DraftSet:
    """The drafts of a row, made of what its last call has left."""
    layout, budget = spec.layout, spec.draft_steps
    first = PolicyState(layout.window(row), row.memory, row.n)
    known = DraftState(first, states_to_evaluate(spec, row, first), jnp.bool_(True))
    drafts = spec.draft(draft_context(spec, params, row), known, budget)
    chex.assert_shape(drafts.tokens_KNL, (budget, *known.tokens_NL.shape))
    return drafts


def draft_context(spec: "DecodeSpec", params, row: RowState) -> DraftContext:
    """What drafts of a row may be made of."""
    layout = spec.layout

    def simulate(policy_state, depth):
        return simulate_step(spec, params, row, policy_state, depth)

    def is_ended(tokens_L):
        return layout.ended(tokens_L, row)

    open_L = layout.open(layout.window(row), row)

    def with_tokens(token_L):
        told_DL = jnp.where((token_L >= 0)[None], token_L[None], row.pred.token)
        pred = row.pred._replace(token=told_DL)
        return draft_context(spec, params, dataclasses.replace(row, pred=pred))

    return DraftContext(
        simulate,
        row.pred,
        open_L,
        layout.block_of(),
        is_ended,
        row,
        layout.mask_id,
        with_tokens,
    )
