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

from jaxdave.policies.common import NEVER, ahead, commit
from jaxdave.types import Doubt, Policy, Prediction, View

SLACK = 2e-6
"""Exponentials and logarithms near 1 are off by less, and not alike in all programs."""

FAINT = 1e-24
"""Nats; less counts as none. Exponentials too small for a float are lost, in one
program and not in another, and with them up to 1e-30 of an entropy."""


class Span(NamedTuple):
    """The ends of a number; of a choice: what is chosen in any case, and perhaps."""

    least: jax.Array
    most: jax.Array


class Told(NamedTuple):
    """The numbers of a prediction [W]. slack: how far what is computed of them by more
    than comparing and adding may be off by itself; 0 where they are exact."""

    score: Span
    gap: Span
    margin: Span
    entropy: Span
    slack: float


Choose = Callable[[View, Told], Span]


def exactly(pred: Prediction) -> Told:
    """The numbers as they stand."""
    score, gap, margin = map(same, (pred.score, pred.gap, pred.margin))
    return Told(score, gap, margin, _told(same(pred.entropy)), slack=0.0)


def within(pred: Prediction, doubt: Doubt) -> Told:
    """The numbers as far as they are known.

    A wrapper may change numbers by the token, so they are where that is not sure.
    Numbers of `NEVER` and its like are so by decree: no error moves a float as large.
    """
    token_W = pred.lead > doubt.lead

    def around(value_W: jax.Array, error: jax.Array) -> Span:
        known_W = token_W & jnp.isfinite(value_W) & jnp.isfinite(error)
        return Span(
            jnp.where(known_W, value_W - error, -jnp.inf),
            jnp.where(known_W, value_W + error, jnp.inf),
        )

    # A share r of the smaller of two is no more than r of either.
    share_W = doubt.entropy * jnp.where(pred.entropy < -NEVER, pred.entropy, 1.0)
    return Told(
        around(pred.score, doubt.score), around(pred.gap, doubt.gap),
        around(pred.margin, doubt.margin), _told(around(pred.entropy, share_W)), SLACK,
    )  # fmt: skip


def _told(entropy: Span) -> Span:
    """An entropy as rules are told it."""
    return rising(lambda value_W: jnp.where(value_W < FAINT, 0.0, value_W), entropy)


def same(value: jax.Array) -> Span:
    """What is known for sure."""
    return Span(value, value)


def rising(function: Callable[[jax.Array], jax.Array], number: Span) -> Span:
    """A function that never falls as its argument rises."""
    return Span(function(number.least), function(number.most))


def falling(function: Callable[[jax.Array], jax.Array], number: Span) -> Span:
    """A function that never rises as its argument rises."""
    return Span(function(number.most), function(number.least))


def either(*choices: Span) -> Span:
    """What any of them chooses."""
    least, most = zip(*choices, strict=True)
    return Span(_any(least), _any(most))


def both(one: Span, other: Span) -> Span:
    """What the two choose alike."""
    return Span(one.least & other.least, one.most & other.most)


def reaching(number: Span, bound) -> Span:
    """Where a number is at least a bound."""
    return rising(lambda value_W: value_W >= bound, number)


def above(number: Span, bound) -> Span:
    """Where a number is above a bound."""
    return rising(lambda value_W: value_W > bound, number)


def ranks(open_W: jax.Array, number: Span) -> Span:
    """The place of each position among the open ones, as `common.rank` counts it."""
    other_WW = ~jnp.eye(open_W.shape[0], dtype=bool) & open_W[None]
    # A rival is ahead at most if its largest number is ahead of the other's least.
    places = lambda rival_W, mine_W: jnp.sum(  # noqa: E731
        ahead(rival_W, mine_W) & other_WW, axis=1, dtype=jnp.int32
    )
    return Span(places(number.least, number.most), places(number.most, number.least))


def best(open_W: jax.Array, count: Span, number: Span) -> Span:
    """The `count` open positions of the highest number; at least one of them."""
    rank = ranks(open_W, number)
    # Chosen in any case: not too far back at worst, however few are chosen.
    return Span(
        open_W & (rank.most < jnp.maximum(count.least, 1)),
        open_W & (rank.least < jnp.maximum(count.most, 1)),
    )


def top(view: View, count: jax.Array | int, number: Span) -> Span:
    """The known number of open positions of the highest number; at least one."""
    return best(view.open_W, same(jnp.asarray(count, jnp.int32)), number)


def agreed(view: View, choice: Span) -> jax.Array:
    """Whether the choice among the open positions is known."""
    return jnp.all(~view.open_W | (choice.least == choice.most))


def looking(name: str, choose: Choose) -> Policy:
    """A policy without memory from what it chooses; only open positions count."""

    def step(view: View, memory) -> tuple[jax.Array, tuple[()]]:
        return commit(view, choose(view, exactly(view.pred)).least), memory

    def sure(view: View, memory, doubt: Doubt) -> jax.Array:
        return agreed(view, choose(view, within(view.pred, doubt)))

    return Policy(name, step, sure=sure)


def _any(flags) -> jax.Array:
    found = flags[0]
    for flag in flags[1:]:
        found = found | flag
    return found
