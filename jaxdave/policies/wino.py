"""WINO: many tokens are committed, and those that a second look doubts go back."""

import jax
import jax.numpy as jnp

from jaxdave.core.policy_api import Memory, Policy, PolicyView
from jaxdave.policies.block_rules import BlockClock, per_block
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
    (`model/shadow.py`) is below threshold_back, but fewer than the step before has
    committed: of more, those of the lowest. Memory: what that step has committed, per
    block. A block takes no more steps than it began with masks: masks + what the last
    step has committed falls by at least one a step. Source: WINO (Feng-Hong/WINO-DLLM;
    blocks of 128 there). Deviations: probabilities are the tempered ones; equal ones go
    to the lowest position. Raises ValueError for a parameter outside 0..1.
    """
    check_share(0.6, threshold=threshold)
    check_share(0.9, threshold_back=threshold_back)
    sure = jnp.float32(log_odds(threshold))
    clear = jnp.float32(log_odds(threshold_back))

    def init(size: int, width: int) -> Memory:
        return jnp.int32(1)  # Nothing can go back in a first step.

    def step(
        view: PolicyView, clock: BlockClock, last: Memory
    ) -> tuple[jax.Array, Memory]:
        score_W = view.pred.score
        most = jnp.clip(7 * count(view.open_W) // 10, MIN_COMMITTED, MAX_COMMITTED)
        some = jnp.minimum(count(view.open_W & (score_W > sure)), most)
        chosen_W = best_positions(view, some, score_W)
        size = count(chosen_W)
        shadow_W = view.queries.shadow_at(view.tokens_W)
        doubted = count(view.decoded_W & (shadow_W < clear))
        back = jnp.where(size > 1, jnp.minimum(doubted, last - 1), 0)
        undone_W = view.decoded_W & (rank(view.decoded_W, -shadow_W) < back)
        return jnp.where(undone_W, view.mask_id, fill_positions(view, chosen_W)), size

    name = policy_name("wino", threshold=threshold, threshold_back=threshold_back)
    return per_block(name, step, init, revises=True)._replace(shadow=True)
