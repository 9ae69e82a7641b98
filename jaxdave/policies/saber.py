"""Saber: faster as confidence grows, and tokens that lose it are masked again."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxdave.core.policy_api import Memory, Policy, PolicyView
from jaxdave.core.prediction import NEG_INF
from jaxdave.policies.block_rules import BlockClock, block_policy
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
from jaxdave.policies.validation import block_counts, check_count


class Confidences(NamedTuple):
    """Saber's memory of a block; confidences are kept as log-odds.

    Attributes:
        last_W: Confidence a step ago, float32 [W].
        at_commit_W: Confidence when the position was last committed, float32 [W].
        was_committed_W: Positions that have been committed, also if they are masked
            again, bool [W].
    """

    last_W: jax.Array
    at_commit_W: jax.Array
    was_committed_W: jax.Array


@register
def saber(n: int = 2) -> Policy:
    """Every token surer than commits have been so far, then the worst are taken back.

    Commit i with c_i > the mean of the confidences at commit (1 before the first), or
    the n best if those are fewer; k = the number committed. Unless all is known, mask
    again the min(k - 1, max(n // 2, ceil(k / 8))) committed positions whose confidence
    has risen least since the last step. c_i is of the token that the model would
    predict now, at committed positions too; a position keeps its confidence at commit
    when it is masked again, as in the code.

    Args:
        n: Tokens that a step commits at the least, at least 1.

    Returns:
        The policy, with `revises=True`.

    Raises:
        ValueError: `n` is below 1.

    Source: Saber (zhaoyMa/Saber). Deviation: memory begins again in every block (one
    single block is its own setting).
    """
    check_count(2, n=n)

    def init(size: int, width: int) -> Memory:
        del width
        none_W = jnp.full(size, NEG_INF, jnp.float32)
        return Confidences(none_W, none_W, jnp.zeros(size, bool))

    def step(
        view: PolicyView, clock: BlockClock, memory: Memory
    ) -> tuple[jax.Array, Memory]:
        score_W = view.pred.score
        # 1. Adaptive acceleration: the bar is the mean
        # confidence of what was committed so far.
        sure_W = view.open_W & _above_mean(score_W, memory)
        few = count(sure_W) < n
        chosen_W = jnp.where(few, best_positions(view, n, score_W), sure_W)
        # 2. Backtracking: of everything committed, this step's tokens included, mask
        # again what has risen least.
        remasked_W = (view.decoded_W | chosen_W) & _lowest_rises(
            view, chosen_W, rise_order(score_W, memory.last_W), n
        )
        tokens_W = jnp.where(remasked_W, view.mask_id, fill_positions(view, chosen_W))
        at_commit_W = jnp.where(chosen_W, score_W, memory.at_commit_W)
        was_committed_W = memory.was_committed_W | chosen_W
        return tokens_W, Confidences(score_W, at_commit_W, was_committed_W)

    policy = block_policy(policy_name("saber", n=n), step, init, revises=True)
    return policy._replace(counts=block_counts(n=(n, 2)))


def rise_order(now_W: jax.Array, before_W: jax.Array) -> jax.Array:
    """Numbers that order positions by the rise of a probability.

    r / (1 - |r|) grows with the rise r, and tells rises near 0 and near 1 apart that as
    differences of probabilities would round to the same.

    Args:
        now_W: The probability now, as log-odds, float32 [W].
        before_W: The probability before, as log-odds, float32 [W].

    Returns:
        float32 [W], higher where the probability has risen more.
    """
    now, before = jax.nn.sigmoid(now_W), jax.nn.sigmoid(before_W)
    # 1 - p from the negative log-odds, which is exact where p rounds to 1.
    now_doubt, before_doubt = jax.nn.sigmoid(-now_W), jax.nn.sigmoid(-before_W)
    both_sure_W = (now_W > 0) & (before_W > 0)
    rise_W = jnp.where(both_sure_W, before_doubt - now_doubt, now - before)
    short_of_one_W = jnp.where(rise_W > 0, now_doubt + before, now + before_doubt)
    return rise_W / short_of_one_W


def _above_mean(score_W: jax.Array, memory: Confidences) -> jax.Array:
    """The positions whose confidence is above the mean of those at commit.

    c > mean c_j is sum of (1 - c_j) - (1 - c) > 0: exact in ties, and where all
    confidences would round to 1.
    """
    doubt_W = jax.nn.sigmoid(-score_W)
    commit_doubt_W = jax.nn.sigmoid(-memory.at_commit_W)
    # [committed j, candidate i]; the common factor 1 / number of commits changes no
    # sign. With no commit yet the sum is 0, and nothing is above the mean.
    difference_WW = commit_doubt_W[:, None] - doubt_W[None, :]
    return tree_sum(jnp.where(memory.was_committed_W[:, None], difference_WW, 0.0)) > 0


def _lowest_rises(
    view: PolicyView, chosen_W: jax.Array, rise_W: jax.Array, n: int
) -> jax.Array:
    """The committed positions to mask again: those that have risen least."""
    committed_W = view.decoded_W | chosen_W
    num_chosen = count(chosen_W)
    # ceil(k / 8) in whole numbers.
    # Fewer than were committed, so that a block always makes progress.
    num_remasked = jnp.minimum(
        num_chosen - 1, jnp.maximum(n // 2, (num_chosen + 7) // 8)
    )
    is_complete = ~jnp.any(masked_positions(view) & ~chosen_W)
    return (rank(committed_W, -rise_W) < num_remasked) & ~is_complete
