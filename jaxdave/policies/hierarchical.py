"""dInfer's hierarchical decoding."""

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
    i with c_i > threshold; the best of all. Source: dInfer (HierarchyDecoder; `>`).
    Deviations: of tied bests of a run only the leftmost; without its remasking variant.
    Raises ValueError outside 0..1.
    """
    check_share(0.9, threshold=threshold)
    check_share(0.4, low_threshold=low_threshold)
    high, low = (jnp.float32(log_odds(p)) for p in (threshold, low_threshold))

    def choose(view: PolicyView, told: IntervalView) -> Interval:
        score, open_W = told.score, view.open_W
        starts_W = open_W & ~jnp.pad(open_W[:-1], (1, 0))
        run_W = jnp.cumsum(starts_W, dtype=jnp.int32)
        rivals_WW = (run_W[:, None] == run_W[None, :]) & open_W[None, :]
        rivals_WW &= ~jnp.eye(open_W.shape[0], dtype=bool)

        # Heads in any case are those that none can pass at its most and their least.
        def leads(rival_W, mine_W):
            return ~jnp.any(comes_before(rival_W, mine_W) & rivals_WW, axis=1)

        heads = Interval(leads(score.high, score.low), leads(score.low, score.high))
        sure_heads = intersection(heads, above(score, low))
        return union(select_top(view, 1, score), sure_heads, above(score, high))

    name = policy_name("hierarchical", threshold=threshold, low_threshold=low_threshold)
    return interval_policy(name, choose)
