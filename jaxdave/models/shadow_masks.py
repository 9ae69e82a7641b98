"""Shadow masks: what the model would predict at each position if it were masked.

A revising policy (WINO) wants a second opinion on tokens that are decoded already. For
each position of the window one more [MASK], its shadow, is evaluated. It sees what the
token that predicts the position sees, except the position's own token, so it gives the
model's prediction with that one position masked and all other tokens as they are.

Shadows also see the shadows of their own block, and no others: their result must not
depend on where the window starts. No token sees a shadow, so a call can evaluate them
after its tokens, with the tokens' keys and values; the layers are run through twice.

Source:
    The shadow block of WINO (Feng-Hong/WINO-DLLM).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from jaxdave.core.model_api import ModelFns
from jaxdave.models.attention import LayerCache, grouped_attention
from jaxdave.models.decode_model import DecodeModel
from jaxdave.models.extra_branch import AttentionContext

MakeModelFn = Callable[..., ModelFns]
"""(config, **settings) -> model, with `extra_branch` among the settings."""


def with_shadow_masks(make_model: MakeModelFn, length: int) -> MakeModelFn:
    """Turn a maker of models into one of models whose windows have shadows.

    Args:
        make_model: A maker that takes `extra_branch`.
        length: Tokens of a block.

    Returns:
        A maker of models with `ModelFns.shadow`. Their hidden vectors are twice as
        wide: those of the tokens, then those of the shadows.
    """

    def make_shadowed(config, **settings) -> ModelFns:
        extra_branch = functools.partial(shadow_vectors, length)
        return split_shadow(make_model(config, extra_branch=extra_branch, **settings))

    return make_shadowed


def shadow_vectors(
    length: int, model: DecodeModel, params, hidden_KLE, context: AttentionContext
):
    """Evaluate the shadows of a window (an `ExtraBranch`, once `length` is given).

    Args:
        length: Tokens of a block.
        model: The model that has evaluated the window.
        params: Its parameters.
        hidden_KLE: Aligned vectors of the window, [K, L, E].
        context: What the window has attended to.

    Returns:
        Vectors [K, L, 2E]: the window's and those of its shadows.
    """
    drafts, size, _ = hidden_KLE.shape
    position_L = context.start + jnp.arange(size, dtype=jnp.int32)
    # A shadow stands where the token that predicts its position stands: where logits
    # are shifted that is one to the left, and it may see the token there.
    shadow_position_L = jnp.maximum(position_L - model.shift, 0)
    mask_fn = context.mask_from(shadow_position_L)

    # A shadow sees what the token in its place sees, but not the token that it shadows.
    def mask_others(position_S):
        mask = mask_fn(position_S)
        return mask & (position_S[None] != position_L[:, None])[None]

    mask_LL = jnp.broadcast_to(mask_fn(shadow_position_L)[0], (size, size))

    def attend(layer_inputs, q, k, v):
        index, window = layer_inputs
        # Keys of shadows have no position in the canvas, so that they enter the softmax
        # first; the keys of window and cache are added to it.
        initial = grouped_attention(q, k, v, mask_LL, length)
        return model.attend(
            q,
            window.k,
            window.v,
            LayerCache(context.cache, index),
            context.start,
            mask_others,
            context.keys_end,
            initial,
        )

    masks_KL = jnp.full((drafts, size), model.config.mask_id, jnp.int32)
    layer_inputs = model.layer_indices, context.window
    bound = model.bind(params)
    rope = model.rope(shadow_position_L, context.cache.k.shape[1])
    shadow_KLE, _ = bound.hidden(masks_KL, rope, attend, layer_inputs)
    return jnp.concatenate([hidden_KLE, shadow_KLE], axis=-1)


def split_shadow(model: ModelFns) -> ModelFns:
    """Give a model of twice as wide vectors the functions that read each half.

    Args:
        model: A model whose `logits` and `logits_at` take single-width vectors, but
            whose other functions return vectors with their shadows'.

    Returns:
        The model with `logits` of the first half and `shadow`, which swaps the halves.
    """

    def of_first_half(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda params, hidden_RE, *args, **settings: function(
            params, jnp.split(hidden_RE, 2, axis=-1)[0], *args, **settings
        )

    summarize_head = model.summarize_head

    # Halves are swapped: `logits` reads the first half, whichever that is.
    def shadow(hidden_RE):
        return jnp.roll(hidden_RE, hidden_RE.shape[-1] // 2, axis=-1)

    return model._replace(
        logits=of_first_half(model.logits),
        logits_at=of_first_half(model.logits_at),
        summarize_head=summarize_head and of_first_half(summarize_head),
        shadow=shadow,
    )
