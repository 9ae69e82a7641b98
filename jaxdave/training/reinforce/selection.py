"""The log-probability of what a policy of drawn confidences does, its choices included.

At a temperature the static rule draws a token for every open position of a block, and
commits the one that is most probable; the others are drawn again. So it commits a token
x at position i with probability

    p_i(x) prod over other open j of P(p_j(Y_j) < p_i(x)),
    P(p_j(Y_j) < c) = sum over y with p_j(y) < c of p_j(y)

which is far sharper than p_i(x). `log_probs.trajectory_log_probs` leaves the product
out, as published methods do: its scores then have a mean that is not 0 under what is
sampled, and its gradient is not that of the expected reward. This one is; it is almost
everywhere differentiable, and the probabilities of all steps add up to 1.

Axes: S states, R positions of a window, K blocks of L, V vocabulary.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxdave.training.reinforce.log_probs import LogitsFn
from jaxdave.training.reinforce.step_maps import states_before

POLICY = "static(1)"
"""The rule whose choices these are."""


def selection_log_probs(
    logits_of: LogitsFn,
    tokens_R: jax.Array,
    ranks_R: jax.Array,
    block_length: int,
    *,
    mask_id: int,
    temperature: float,
) -> jax.Array:
    """Compute the log-probability of each commit of the static rule, one token a step.

    Args:
        logits_of: The model; a state is one of all blocks (`answer_logits`).
        tokens_R: The finished window, int32 [R], of whole blocks.
        ranks_R: The step of each token within its block, int32 [R]
            (`answer_batch.block_ranks`).
        block_length: Tokens of a block, L.
        mask_id: The id of a masked position.
        temperature: That tokens were drawn at, and confidences are of.

    Returns:
        float32 [R], 0 where no step has committed a token.

    Source: derived here. The rule: FreeDave, arXiv 2510.00294, section 3.
    """
    states_SR = states_before(tokens_R, ranks_R, block_length, mask_id)
    logits_SRV = logits_of(states_SR).astype(jnp.float32) / temperature
    log_probs_SRV = jax.nn.log_softmax(logits_SRV, axis=-1)
    at_R = jnp.minimum(tokens_R, logits_SRV.shape[-1] - 1)
    at_SRV = jnp.broadcast_to(at_R[None, :, None], (*states_SR.shape, 1))
    own_SR = jnp.take_along_axis(log_probs_SRV, at_SRV, axis=-1)[..., 0]
    step_S1 = jnp.arange(block_length, dtype=jnp.int32)[:, None]
    is_committed_SR = ranks_R[None, :] == step_S1
    is_open_SR = ranks_R[None, :] > step_S1

    def of_block(array_SR: jax.Array) -> jax.Array:
        """The sum over the block of each position, [S, R]."""
        blocks = array_SR.reshape(block_length, -1, block_length)
        sums = jnp.sum(blocks, axis=2, keepdims=True)
        return jnp.broadcast_to(sums, blocks.shape).reshape(array_SR.shape)

    chosen_SR = of_block(jnp.where(is_committed_SR, own_SR, 0.0))
    place_R = jnp.arange(tokens_R.shape[0], dtype=jnp.int32)
    chosen_place_SR = of_block(jnp.where(is_committed_SR, place_R[None, :], 0))
    # Of equal confidences the leftmost is taken.
    loses_SRV = jnp.where(
        (place_R[None, :] > chosen_place_SR)[..., None],
        log_probs_SRV <= chosen_SR[..., None],
        log_probs_SRV < chosen_SR[..., None],
    )
    # What was drawn has lost, so that a sum of nothing is one of rounding errors. It is
    # bounded below before it is summed: the gradient of a sum of nothing is none.
    tiny = float(np.log(np.finfo(np.float32).tiny))
    losing_SRV = jnp.maximum(jnp.where(loses_SRV, log_probs_SRV, tiny), tiny)
    below_SR = jnp.minimum(jax.nn.logsumexp(losing_SRV, axis=-1), 0.0)
    others_SR = of_block(jnp.where(is_open_SR, below_SR, 0.0))
    return jnp.sum(jnp.where(is_committed_SR, own_SR + others_SR, 0.0), axis=0)
