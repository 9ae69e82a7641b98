"""LLaDA's remasking rules: an even share of a block's masks in every step."""

import jax

from jaxdave.core.policy_api import Policy, PolicyView
from jaxdave.policies.block_rules import (
    BlockClock,
    even_split,
    next_splits,
    scheduled_policy,
)
from jaxdave.policies.common import order_by_counts, policy_name, position_uniforms
from jaxdave.policies.intervals import Interval, IntervalView, point, select_top
from jaxdave.policies.registry import register
from jaxdave.policies.validation import check_count


@register
def low_confidence(steps: int = 128) -> Policy:
    """The most confident tokens first, a block's masks shared evenly among its steps.

    Commit the n_k best by c_i, n_k = m // steps and one more in the first m % steps
    steps, m the masks that the block began with.

    Args:
        steps: Steps per block, at least 1.

    Returns:
        The policy.

    Raises:
        ValueError: `steps` is below 1.

    Source: LLaDA (arXiv 2502.09992, generate.py). Deviations: at least one token a
    step, so more steps than masks are as many as masks. Above temperature 0 the
    confidence is of temperature 1 for LLaDA's models (`DecodeConfig.confidence`).
    """
    check_count(128, steps=steps)

    def choose(view: PolicyView, clock: BlockClock, values: IntervalView) -> Interval:
        return select_top(view, even_split(clock.masks, steps, clock), values.score)

    def commit_order(view: PolicyView, clock: BlockClock) -> jax.Array:
        count_W = next_splits(view, clock.masks, steps, clock)
        return order_by_counts(view.open_W, view.pred.score, count_W)

    name = policy_name("low_confidence", steps=steps)
    return scheduled_policy(name, choose, commit_order)


@register
def random(steps: int = 128) -> Policy:
    """Random positions first, a block's masks shared evenly among its steps.

    Commit the n_k best by c_i ~ U(0, 1), n_k as in `low_confidence`.

    Args:
        steps: Steps per block, at least 1.

    Returns:
        The policy.

    Raises:
        ValueError: `steps` is below 1.

    Source: LLaDA (generate.py, remasking="random"). Deviations as in `low_confidence`.
    """
    check_count(128, steps=steps)

    def choose(view: PolicyView, clock: BlockClock, values: IntervalView) -> Interval:
        # Random numbers carry no numerical error: the same bits in every program.
        uniforms = point(position_uniforms(view))
        return select_top(view, even_split(clock.masks, steps, clock), uniforms)

    policy = scheduled_policy(policy_name("random", steps=steps), choose)
    return policy._replace(draws=True)
