"""Rules that say what one decoding step commits.

A policy sees the first unfinished block only, so that what it decides depends on
nothing to the right of that block. Orders are exact: by score, then by position; no
float is ever added to another to rank it.
"""

import math

import jax
import jax.numpy as jnp

from jaxdave.types import Policy, View


def static(tokens_per_step: int = 1) -> Policy:
    """The most confident tokens first, a fixed number a step.

    With 1, the paper's oracle path (FreeDave section 3; LLaDA's low-confidence
    remasking). A step stays inside its block. Raises ValueError below 1.
    """
    _check_count(tokens_per_step)

    def step(view: View, memory):
        rank_W = rank(view.open_W, view.pred.score)
        return _commit(view, view.open_W & (rank_W < tokens_per_step)), memory

    return Policy(f"static({tokens_per_step})", step)


def left_to_right(tokens_per_step: int = 1) -> Policy:
    """The leftmost tokens first, a fixed number a step. Raises ValueError below 1."""
    _check_count(tokens_per_step)

    def step(view: View, memory):
        rank_W = rank(view.open_W, jnp.zeros_like(view.pred.score))
        return _commit(view, view.open_W & (rank_W < tokens_per_step)), memory

    return Policy(f"left_to_right({tokens_per_step})", step)


def threshold(tau: float = 0.9) -> Policy:
    """Every token whose probability is at least `tau`, and always the best one.

    The rule of Fast-dLLM (`>=`). `tau` is compared on the log-odds scale, where
    confident tokens do not all round to 1. Raises ValueError outside 0..1.
    """
    if not 0 <= tau <= 1:
        raise ValueError(f"threshold={tau} must be in 0..1; 0.9 is the usual choice")
    bound = (
        math.log(tau) - math.log1p(-tau) if 0 < tau < 1 else math.inf * (2 * tau - 1)
    )

    def step(view: View, memory):
        best_W = rank(view.open_W, view.pred.score) == 0
        sure_W = view.pred.score >= jnp.float32(bound)
        return _commit(view, view.open_W & (sure_W | best_W)), memory

    return Policy(f"threshold({tau})", step)


def first_alone(policy: Policy) -> Policy:
    """`policy`, but an open first position of the block is decided alone.

    For models that predict a token from its left neighbour: under a block cache the
    predictor of a block's first token lies outside the block, so it is at hand only at
    the call that begins the block (Fast-dLLM and FreeDave on Dream; Fast-dLLM v2).
    """

    def step(view: View, memory):
        moved_W, moved_memory = policy.step(view, memory)
        alone = view.open_W[0]
        first_W = jnp.arange(view.open_W.shape[0]) == 0
        moved_W = jnp.where(alone, _commit(view, first_W), moved_W)
        keep = lambda old, new: jnp.where(alone, old, new)  # noqa: E731
        return moved_W, jax.tree.map(keep, memory, moved_memory)

    return policy._replace(name=f"first_alone({policy.name})", step=step)


def rank(open_W: jax.Array, score_W: jax.Array) -> jax.Array:
    """Place of each position among the open ones: score descending, then leftmost.

    Counted, not sorted, so that ties resolve the same in windows of any length. Only
    the places of open positions mean anything.
    """
    place_W = jnp.arange(open_W.shape[0])
    higher_WW = score_W[None, :] > score_W[:, None]
    tied_WW = score_W[None, :] == score_W[:, None]
    before_WW = place_W[None, :] < place_W[:, None]
    ahead_WW = (higher_WW | (tied_WW & before_WW)) & open_W[None, :]
    return jnp.sum(ahead_WW, axis=1, dtype=jnp.int32)


def _commit(view: View, chosen_W: jax.Array) -> jax.Array:
    return jnp.where(chosen_W, view.pred.token, view.tokens_W)


def _check_count(tokens_per_step: int) -> None:
    if tokens_per_step < 1:
        raise ValueError(
            f"tokens_per_step={tokens_per_step} must be at least 1; "
            "1 gives the best text"
        )
