"""Rules that spend a budget of entropy: SDAR's entropy_bounded, and EB-Sampler."""

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
    """Open positions by an order: what orders them, their entropies in that order
    (0 after the last), and up to where it is known which they are."""

    order: Interval
    entropy: Interval
    known_W: jax.Array


BudgetFn = Callable[[jax.Array, jax.Array], jax.Array]
"""(sum, maximum of the first entropies) -> whether so many may be committed; it must
not begin to hold as the sum rises, nor cease to as the maximum does."""


@register
def entropy_bounded(eb_threshold: float = 0.35) -> Policy:
    """The lowest entropies, as many as add up to less than a bound.

    Entropies H ascending, k = the number of j with H_1 + ... + H_j < eb_threshold;
    commit the first max(1, k). Source: SDAR's JetEngine (its default). Deviation:
    entropies are of the unfiltered tempered distribution. Raises ValueError below 0.
    """
    check_amount(0.35, eb_threshold=eb_threshold)
    bound = jnp.float32(eb_threshold)

    def choose(view: PolicyView, told: IntervalView) -> Interval:
        line = _order_by_entropy(view, told)
        return _within_budget(view, line, lambda sum_W, max_W: sum_W < bound)

    return interval_policy(
        policy_name("entropy_bounded", eb_threshold=eb_threshold), choose
    )


@register
def eb_sampler(gamma: float = 0.1, proxy: str = "entropy") -> Policy:
    """As many best tokens as keep their joint error, bounded by entropies, small.

    Sorted by the proxy (lowest entropy or highest confidence first), commit the first
    k, the largest with H_1 + ... + H_k - max(H_1 ... H_k) <= gamma; at least one.
    Source: EB-Sampler (arXiv 2505.24857); gamma 0.1 as in the Info-Gain repository,
    0.001 in d2Cache. Raises ValueError for a parameter out of range.
    """
    check_amount(0.1, gamma=gamma)
    check_choice(tuple(PROXIES), proxy=proxy)
    bound = jnp.float32(gamma)

    def choose(view: PolicyView, told: IntervalView) -> Interval:
        line = PROXIES[proxy](view, told)
        return _within_budget(view, line, lambda sum_W, max_W: sum_W - max_W <= bound)

    return interval_policy(policy_name("eb_sampler", gamma=gamma, proxy=proxy), choose)


def _order_by_entropy(view: PolicyView, told: IntervalView) -> OrderedEntropies:
    """The lowest entropy first."""
    # Sorted numbers rise with the numbers, whoever is where.
    put = lambda value_W: _in_order(view, rank(view.open_W, -value_W), value_W)  # noqa: E731
    known_W = jnp.ones_like(view.open_W)
    return OrderedEntropies(
        negative_entropy(told), increasing(put, told.entropy), known_W
    )


def _order_by_score(view: PolicyView, told: IntervalView) -> OrderedEntropies:
    """The most confident first; known up to the first two that may change places."""
    rank = ranks(view.open_W, told.score)
    size = view.open_W.shape[0]
    slot_W = jnp.where(rank.low == rank.high, rank.low, size)
    put = lambda value_W: _in_order(view, slot_W, value_W)  # noqa: E731
    is_empty_W = jnp.arange(size) >= count(view.open_W)
    is_known_W = _in_order(view, slot_W, jnp.ones_like(view.open_W)) | is_empty_W
    known_W = jnp.cumsum(~is_known_W, dtype=jnp.int32) == 0
    return OrderedEntropies(told.score, increasing(put, told.entropy), known_W)


PROXIES = {"entropy": _order_by_entropy, "confidence": _order_by_score}


def _in_order(view: PolicyView, slot_W: jax.Array, value_W: jax.Array) -> jax.Array:
    """The values of open positions in their slots."""
    slot_W = jnp.where(view.open_W, slot_W, value_W.shape[0])
    return jnp.zeros_like(value_W).at[slot_W].set(value_W, mode="drop")


def _within_budget(
    view: PolicyView, line: OrderedEntropies, holds: BudgetFn
) -> Interval:
    """The longest run of best positions whose entropies' sum and maximum hold.

    The running sums are a fixed tree of additions, the same in any batch, and rise
    with what is added. The first position is committed whether it holds or not.
    """
    sums = increasing(lambda a: jax.lax.associative_scan(jnp.add, a), line.entropy)
    tops = increasing(lambda a: jax.lax.associative_scan(jnp.maximum, a), line.entropy)
    hold = Interval(
        holds(sums.high, tops.low) & line.known_W,
        holds(sums.low, tops.high) | ~line.known_W,
    )
    at_W = jnp.arange(view.open_W.shape[0], dtype=jnp.int32)

    def run(hold_W: jax.Array) -> jax.Array:
        return jnp.min(jnp.where((at_W > 0) & ~hold_W, at_W, at_W.shape[0]))

    return select_best(view.open_W, increasing(run, hold), line.order)
