"""As many tokens as are sure enough: Fast-dLLM's rules."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxdave.core.policy_api import Policy, PolicyView
from jaxdave.policies.common import log_odds, rank
from jaxdave.policies.intervals import (
    Interval,
    IntervalView,
    at_least,
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

    commit i with c_i >= threshold, c_i the probability of i's token. Source: Fast-dLLM
    (arXiv 2505.22618; `>=`). Raises ValueError outside 0..1.
    """
    check_share(0.9, threshold=threshold)
    bound = jnp.float32(log_odds(threshold))

    choose = lambda view, told: above_bound_or_best(view, told, bound)  # noqa: E731
    return interval_policy(f"threshold({threshold})", choose)


def above_bound_or_best(
    view: PolicyView, told: IntervalView, bound: jax.Array
) -> Interval:
    """Open positions whose log-odds reach the bound, and the best one in any case."""
    return union(select_top(view, 1, told.score), at_least(told.score, bound))


@register
def factor(factor: float = 1.0) -> Policy:
    """The longest run of best tokens in which the n-th is as sure as n of them need.

    Sorted by confidence, commit the longest prefix with c_(n) >= 1 - factor / (n + 1)
    for all n > 1; the first always. Source: Fast-dLLM (arXiv 2505.22618, factor
    decoding). Deviation: its code commits all when only the very last one fails.
    Raises ValueError below 0.
    """
    check_amount(1.0, factor=factor)

    def choose(view: PolicyView, told: IntervalView) -> Interval:
        size = view.open_W.shape[0]
        needed = [log_odds(1 - factor / (n + 1)) for n in range(1, size + 1)]
        needed_W = jnp.asarray(np.array([-np.inf, *needed[1:]], np.float32))

        def run(score_W):
            # Rises: the n-th highest of scores that are higher is higher.
            rank_W = rank(view.open_W, score_W)
            fails_W = view.open_W & (score_W < needed_W[rank_W])
            return jnp.min(jnp.where(fails_W, rank_W, size))

        return select_best(view.open_W, increasing(run, told.score), told.score)

    return interval_policy(f"factor({factor})", choose)
