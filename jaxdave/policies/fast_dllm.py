"""As many tokens as are sure enough: Fast-dLLM's rules."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxdave.policies.checks import check_amount, check_share
from jaxdave.policies.common import log_odds, rank
from jaxdave.policies.spans import (
    Span,
    Told,
    best,
    either,
    looking,
    reaching,
    rising,
    top,
)
from jaxdave.types import Policy, View


def threshold(threshold: float = 0.9) -> Policy:
    """Every token whose probability is at least `threshold`, and always the best one.

    commit i with c_i >= threshold, c_i the probability of i's token. Source: Fast-dLLM
    (arXiv 2505.22618; `>=`). Raises ValueError outside 0..1.
    """
    check_share(0.9, threshold=threshold)
    bound = jnp.float32(log_odds(threshold))

    choose = lambda view, told: surest(view, told, bound)  # noqa: E731
    return looking(f"threshold({threshold})", choose)


def surest(view: View, told: Told, bound: jax.Array) -> Span:
    """Open positions whose log-odds reach the bound, and the best one in any case."""
    return either(top(view, 1, told.score), reaching(told.score, bound))


def factor(factor: float = 1.0) -> Policy:
    """The longest run of best tokens in which the n-th is as sure as n of them need.

    Sorted by confidence, commit the longest prefix with c_(n) >= 1 - factor / (n + 1)
    for all n > 1; the first always. Source: Fast-dLLM (arXiv 2505.22618, factor
    decoding). Deviation: its code commits all when only the very last one fails.
    Raises ValueError below 0.
    """
    check_amount(1.0, factor=factor)

    def choose(view: View, told: Told) -> Span:
        size = view.open_W.shape[0]
        needed = [log_odds(1 - factor / (n + 1)) for n in range(1, size + 1)]
        needed_W = jnp.asarray(np.array([-np.inf, *needed[1:]], np.float32))

        def run(score_W):
            # Rises: the n-th highest of scores that are higher is higher.
            rank_W = rank(view.open_W, score_W)
            fails_W = view.open_W & (score_W < needed_W[rank_W])
            return jnp.min(jnp.where(fails_W, rank_W, size))

        return best(view.open_W, rising(run, told.score), told.score)

    return looking(f"factor({factor})", choose)
