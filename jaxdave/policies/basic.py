"""Policies that commit a fixed number of tokens a step, by confidence or from the left.

They have no schedule and no memory, and are the simplest examples of a policy.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxdave.core.policy_api import Memory, Policy, PolicyView
from jaxdave.policies.common import best_positions, rank
from jaxdave.policies.intervals import (
    Interval,
    IntervalView,
    interval_policy,
    point,
    select_top,
)
from jaxdave.policies.registry import register
from jaxdave.policies.validation import block_counts, check_count


@register
def static(tokens_per_step: int = 1) -> Policy:
    """The most confident tokens first, a fixed number a step.

    With 1 it is the oracle path of the FreeDave paper, which is LLaDA's low-confidence
    remasking with as many steps as masks. A step stays inside its block.

    Args:
        tokens_per_step: Tokens that each step commits, at least 1.

    Returns:
        The policy.

    Raises:
        ValueError: `tokens_per_step` is below 1.

    Source: FreeDave (arXiv 2510.00294, section 3).

    Example:
        >>> static(2).name
        'static(2)'
    """
    check_count(1, tokens_per_step=tokens_per_step)

    def choose(view: PolicyView, values: IntervalView) -> Interval:
        return select_top(view, tokens_per_step, values.score)

    def commit_order(view: PolicyView, memory: Memory) -> jax.Array:
        return rank(view.open_W, view.pred.score) // tokens_per_step

    policy = interval_policy(f"static({tokens_per_step})", choose)
    return _commits(policy, tokens_per_step, commit_order)


@register
def left_to_right(tokens_per_step: int = 1) -> Policy:
    """The leftmost tokens first, a fixed number a step.

    Args:
        tokens_per_step: Tokens that each step commits, at least 1.

    Returns:
        The policy.

    Raises:
        ValueError: `tokens_per_step` is below 1.

    Source: FreeDave (arXiv 2510.00294), alg_temp=-1 without a threshold.
    """
    check_count(1, tokens_per_step=tokens_per_step)

    def choose(view: PolicyView, values: IntervalView) -> Interval:
        # All scores are equal, so ties decide: from the left.
        return point(
            best_positions(view, tokens_per_step, jnp.zeros_like(view.pred.score))
        )

    def commit_order(view: PolicyView, memory: Memory) -> jax.Array:
        return _places(view) // tokens_per_step

    policy = interval_policy(f"left_to_right({tokens_per_step})", choose)
    return _commits(policy, tokens_per_step, commit_order)


def _places(view: PolicyView) -> jax.Array:
    """The number of open positions to the left of each, int32 [W]."""
    return rank(view.open_W, jnp.zeros_like(view.pred.score))


def _commits(
    policy: Policy,
    tokens_per_step: int,
    commit_order: Callable[[PolicyView, Memory], jax.Array],
) -> Policy:
    """The policy, which says how many tokens its steps commit, and in which order."""
    return policy._replace(
        tokens_per_step=tokens_per_step,
        commit_order=commit_order,
        counts=block_counts(tokens_per_step=(tokens_per_step, 1)),
    )
