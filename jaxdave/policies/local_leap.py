"""LocalLeap: a relaxed threshold in the neighbourhood of confident tokens."""

import jax
import jax.numpy as jnp

from jaxdave.core.policy_api import Policy, PolicyView
from jaxdave.policies.common import log_odds, policy_name
from jaxdave.policies.intervals import (
    Interval,
    IntervalView,
    at_least,
    first_choice_then_best,
    increasing,
    intersection,
    interval_policy,
    point,
    select_top,
    union,
)
from jaxdave.policies.registry import register
from jaxdave.policies.validation import block_counts, check_count, check_share


@register
def local_leap(
    threshold: float = 0.9, relaxed_threshold: float = 0.75, radius: int = 4
) -> Policy:
    """Every sure token, and near it those that are nearly sure; always the best one.

    Anchors: c_i >= threshold; commit them, and i within `radius` of one if c_i >=
    relaxed_threshold.

    Args:
        threshold: The lowest probability of an anchor, in 0..1.
        relaxed_threshold: The lowest probability to commit near an anchor, in 0..1.
        radius: How many positions away from an anchor is near, at least 1.

    Returns:
        The policy.

    Raises:
        ValueError: A parameter is out of range.

    Source: LocalLeap (arXiv 2510.07081; defaults of its script).
    """
    check_share(0.9, threshold=threshold)
    check_share(0.75, relaxed_threshold=relaxed_threshold)
    check_count(4, radius=radius)
    high, low = (jnp.float32(log_odds(p)) for p in (threshold, relaxed_threshold))

    def choose(view: PolicyView, values: IntervalView) -> Interval:
        score = values.score
        # Open positions only: tokens that were
        # committed in earlier steps anchor nothing.
        anchors = intersection(point(view.open_W), at_least(score, high))
        index_W = jnp.arange(view.open_W.shape[0])
        near_WW = jnp.abs(index_W[:, None] - index_W[None, :]) <= radius

        # Never falls: more anchors have no fewer neighbours.
        def neighbours(anchor_W: jax.Array) -> jax.Array:
            return jnp.any(near_WW & anchor_W[None, :], axis=1)

        near = intersection(increasing(neighbours, anchors), at_least(score, low))
        return union(select_top(view, 1, score), anchors, near)

    name = policy_name(
        "local_leap",
        threshold=threshold,
        relaxed_threshold=relaxed_threshold,
        radius=radius,
    )
    counts = block_counts(radius=(radius, 4))
    # All anchors are committed in the first step; without one, the best in every step.
    return interval_policy(name, choose)._replace(
        commit_order=first_choice_then_best(choose), counts=counts
    )
