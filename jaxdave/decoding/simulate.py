"""The policy run ahead on the last prediction, to make drafts of.

Step by step as the policy would take them; or all steps at once, where the policy says
in which order it would commit what is open.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxdave.core.draft_api import DraftState, StatesAhead
from jaxdave.core.spec import DecodeSpec
from jaxdave.core.state import PolicyState, RowState
from jaxdave.decoding.policy_step import (
    choose_and_step,
    commit_orders,
    has_pending,
    states_to_evaluate,
)


def simulate_step(
    spec: DecodeSpec, params: Any, row: RowState, state: PolicyState, depth: jax.Array
) -> DraftState:
    """The policy's next step as far as the last call can tell.

    Args:
        spec: Its policy takes the step.
        params: Parameters, for policies that query the model.
        row: One row; its stale prediction stands for a fresh one.
        state: The policy state to step from.
        depth: Policy steps after the first draft, int32: the noise of that step is
            used, so that drafts at a temperature are those that the policy will draw.

    Returns:
        The next state; valid where something was open, a prediction was there, and the
        row does not end.
    """
    layout = spec.layout
    depth = jnp.minimum(depth, row.pred.token.shape[0] - 1)
    tokens_NL = states_to_evaluate(spec, row, state)

    def read(candidate):
        block, _ = layout.active_block(tokens_NL[candidate], row, state.progress)
        pred_L = jax.tree.map(lambda part_DL: part_DL[depth], row.pred)
        return layout.block_slice((pred_L, row.hidden_LE), block)

    candidate, target = choose_and_step(spec, params, row, state, tokens_NL, read)
    goes_on = has_pending(spec, row, tokens_NL[candidate], state.progress)
    is_usable = goes_on & jnp.all(read(candidate)[0].token >= 0)
    valid = is_usable & ~layout.is_ended(target.tokens_L, row, target.progress)
    return DraftState(target, states_to_evaluate(spec, row, target), valid)


def simulate_steps(
    spec: DecodeSpec, params: Any, row: RowState, first: DraftState, num_steps: int
) -> StatesAhead:
    """The policy's next steps as far as the last call can tell, each after the other.

    Args:
        spec: Its policy takes the steps.
        params: Parameters, for policies that query the model.
        row: One row; its stale prediction stands for a fresh one.
        first: Where the first step is taken from.
        num_steps: How many steps, K.

    Returns:
        The states after each step.
    """
    # With noise each step has a prediction of its own, and there is no one order.
    has_order = spec.policy.commit_order is not None and row.pred.token.shape[0] == 1
    if has_order and num_steps > 0:
        return _steps_in_order(spec, params, row, first, num_steps)

    def extend(draft: DraftState, depth):
        successor = simulate_step(spec, params, row, draft.policy_state, depth)
        successor = successor._replace(valid=draft.valid & successor.valid)
        progress = successor.policy_state.progress
        return successor, StatesAhead(successor.tokens_NL, successor.valid, progress)

    # The step from draft k to draft k + 1 draws the noise of depth k.
    return jax.lax.scan(extend, first, jnp.arange(num_steps, dtype=jnp.int32))[1]


def _steps_in_order(
    spec: DecodeSpec, params: Any, row: RowState, first: DraftState, num_steps: int
) -> StatesAhead:
    """`simulate_steps` of a policy that says its order, bit for bit, without a loop."""
    layout, tokens_L = spec.layout, first.policy_state.tokens_L
    blocks = layout.num_blocks, layout.block_length
    pred_L = jax.tree.map(lambda part_DL: part_DL[0], row.pred)
    open_JW = layout.open_positions(tokens_L, row).reshape(blocks)
    order_JW = commit_orders(spec, params, row, first.policy_state, pred_L)
    # A step never spans two blocks: those of a block begin when all before it are done.
    steps_J = jnp.max(jnp.where(open_JW, order_JW + 1, 0), axis=1)
    before_J = jnp.cumsum(steps_J, dtype=jnp.int32) - steps_J
    step_L = jnp.where(open_JW, before_J[:, None] + order_JW, -1).reshape(-1)

    # State k, counted from 1, is the one after k steps.
    state_K = 1 + jnp.arange(num_steps, dtype=jnp.int32)
    is_filled_KL = (step_L >= 0)[None] & (step_L[None] < state_K[:, None])
    tokens_KL = jnp.where(is_filled_KL, pred_L.token[None], tokens_L[None])
    # The chain ends with what is open, in front of the first block without a
    # prediction, and where the row ends.
    is_unknown_J = (steps_J > 0) & jnp.any(pred_L.token.reshape(blocks) < 0, axis=1)
    num_usable = jnp.min(jnp.where(is_unknown_J, before_J, jnp.sum(steps_J)))
    ended_K = jax.vmap(lambda tokens_L: layout.is_ended(tokens_L, row, None))(tokens_KL)
    first_end = jnp.min(jnp.where(ended_K, state_K, num_steps + 1))
    valid_K = first.valid & (state_K <= num_usable) & (state_K < first_end)
    return StatesAhead(tokens_KL[:, None], valid_K, None)
