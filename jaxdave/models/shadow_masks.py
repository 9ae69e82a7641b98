"""A second opinion on every token of a window, from masks that stand in its shadow.

For each position of the window one more [MASK] is evaluated, which sees what the token
that predicts the position sees, except the position itself. So it says what the model
makes of a position as if it were still masked, while all other tokens stay. Source: the
shadow block of WINO (Feng-Hong/WINO-DLLM).

Shadows also see the shadows of their own block, and no others: what they say must not
depend on where the window starts. No token sees a shadow, so a call evaluates them
after its tokens, with the keys and values of those: layers are run through twice.
"""

import functools
from collections.abc import Callable

import jax.numpy as jnp

from jaxdave.core.model_api import ModelFns
from jaxdave.models.attention import LayerCache, grouped_attention
from jaxdave.models.decode_model import AttentionContext, DecodeModel

MakeModelFn = Callable[..., ModelFns]


def with_shadow_masks(make: MakeModelFn, length: int) -> MakeModelFn:
    """A maker of networks whose windows have shadows, from one of plain networks.

    make: takes `beside`; length: of a block. Hidden vectors are twice as wide: those of
    the tokens, then those of the shadows.
    """

    def made(config, **settings) -> ModelFns:
        beside = functools.partial(shadow_vectors, length)
        return split_shadow(make(config, beside=beside, **settings))

    return made


def shadow_vectors(
    length: int, model: DecodeModel, params, hidden_KLE, seen: AttentionContext
):
    """The window's vectors with those of its shadows, [K, L, 2E].

    A shadow stands where the token that predicts its position stands: for a model whose
    logits are shifted that is one to the left, and it may see the token there.
    """
    drafts, size, _ = hidden_KLE.shape
    place_L = seen.start + jnp.arange(size, dtype=jnp.int32)
    said_L = jnp.maximum(place_L - model.shift, 0)
    visible = seen.see_from(said_L)

    def see_others(place_S):
        return visible(place_S) & (place_S[None] != place_L[:, None])[None]

    see_LL = jnp.broadcast_to(visible(said_L)[0], (size, size))

    def layer(stored, q, k, v):
        index, window = stored
        own = grouped_attention(q, k, v, see_LL, length)
        cache, start, reach = LayerCache(seen.cache, index), seen.start, seen.reach
        return model.attend(q, window.k, window.v, cache, start, see_others, reach, own)

    masks_KL = jnp.full((drafts, size), model.config.mask_id, jnp.int32)
    stored = model.layers, seen.window
    bound = model.bind(params)
    mine_KLE, _ = bound.hidden(masks_KL, model.rope(said_L), layer, stored)
    return jnp.concatenate([hidden_KLE, mine_KLE], axis=-1)


def split_shadow(network: ModelFns) -> ModelFns:
    """A network read by the first half of its vectors; by the second as its shadow."""

    def first(read):
        return lambda params, hidden_RE, ids: read(
            params, jnp.split(hidden_RE, 2, axis=-1)[0], ids
        )

    def swapped(hidden_RE):
        return jnp.roll(hidden_RE, hidden_RE.shape[-1] // 2, axis=-1)

    return network._replace(
        logits=first(network.logits),
        logits_at=first(network.logits_at),
        shadow=swapped,
    )
