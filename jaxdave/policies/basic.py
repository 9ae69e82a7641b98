"""A fixed number of tokens a step, by confidence or from the left."""

import jax.numpy as jnp

from jaxdave.core.policy_api import Policy, PolicyView
from jaxdave.policies.common import best_positions
from jaxdave.policies.intervals import (
    Interval,
    IntervalView,
    interval_policy,
    point,
    select_top,
)
from jaxdave.policies.registry import register
from jaxdave.policies.validation import check_count


@register
def static(tokens_per_step: int = 1) -> Policy:
    """The most confident tokens first, a fixed number a step.

    With 1, the paper's oracle path (FreeDave section 3; LLaDA's low-confidence
    remasking). A step stays inside its block. Raises ValueError below 1.
    """
    check_count(1, tokens_per_step=tokens_per_step)

    def choose(view: PolicyView, told: IntervalView) -> Interval:
        return select_top(view, tokens_per_step, told.score)

    return interval_policy(f"static({tokens_per_step})", choose)


@register
def left_to_right(tokens_per_step: int = 1) -> Policy:
    """The leftmost tokens first, a fixed number a step.

    FreeDave's alg_temp=-1 without a threshold. Raises ValueError below 1.
    """
    check_count(1, tokens_per_step=tokens_per_step)

    def choose(view: PolicyView, told: IntervalView) -> Interval:
        return point(
            best_positions(view, tokens_per_step, jnp.zeros_like(view.pred.score))
        )

    return interval_policy(f"left_to_right({tokens_per_step})", choose)
