"""CreditDecoding: tokens that have been best before get a head start."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxdave.core.policy_api import Memory, Policy, PolicyView
from jaxdave.core.prediction import Prediction
from jaxdave.policies.block_rules import BlockClock, per_block
from jaxdave.policies.common import best_positions, log_odds, policy_name
from jaxdave.policies.registry import register
from jaxdave.policies.validation import check_amount, check_count, check_share

NO_CREDIT = -1
"""An entry that holds no id."""


class Credits(NamedTuple):
    """Ids with credit at each position, and how much, [W, M]; M = kept."""

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
    logits + alpha log(1 + C). Source: CreditDecoding (arXiv 2510.06133, defaults of
    dInfer's CreditThresholdParallelDecoder). Memory: per block, the `kept` ids with
    the most credit at each position, a new one in the place of the least. Deviations:
    dInfer keeps all ids (the same, up to `kept` different best tokens); above
    temperature 0 credit goes to sampled tokens and the best of those is taken. Raises
    ValueError for a parameter out of range.
    """
    check_share(0.9, threshold=threshold)
    check_share(0.8, beta=beta)
    check_amount(0.7, alpha=alpha)
    check_amount(0.2, gamma=gamma)
    check_count(16, kept=kept)
    bound = jnp.float32(log_odds(threshold))

    def init(size: int, width: int) -> Memory:
        empty = jnp.full((size, kept), NO_CREDIT, jnp.int32)
        return Credits(empty, jnp.zeros((size, kept), jnp.float32))

    def step(
        view: PolicyView, clock: BlockClock, memory: Memory
    ) -> tuple[jax.Array, Memory]:
        held = _credited(memory, view.pred, gamma, beta)
        logit_WM = view.queries.logits_at(jnp.maximum(held.id_WM, 0))
        bonus_WM = jnp.float32(alpha) * jnp.log1p(held.credit_WM)
        id_W, score_W = fused(view.pred, held.id_WM, logit_WM, bonus_WM)
        chosen_W = best_positions(view, 1, score_W) | (view.open_W & (score_W >= bound))
        return jnp.where(chosen_W, id_W, view.tokens_W), held

    given = {"alpha": alpha, "gamma": gamma, "beta": beta, "kept": kept}
    return per_block(policy_name("credit", threshold=threshold, **given), step, init)


def fused(pred: Prediction, id_WM, logit_WM, bonus_WM) -> tuple[jax.Array, jax.Array]:
    """The best of some ids after a bonus, and its log-odds against all other ids.

    The predicted token must be among the ids. Its score says what all others weigh
    together, so what the unlisted ids weigh is known without looking at them.
    """
    is_held_WM = id_WM != NO_CREDIT
    is_token_WM = id_WM == pred.token[:, None]
    raw_WM = jnp.where(is_held_WM, logit_WM, -jnp.inf)
    lifted_WM = jnp.where(is_held_WM, logit_WM + bonus_WM, -jnp.inf)
    top_W = jnp.max(lifted_WM, axis=1)
    tied_WM = lifted_WM == top_W[:, None]
    last = jnp.iinfo(jnp.int32).max
    best_W = jnp.min(jnp.where(tied_WM, id_WM, last), axis=1)
    rest_WM = jnp.where(id_WM == best_W[:, None], -jnp.inf, lifted_WM)
    # log of the weight of all ids but the predicted one, before any bonus.
    others_W = jnp.max(jnp.where(is_token_WM, raw_WM, -jnp.inf), axis=1) - pred.score
    scale_W = jnp.maximum(others_W, jnp.max(rest_WM, axis=1))
    weigh = lambda a: jnp.sum(jnp.exp(a - scale_W[:, None]), axis=1)  # noqa: E731
    listed_W = weigh(jnp.where(is_token_WM, -jnp.inf, raw_WM))
    unlisted_W = jnp.maximum(jnp.exp(others_W - scale_W) - listed_W, 0.0)
    return best_W, top_W - scale_W - jnp.log(unlisted_W + weigh(rest_WM))


def _credited(held: Credits, pred: Prediction, gamma: float, beta: float) -> Credits:
    """The credits after those of one step; a new id takes the place of the least."""
    # p^gamma from log p, which does not saturate.
    gain_W = jnp.exp(jnp.float32(gamma) * jax.nn.log_sigmoid(pred.score))
    faded_WM = held.credit_WM * jnp.float32(beta)
    known_WM = held.id_WM == pred.token[:, None]
    is_known_W = jnp.any(known_WM, axis=1)
    slot_W = jnp.where(
        is_known_W, jnp.argmax(known_WM, axis=1), jnp.argmin(faded_WM, axis=1)
    )
    here_WM = jnp.arange(faded_WM.shape[1])[None] == slot_W[:, None]
    old_WM = jnp.where(is_known_W[:, None], faded_WM, 0.0)
    return Credits(
        jnp.where(here_WM, pred.token[:, None], held.id_WM),
        jnp.where(here_WM, old_WM + gain_W[:, None], faded_WM),
    )
