"""The evidence lower bound of an answer's log-probability, from some masks of it.

    ELBO = integral over t in (0, 1) of E over masks (1 / t) sum over masked i of
           log p(token i | the rest), each position masked with probability t

It is the mean of the chain's log-probability over all orders, so that it is at most the
log of their mean probability. All estimates here are one sum over N masks.

Axes: N masks, Q nodes, M masks of a node, T positions of a canvas.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdave.training.reinforce.log_probs import LogitsFn, token_log_probs


class MaskSamples(NamedTuple):
    """Masks of one answer and what each contributes.

    Old and new parameters, and the reference, are compared on the same masks.

    Attributes:
        is_masked_NT: bool [N, T].
        weight_N: float32 [N], 1 / t: factor of the masked tokens' log-probabilities.
        share_N: float32 [N], how much each mask counts; they sum to 1.
    """

    is_masked_NT: jax.Array
    weight_N: jax.Array
    share_N: jax.Array


def random_masks(key: jax.Array, is_answer_T: jax.Array, num_masks: int) -> MaskSamples:
    """Draw times and masks: double Monte Carlo, which is unbiased.

    Args:
        key: Source of randomness.
        is_answer_T: True at the tokens of the answer, bool [T].
        num_masks: How many, N.

    Returns:
        The masks. One may mask nothing; it then contributes 0.

    Source: LLaDA, arXiv 2502.09992; BGPO, arXiv 2510.11683.
    """
    time_key, mask_key = jax.random.split(key)
    # In (0, 1]: at 0 nothing is masked and the weight is infinite.
    time_N = 1.0 - jax.random.uniform(time_key, (num_masks,))
    share_N = jnp.full((num_masks,), 1.0 / num_masks)
    return _masks(mask_key, is_answer_T, time_N, share_N)


def quadrature_masks(
    key: jax.Array, is_answer_T: jax.Array, num_nodes: int, masks_per_node: int
) -> MaskSamples:
    """Draw masks at the nodes of Gauss and Legendre: semi-deterministic Monte Carlo.

    The times, from which most of the variance comes, are no longer drawn. What is
    integrated is a polynomial in t of a degree below the length of the answer, so that
    Q nodes leave no bias for answers of up to 2 Q tokens and little for longer ones.

    Args:
        key: Source of randomness.
        is_answer_T: True at the tokens of the answer, bool [T].
        num_nodes: Nodes Q; 2 or 3 are usual.
        masks_per_node: Masks M that are drawn at each.

    Returns:
        Q * M masks, node after node.

    Source: GDPO (Group Diffusion Policy Optimization), arXiv 2510.08554. Its code was
    not found: which rule has its nodes, and how many masks each, is chosen here. Its
    loss is `policy_loss` with ratio="sequence" of bounds divided by the length, on
    advantages that are not divided (`normalize="none"`, gdpo.github.io).
    """
    node_Q, weight_Q = np.polynomial.legendre.leggauss(num_nodes)
    # From (-1, 1) to (0, 1).
    time_N = jnp.asarray(np.repeat((node_Q + 1) / 2, masks_per_node), jnp.float32)
    share_Q = weight_Q / 2 / masks_per_node
    share_N = jnp.asarray(np.repeat(share_Q, masks_per_node), jnp.float32)
    return _masks(key, is_answer_T, time_N, share_N)


def elbo_terms(
    logits_of: LogitsFn,
    tokens_T: jax.Array,
    masks: MaskSamples,
    *,
    mask_id: int,
    temperature: float = 1.0,
    states_per_call: int | None = None,
) -> jax.Array:
    """Compute what each mask says of the bound.

    Args:
        logits_of: The model.
        tokens_T: The finished canvas, int32 [T].
        masks: The masks.
        mask_id: The id of a masked position.
        temperature: As in `log_probs.token_log_probs`.
        states_per_call: As in `log_probs.token_log_probs`.

    Returns:
        float32 [N], (1 / t) times the sum of the masked tokens' log-probabilities.
    """
    states_NT = jnp.where(masks.is_masked_NT, mask_id, tokens_T[None, :])
    log_probs_NT = token_log_probs(
        logits_of,
        states_NT,
        tokens_T,
        temperature=temperature,
        states_per_call=states_per_call,
    )
    sum_N = jnp.sum(jnp.where(masks.is_masked_NT, log_probs_NT, 0.0), axis=1)
    return masks.weight_N * sum_N


def elbo(terms_N: jax.Array, share_N: jax.Array) -> jax.Array:
    """Estimate the bound.

    Args:
        terms_N: What each mask says (`elbo_terms`), float32 [N].
        share_N: How much each counts (`MaskSamples.share_N`), float32 [N].

    Returns:
        Nats, float32 scalar.
    """
    return jnp.sum(share_N * terms_N)


def _masks(
    key: jax.Array, is_answer_T: jax.Array, time_N: jax.Array, share_N: jax.Array
) -> MaskSamples:
    """Mask every position of the answer with the probability that is the time."""
    shape = (time_N.shape[0], is_answer_T.shape[0])
    is_below_NT = jax.random.uniform(key, shape) < time_N[:, None]
    return MaskSamples(is_below_NT & is_answer_T[None, :], 1.0 / time_N, share_N)
