"""KLASS: tokens that are confident and whose distribution has been steady."""

import jax
import jax.numpy as jnp

from jaxdave.core.policy_api import Memory, Policy, PolicyView
from jaxdave.policies.block_rules import BlockClock, block_policy
from jaxdave.policies.common import (
    best_positions,
    fill_positions,
    log_odds,
    policy_name,
)
from jaxdave.policies.registry import register
from jaxdave.policies.validation import (
    check_amount,
    check_share,
    check_size,
)


@register
def klass(
    conf_threshold: float = 0.9, kl_threshold: float = 0.01, kl_history_length: int = 2
) -> Policy:
    """Every token that is sure and whose distribution has stayed the same for a while.

    Commit i with c_i > conf_threshold and KL(p_i now || p_i a step ago) < kl_threshold
    in each of the last kl_history_length steps; if there is none, the best one. Memory:
    the vectors that the last step predicted from, and for how many steps each position
    has been steady.

    Args:
        conf_threshold: Probability above which a token is sure, in 0..1.
        kl_threshold: Divergence in nats below which a distribution is steady, 0 or
            more.
        kl_history_length: Steps for which it must have been, at least 1.

    Returns:
        The policy.

    Raises:
        ValueError: A parameter is out of range.

    Source: KLASS (arXiv 2511.05664, defaults of its code). Deviations: the history
    begins again in every block; the fallback is one token.
    """
    check_share(0.9, conf_threshold=conf_threshold)
    check_amount(0.01, kl_threshold=kl_threshold)
    check_size(2, kl_history_length=kl_history_length)
    score_bound = jnp.float32(log_odds(conf_threshold))
    kl_bound = jnp.float32(kl_threshold)

    def init(size: int, width: int) -> Memory:
        return jnp.zeros((size, width), jnp.float32), jnp.zeros(size, jnp.int32)

    def step(
        view: PolicyView, clock: BlockClock, memory: Memory
    ) -> tuple[jax.Array, Memory]:
        # The memory keeps hidden vectors, [W, E], instead of distributions, [W, V]: the
        # head turns them into the earlier distribution again.
        last_hidden_WE, steady_steps_W = memory
        # A block's first step has nothing to be compared with.
        is_steady_W = (view.queries.divergence(last_hidden_WE) < kl_bound) & (
            clock.index > 0
        )
        steady_steps_W = jnp.where(is_steady_W, steady_steps_W + 1, 0)
        # Both conditions of the paper: confident now, and steady for long enough.
        ready_W = view.open_W & (view.pred.score > score_bound)
        ready_W &= steady_steps_W >= kl_history_length
        fallback_W = best_positions(view, 1, view.pred.score)
        tokens_W = fill_positions(
            view, jnp.where(jnp.any(ready_W), ready_W, fallback_W)
        )
        # Kept in float32 whatever the model computes in; casting back is exact.
        return tokens_W, (view.queries.hidden_WE.astype(jnp.float32), steady_steps_W)

    name = policy_name(
        "klass",
        conf_threshold=conf_threshold,
        kl_threshold=kl_threshold,
        kl_history_length=kl_history_length,
    )
    return block_policy(name, step, init)
