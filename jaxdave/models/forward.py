"""A model over the whole canvas at once, without a cache: the plainest reading of it.

What converted weights are compared with, and what a full-attention model computes when
nothing is frozen. Decoding of block-causal models goes through `network.py`.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from jaxdave.core.config import ModelConfig
from jaxdave.models.attention import dense_attention
from jaxdave.models.param_shapes import Binder
from jaxdave.models.rope import rope_table

ForwardLogitsFn = Callable[..., jax.Array]


def forward(config: ModelConfig) -> ForwardLogitsFn:
    """logits(params, tokens_BT, valid_BT=None) -> float32 [B, T, vocab_rows].

    Row i holds the prediction of token i, whatever the model's `logits_shift`; see
    `sources`. valid_BT: bool, False at the pads on a row's left, whose own logits mean
    nothing. A row gives the same predictions with pads as without.
    """
    bind = Binder(config)

    def logits(params, tokens_BT, valid_BT=None):
        place_BT = positions(tokens_BT, valid_BT)
        model = bind(params)
        hidden, _ = model.hidden(tokens_BT, *_context(config, place_BT, valid_BT))
        if config.logits_shift != "none":
            source_BT1 = source_columns(place_BT)[..., None]
            hidden = jnp.take_along_axis(hidden, source_BT1, axis=1)
        return model.logits(hidden)

    return logits


def layer_states(config: ModelConfig) -> ForwardLogitsFn:
    """states(params, tokens_BT, valid_BT=None) -> [N + 1, B, T, hidden].

    The embedding, then every layer's output, the last one normed; never shifted.
    """
    bind = Binder(config)

    def states(params, tokens_BT, valid_BT=None):
        place_BT = positions(tokens_BT, valid_BT)
        return bind(params).states(tokens_BT, *_context(config, place_BT, valid_BT))

    return states


def positions(tokens_BT: jax.Array, valid_BT: jax.Array | None = None) -> jax.Array:
    """The position of each token in its row, [B, T]: pads on the left count nothing.

    Pads get position 1, as in Dream's sampler; no other token sees them. LLaDA's counts
    columns instead, which rotation cannot tell apart: it only knows distances.
    """
    chex.assert_rank(tokens_BT, 2)
    rows, columns = tokens_BT.shape
    if valid_BT is None:
        return jnp.tile(jnp.arange(columns, dtype=jnp.int32)[None], (rows, 1))
    chex.assert_shape(valid_BT, (rows, columns))
    counted_BT = jnp.cumsum(valid_BT.astype(jnp.int32), axis=1) - 1
    return jnp.where(valid_BT, counted_BT, 1)


def source_columns(place_BT: jax.Array) -> jax.Array:
    """The column whose output predicts each token of a model that shifts, [B, T].

    It is the one to the left; a row's first token has none and keeps its own. "block"
    (Fast-dLLM v2) and "full" (Dream) agree here: the first token of a block is read off
    the end of the block before, which sees nothing of this one. The published decoder
    does so once that block is committed; before, the prediction is a guess.
    """
    column_T = jnp.arange(place_BT.shape[1], dtype=jnp.int32)
    left_BT = jnp.maximum(column_T[None] - 1, 0)
    return jnp.where(place_BT > 0, left_BT, column_T[None])


def visibility(config: ModelConfig, place_BT, valid_BT=None) -> jax.Array:
    """bool [B, T, T], True where a query sees a key: never a pad, nor a later block."""
    rows, columns = place_BT.shape
    see_BTT = jnp.ones((rows, columns, columns), bool)
    if config.attention == "block_causal":
        block_BT = place_BT // config.block_length
        see_BTT = block_BT[:, None, :] <= block_BT[:, :, None]
    return see_BTT if valid_BT is None else see_BTT & valid_BT[:, None, :]


def _context(config: ModelConfig, place_BT, valid_BT):
    """What `Denoiser.hidden` needs beside tokens: rotation, attention, layer inputs."""
    # A pad of a row of one token is at position 1 all the same.
    cos, sin = rope_table(config, max(place_BT.shape[1], 2))
    rope = jnp.asarray(cos)[place_BT], jnp.asarray(sin)[place_BT]
    see_BTT = visibility(config, place_BT, valid_BT)

    def attend(_, q, k, v):
        return dense_attention(q, k, v, see_BTT)

    return rope, attend, jnp.zeros((config.num_layers,))
