"""What rules are made of: exact orders, bounds on log-odds, sums, draws, schedules.

Orders are counted, never sorted by a float that something was added to. Thresholds on
a probability are compared as log-odds, where confident tokens do not all round to 1.
Sums run over a fixed tree of additions, so that they are the same in any batch.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxdave.types import Policy, View

NEVER = -1e30
"""A score below every other, with which sums stay finite."""


def rank(open_W: jax.Array, score_W: jax.Array) -> jax.Array:
    """Place of each position among the open ones: score descending, then leftmost.

    Counted, not sorted, so that ties resolve the same in windows of any length. Only
    the places of open positions mean anything.
    """
    return _count(ahead(score_W) & open_W[None, :])


def ahead(score_W: jax.Array) -> jax.Array:
    """[W, W]: whether the second position comes before the first, as `rank` orders."""
    place_W = jnp.arange(score_W.shape[0])
    higher_WW = score_W[None, :] > score_W[:, None]
    tied_WW = score_W[None, :] == score_W[:, None]
    return higher_WW | (tied_WW & (place_W[None, :] < place_W[:, None]))


def commit(view: View, chosen_W: jax.Array) -> jax.Array:
    """The block with the predicted tokens at the chosen open positions."""
    return jnp.where(chosen_W & view.open_W, view.pred.token, view.tokens_W)


def best(view: View, count: jax.Array | int, score_W: jax.Array) -> jax.Array:
    """The `count` open positions of the highest score; at least one of them."""
    return view.open_W & (rank(view.open_W, score_W) < jnp.maximum(count, 1))


def log_odds(probability: float) -> float:
    """log(p / (1 - p)); infinite at 0 and 1 and beyond them."""
    if probability <= 0 or probability >= 1:
        return math.copysign(math.inf, probability - 0.5)
    return math.log(probability) - math.log1p(-probability)


def looking(name: str, choose: Callable[[View], jax.Array]) -> Policy:
    """A policy without memory from the positions that it chooses."""
    return Policy(name, lambda view, memory: (commit(view, choose(view)), memory))


def check_count(**given: int) -> None:
    """Raise ValueError for a count below 1."""
    for name, value in given.items():
        if not value >= 1:
            raise ValueError(
                f"{name}={value} must be at least 1; 1 gives the best text"
            )


def check_share(usual: float, **given: float) -> None:
    """Raise ValueError for a probability outside 0..1."""
    for name, value in given.items():
        if not 0 <= value <= 1:
            raise ValueError(
                f"{name}={value} must be in 0..1; {usual} is the usual choice"
            )


def _count(flag_WW: jax.Array) -> jax.Array:
    return jnp.sum(flag_WW, axis=1, dtype=jnp.int32)
