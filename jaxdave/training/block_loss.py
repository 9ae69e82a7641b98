"""The block-diffusion loss: masked windows beside their clean text, in one pass.

The layout is that of BD3-LM and SDAR ([x_t ; x_0], positions repeated), with two
changes: only the answer's blocks have masked copies, and a masked window may span
several blocks, block-causal inside, which is what a decoder that drafts ahead shows the
model. Masked tokens weigh the same whatever the mask ratio.
"""

import jax
import jax.numpy as jnp

from jaxdave.core.config import ModelConfig
from jaxdave.core.model_api import Params
from jaxdave.models.attention import dense_attention
from jaxdave.models.param_shapes import Binder
from jaxdave.models.rope import rope_table
from jaxdave.training.block_batches import Batch


def make_loss(config: ModelConfig):
    """loss(params, batch) -> (sum of weighted cross entropies, sum of weights)."""
    bind = Binder(config)
    cos, sin = rope_table(config, 256)

    def loss(params: Params, batch: Batch):
        rows, size = batch.clean_BS.shape
        _, copies, window = batch.noisy_BCR.shape
        place_BR = batch.start_B[:, None] + jnp.arange(window)[None]
        place_BQ = jnp.concatenate(
            [jnp.tile(jnp.arange(size)[None], (rows, 1)), jnp.tile(place_BR, copies)],
            axis=1,
        )
        noisy_BX = batch.noisy_BCR.reshape(rows, -1)
        tokens_BQ = jnp.concatenate([batch.clean_BS, noisy_BX], axis=1)
        see_BQQ = visibility(batch, place_BQ // config.block_length)
        model = bind(params)
        hidden, _ = model.hidden(
            tokens_BQ,
            (jnp.asarray(cos)[place_BQ], jnp.asarray(sin)[place_BQ]),
            lambda _, q, k, v: dense_attention(q, k, v, see_BQQ),
            jnp.zeros((config.num_layers,)),
        )
        logits = model.logits(hidden[:, size:])
        # The window may run past the padded sequence; what is there weighs nothing.
        answer_BX = jnp.tile(
            jnp.take_along_axis(
                batch.clean_BS, jnp.minimum(place_BR, size - 1), axis=1
            ),
            copies,
        )
        chosen = jnp.take_along_axis(logits, answer_BX[..., None], axis=-1)[..., 0]
        losses = jax.nn.logsumexp(logits, axis=-1) - chosen
        weight = batch.weight_BCR.reshape(rows, -1)
        return jnp.sum(losses * weight), jnp.sum(weight)

    return loss


def visibility(batch: Batch, block_BQ: jax.Array) -> jax.Array:
    """bool [B, Q, Q]: True where a query sees a key, over [clean ; copy 1 ; ...].

    Clean queries see clean keys up to the end of their block. A masked query sees clean
    keys before the first block of its own window, and in its own copy the keys from
    there to the end of its block.
    """
    rows, size = batch.clean_BS.shape
    _, copies, window = batch.noisy_BCR.shape
    copy_Q = jnp.concatenate(
        [jnp.zeros((size,), jnp.int32), 1 + jnp.repeat(jnp.arange(copies), window)]
    )
    first_BQ = jnp.concatenate(
        [block_BQ[:, :size] + 1, batch.first_BCR.reshape(rows, -1)], axis=1
    )
    q_block, k_block = block_BQ[:, :, None], block_BQ[:, None, :]
    first = first_BQ[:, :, None]
    of_clean_key = (copy_Q == 0)[None, None, :] & (k_block < first)
    same = ((copy_Q[:, None] == copy_Q[None, :]) & (copy_Q > 0)[None, :])[None]
    return of_clean_key | (same & (k_block >= first) & (k_block <= q_block))
