"""Rules that spend a budget of entropy: SDAR's entropy_bounded, and EB-Sampler."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxdave.policies.checks import check_amount, check_choice
from jaxdave.policies.common import best, looking, named, rank
from jaxdave.types import Policy, View

PROXIES = ("entropy", "confidence")


def entropy_bounded(eb_threshold: float = 0.35) -> Policy:
    """The lowest entropies, as many as add up to less than a bound.

    Entropies H ascending, k = the number of j with H_1 + ... + H_j < eb_threshold;
    commit the first max(1, k). Source: SDAR's JetEngine (its default). Deviation:
    entropies are of the unfiltered tempered distribution. Raises ValueError below 0.
    """
    check_amount(0.35, eb_threshold=eb_threshold)
    bound = jnp.float32(eb_threshold)
    return looking(
        named("entropy_bounded", eb_threshold=eb_threshold),
        lambda view: _within(
            view, -view.pred.entropy, lambda sum_W, max_W: sum_W < bound
        ),
    )


def eb_sampler(gamma: float = 0.1, proxy: str = "entropy") -> Policy:
    """As many best tokens as keep their joint error, bounded by entropies, small.

    Sorted by the proxy (lowest entropy or highest confidence first), commit the first
    k, the largest with H_1 + ... + H_k - max(H_1 ... H_k) <= gamma; at least one.
    Source: EB-Sampler (arXiv 2505.24857); gamma 0.1 as in the Info-Gain repository,
    0.001 in d2Cache. Raises ValueError for a parameter out of range.
    """
    check_amount(0.1, gamma=gamma)
    check_choice(PROXIES, proxy=proxy)
    bound = jnp.float32(gamma)

    def choose(view: View) -> jax.Array:
        score_W = -view.pred.entropy if proxy == "entropy" else view.pred.score
        return _within(view, score_W, lambda sum_W, max_W: sum_W - max_W <= bound)

    return looking(named("eb_sampler", gamma=gamma, proxy=proxy), choose)


def _within(
    view: View, score_W: jax.Array, holds: Callable[[jax.Array, jax.Array], jax.Array]
) -> jax.Array:
    """The longest run of best positions whose entropies' sum and maximum hold.

    The running sums are a fixed tree of additions, the same in any batch.
    """
    size = score_W.shape[0]
    rank_W = rank(view.open_W, score_W)
    slot_W = jnp.where(view.open_W, rank_W, size)
    sorted_W = jnp.zeros(size).at[slot_W].set(view.pred.entropy, mode="drop")
    sum_W = jax.lax.associative_scan(jnp.add, sorted_W)
    max_W = jax.lax.associative_scan(jnp.maximum, sorted_W)
    fails_W = ~holds(sum_W, max_W)
    first = jnp.min(jnp.where(fails_W, jnp.arange(size, dtype=jnp.int32), size))
    return best(view, first, score_W)
