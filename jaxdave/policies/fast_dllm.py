"""As many tokens as are sure enough: Fast-dLLM's rules."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxdave.policies.checks import check_amount, check_share
from jaxdave.policies.common import apart, best, far_from, log_odds, looking, rank
from jaxdave.types import Policy, View


def threshold(threshold: float = 0.9) -> Policy:
    """Every token whose probability is at least `threshold`, and always the best one.

    commit i with c_i >= threshold, c_i the probability of i's token. Source: Fast-dLLM
    (arXiv 2505.22618; `>=`). Raises ValueError outside 0..1.
    """
    check_share(0.9, threshold=threshold)
    bound = jnp.float32(log_odds(threshold))

    def sure(view: View, error: jax.Array) -> jax.Array:
        is_any = jnp.any(view.open_W & (view.pred.score >= bound))
        one = best(view, 1, view.pred.score)
        return far_from(view, bound, error) & (is_any | apart(view, one, error))

    return looking(f"threshold({threshold})", lambda view: surest(view, bound), sure)


def surest(view: View, bound: jax.Array) -> jax.Array:
    """Open positions whose log-odds reach the bound, and the best one in any case."""
    sure_W = view.open_W & (view.pred.score >= bound)
    return best(view, 1, view.pred.score) | sure_W


def factor(factor: float = 1.0) -> Policy:
    """The longest run of best tokens in which the n-th is as sure as n of them need.

    Sorted by confidence, commit the longest prefix with c_(n) >= 1 - factor / (n + 1)
    for all n > 1; the first always. Source: Fast-dLLM (arXiv 2505.22618, factor
    decoding). Deviation: its code commits all when only the very last one fails.
    Raises ValueError below 0.
    """
    check_amount(1.0, factor=factor)

    def choose(view: View) -> jax.Array:
        size = view.open_W.shape[0]
        needed = [log_odds(1 - factor / (n + 1)) for n in range(1, size + 1)]
        needed_W = jnp.asarray(np.array([-np.inf, *needed[1:]], np.float32))
        rank_W = rank(view.open_W, view.pred.score)
        fails_W = view.open_W & (view.pred.score < needed_W[rank_W])
        return best(view, jnp.min(jnp.where(fails_W, rank_W, size)), view.pred.score)

    return looking(f"factor({factor})", choose)
