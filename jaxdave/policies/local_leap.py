"""LocalLeap."""

import jax.numpy as jnp

from jaxdave.core.policy_api import Policy, PolicyView
from jaxdave.policies.common import log_odds, policy_name
from jaxdave.policies.intervals import (
    Interval,
    IntervalView,
    at_least,
    increasing,
    intersection,
    interval_policy,
    point,
    select_top,
    union,
)
from jaxdave.policies.registry import register
from jaxdave.policies.validation import check_count, check_share


@register
def local_leap(
    threshold: float = 0.9, relaxed_threshold: float = 0.75, radius: int = 4
) -> Policy:
    """Every sure token, and near it those that are nearly sure; always the best one.

    Anchors: c_i >= threshold; commit them, and i within `radius` of one if c_i >=
    relaxed_threshold. Source: LocalLeap (arXiv 2510.07081; defaults of its script).
    Raises ValueError for a parameter out of range.
    """
    check_share(0.9, threshold=threshold)
    check_share(0.75, relaxed_threshold=relaxed_threshold)
    check_count(4, radius=radius)
    high, low = (jnp.float32(log_odds(p)) for p in (threshold, relaxed_threshold))

    def choose(view: PolicyView, told: IntervalView) -> Interval:
        score = told.score
        anchors = intersection(point(view.open_W), at_least(score, high))
        at_W = jnp.arange(view.open_W.shape[0])
        near_WW = jnp.abs(at_W[:, None] - at_W[None, :]) <= radius
        # More anchors have no fewer neighbours.
        beside = lambda anchor_W: jnp.any(near_WW & anchor_W[None, :], axis=1)  # noqa: E731
        near = intersection(increasing(beside, anchors), at_least(score, low))
        return union(select_top(view, 1, score), anchors, near)

    name = policy_name(
        "local_leap",
        threshold=threshold,
        relaxed_threshold=relaxed_threshold,
        radius=radius,
    )
    return interval_policy(name, choose)
