"""The block-diffusion loss: masked windows beside their clean text, in one pass.

The layout is that of BD3-LM (arXiv 2503.09573) and SDAR (arXiv 2510.06303), the clean
sequence and masked copies with repeated positions ([x_t ; x_0] there), with two
changes: only the answer's blocks have masked copies, and a masked window may span
several blocks, block-causal inside, which is what a decoder that drafts ahead shows the
model. Masked tokens weigh the same whatever the mask ratio.

Axes: those of `block_batches`, and Q queries: the clean sequence, then the windows of
all copies, S + C R positions; X: those of all windows, C R.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxdave.core.config import ModelConfig
from jaxdave.core.model_api import Params
from jaxdave.models.attention import dense_attention
from jaxdave.models.param_shapes import Binder
from jaxdave.models.rope import rope_table
from jaxdave.training.demo.block_batches import BlockBatch
from jaxdave.training.objective import attention_masks
from jaxdave.training.objective.attention_masks import Layout
from jaxdave.training.objective.trained_matrix import with_written_gradients

MAX_POSITIONS = 256
EXPERT_BALANCE = 1e-3
"""What the balance of experts counts (`trained_experts.balanced`). The optimiser makes
steps of its own size of it, so that only its sign matters."""


def make_block_loss(
    config: ModelConfig,
) -> Callable[[Params, BlockBatch], tuple[jax.Array, jax.Array]]:
    """Make the loss of a block-causal model.

    Args:
        config: The model.

    Returns:
        A function (params, batch) -> (sum of weighted cross entropies in nats, sum of
        weights), both float32 scalars. Sums and not the mean, so that batches of
        different shapes can be added before the division.
    """
    bind = Binder(config)
    cos, sin = rope_table(config, MAX_POSITIONS)

    def loss(params: Params, batch: BlockBatch):
        rows, size = batch.clean_BS.shape
        _, copies, window = batch.noisy_BCR.shape
        position_BR = batch.start_B[:, None] + jnp.arange(window)[None]
        position_BQ = jnp.concatenate(
            [
                jnp.tile(jnp.arange(size)[None], (rows, 1)),
                jnp.tile(position_BR, copies),
            ],
            axis=1,
        )
        noisy_BX = batch.noisy_BCR.reshape(rows, -1)
        tokens_BQ = jnp.concatenate([batch.clean_BS, noisy_BX], axis=1)
        visible_BQQ = visibility(batch, position_BQ // config.block_length)

        def attend(_, q, k, v):
            return dense_attention(q, k, v, visible_BQQ)

        if config.experts is not None:
            params = with_written_gradients(params, EXPERT_BALANCE)
        model = bind(params)
        hidden, _ = model.hidden(
            tokens_BQ,
            (jnp.asarray(cos)[position_BQ], jnp.asarray(sin)[position_BQ]),
            attend,
            jnp.zeros((config.num_layers,)),
        )
        logits = model.logits(hidden[:, size:])
        # The window may run past the padded sequence; what is there weighs nothing.
        target_BX = jnp.tile(
            jnp.take_along_axis(
                batch.clean_BS, jnp.minimum(position_BR, size - 1), axis=1
            ),
            copies,
        )
        target_logits = jnp.take_along_axis(logits, target_BX[..., None], axis=-1)
        target_logits = target_logits[..., 0]
        cross_entropy = jax.nn.logsumexp(logits, axis=-1) - target_logits
        weight = batch.weight_BCR.reshape(rows, -1)
        return jnp.sum(cross_entropy * weight), jnp.sum(weight)

    return loss


def visibility(batch: BlockBatch, block_BQ: jax.Array) -> jax.Array:
    """Compute the attention mask over the clean sequence and the masked copies.

    A clean query sees clean keys up to the end of its block. A masked query sees clean
    keys before the first block of its group, and in its own copy the keys from there to
    the end of its block.

    Args:
        batch: The batch.
        block_BQ: int32 [B, Q], the block that each position is in.

    Returns:
        bool [B, Q, Q], True where a query (second axis) sees a key (third axis).
    """
    rows, size = batch.clean_BS.shape
    _, copies, window = batch.noisy_BCR.shape
    # 0: the clean sequence; from 1: its masked copies.
    copy_Q = jnp.concatenate(
        [jnp.zeros((size,), jnp.int32), 1 + jnp.repeat(jnp.arange(copies), window)]
    )
    first_block_BQ = jnp.concatenate(
        [block_BQ[:, :size] + 1, batch.first_block_BCR.reshape(rows, -1)], axis=1
    )
    layout = Layout(
        position_BQ=block_BQ,  # not looked at
        block_BQ=block_BQ,
        context_BQ=first_block_BQ,
        copy_BQ=jnp.broadcast_to(copy_Q[None], block_BQ.shape),
        sample_BQ=jnp.zeros_like(block_BQ),
    )
    return attention_masks.visibility(layout)
