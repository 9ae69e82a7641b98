"""Rules that look before they leap: candidates that the network itself weighs.

A step of theirs commits nothing. It leaves candidates, one call evaluates them all, and
the predictions of the one that is chosen serve the next step.
"""

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
from jaxdave.policies.validation import check_amount, check_count, check_share


@register
def info_gain(
    candidates: int = 8, temperature: float = 0.2, bypass: float = 0.8
) -> Policy:
    """The token after which the model is least in doubt about the rest of the block.

    Candidate 0 commits the most confident position; each other one the first by
    c_i / temperature + Gumbel noise of its own. Taken is the candidate of the highest
    - H(i) - (mean entropy of the positions that stay masked, once i is committed). If
    every masked position has c_i >= bypass, all are committed at once. Source:
    Info-Gain Sampler (yks23/Information-Gain-Sampler). Equal candidates are evaluated
    like any other; of equals the first counts. Raises ValueError for fewer than one
    candidate, a temperature of 0 or below, a bypass outside 0..1.
    """
    check_count(8, candidates=candidates)
    check_amount(0.2, temperature=temperature)
    check_share(0.8, bypass=bypass)
    if not temperature:
        raise ValueError("temperature=0 must be above 0; 0.2 is the usual choice")
    sure = jnp.float32(log_odds(bypass))

    def step(view: PolicyView, memory: Memory) -> tuple[jax.Array, Memory]:
        score_W = view.pred.score
        drawn_NW = _tempered(view, candidates - 1, temperature)
        order_NW = jnp.concatenate([score_W[None], drawn_NW])
        chosen_NW = jax.vmap(lambda order_W: best_positions(view, 1, order_W))(order_NW)
        is_easy = jnp.all((score_W >= sure) | ~view.open_W)
        chosen_NW = jnp.where(is_easy, view.open_W[None], chosen_NW)
        tokens_NW = jax.vmap(lambda chosen_W: fill_positions(view, chosen_W))(chosen_NW)
        entropy_W = view.pred.entropy
        prior_N = jax.vmap(lambda c_W: -tree_sum(jnp.where(c_W, entropy_W, 0.0)))(
            chosen_NW
        )
        return view.tokens_W, Candidates(tokens_NW, prior_N)

    name = policy_name(
        "info_gain", candidates=candidates, temperature=temperature, bypass=bypass
    )
    worth = lambda view: -_mean_open(view, view.pred.entropy)  # noqa: E731
    return _candidate_policy(name, step, candidates, worth)


@register
def lopa(branches: int = 8, threshold: float = 0.9) -> Policy:
    """LOSSY: of threshold's fill and fills one token bolder, what leaves least doubt.

    Branch 0 commits every i with c_i >= threshold (at least the best one); branch j
    also the j-th most confident of the others. Taken is the branch whose remaining
    positions have the highest mean confidence (1 where none remains). Source: LoPA
    (zhijie-group/LoPA). It speculates with the text and does not verify, so decoders
    take it under lossy=True only; drafts still leave its own text as it is. Raises
    ValueError for fewer than one branch and a threshold outside 0..1.
    """
    check_count(8, branches=branches)
    check_share(0.9, threshold=threshold)
    sure = jnp.float32(log_odds(threshold))

    def step(view: PolicyView, memory: Memory) -> tuple[jax.Array, Memory]:
        anchor_W = (
            above_bound_or_best(view, exact_view(view.pred), sure).low & view.open_W
        )
        rest_W = view.open_W & ~anchor_W
        rank_W = rank(rest_W, view.pred.score)
        bolder_N = jnp.arange(branches, dtype=jnp.int32)[:, None] - 1
        chosen_NW = anchor_W[None] | (rest_W[None] & (rank_W[None] == bolder_N))
        tokens_NW = jax.vmap(lambda chosen_W: fill_positions(view, chosen_W))(chosen_NW)
        return view.tokens_W, Candidates(tokens_NW, jnp.zeros(branches, jnp.float32))

    def worth(view: PolicyView) -> jax.Array:
        return -_mean_open(view, jax.nn.sigmoid(-view.pred.score))

    name = policy_name("lopa", branches=branches, threshold=threshold)
    return _candidate_policy(name, step, branches, worth)._replace(lossless=False)


def _candidate_policy(name: str, step, size: int, worth) -> Policy:
    def init(width: int, features: int) -> Memory:
        del features
        return Candidates(
            jnp.zeros((size, width), jnp.int32), jnp.zeros(size, jnp.float32)
        )

    return Policy(name, step, init, scoring=CandidateScoring(size, worth))


def _tempered(view: PolicyView, draws: int, temperature: float) -> jax.Array:
    """Scores [draws, W] whose order samples positions; keyed by (n, draw, position)."""
    confidence_W = jax.nn.sigmoid(view.pred.score)

    def drawn(draw):
        key = jax.random.fold_in(view.key, draw)
        noise = lambda place: jax.random.gumbel(  # noqa: E731
            jax.random.fold_in(key, place), mode="high"
        )
        return confidence_W / temperature + jax.vmap(noise)(view.position_W)

    return jax.vmap(drawn)(jnp.arange(draws, dtype=jnp.int32))


def _mean_open(view: PolicyView, value_W: jax.Array) -> jax.Array:
    """The mean over the open positions; 0 where there is none."""
    held = tree_sum(jnp.where(view.open_W, value_W, 0.0))
    return held / jnp.maximum(count(view.open_W), 1).astype(jnp.float32)
