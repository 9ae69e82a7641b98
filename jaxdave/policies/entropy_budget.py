"""Rules that spend a budget of entropy: SDAR's entropy_bounded, and EB-Sampler.

Positions are put in order, and the longest prefix is committed whose entropies are
within the budget.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxdave.core.policy_api import Policy, PolicyView
from jaxdave.policies.common import count, policy_name, rank
from jaxdave.policies.dream import negative_entropy
from jaxdave.policies.intervals import (
    Interval,
    IntervalView,
    increasing,
    interval_policy,
    ranks,
    select_best,
)
from jaxdave.policies.registry import register
from jaxdave.policies.validation import check_amount, check_choice


class OrderedEntropies(NamedTuple):
    """The entropies of the open positions, sorted by some order.

    Attributes:
        order: The scores that positions are ordered by, highest first, an interval of
            float32 [W], by position.
        entropy: The entropies in that order, an interval of float32 [W]; 0 after the
            last open position.
        known_W: The ranks up to which it is known which positions have them, bool [W].
    """

    order: Interval
    entropy: Interval
    known_W: jax.Array


BudgetFn = Callable[[jax.Array, jax.Array], jax.Array]
"""(sum, maximum of the first entropies) -> True where so many are within the budget. It
must never turn True as the sum rises, nor turn False as the maximum does."""


@register
def entropy_bounded(eb_threshold: float = 0.35) -> Policy:
    """The lowest entropies, as many as add up to less than a bound.

    Entropies H ascending, k = the number of j with H_1 + ... + H_j < eb_threshold;
    commit the first max(1, k).

    Args:
        eb_threshold: The bound in nats, 0 or more.

    Returns:
        The policy.

    Raises:
        ValueError: `eb_threshold` is below 0 or not finite.

    Source: SDAR's JetEngine (its default). Deviation: entropies are of the unfiltered
    tempered distribution.
    """
    check_amount(0.35, eb_threshold=eb_threshold)
    bound = jnp.float32(eb_threshold)

    def choose(view: PolicyView, values: IntervalView) -> Interval:
        # Entropies are not negative, so that a sum that has reached the bound stays
        # there: the number of sums below it is the length of the longest prefix.
        ordered = _order_by_entropy(view, values)
        return _within_budget(view, ordered, lambda sum_W, max_W: sum_W < bound)

    return interval_policy(
        policy_name("entropy_bounded", eb_threshold=eb_threshold), choose
    )


@register
def eb_sampler(gamma: float = 0.1, proxy: str = "entropy") -> Policy:
    """As many best tokens as keep their joint error, bounded by entropies, small.

    Sorted by the proxy (lowest entropy or highest confidence first), commit the first
    k, the largest with H_1 + ... + H_k - max(H_1 ... H_k) <= gamma; at least one.

    Args:
        gamma: The bound in nats, 0 or more.
        proxy: What positions are ordered by: "entropy" or "confidence".

    Returns:
        The policy.

    Raises:
        ValueError: A parameter is out of range.

    Source: EB-Sampler (arXiv 2505.24857); gamma 0.1 as in the Info-Gain repository,
    0.001 in d2Cache.
    """
    check_amount(0.1, gamma=gamma)
    check_choice(tuple(PROXIES), proxy=proxy)
    bound = jnp.float32(gamma)

    def choose(view: PolicyView, values: IntervalView) -> Interval:
        # The sum of k entropies less their maximum bounds the error of drawing the k
        # tokens independently of each other (EB-Sampler).
        ordered = PROXIES[proxy](view, values)
        return _within_budget(
            view, ordered, lambda sum_W, max_W: sum_W - max_W <= bound
        )

    return interval_policy(policy_name("eb_sampler", gamma=gamma, proxy=proxy), choose)


def _order_by_entropy(view: PolicyView, values: IntervalView) -> OrderedEntropies:
    """The lowest entropy first."""

    # The k-th smallest of some numbers never falls as they rise, whichever position it
    # is at, so the sorted entropies are known at all ranks.
    def sort(entropy_W: jax.Array) -> jax.Array:
        return _put_at_ranks(view, rank(view.open_W, -entropy_W), entropy_W)

    known_W = jnp.ones_like(view.open_W)
    return OrderedEntropies(
        negative_entropy(values), increasing(sort, values.entropy), known_W
    )


def _order_by_score(view: PolicyView, values: IntervalView) -> OrderedEntropies:
    """The most confident first; known up to the first two that may change places."""
    rank = ranks(view.open_W, values.score)
    size = view.open_W.shape[0]
    # Positions whose rank is not known are left out.
    rank_W = jnp.where(rank.low == rank.high, rank.low, size)

    def sort(entropy_W: jax.Array) -> jax.Array:
        return _put_at_ranks(view, rank_W, entropy_W)

    is_empty_W = jnp.arange(size) >= count(view.open_W)
    is_known_W = _put_at_ranks(view, rank_W, jnp.ones_like(view.open_W)) | is_empty_W
    known_W = jnp.cumsum(~is_known_W, dtype=jnp.int32) == 0
    return OrderedEntropies(values.score, increasing(sort, values.entropy), known_W)


PROXIES = {"entropy": _order_by_entropy, "confidence": _order_by_score}
"""Orders of `eb_sampler` by name."""


def _put_at_ranks(view: PolicyView, rank_W: jax.Array, value_W: jax.Array) -> jax.Array:
    """The values of open positions, each at the index of its rank; 0 elsewhere."""
    # Indices out of range are dropped.
    rank_W = jnp.where(view.open_W, rank_W, value_W.shape[0])
    return jnp.zeros_like(value_W).at[rank_W].set(value_W, mode="drop")


def _within_budget(
    view: PolicyView, ordered: OrderedEntropies, is_within: BudgetFn
) -> Interval:
    """The longest prefix whose entropies' sum and maximum are within the budget.

    The running sums are a fixed tree of additions, the same in any batch, and never
    fall as their terms rise. The first position is committed in any case.
    """
    sums = increasing(
        lambda h_W: jax.lax.associative_scan(jnp.add, h_W), ordered.entropy
    )
    maxima = increasing(
        lambda h_W: jax.lax.associative_scan(jnp.maximum, h_W), ordered.entropy
    )
    # A budget is hardest to keep at the upper end of the sum and the lower end of the
    # maximum; where the order is not known, both answers are possible.
    within = Interval(
        is_within(sums.high, maxima.low) & ordered.known_W,
        is_within(sums.low, maxima.high) | ~ordered.known_W,
    )
    rank_W = jnp.arange(view.open_W.shape[0], dtype=jnp.int32)

    def prefix_length(within_W: jax.Array) -> jax.Array:
        is_end_W = (rank_W > 0) & ~within_W
        return jnp.min(jnp.where(is_end_W, rank_W, rank_W.shape[0]))

    return select_best(view.open_W, increasing(prefix_length, within), ordered.order)
