"""CreditDecoding: tokens that have been best in earlier steps get a head start."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxdave.core.policy_api import Memory, Policy, PolicyView
from jaxdave.core.prediction import Prediction
from jaxdave.policies.block_rules import BlockClock, block_policy
from jaxdave.policies.common import best_positions, log_odds, policy_name
from jaxdave.policies.registry import register
from jaxdave.policies.validation import (
    check_amount,
    check_share,
    check_size,
)

NO_CREDIT = -1
"""In `Credits.id_WM`, an entry that holds no id."""


class Credits(NamedTuple):
    """The ids with the most credit at each position.

    Attributes:
        id_WM: Ids, int32 [W, M]; `NO_CREDIT` in empty entries. M is the policy's
            parameter `kept`.
        credit_WM: Their credit, float32 [W, M]; 0 in empty entries.
    """

    id_WM: jax.Array
    credit_WM: jax.Array


@register
def credit(
    threshold: float = 0.9,
    alpha: float = 0.7,
    gamma: float = 0.2,
    beta: float = 0.8,
    kept: int = 16,
) -> Policy:
    """The threshold rule on logits that favour what has been the best token before.

    C <- beta C; C[i, best_i] += p_i(best_i)^gamma; `threshold` on
    logits + alpha log(1 + C). Memory: per block, the `kept` ids with the most credit at
    each position, a new one in the place of that with the least.

    Args:
        threshold: The lowest probability to commit at, in 0..1.
        alpha: Weight of the credit, 0 or more.
        gamma: Exponent of the probability that is credited, 0 or more.
        beta: Share of its credit that an id keeps from step to step, in 0..1.
        kept: Ids with credit per position, at least 1.

    Returns:
        The policy.

    Raises:
        ValueError: A parameter is out of range.

    Source: CreditDecoding (arXiv 2510.06133, defaults of dInfer's
    CreditThresholdParallelDecoder). Deviations: dInfer keeps all ids (the same, up to
    `kept` different best tokens); above temperature 0 credit goes to sampled tokens and
    the best of those is taken.
    """
    check_share(0.9, threshold=threshold)
    check_share(0.8, beta=beta)
    check_amount(0.7, alpha=alpha)
    check_amount(0.2, gamma=gamma)
    check_size(16, kept=kept)
    bound = jnp.float32(log_odds(threshold))

    def init(size: int, width: int) -> Memory:
        del width
        no_ids = jnp.full((size, kept), NO_CREDIT, jnp.int32)
        return Credits(no_ids, jnp.zeros((size, kept), jnp.float32))

    def step(
        view: PolicyView, clock: BlockClock, memory: Memory
    ) -> tuple[jax.Array, Memory]:
        # The best tokens of this step get their credit before it is decided.
        credits = _add_credit(memory, view.pred, gamma, beta)
        # Empty entries ask for id 0, and are ignored below.
        logit_WM = view.queries.logits_at(jnp.maximum(credits.id_WM, 0))
        bonus_WM = jnp.float32(alpha) * jnp.log1p(credits.credit_WM)
        id_W, score_W = best_with_bonus(view.pred, credits.id_WM, logit_WM, bonus_WM)
        chosen_W = best_positions(view, 1, score_W) | (view.open_W & (score_W >= bound))
        return jnp.where(chosen_W, id_W, view.tokens_W), credits

    name = policy_name(
        "credit", threshold=threshold, alpha=alpha, gamma=gamma, beta=beta, kept=kept
    )
    return block_policy(name, step, init)


def best_with_bonus(
    pred: Prediction, id_WM: jax.Array, logit_WM: jax.Array, bonus_WM: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The best of some ids after a bonus on their logits, and its log-odds.

    The predicted token must be among the ids. Its score compares it with all others
    together, which gives the weight of the ids that are not listed without a look at
    their logits.

    Args:
        pred: The prediction without bonus, fields [W].
        id_WM: Listed ids, int32 [W, M]; `NO_CREDIT` in empty entries.
        logit_WM: Their logits without bonus, float32 [W, M].
        bonus_WM: What is added to them, float32 [W, M].

    Returns:
        The id with the highest logit after the bonus, int32 [W], the lowest id among
        equals; and its log-odds against all other ids, float32 [W].
    """
    is_listed_WM = id_WM != NO_CREDIT
    is_token_WM = id_WM == pred.token[:, None]
    raw_WM = jnp.where(is_listed_WM, logit_WM, -jnp.inf)
    boosted_WM = jnp.where(is_listed_WM, logit_WM + bonus_WM, -jnp.inf)
    top_W = jnp.max(boosted_WM, axis=1)
    is_top_WM = boosted_WM == top_W[:, None]
    max_id = jnp.iinfo(jnp.int32).max
    best_W = jnp.min(jnp.where(is_top_WM, id_WM, max_id), axis=1)
    rest_WM = jnp.where(id_WM == best_W[:, None], -jnp.inf, boosted_WM)
    # Log of the weight of all ids but the predicted one, before any bonus.
    # z_token - logsumexp(others) is the token's score, so that the log-weight of all
    # others follows from its logit. What is not listed gets no bonus: it is that weight
    # less the listed.
    others_W = jnp.max(jnp.where(is_token_WM, raw_WM, -jnp.inf), axis=1) - pred.score
    # Weights are relative to the largest, so that exp does not overflow.
    scale_W = jnp.maximum(others_W, jnp.max(rest_WM, axis=1))

    def weight(logits_WM: jax.Array) -> jax.Array:
        return jnp.sum(jnp.exp(logits_WM - scale_W[:, None]), axis=1)

    listed_W = weight(jnp.where(is_token_WM, -jnp.inf, raw_WM))
    # A difference of nearly equal numbers may come out below 0.
    unlisted_W = jnp.maximum(jnp.exp(others_W - scale_W) - listed_W, 0.0)
    return best_W, top_W - scale_W - jnp.log(unlisted_W + weight(rest_WM))


def _add_credit(
    credits: Credits, pred: Prediction, gamma: float, beta: float
) -> Credits:
    """The credits after one step; a new id replaces that with the least credit."""
    # p^gamma from log p, which does not saturate.
    gain_W = jnp.exp(jnp.float32(gamma) * jax.nn.log_sigmoid(pred.score))
    faded_WM = credits.credit_WM * jnp.float32(beta)
    matches_WM = credits.id_WM == pred.token[:, None]
    is_listed_W = jnp.any(matches_WM, axis=1)
    entry_W = jnp.where(
        is_listed_W, jnp.argmax(matches_WM, axis=1), jnp.argmin(faded_WM, axis=1)
    )
    is_entry_WM = jnp.arange(faded_WM.shape[1])[None] == entry_W[:, None]
    old_WM = jnp.where(is_listed_W[:, None], faded_WM, 0.0)
    return Credits(
        jnp.where(is_entry_WM, pred.token[:, None], credits.id_WM),
        jnp.where(is_entry_WM, old_WM + gain_W[:, None], faded_WM),
    )
