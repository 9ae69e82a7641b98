"""Decoding rules in interval arithmetic.

On intervals of width 0 a rule is itself; on intervals as wide as the error bound it is
a certificate: if both ends of the decision agree, no error within the bound can change
it. So a rule is written once, as a `ChooseFn` on intervals: `Policy.step` evaluates it
on `exact_view`, `Policy.is_certain` on `bounded_view`.

The ends of every result follow from the ends of the arguments, because every operation
here is monotone: it never falls (`increasing`) or never rises (`decreasing`) with its
argument. Rounding to the nearest float preserves that: a <= b implies round(a) <=
round(b). Hence any numbers within the intervals, put through the same additions, give a
result between the computed ends, and no directed rounding is needed. The exceptions are
exponentials and logarithms, which differ between compiled programs and are not
guaranteed to be monotone in the last bit; `IntervalView.slack` allows for them.

Intervals of booleans are sets known in part: `low` holds the positions that are chosen
for certain, `high` those that are perhaps chosen, and False < True.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxdave.core.policy_api import Memory, Policy, PolicyView
from jaxdave.core.prediction import NEG_INF, ErrorBound, Prediction
from jaxdave.policies.common import comes_before, fill_positions, order_after_first

ROUNDING_SLACK = 2e-6
"""Bound on the error of float32 exponentials and logarithms near 1, which are not
computed alike in all programs."""

ENTROPY_FLOOR = 1e-24
"""Entropies below this, in nats, count as 0. Probabilities too small for a float32 are
lost in one program and not in another, and with them up to 1e-30 of an entropy."""


class Interval(NamedTuple):
    """An interval of numbers, or of flags; elementwise.

    Attributes:
        low: The lower end, any shape. Of flags: what holds for certain.
        high: The upper end, of the same shape. Of flags: what perhaps holds.
    """

    low: jax.Array
    high: jax.Array


class IntervalView(NamedTuple):
    """The statistics of a `Prediction` as intervals.

    Attributes:
        score: Log-odds of the predicted token, float32 [W] at each end.
        gap: Best logit minus second best logit, float32 [W] at each end.
        margin: -log(1 - (p_best - p_second)), float32 [W] at each end.
        entropy: Entropy in nats, float32 [W] at each end.
        slack: How far a function of these that does more than compare and add may be
            off by itself, per unit of its terms; 0 for exact numbers.
    """

    score: Interval
    gap: Interval
    margin: Interval
    entropy: Interval
    slack: float


ChooseFn = Callable[[PolicyView, IntervalView], Interval]
"""(view, values) -> the positions to commit, an interval of bool [W]. Of `view.pred` it
may only look at what no error can change; all else it must take from `values`."""


def exact_view(pred: Prediction) -> IntervalView:
    """The statistics of a prediction as intervals of width 0.

    Args:
        pred: The prediction, fields [W].

    Returns:
        The statistics as they are, entropies floored.
    """
    score, gap, margin = map(point, (pred.score, pred.gap, pred.margin))
    return IntervalView(
        score, gap, margin, _floor_entropy(point(pred.entropy)), slack=0.0
    )


def bounded_view(pred: Prediction, error_bound: ErrorBound) -> IntervalView:
    """The statistics of a prediction as intervals as wide as the error bound.

    Args:
        pred: The prediction, fields [W].
        error_bound: Bounds on its errors, float32 scalars; infinity or NaN: unknown.

    Returns:
        Intervals that contain the statistics of every prediction within the bound. They
        are unbounded where the bound is unknown, and where another token might win.
    """
    # A wrapper such as `demote` changes statistics by the token, so where the token is
    # not certain nothing is known of them.
    is_token_certain_W = pred.lead > error_bound.lead

    def around(value_W: jax.Array, error: jax.Array) -> Interval:
        # Statistics of +-NEG_INF are set by a wrapper, not computed; adding an error
        # to a float that large leaves it as it is.
        known_W = is_token_certain_W & jnp.isfinite(value_W) & jnp.isfinite(error)
        return Interval(
            jnp.where(known_W, value_W - error, -jnp.inf),
            jnp.where(known_W, value_W + error, jnp.inf),
        )

    # The bound on an entropy is relative to the smaller of the two entropies compared,
    # so that the same share of this one is no less.
    # An entropy of -NEG_INF is set by a wrapper; a share of it would be as large.
    entropy_error_W = error_bound.entropy * jnp.where(
        pred.entropy < -NEG_INF, pred.entropy, 1.0
    )
    return IntervalView(
        score=around(pred.score, error_bound.score),
        gap=around(pred.gap, error_bound.gap),
        margin=around(pred.margin, error_bound.margin),
        entropy=_floor_entropy(around(pred.entropy, entropy_error_W)),
        slack=ROUNDING_SLACK,
    )


def _floor_entropy(entropy: Interval) -> Interval:
    """The entropy with values below `ENTROPY_FLOOR` set to 0."""

    def floor(value_W: jax.Array) -> jax.Array:
        return jnp.where(value_W < ENTROPY_FLOOR, 0.0, value_W)

    return increasing(floor, entropy)


def point(value: jax.Array) -> Interval:
    """The interval of width 0 around a number that is known exactly.

    Args:
        value: Numbers or flags, any shape.

    Returns:
        The interval [value, value].
    """
    return Interval(value, value)


def increasing(
    function: Callable[[jax.Array], jax.Array], number: Interval
) -> Interval:
    """The image of an interval under a function that never falls.

    Args:
        function: A function of an array that never falls in any element of its result
            as any element of its argument rises. This is not checked.
        number: The argument.

    Returns:
        The interval from the image of the lower end to that of the upper end.
    """
    return Interval(function(number.low), function(number.high))


def decreasing(
    function: Callable[[jax.Array], jax.Array], number: Interval
) -> Interval:
    """The image of an interval under a function that never rises.

    Args:
        function: A function of an array that never rises in any element of its result
            as any element of its argument rises. This is not checked.
        number: The argument.

    Returns:
        The interval from the image of the upper end to that of the lower end.
    """
    return Interval(function(number.high), function(number.low))


def union(*choices: Interval) -> Interval:
    """The positions that at least one of several choices has.

    Args:
        *choices: Intervals of bool [W] (or scalars), at least one.

    Returns:
        An interval of bool [W].
    """
    lows, highs = zip(*choices, strict=True)
    return Interval(_any(lows), _any(highs))


def intersection(one: Interval, other: Interval) -> Interval:
    """The positions that both of two choices have.

    Args:
        one: An interval of bool [W] or of a scalar.
        other: The same.

    Returns:
        An interval of bool [W].
    """
    return Interval(one.low & other.low, one.high & other.high)


def at_least(number: Interval, bound: jax.Array) -> Interval:
    """The positions whose number is at least a bound.

    Args:
        number: An interval of float32 [W].
        bound: The bound, a number that is known exactly.

    Returns:
        An interval of bool [W].
    """
    return increasing(lambda value_W: value_W >= bound, number)


def above(number: Interval, bound: jax.Array) -> Interval:
    """The positions whose number is above a bound.

    Args:
        number: An interval of float32 [W].
        bound: The bound, a number that is known exactly.

    Returns:
        An interval of bool [W].
    """
    return increasing(lambda value_W: value_W > bound, number)


def ranks(open_W: jax.Array, number: Interval) -> Interval:
    """The rank of each position among the open ones, as `common.rank` counts it.

    Args:
        open_W: Positions that are ranked, bool [W].
        number: What they are ranked by, highest first; an interval of float32 [W].

    Returns:
        An interval of int32 [W].
    """
    other_WW = ~jnp.eye(open_W.shape[0], dtype=bool) & open_W[None]

    def count_ahead(rival_W: jax.Array, own_W: jax.Array) -> jax.Array:
        return jnp.sum(comes_before(rival_W, own_W) & other_WW, axis=1, dtype=jnp.int32)

    # A rank is lowest when the position is at its upper end and all rivals at their
    # lower ones, and highest the other way round.
    return Interval(
        count_ahead(number.low, number.high), count_ahead(number.high, number.low)
    )


def select_best(open_W: jax.Array, count: Interval, number: Interval) -> Interval:
    """The open positions with the highest numbers, as many as an interval says.

    Args:
        open_W: Positions to choose from, bool [W].
        count: How many to choose, an interval of int32; 1 if it is lower.
        number: What to choose by, an interval of float32 [W].

    Returns:
        The choice, an interval of bool [W].
    """
    rank = ranks(open_W, number)
    # Chosen for certain: good enough at the worst rank, however few are chosen.
    return Interval(
        open_W & (rank.high < jnp.maximum(count.low, 1)),
        open_W & (rank.low < jnp.maximum(count.high, 1)),
    )


def select_top(view: PolicyView, count: jax.Array | int, number: Interval) -> Interval:
    """The open positions with the highest numbers, a known number of them.

    Args:
        view: The policy's view.
        count: How many to choose, int32; 1 if it is lower.
        number: What to choose by, an interval of float32 [W].

    Returns:
        The choice, an interval of bool [W].
    """
    return select_best(view.open_W, point(jnp.asarray(count, jnp.int32)), number)


def is_decided(view: PolicyView, choice: Interval) -> jax.Array:
    """True if the choice among the open positions is known.

    Args:
        view: The policy's view.
        choice: An interval of bool [W].

    Returns:
        bool scalar: both ends agree at every open position.
    """
    return jnp.all(~view.open_W | (choice.low == choice.high))


def interval_policy(name: str, choose: ChooseFn) -> Policy:
    """A policy without memory, with its certificate, from one rule on intervals.

    Args:
        name: The policy's name.
        choose: The rule. Only its choice among the open positions counts.

    Returns:
        The policy; its `step` and `is_certain` are the rule on exact and on wide
        intervals.

    Example:
        >>> def choose(view, values):
        ...     return select_top(view, 1, values.score)
        >>> interval_policy("most_confident", choose).name
        'most_confident'
    """

    def step(view: PolicyView, memory) -> tuple[jax.Array, tuple[()]]:
        # Both ends of an exact choice are equal.
        return fill_positions(view, choose(view, exact_view(view.pred)).low), memory

    def is_certain(view: PolicyView, memory, error_bound: ErrorBound) -> jax.Array:
        return is_decided(view, choose(view, bounded_view(view.pred, error_bound)))

    return Policy(name, step, is_certain=is_certain)


def first_choice_then_best(
    choose: ChooseFn,
) -> Callable[[PolicyView, Memory], jax.Array]:
    """`Policy.commit_order` of a rule that after one step takes the best one only.

    Args:
        choose: The rule. What its first step leaves open it must then commit one by one
            by `score`, as its predictions stay what they are.

    Returns:
        (view, memory) -> the step at which each open position is committed.
    """

    def commit_order(view: PolicyView, memory: Memory) -> jax.Array:
        first_W = choose(view, exact_view(view.pred)).low
        return order_after_first(view.open_W, view.pred.score, first_W)

    return commit_order


def _any(flags: tuple[jax.Array, ...]) -> jax.Array:
    """The union of several flags, which may differ in shape."""
    union_W = flags[0]
    for flag in flags[1:]:
        union_W = union_W | flag
    return union_W
