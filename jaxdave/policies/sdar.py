"""SDAR's rules: a block's length shared evenly among its denoising steps.

n_k = length // steps, and one more in the first length % steps steps, whatever the
block's masks are. `steps` is per block. SDAR's `entropy_bounded` is in
`entropy_budget.py`.

Source: SDAR (arXiv 2510.06303, generate.py; its command line's defaults). Deviations:
at least one token a step, never a position that is not masked, and the last step takes
all.
"""

import jax
import jax.numpy as jnp

from jaxdave.core.policy_api import Policy, PolicyView
from jaxdave.policies.block_rules import (
    BlockClock,
    even_split,
    next_splits,
    scheduled_policy,
)
from jaxdave.policies.common import count, log_odds, order_by_counts, policy_name
from jaxdave.policies.intervals import (
    Interval,
    IntervalView,
    above,
    point,
    select_top,
    union,
)
from jaxdave.policies.registry import register
from jaxdave.policies.validation import check_count, check_share


@register
def sequential(steps: int = 4) -> Policy:
    """The n_k places from the leftmost mask on.

    Schedule, source and deviations: see this module.

    Args:
        steps: Steps per block, at least 1.

    Returns:
        The policy.

    Raises:
        ValueError: `steps` is below 1.
    """
    check_count(4, steps=steps)

    def choose(view: PolicyView, clock: BlockClock, values: IntervalView) -> Interval:
        size = view.open_W.shape[0]
        index_W = jnp.arange(size, dtype=jnp.int32)
        leftmost = jnp.min(jnp.where(view.open_W, index_W, size))
        num_places = jnp.maximum(even_split(size, steps, clock), 1)
        # Places that are not masked count, too.
        return point(view.open_W & (index_W < leftmost + num_places))

    return scheduled_policy(policy_name("sequential", steps=steps), choose)


@register
def low_confidence_static(steps: int = 4) -> Policy:
    """The n_k most confident tokens.

    Schedule, source and deviations: see this module.

    Args:
        steps: Steps per block, at least 1.

    Returns:
        The policy.

    Raises:
        ValueError: `steps` is below 1.
    """
    check_count(4, steps=steps)

    def choose(view: PolicyView, clock: BlockClock, values: IntervalView) -> Interval:
        # A share of the block's length, not of its masks, as in SDAR's generate.py: a
        # first block that holds part of the prompt is done in fewer steps.
        num_tokens = even_split(view.open_W.shape[0], steps, clock)
        return select_top(view, num_tokens, values.score)

    def commit_order(view: PolicyView, clock: BlockClock) -> jax.Array:
        count_W = next_splits(view, view.open_W.shape[0], steps, clock)
        return order_by_counts(view.open_W, view.pred.score, count_W)

    name = policy_name("low_confidence_static", steps=steps)
    return scheduled_policy(name, choose, commit_order)


@register
def low_confidence_dynamic(steps: int = 4, threshold: float = 0.85) -> Policy:
    """Every token surer than `threshold`, or the n_k best if those are fewer.

    H = {i: c_i > threshold}; commit H if |H| >= n_k, otherwise the n_k best. Schedule,
    source and deviations: see this module; LLaDA2 has the same rule.

    Args:
        steps: Steps per block, at least 1.
        threshold: Probability above which a token is committed, in 0..1.

    Returns:
        The policy.

    Raises:
        ValueError: A parameter is out of range.
    """
    check_count(4, steps=steps)
    check_share(0.85, threshold=threshold)
    bound = jnp.float32(log_odds(threshold))

    def choose(view: PolicyView, clock: BlockClock, values: IntervalView) -> Interval:
        num_tokens = even_split(view.open_W.shape[0], steps, clock)
        # Both sets are the best tokens up to some rank, so the larger is their union.
        return union(
            above(values.score, bound), select_top(view, num_tokens, values.score)
        )

    def commit_order(view: PolicyView, clock: BlockClock) -> jax.Array:
        count_W = next_splits(view, view.open_W.shape[0], steps, clock)
        # All that are sure are committed in the next step, and none is left for others.
        sure = count(view.open_W & (view.pred.score > bound))
        count_W = count_W.at[0].max(sure)
        return order_by_counts(view.open_W, view.pred.score, count_W)

    name = policy_name("low_confidence_dynamic", steps=steps, threshold=threshold)
    return scheduled_policy(name, choose, commit_order)
