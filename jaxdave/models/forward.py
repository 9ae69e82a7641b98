"""A model over the whole canvas at once, without a cache: the plain definition of it.

Converted weights are compared with it, and so are the decoding networks in tests. It is
too slow to decode with: see `block_causal` and `full_attention`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxdave.core.config import ModelConfig
from jaxdave.core.shapes import assert_rank, assert_shape
from jaxdave.models.attention import dense_attention
from jaxdave.models.param_shapes import Binder
from jaxdave.models.rope import rope_table

ForwardLogitsFn = Callable[..., jax.Array]
"""(params, tokens_BT, valid_BT=None) -> float32 array."""


def forward(config: ModelConfig) -> ForwardLogitsFn:
    """Build the function from tokens to logits.

    Args:
        config: The model's shape.

    Returns:
        logits(params, tokens_BT, valid_BT=None) -> float32 [B, T, vocab_rows]. Row i
        holds the prediction of token i, whatever the model's `logits_shift` (see
        `source_columns`). valid_BT is bool and False at the pads on a row's left, whose
        own logits mean nothing; a row gives the same predictions with pads as without.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxdave.models import transformer
        >>> from jaxdave.models.presets import preset
        >>> config = preset("sdar-1m", num_layers=1)
        >>> params = transformer.init(config, seed=0)
        >>> forward(config)(params, jnp.zeros((1, 8), jnp.int32)).shape
        (1, 8, 832)
    """
    bind = Binder(config)

    def logits(params, tokens_BT, valid_BT=None):
        position_BT = positions(tokens_BT, valid_BT)
        model = bind(params)
        # Hidden states are moved rather than logits, which are far wider.
        context = _context(config, position_BT, valid_BT, tokens_BT)
        hidden, _ = model.hidden(tokens_BT, *context)
        if config.logits_shift != "none":
            source_BT1 = source_columns(position_BT)[..., None]
            hidden = jnp.take_along_axis(hidden, source_BT1, axis=1)
        # On a mesh the table may have rows of no id, so that it divides.
        return model.logits(hidden)[..., : config.vocab_rows]

    return logits


def layer_states(config: ModelConfig) -> ForwardLogitsFn:
    """Build the function from tokens to the hidden states of all layers.

    Args:
        config: The model's shape.

    Returns:
        states(params, tokens_BT, valid_BT=None) -> [N + 1, B, T, hidden]: the
        embedding, then every layer's output, the last one normed; never shifted.
    """
    bind = Binder(config)

    def states(params, tokens_BT, valid_BT=None):
        position_BT = positions(tokens_BT, valid_BT)
        context = _context(config, position_BT, valid_BT, tokens_BT)
        return bind(params).states(tokens_BT, *context)

    return states


def positions(tokens_BT: jax.Array, valid_BT: jax.Array | None = None) -> jax.Array:
    """The position of each token in its row, not counting pads on the left.

    Pads get position 1, as in Dream's sampler; no other token sees them. LLaDA's
    counts columns instead, which makes no difference to rotary embeddings: they only
    depend on distances.

    Args:
        tokens_BT: int32 [B, T].
        valid_BT: bool [B, T], False at pads; None: there are none.

    Returns:
        int32 [B, T].
    """
    assert_rank(tokens_BT, 2)
    rows, columns = tokens_BT.shape
    if valid_BT is None:
        return jnp.tile(jnp.arange(columns, dtype=jnp.int32)[None], (rows, 1))
    assert_shape(valid_BT, (rows, columns))
    # The first real token of a row has position 0, however many pads stand before it.
    counted_BT = jnp.cumsum(valid_BT.astype(jnp.int32), axis=1) - 1
    return jnp.where(valid_BT, counted_BT, 1)


def source_columns(position_BT: jax.Array) -> jax.Array:
    """The column whose output predicts each token of a model that shifts its logits.

    It is the one to the left; a row's first token has none and keeps its own. "block"
    (Fast-dLLM v2) and "full" (Dream) agree here: the first token of a block is read off
    the end of the block before, which sees nothing of this one. The published decoder
    does so once that block is committed; before, the prediction is a guess.

    Args:
        position_BT: Positions of the tokens, int32 [B, T] (see `positions`).

    Returns:
        Column indices, int32 [B, T].
    """
    column_T = jnp.arange(position_BT.shape[1], dtype=jnp.int32)
    left_BT = jnp.maximum(column_T[None] - 1, 0)
    return jnp.where(position_BT > 0, left_BT, column_T[None])


def visibility(
    config: ModelConfig, position_BT, valid_BT=None, tokens_BT=None
) -> jax.Array:
    """The attention mask of a canvas.

    Args:
        config: The model's shape: its attention.
        position_BT: Positions of the tokens, int32 [B, T].
        valid_BT: bool [B, T], False at pads; None: there are none.
        tokens_BT: The tokens, int32 [B, T], for a causal context, whose blocks are
            counted from position 0 here; None: no position is masked.

    Returns:
        bool [B, T, T], True where a query (second axis) sees a key: never a pad, nor a
        later block of a block-causal model.
    """
    rows, columns = position_BT.shape
    mask_BTT = jnp.ones((rows, columns, columns), bool)
    block_BT = position_BT // config.block_length
    if config.attention == "block_causal":
        mask_BTT = block_BT[:, None, :] <= block_BT[:, :, None]
    elif config.attention == "causal_context":
        mask_BTT = position_BT[:, None, :] <= position_BT[:, :, None]
        if tokens_BT is not None:
            same_BTT = block_BT[:, None, :] == block_BT[:, :, None]
            masked_BT = tokens_BT == config.mask_id
            # Queries of a block with masks see all of it.
            open_BT = jnp.any(same_BTT & masked_BT[:, None, :], axis=2)
            mask_BTT |= same_BTT & open_BT[:, :, None]
    return mask_BTT if valid_BT is None else mask_BTT & valid_BT[:, None, :]


def _context(config: ModelConfig, position_BT, valid_BT, tokens_BT):
    """What `Transformer.hidden` needs beside tokens: rope, attention, layer inputs."""
    # At least 2 positions: a pad has position 1 even in a row of one token.
    tables = rope_table(config, max(position_BT.shape[1], 2))
    rope = tuple(jnp.asarray(table)[position_BT] for table in tables)
    mask_BTT = visibility(config, position_BT, valid_BT, tokens_BT)

    def attend(_, q, k, v):
        return dense_attention(q, k, v, mask_BTT)

    return rope, attend, jnp.zeros((config.num_layers,))
