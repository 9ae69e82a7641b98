"""SDAR's rules: a block's length shared evenly among its denoising steps.

n_k = length // steps, and one more in the first length % steps steps, whatever the
block's masks are (S3). steps: per block. Source: SDAR (arXiv 2510.06303, generate.py;
its command line's defaults). Deviations: at least one token a step, never a position
that is not masked, and the last step takes all. `entropy_bounded`: `bounded.py`.
"""

import jax.numpy as jnp

from jaxdave.core.policy_api import Policy, PolicyView
from jaxdave.policies.block_rules import BlockClock, even_split, scheduled_policy
from jaxdave.policies.common import log_odds, policy_name
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

    Schedule, source and deviations: see this module. Raises ValueError below 1.
    """
    check_count(4, steps=steps)

    def choose(view: PolicyView, clock: BlockClock, told: IntervalView) -> Interval:
        size = view.open_W.shape[0]
        at_W = jnp.arange(size, dtype=jnp.int32)
        first = jnp.min(jnp.where(view.open_W, at_W, size))
        some = jnp.maximum(even_split(size, steps, clock), 1)
        return point(view.open_W & (at_W < first + some))

    return scheduled_policy(policy_name("sequential", steps=steps), choose)


@register
def low_confidence_static(steps: int = 4) -> Policy:
    """The n_k most confident tokens.

    Schedule, source and deviations: see this module. Raises ValueError below 1.
    """
    check_count(4, steps=steps)

    def choose(view: PolicyView, clock: BlockClock, told: IntervalView) -> Interval:
        some = even_split(view.open_W.shape[0], steps, clock)
        return select_top(view, some, told.score)

    return scheduled_policy(policy_name("low_confidence_static", steps=steps), choose)


@register
def low_confidence_dynamic(steps: int = 4, threshold: float = 0.85) -> Policy:
    """Every token surer than `threshold`, or the n_k best if those are fewer.

    H = {i: c_i > threshold}; commit H if |H| >= n_k, otherwise the n_k best. Schedule,
    source and deviations: see this module; LLaDA2 has the same rule. Raises ValueError
    for a parameter out of range.
    """
    check_count(4, steps=steps)
    check_share(0.85, threshold=threshold)
    bound = jnp.float32(log_odds(threshold))

    def choose(view: PolicyView, clock: BlockClock, told: IntervalView) -> Interval:
        some = even_split(view.open_W.shape[0], steps, clock)
        # H is the run of best tokens of its length, so the longer of the two is both.
        return union(above(told.score, bound), select_top(view, some, told.score))

    name = policy_name("low_confidence_dynamic", steps=steps, threshold=threshold)
    return scheduled_policy(name, choose)
