"""What a rule would choose for all numbers that are near enough: rules on spans.

A rule is written once, on numbers of which only the ends are known. Its step gives it
spans without width; its certificate (`Policy.sure`) gives it those that measured errors
leave open, and holds where both ends of the choice are one.

Proof: all that is done to spans here rises (or falls) with what it is given, so the
ends of what comes out follow from the ends of what goes in. That holds of floats, too,
as rounding to the nearest float never turns two numbers around: whatever lies between
two ends gives, by the same additions, what lies between the ends of the result.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxdave.core.policy_api import Policy, PolicyView
from jaxdave.core.prediction import NEG_INF, ErrorBound, Prediction
from jaxdave.policies.common import comes_before, fill_positions

ROUNDING_SLACK = 2e-6
"""Exponentials and logarithms near 1 are off by less, and not alike in all programs."""

ENTROPY_FLOOR = 1e-24
"""Nats; less counts as none. Exponentials too small for a float are lost, in one
program and not in another, and with them up to 1e-30 of an entropy."""


class Interval(NamedTuple):
    """The ends of a number; of a choice: what is chosen in any case, and perhaps."""

    low: jax.Array
    high: jax.Array


class IntervalView(NamedTuple):
    """The numbers of a prediction [W]. slack: how far what is computed of them by more
    than comparing and adding may be off by itself; 0 where they are exact."""

    score: Interval
    gap: Interval
    margin: Interval
    entropy: Interval
    slack: float


ChooseFn = Callable[[PolicyView, IntervalView], Interval]


def exact_view(pred: Prediction) -> IntervalView:
    """The numbers as they stand."""
    score, gap, margin = map(point, (pred.score, pred.gap, pred.margin))
    return IntervalView(
        score, gap, margin, _floor_entropy(point(pred.entropy)), slack=0.0
    )


def bounded_view(pred: Prediction, doubt: ErrorBound) -> IntervalView:
    """The numbers as far as they are known.

    A wrapper may change numbers by the token, so they are where that is not sure.
    Numbers of `NEVER` and its like are so by decree: no error moves a float as large.
    """
    token_W = pred.lead > doubt.lead

    def around(value_W: jax.Array, error: jax.Array) -> Interval:
        known_W = token_W & jnp.isfinite(value_W) & jnp.isfinite(error)
        return Interval(
            jnp.where(known_W, value_W - error, -jnp.inf),
            jnp.where(known_W, value_W + error, jnp.inf),
        )

    # A share r of the smaller of two is no more than r of either.
    share_W = doubt.entropy * jnp.where(pred.entropy < -NEG_INF, pred.entropy, 1.0)
    return IntervalView(
        around(pred.score, doubt.score), around(pred.gap, doubt.gap),
        around(pred.margin, doubt.margin),
        _floor_entropy(around(pred.entropy, share_W)),
        ROUNDING_SLACK,
    )  # fmt: skip


def _floor_entropy(entropy: Interval) -> Interval:
    """An entropy as rules are told it."""
    return increasing(
        lambda value_W: jnp.where(value_W < ENTROPY_FLOOR, 0.0, value_W), entropy
    )


def point(value: jax.Array) -> Interval:
    """What is known for sure."""
    return Interval(value, value)


def increasing(
    function: Callable[[jax.Array], jax.Array], number: Interval
) -> Interval:
    """A function that never falls as its argument rises."""
    return Interval(function(number.low), function(number.high))


def decreasing(
    function: Callable[[jax.Array], jax.Array], number: Interval
) -> Interval:
    """A function that never rises as its argument rises."""
    return Interval(function(number.high), function(number.low))


def union(*choices: Interval) -> Interval:
    """What any of them chooses."""
    least, most = zip(*choices, strict=True)
    return Interval(_any(least), _any(most))


def intersection(one: Interval, other: Interval) -> Interval:
    """What the two choose alike."""
    return Interval(one.low & other.low, one.high & other.high)


def at_least(number: Interval, bound) -> Interval:
    """Where a number is at least a bound."""
    return increasing(lambda value_W: value_W >= bound, number)


def above(number: Interval, bound) -> Interval:
    """Where a number is above a bound."""
    return increasing(lambda value_W: value_W > bound, number)


def ranks(open_W: jax.Array, number: Interval) -> Interval:
    """The place of each position among the open ones, as `common.rank` counts it."""
    other_WW = ~jnp.eye(open_W.shape[0], dtype=bool) & open_W[None]
    # A rival is ahead at most if its largest number is ahead of the other's least.
    places = lambda rival_W, mine_W: jnp.sum(  # noqa: E731
        comes_before(rival_W, mine_W) & other_WW, axis=1, dtype=jnp.int32
    )
    return Interval(places(number.low, number.high), places(number.high, number.low))


def select_best(open_W: jax.Array, count: Interval, number: Interval) -> Interval:
    """The `count` open positions of the highest number; at least one of them."""
    rank = ranks(open_W, number)
    # Chosen in any case: not too far back at worst, however few are chosen.
    return Interval(
        open_W & (rank.high < jnp.maximum(count.low, 1)),
        open_W & (rank.low < jnp.maximum(count.high, 1)),
    )


def select_top(view: PolicyView, count: jax.Array | int, number: Interval) -> Interval:
    """The known number of open positions of the highest number; at least one."""
    return select_best(view.open_W, point(jnp.asarray(count, jnp.int32)), number)


def is_decided(view: PolicyView, choice: Interval) -> jax.Array:
    """Whether the choice among the open positions is known."""
    return jnp.all(~view.open_W | (choice.low == choice.high))


def interval_policy(name: str, choose: ChooseFn) -> Policy:
    """A policy without memory from what it chooses; only open positions count."""

    def step(view: PolicyView, memory) -> tuple[jax.Array, tuple[()]]:
        return fill_positions(view, choose(view, exact_view(view.pred)).low), memory

    def is_certain(view: PolicyView, memory, doubt: ErrorBound) -> jax.Array:
        return is_decided(view, choose(view, bounded_view(view.pred, doubt)))

    return Policy(name, step, is_certain=is_certain)


def _any(flags) -> jax.Array:
    found = flags[0]
    for flag in flags[1:]:
        found = found | flag
    return found
