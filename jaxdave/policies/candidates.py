"""Policies that evaluate several candidate states before they commit to one.

A step of theirs fills nothing. It returns `Candidates`, one network call evaluates them
all, and the prediction of the one that is chosen serves the next step.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxdave.core.policy_api import (
    Candidates,
    CandidateScoring,
    Memory,
    Policy,
    PolicyView,
)
from jaxdave.policies.common import (
    best_positions,
    count,
    fill_positions,
    log_odds,
    policy_name,
    rank,
    tree_sum,
)
from jaxdave.policies.fast_dllm import above_bound_or_best
from jaxdave.policies.intervals import exact_view
from jaxdave.policies.registry import register
from jaxdave.policies.validation import (
    block_counts,
    check_amount,
    check_share,
    check_size,
)


@register
def info_gain(
    candidates: int = 8, temperature: float = 0.2, bypass: float = 0.8
) -> Policy:
    """The token after which the model is least uncertain about the rest of the block.

    Candidate 0 commits the most confident position; each other one the first by
    c_i / temperature + Gumbel noise of its own. Taken is the candidate of the highest
    - H(i) - (mean entropy of the positions that stay masked, once i is committed). If
    every masked position has c_i >= bypass, all are committed at once. Equal candidates
    are evaluated like any other; the first one wins ties.

    Args:
        candidates: Candidates per step, at least 1.
        temperature: Temperature at which positions are sampled, above 0.
        bypass: Probability from which on all is committed at once, in 0..1.

    Returns:
        The policy.

    Raises:
        ValueError: A parameter is out of range.

    Source: Info-Gain Sampler (yks23/Information-Gain-Sampler).
    """
    check_size(8, candidates=candidates)
    check_amount(0.2, temperature=temperature)
    check_share(0.8, bypass=bypass)
    if not temperature:
        raise ValueError("temperature=0 must be above 0; 0.2 is the usual choice")
    bypass_bound = jnp.float32(log_odds(bypass))

    def step(view: PolicyView, memory: Memory) -> tuple[jax.Array, Memory]:
        score_W = view.pred.score
        # N candidate positions: the most confident one, and N - 1 draws without regard
        # to what the others drew, so that two may be the same.
        sampled_NW = _sampled_orders(view, candidates - 1, temperature)
        order_NW = jnp.concatenate([score_W[None], sampled_NW])
        chosen_NW = jax.vmap(lambda order_W: best_positions(view, 1, order_W))(order_NW)
        # The bypass: all candidates are then the same
        # full block, and there is nothing to weigh.
        is_easy = jnp.all((score_W >= bypass_bound) | ~view.open_W)
        chosen_NW = jnp.where(is_easy, view.open_W[None], chosen_NW)
        tokens_NW = jax.vmap(lambda chosen_W: fill_positions(view, chosen_W))(chosen_NW)
        # The prior is the part of the score that needs no evaluation: the uncertainty
        # that the committed token itself carries. `score` adds what is left after it.
        entropy_W = view.pred.entropy

        def prior(chosen_W: jax.Array) -> jax.Array:
            return -tree_sum(jnp.where(chosen_W, entropy_W, 0.0))

        return view.tokens_W, Candidates(tokens_NW, jax.vmap(prior)(chosen_NW))

    def score(view: PolicyView) -> jax.Array:
        return -_mean_open(view, view.pred.entropy)

    name = policy_name(
        "info_gain", candidates=candidates, temperature=temperature, bypass=bypass
    )
    return _candidate_policy(name, step, candidates, score)._replace(draws=True)


@register
def lopa(branches: int = 8, threshold: float = 0.9) -> Policy:
    """LOSSY: the threshold rule's fill, or one token more where that leaves less doubt.

    Branch 0 commits every i with c_i >= threshold (at least the best one); branch j
    also the j-th most confident of the others. Taken is the branch whose remaining
    positions have the highest mean confidence (1 where none remains). It speculates
    with the text and does not verify, so decoders take it under lossy=True only; drafts
    still leave its own text as it is.

    Args:
        branches: Branches per step, at least 1.
        threshold: The lowest probability to commit at in every branch, in 0..1.

    Returns:
        The policy, with `lossless=False`.

    Raises:
        ValueError: A parameter is out of range.

    Source: LoPA (zhijie-group/LoPA).
    """
    check_size(8, branches=branches)
    check_share(0.9, threshold=threshold)
    bound = jnp.float32(log_odds(threshold))

    def step(view: PolicyView, memory: Memory) -> tuple[jax.Array, Memory]:
        # The anchor branch is Fast-dLLM's threshold
        # rule; every other branch extends it.
        anchor_W = (
            above_bound_or_best(view, exact_view(view.pred), bound).low & view.open_W
        )
        rest_W = view.open_W & ~anchor_W
        rank_W = rank(rest_W, view.pred.score)
        # Ranks that branches add to the anchors; -1, of branch 0, is no position's.
        extra_rank_N = jnp.arange(branches, dtype=jnp.int32)[:, None] - 1
        chosen_NW = anchor_W[None] | (rest_W[None] & (rank_W[None] == extra_rank_N))
        tokens_NW = jax.vmap(lambda chosen_W: fill_positions(view, chosen_W))(chosen_NW)
        return view.tokens_W, Candidates(tokens_NW, jnp.zeros(branches, jnp.float32))

    def score(view: PolicyView) -> jax.Array:
        # The mean of 1 - c instead of c: c rounds to 1 where the model is confident.
        return -_mean_open(view, jax.nn.sigmoid(-view.pred.score))

    name = policy_name("lopa", branches=branches, threshold=threshold)
    policy = _candidate_policy(name, step, branches, score)
    # A branch beyond the positions of a block would be the anchor branch again.
    counts = block_counts(branches=(branches, 8))
    return policy._replace(lossless=False, counts=counts)


def _candidate_policy(
    name: str,
    step: Callable[[PolicyView, Memory], tuple[jax.Array, Memory]],
    count: int,
    score_fn: Callable[[PolicyView], jax.Array],
) -> Policy:
    """A policy whose step returns `count` candidates."""

    def init(size: int, width: int) -> Memory:
        del width
        return Candidates(
            jnp.zeros((count, size), jnp.int32), jnp.zeros(count, jnp.float32)
        )

    return Policy(name, step, init, scoring=CandidateScoring(count, score_fn))


def _sampled_orders(view: PolicyView, draws: int, temperature: float) -> jax.Array:
    """Scores [draws, W] whose order samples positions; keyed by (step, draw, position).

    The highest of c / temperature + Gumbel noise is a draw from softmax(c /
    temperature).
    """
    confidence_W = jax.nn.sigmoid(view.pred.score)

    def sample(draw: jax.Array) -> jax.Array:
        key = jax.random.fold_in(view.key, draw)

        def noise(position: jax.Array) -> jax.Array:
            return jax.random.gumbel(jax.random.fold_in(key, position), mode="high")

        return confidence_W / temperature + jax.vmap(noise)(view.position_W)

    return jax.vmap(sample)(jnp.arange(draws, dtype=jnp.int32))


def _mean_open(view: PolicyView, value_W: jax.Array) -> jax.Array:
    """The mean over the open positions; 0 where there is none."""
    total = tree_sum(jnp.where(view.open_W, value_W, 0.0))
    return total / jnp.maximum(count(view.open_W), 1).astype(jnp.float32)
