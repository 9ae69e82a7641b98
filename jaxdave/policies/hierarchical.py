"""dInfer's hierarchical decoding: tokens far apart from each other first."""

import jax
import jax.numpy as jnp

from jaxdave.core.policy_api import Policy, PolicyView
from jaxdave.policies.common import comes_before, log_odds, policy_name
from jaxdave.policies.intervals import (
    Interval,
    IntervalView,
    above,
    intersection,
    interval_policy,
    select_top,
    union,
)
from jaxdave.policies.registry import register
from jaxdave.policies.validation import check_share


@register
def hierarchical(threshold: float = 0.9, low_threshold: float = 0.4) -> Policy:
    """The best token of every run of masks, if it is fairly sure; far ones are apart.

    Of each maximal run of neighbouring masks its best i if c_i > low_threshold; every
    i with c_i > threshold; the best of all.

    Args:
        threshold: Probability above which every token is committed, in 0..1.
        low_threshold: Probability above which the best of a run is, in 0..1.

    Returns:
        The policy.

    Raises:
        ValueError: A parameter is outside 0..1.

    Source: dInfer (HierarchyDecoder; `>`). Deviations: of tied bests of a run only the
    leftmost; without its remasking variant.
    """
    check_share(0.9, threshold=threshold)
    check_share(0.4, low_threshold=low_threshold)
    high, low = (jnp.float32(log_odds(p)) for p in (threshold, low_threshold))

    def choose(view: PolicyView, values: IntervalView) -> Interval:
        score, open_W = values.score, view.open_W
        # Number the runs of neighbouring open positions from the left.
        starts_W = open_W & ~jnp.pad(open_W[:-1], (1, 0))
        run_W = jnp.cumsum(starts_W, dtype=jnp.int32)
        rivals_WW = (run_W[:, None] == run_W[None, :]) & open_W[None, :]
        rivals_WW &= ~jnp.eye(open_W.shape[0], dtype=bool)

        def leads(rival_W: jax.Array, own_W: jax.Array) -> jax.Array:
            return ~jnp.any(comes_before(rival_W, own_W) & rivals_WW, axis=1)

        # A position leads its run for certain if at its lower end no rival passes it
        # at the rival's upper end, and perhaps if the other way round none does.
        heads = Interval(leads(score.high, score.low), leads(score.low, score.high))
        sure_heads = intersection(heads, above(score, low))
        return union(select_top(view, 1, score), sure_heads, above(score, high))

    name = policy_name("hierarchical", threshold=threshold, low_threshold=low_threshold)
    return interval_policy(name, choose)
