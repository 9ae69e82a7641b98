"""Fast-dLLM's rules: as many tokens as are confident enough."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxdave.core.policy_api import Policy, PolicyView
from jaxdave.policies.common import log_odds, rank
from jaxdave.policies.intervals import (
    Interval,
    IntervalView,
    at_least,
    first_choice_then_best,
    increasing,
    interval_policy,
    select_best,
    select_top,
    union,
)
from jaxdave.policies.registry import register
from jaxdave.policies.validation import check_amount, check_share


@register
def threshold(threshold: float = 0.9) -> Policy:
    """Every token whose probability is at least `threshold`, and always the best one.

    Commit i with c_i >= threshold, c_i the probability of i's token.

    Args:
        threshold: The lowest probability to commit at, in 0..1.

    Returns:
        The policy.

    Raises:
        ValueError: `threshold` is outside 0..1.

    Source: Fast-dLLM (arXiv 2505.22618; `>=`). Above temperature 0 confidences are of
    temperature 1 for LLaDA's models, tempered for others (`DecodeConfig.confidence`).

    Example:
        >>> threshold(0.8).name
        'threshold(0.8)'
    """
    check_share(0.9, threshold=threshold)
    bound = jnp.float32(log_odds(threshold))

    def choose(view: PolicyView, values: IntervalView) -> Interval:
        return above_bound_or_best(view, values, bound)

    # Below the threshold the best one is committed in every step.
    policy = interval_policy(f"threshold({threshold})", choose)
    return policy._replace(commit_order=first_choice_then_best(choose))


def above_bound_or_best(
    view: PolicyView, values: IntervalView, bound: jax.Array
) -> Interval:
    """The positions whose log-odds reach a bound, and the best open one in any case.

    Args:
        view: The policy's view.
        values: The statistics to decide by.
        bound: Lowest log-odds, float32 scalar.

    Returns:
        The choice, an interval of bool [W]; only open positions of it count.
    """
    return union(select_top(view, 1, values.score), at_least(values.score, bound))


@register
def factor(factor: float = 1.0) -> Policy:
    """The longest run of best tokens of which the n-th is sure enough for n tokens.

    Sorted by confidence, commit the longest prefix with c_(n) >= 1 - factor / (n + 1)
    for all n > 1; the first always.

    Args:
        factor: The bound's slope, 0 or more; larger commits more.

    Returns:
        The policy.

    Raises:
        ValueError: `factor` is below 0 or not finite.

    Source: Fast-dLLM (arXiv 2505.22618, factor decoding). Deviation: its code commits
    all when only the very last one fails.
    """
    check_amount(1.0, factor=factor)

    def choose(view: PolicyView, values: IntervalView) -> Interval:
        size = view.open_W.shape[0]
        # The paper's (n + 1) (1 - c_(n)) < factor, solved for c_(n), as log-odds. The
        # first token is committed whatever its confidence.
        bounds = [log_odds(1 - factor / (n + 1)) for n in range(1, size + 1)]
        bound_W = jnp.asarray(np.array([-np.inf, *bounds[1:]], np.float32))

        def prefix_length(score_W: jax.Array) -> jax.Array:
            # Never falls: raising scores never lowers the n-th highest one.
            rank_W = rank(view.open_W, score_W)
            fails_W = view.open_W & (score_W < bound_W[rank_W])
            return jnp.min(jnp.where(fails_W, rank_W, size))

        length = increasing(prefix_length, values.score)
        return select_best(view.open_W, length, values.score)

    return interval_policy(f"factor({factor})", choose)
