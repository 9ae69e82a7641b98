"""WINO: many tokens are committed, and those that a second look doubts go back.

The second look is the shadow prediction: what the model would predict at a position if
only that position were masked. See `jaxdave/models/shadow_masks.py`.
"""

import jax
import jax.numpy as jnp

from jaxdave.core.policy_api import Memory, Policy, PolicyView
from jaxdave.policies.block_rules import BlockClock, block_policy
from jaxdave.policies.common import (
    best_positions,
    count,
    fill_positions,
    log_odds,
    policy_name,
    rank,
)
from jaxdave.policies.registry import register
from jaxdave.policies.validation import check_share

MIN_COMMITTED, MAX_COMMITTED = 5, 20
"""Between these a step commits at most 7 of 10 masks."""


@register
def wino(threshold: float = 0.6, threshold_back: float = 0.9) -> Policy:
    """Every token surer than a bound; then those that their shadow doubts go back.

    Wide-in: commit masked i with c_i > threshold, at most the min(max(7 masks // 10,
    5), 20) most confident, at least the best one. Narrow-out, if that was more than
    one: mask again the committed tokens of the block whose probability by their shadow
    is below threshold_back, but fewer than the step before has committed: of more,
    those of the lowest. Memory: how many that step has committed, per block. A block
    takes no more steps than it began with masks: masks + what the last step has
    committed falls by at least one a step.

    Args:
        threshold: Probability above which a token is committed, in 0..1.
        threshold_back: Shadow probability below which it is masked again, in 0..1.

    Returns:
        The policy, with `revises=True` and `shadow=True`.

    Raises:
        ValueError: A parameter is outside 0..1.

    Source: WINO (Feng-Hong/WINO-DLLM; blocks of 128 there). Deviations: probabilities
    are the tempered ones; equal ones go to the lowest position.
    """
    check_share(0.6, threshold=threshold)
    check_share(0.9, threshold_back=threshold_back)
    bound = jnp.float32(log_odds(threshold))
    shadow_bound = jnp.float32(log_odds(threshold_back))

    def init(size: int, width: int) -> Memory:
        del size, width
        # At most (last - 1) tokens go back, so none can in a block's first step.
        return jnp.int32(1)

    def step(
        view: PolicyView, clock: BlockClock, last_committed: Memory
    ) -> tuple[jax.Array, Memory]:
        score_W = view.pred.score
        # Wide-in: commit everything above a low bar, within limits.
        max_tokens = jnp.clip(
            7 * count(view.open_W) // 10, MIN_COMMITTED, MAX_COMMITTED
        )
        num_tokens = jnp.minimum(count(view.open_W & (score_W > bound)), max_tokens)
        chosen_W = best_positions(view, num_tokens, score_W)
        num_committed = count(chosen_W)
        # Narrow-out: doubts about tokens that stood there before
        # this step. Those committed just now have not been seen by
        # the model, and are judged in the next one.
        shadow_W = view.queries.shadow_at(view.tokens_W)
        num_doubted = count(view.decoded_W & (shadow_W < shadow_bound))
        num_remasked = jnp.where(
            num_committed > 1, jnp.minimum(num_doubted, last_committed - 1), 0
        )
        remasked_W = view.decoded_W & (rank(view.decoded_W, -shadow_W) < num_remasked)
        tokens_W = jnp.where(remasked_W, view.mask_id, fill_positions(view, chosen_W))
        return tokens_W, num_committed

    name = policy_name("wino", threshold=threshold, threshold_back=threshold_back)
    return block_policy(name, step, init, revises=True)._replace(shadow=True)
