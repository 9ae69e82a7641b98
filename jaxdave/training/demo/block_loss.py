"""The block-diffusion loss: masked windows beside their clean text, in one pass.

The layout is that of BD3-LM (arXiv 2503.09573) and SDAR (arXiv 2510.06303), the clean
sequence and masked copies with repeated positions ([x_t ; x_0] there), with two
changes: only the answer's blocks have masked copies, and a masked window may span
several blocks, block-causal inside, which is what a decoder that drafts ahead shows the
model. Masked tokens weigh the same whatever the mask ratio.

A model that edits must mend the tokens that it gets wrong itself, which random ones are
unlike. So some copies are first filled by the model with what it is sure enough of, and
the loss is of the copies as filled, in the way of LLaDA2.1's multi-turn forward (arXiv
2602.08676; only its idea was seen, not its code).

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
GUESS_THRESHOLDS = (0.1, 0.7)
"""Between these a copy's threshold is drawn (`filled_by_guesses`): below and at those
of LLaDA2.1's modes, so that copies have more wrong tokens than decoding has."""


def make_block_loss(
    config: ModelConfig, guessed_copies: int = 0
) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """Make the loss of a block-causal model.

    Args:
        config: The model.
        guessed_copies: The last copies of a window that the model fills before it
            learns from them (`filled_by_guesses`).

    Returns:
        A function (params, batch, key) -> (sum of weighted cross entropies in nats, sum
        of weights), both float32 scalars; `key` is needed with guessed copies only.
        Sums and not the mean, so that batches of different shapes can be added before
        the division.
    """
    bind = Binder(config)
    cos, sin = rope_table(config, MAX_POSITIONS)

    def window_logits(params: Params, batch: BlockBatch) -> jax.Array:
        """Logits [B, X, V] of the windows of all copies."""
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

        model = bind(params)
        hidden, _ = model.hidden(
            tokens_BQ,
            (jnp.asarray(cos)[position_BQ], jnp.asarray(sin)[position_BQ]),
            attend,
            jnp.zeros((config.num_layers,)),
        )
        return model.logits(hidden[:, size:])

    def loss(params: Params, batch: BlockBatch, key: jax.Array | None = None):
        if guessed_copies:
            assert key is not None
            batch = filled_by_guesses(
                batch,
                guessed_copies,
                lambda some: window_logits(jax.lax.stop_gradient(params), some),
                config.mask_id,
                key,
            )
        if config.experts is not None:
            params = with_written_gradients(params, EXPERT_BALANCE)
        logits = window_logits(params, batch)
        rows, size = batch.clean_BS.shape
        _, copies, window = batch.noisy_BCR.shape
        position_BR = batch.start_B[:, None] + jnp.arange(window)[None]
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


def filled_by_guesses(
    batch: BlockBatch,
    guessed_copies: int,
    window_logits: Callable[[BlockBatch], jax.Array],
    mask_id: int,
    key: jax.Array,
) -> BlockBatch:
    """Fill masks of the last copies with what a model predicts there, right or wrong.

    As a step of a decoder with a threshold does it: the threshold is drawn for every
    copy, and what is less sure stays masked.

    Args:
        batch: The batch.
        guessed_copies: How many copies are filled.
        window_logits: The model: (batch) -> logits [B, X, V] of all its copies.
        mask_id: Id of the mask, which is never predicted.
        key: Of the thresholds.

    Returns:
        The batch, in which no token but those masks differs.
    """
    noisy_BCR = batch.noisy_BCR[:, -guessed_copies:]
    some = batch._replace(
        noisy_BCR=noisy_BCR, first_block_BCR=batch.first_block_BCR[:, -guessed_copies:]
    )
    logits = window_logits(some).at[..., mask_id].set(-jnp.inf)
    sureness = jnp.max(jax.nn.softmax(logits), axis=-1).reshape(noisy_BCR.shape)
    guess_BCR = jnp.argmax(logits, axis=-1).reshape(noisy_BCR.shape)
    low, high = GUESS_THRESHOLDS
    threshold_BC1 = jax.random.uniform(
        key, (*noisy_BCR.shape[:2], 1), minval=low, maxval=high
    )
    is_filled_BCR = (noisy_BCR == mask_id) & (sureness > threshold_BC1)
    filled_BCR = jnp.where(is_filled_BCR, guess_BCR, noisy_BCR)
    unfilled = batch.noisy_BCR[:, :-guessed_copies]
    return batch._replace(noisy_BCR=jnp.concatenate([unfilled, filled_BCR], axis=1))


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
