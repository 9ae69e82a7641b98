"""Deferred Commitment Decoding: confident tokens of a window that slides."""

import jax.numpy as jnp

from jaxdave.core.policy_api import Policy, PolicyView
from jaxdave.policies.common import log_odds, policy_name, rank
from jaxdave.policies.fast_dllm import above_bound_or_best
from jaxdave.policies.intervals import (
    Interval,
    IntervalView,
    intersection,
    interval_policy,
    point,
)
from jaxdave.policies.registry import register
from jaxdave.policies.validation import block_counts, check_count, check_share


@register
def deferred(window: int = 32, threshold: float = 0.9, max_window: int = 128) -> Policy:
    """The confident tokens of a window that slides on as its masks are filled.

    The window runs from the leftmost mask over as many masks as `window`, but over no
    more positions than `max_window`; commit i in it with c_i >= threshold, at least the
    best one.

    Args:
        window: Masks in the window, at least 1.
        threshold: The lowest probability to commit at, in 0..1.
        max_window: Positions in the window at the utmost, at least 1.

    Returns:
        The policy.

    Raises:
        ValueError: A parameter is out of range.

    Source: Deferred Commitment Decoding (shuyingte/DCD; max_window is unbounded there
    by default). Deviations: it slides inside a block, so one single block is its own
    setting; an end token does not fill what is right of it, as decoding ends by itself
    when all before it is known.
    """
    check_count(32, window=window)
    check_count(128, max_window=max_window)
    check_share(0.9, threshold=threshold)
    bound = jnp.float32(log_odds(threshold))

    def choose(view: PolicyView, values: IntervalView) -> Interval:
        size = view.open_W.shape[0]
        index_W = jnp.arange(size, dtype=jnp.int32)
        leftmost = jnp.min(jnp.where(view.open_W, index_W, size))
        # With equal scores a rank is the number of open positions to the left.
        inside_W = rank(view.open_W, jnp.zeros_like(view.pred.score)) < window
        inside_W &= view.open_W & (index_W < leftmost + max_window)
        # The threshold rule, seen through the window:
        # its fallback, the best one, lies inside.
        window_view = view._replace(open_W=inside_W)
        return intersection(
            above_bound_or_best(window_view, values, bound), point(inside_W)
        )

    name = policy_name(
        "deferred", window=window, threshold=threshold, max_window=max_window
    )
    counts = block_counts(window=(window, 32), max_window=(max_window, 128))
    return interval_policy(name, choose)._replace(counts=counts)
