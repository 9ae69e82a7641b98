"""The order loss: the next tokens' scores fall in the order of their commits.

A decoder that commits its most confident token drafts all later steps by the scores of
one call. A draft fails where a later call ranks the open tokens differently, however
sure the model is of the tokens themselves. The order loss is the negative log
likelihood of a recorded order under the scores, the log-odds of the best tokens: of the
masked tokens of an active block, each is to have the highest score of those that were
not committed before it,

    nats_i = log sum over j not before i of exp(score_j) - score_i

Tokens are ranked within their own block. It widens the gaps between scores as far as
the order can be predicted.

Axes: B rows, N copies of each answer, A columns of answers, V rows of the vocabulary.

Source: none; the likelihood is Plackett and Luce's. TABOM (arXiv 2605.11854) ranks
pairs of entropies along a model's own trajectories, to learn from its certainties.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxdave.training.distil.states import States


def order_nats(
    logits_BNAV: jax.Array,
    states: States,
    lateness_BA: jax.Array,
    block_length: int,
) -> tuple[jax.Array, jax.Array]:
    """The nats of each token's place in the order.

    Args:
        logits_BNAV: Logits [B, N, A, V].
        states: The states that they are of.
        lateness_BA: How many tokens of each one's block were committed after it
            (`states.recorded_lateness`).
        block_length: Tokens of a block.

    Returns:
        Nats [B, N, A], and bool [B, N, A]: which tokens are ranked, the masked ones of
        active blocks. The last of a block has 0 nats.
    """
    score_BNA = token_log_odds(logits_BNAV)
    is_ranked_BNA = states.is_masked_BNA & ~states.is_later_BNA
    block_A = jnp.arange(score_BNA.shape[-1], dtype=jnp.int32) // block_length
    is_same_AA = block_A[:, None] == block_A[None, :]
    # [..., i, j]: token j is not committed before token i, which i itself is not.
    is_open_BAA = lateness_BA[:, None, :] <= lateness_BA[:, :, None]
    is_rival_BNAA = (
        is_ranked_BNA[..., None, :] & (is_same_AA[None] & is_open_BAA)[:, None]
    )
    rival_BNAA = jnp.where(is_rival_BNAA, score_BNA[..., None, :], _lowest(score_BNA))
    nats_BNA = jax.nn.logsumexp(rival_BNAA, axis=-1) - score_BNA
    return jnp.where(is_ranked_BNA, nats_BNA, 0), is_ranked_BNA


def token_log_odds(logits_BNAV: jax.Array) -> jax.Array:
    """What a decoder ranks tokens by at temperature 0.

    Args:
        logits_BNAV: Logits [..., V], at least two of them.

    Returns:
        log(p / (1 - p)) [...], p the probability of the best one.
    """
    best_BNA1 = jnp.argmax(logits_BNAV, axis=-1, keepdims=True)
    z_BNA = jnp.take_along_axis(logits_BNAV, best_BNA1, axis=-1)[..., 0]
    last = logits_BNAV.ndim - 1
    id_BNAV = jax.lax.broadcasted_iota(best_BNA1.dtype, logits_BNAV.shape, last)
    others = jnp.where(id_BNAV == best_BNA1, _lowest(logits_BNAV), logits_BNAV)
    return z_BNA - jax.nn.logsumexp(others, axis=-1)


def _lowest(like: jax.Array) -> Any:
    """A number that counts nothing in a sum of exponentials, and is finite."""
    return jnp.asarray(-1e30, like.dtype)
