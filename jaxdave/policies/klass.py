"""KLASS: what is sure and has been steady."""

import jax
import jax.numpy as jnp

from jaxdave.core.policy_api import Memory, Policy, PolicyView
from jaxdave.policies.block_rules import BlockClock, per_block
from jaxdave.policies.common import (
    best_positions,
    fill_positions,
    log_odds,
    policy_name,
)
from jaxdave.policies.registry import register
from jaxdave.policies.validation import check_amount, check_count, check_share


@register
def klass(
    conf_threshold: float = 0.9, kl_threshold: float = 0.01, kl_history_length: int = 2
) -> Policy:
    """Every token that is sure and whose distribution has stayed the same for a while.

    commit i with c_i > conf_threshold and KL(p_i now || p_i a step ago) < kl_threshold
    in each of the last kl_history_length steps; if there is none, the best one.
    Source: KLASS (arXiv 2511.05664, defaults of its code). Memory: the vectors that the
    last step predicted from, and for how many steps each position has been steady.
    Deviations: the history begins anew in every block; the fallback is one token.
    Raises ValueError for a parameter out of range.
    """
    check_share(0.9, conf_threshold=conf_threshold)
    check_amount(0.01, kl_threshold=kl_threshold)
    check_count(2, kl_history_length=kl_history_length)
    sure, calm = jnp.float32(log_odds(conf_threshold)), jnp.float32(kl_threshold)

    def init(size: int, width: int) -> Memory:
        return jnp.zeros((size, width), jnp.float32), jnp.zeros(size, jnp.int32)

    def step(
        view: PolicyView, clock: BlockClock, memory: Memory
    ) -> tuple[jax.Array, Memory]:
        then_WE, steady_W = memory
        # A block's first step has nothing to be compared with.
        is_calm_W = (view.queries.divergence(then_WE) < calm) & (clock.index > 0)
        steady_W = jnp.where(is_calm_W, steady_W + 1, 0)
        ready_W = view.open_W & (view.pred.score > sure)
        ready_W &= steady_W >= kl_history_length
        fallback_W = best_positions(view, 1, view.pred.score)
        tokens_W = fill_positions(
            view, jnp.where(jnp.any(ready_W), ready_W, fallback_W)
        )
        return tokens_W, (view.queries.hidden_WE.astype(jnp.float32), steady_W)

    name = policy_name(
        "klass",
        conf_threshold=conf_threshold,
        kl_threshold=kl_threshold,
        kl_history_length=kl_history_length,
    )
    return per_block(name, step, init)
