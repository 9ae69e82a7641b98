"""Saber: faster as confidence grows, and tokens that lose it are taken back."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxdave.core.policy_api import Memory, Policy, PolicyView
from jaxdave.core.prediction import NEG_INF
from jaxdave.policies.block_rules import BlockClock, per_block
from jaxdave.policies.common import (
    best_positions,
    count,
    fill_positions,
    masked_positions,
    policy_name,
    rank,
    tree_sum,
)
from jaxdave.policies.registry import register
from jaxdave.policies.validation import check_count


class Confidences(NamedTuple):
    """Log-odds of each position a step ago, and when it was last committed, if ever."""

    last_W: jax.Array
    final_W: jax.Array
    ever_W: jax.Array


@register
def saber(n: int = 2) -> Policy:
    """Every token surer than commits have been so far, then the worst are taken back.

    commit i with c_i > the mean of the confidences at commit (1 before the first), or
    the n best if those are fewer; k = the number committed. Unless all is known, mask
    again the min(k - 1, max(n // 2, ceil(k / 8))) committed positions whose confidence
    has risen least since the last step. Source: Saber (zhaoyMa/Saber). c_i is of the
    token that the model would now say, at committed positions too; a position keeps
    its confidence at commit when it is masked again, as in the code. Deviation: memory
    begins anew in every block (one single block is its own setting). Raises ValueError
    below 1.
    """
    check_count(2, n=n)

    def init(size: int, width: int) -> Memory:
        never_W = jnp.full(size, NEG_INF, jnp.float32)
        return Confidences(never_W, never_W, jnp.zeros(size, bool))

    def step(
        view: PolicyView, clock: BlockClock, memory: Memory
    ) -> tuple[jax.Array, Memory]:
        score_W = view.pred.score
        sure_W = view.open_W & _above_mean(score_W, memory)
        few = count(sure_W) < n
        chosen_W = jnp.where(few, best_positions(view, n, score_W), sure_W)
        undone_W = (view.decoded_W | chosen_W) & _least_risen(
            view, chosen_W, rise(score_W, memory.last_W), n
        )
        tokens_W = jnp.where(undone_W, view.mask_id, fill_positions(view, chosen_W))
        final_W = jnp.where(chosen_W, score_W, memory.final_W)
        return tokens_W, Confidences(score_W, final_W, memory.ever_W | chosen_W)

    return per_block(policy_name("saber", n=n), step, init, revises=True)


def rise(now_W: jax.Array, then_W: jax.Array) -> jax.Array:
    """Orders positions by the rise of a probability, given as log-odds.

    r / (1 - |r|) grows with the rise r, and tells rises near 0 and near 1 apart that as
    differences of probabilities would round to the same.
    """
    now, then = jax.nn.sigmoid(now_W), jax.nn.sigmoid(then_W)
    now_doubt, then_doubt = jax.nn.sigmoid(-now_W), jax.nn.sigmoid(-then_W)
    both_sure_W = (now_W > 0) & (then_W > 0)
    rise_W = jnp.where(both_sure_W, then_doubt - now_doubt, now - then)
    short_of_one_W = jnp.where(rise_W > 0, now_doubt + then, now + then_doubt)
    return rise_W / short_of_one_W


def _above_mean(score_W: jax.Array, memory: Confidences) -> jax.Array:
    """Where a confidence is above the mean of those at commit.

    c > mean c_j is sum of (1 - c_j) - (1 - c) > 0: exact in ties, and where all
    confidences would round to 1.
    """
    doubt_W, at_commit_W = jax.nn.sigmoid(-score_W), jax.nn.sigmoid(-memory.final_W)
    apart_WW = at_commit_W[:, None] - doubt_W[None, :]
    return tree_sum(jnp.where(memory.ever_W[:, None], apart_WW, 0.0)) > 0


def _least_risen(view: PolicyView, chosen_W, rise_W, n: int) -> jax.Array:
    """The committed positions to mask again: those that have risen least."""
    committed_W = view.decoded_W | chosen_W
    size = count(chosen_W)
    some = jnp.minimum(size - 1, jnp.maximum(n // 2, (size + 7) // 8))
    done = ~jnp.any(masked_positions(view) & ~chosen_W)
    return (rank(committed_W, -rise_W) < some) & ~done
