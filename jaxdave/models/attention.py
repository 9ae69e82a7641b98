"""Attention functions: dense for training, tiled and two-part for decoding.

A decoding query sees keys by their positions (`See`): those of the window come from the
window, all others from the cache. Drafts are a batch axis that shares one cache; the
cache is never copied per draft as a whole.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxdave.core.model_api import KVCache
from jaxdave.core.prediction import NEG_INF
from jaxdave.models.online_softmax import (
    PartialSoftmax,
    add_keys,
    empty_softmax,
    merge_softmax,
    normalize,
)

TILE = 64
"""Keys per step of `tiled`; a multiple of every block length."""

SPLIT = 256
"""Keys that are summed in one go off a CPU, at most."""

MaskFn = Callable[[jax.Array], jax.Array]
"""Key positions [S] -> bool [K or 1, L or 1, S]: which queries see them."""

AttendFn = Callable[..., jax.Array]


class LayerCache(NamedTuple):
    """Keys and values of all layers [N, T, G, D], of which one is read.

    A layer of them would be a copy of all that there is room for; a cut is one tile.
    """

    cache: KVCache
    layer: jax.Array | int

    @property
    def room(self) -> int:
        return self.cache.k.shape[1]

    def cut(self, at, size: int) -> tuple[jax.Array, jax.Array]:
        """Keys and values [S, G, D] of so many positions."""

        def one(stored: jax.Array) -> jax.Array:
            sizes = 1, size, *stored.shape[2:]
            return jax.lax.dynamic_slice(stored, (self.layer, at, 0, 0), sizes)[0]

        return one(self.cache.k), one(self.cache.v)


def dense_attention(q, k, v, see):
    """Attention with an explicit mask.

    q: [B, Q, H, D]; k, v: [B, S, G, D] with H a multiple of G; see: bool
    [B or 1, Q, S], True where a query sees a key. Scores and statistics are float32.
    """
    q_BQGRD = _group_queries(q, k)
    scores = _dot("bqgrd,bsgd->bgrqs", q_BQGRD, k) / math.sqrt(q.shape[-1])
    scores = jnp.where(see[:, None, None], scores, NEG_INF)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return _dot("bgrqs,bsgd->bqgrd", weights, v).astype(q.dtype).reshape(q.shape)


def tiled_attention(q, k, v, stored: LayerCache, start, see: MaskFn, reach, begun=None):
    """Attention as a fold over tiles of keys on the absolute grid, for exact numerics.

    q: [K, Q, H, D], queries of the window or of a piece of it; k, v: [K, L, G, D] of
    the window; stored: of T positions, a multiple of `TILE`; start: the window's
    position; reach: no key lies there or beyond. begun: `Attended` of keys that stand
    beside the canvas, or None.

    Tile c always covers positions c * TILE onwards, whether their keys come from the
    cache or from the window, and tiles are folded in order. So the bits of a state's
    output depend neither on where the window starts, nor on the capacity of the cache,
    nor (inside one program) on the draft's index. Only one tile is copied per draft.
    """
    q_KLGRD = _group_queries(q, k)

    def fold(index, held: PartialSoftmax) -> PartialSoftmax:
        place_S = index * TILE + jnp.arange(TILE, dtype=jnp.int32)
        kept = stored.cut(index * TILE, TILE)
        keys, values = (
            _overlay_window(part, tile, place_S - start)
            for part, tile in zip((k, v), kept, strict=True)
        )
        scores = _dot("klgrd,ksgd->kgrls", q_KLGRD, keys) / math.sqrt(q.shape[-1])
        scores = jnp.where(see(place_S)[:, None, None], scores, NEG_INF)
        weigh = lambda w: _dot("kgrls,ksgd->kgrld", w.astype(v.dtype), values)  # noqa: E731
        return add_keys(held, scores, weigh)

    if begun is None:
        begun = empty_softmax(jnp.einsum("klgrd->kgrld", q_KLGRD))
    tiles = (reach + TILE - 1) // TILE
    held = jax.lax.fori_loop(0, tiles, fold, begun)
    return normalize(held, q)


def two_part_attention(
    q, k, v, stored: LayerCache, start, see: MaskFn, reach, begun=None, tile=None
):
    """Attention over the window and over the cache, under one softmax.

    Shapes as in `tiled`. tile: keys of the cache that are read at a time, up to where
    they end; None: all that there is room for, at once. Either way they are read once
    for all drafts. Which keys are summed together depends on where the window starts,
    so equal states may differ in the last bits: this is the fast path, not the exact
    one.
    """
    end = start + k.shape[1]
    q_GKLRD = jnp.moveaxis(_group_queries(q, k), 2, 0)

    def more(held: PartialSoftmax, keys, values, see_KLS, of: str) -> PartialSoftmax:
        scores = _dot(f"gklrd,{of}->gklrs", q_GKLRD, keys) / math.sqrt(q.shape[-1])
        scores = jnp.where(see_KLS[None, :, :, None], scores, NEG_INF)
        part = _keys_per_part(values.shape[0]) if tile is None and of == "sgd" else None

        def weigh(weights):
            weights = weights.astype(v.dtype)
            if part is None:
                return _dot(f"gklrs,{of}->gklrd", weights, values)
            # One long sum to an output keeps few processors busy: sums of parts.
            weights = weights.reshape(*weights.shape[:-1], -1, part)
            apart = values.reshape(-1, part, *values.shape[1:])
            return jnp.sum(_dot("gklrcs,csgd->cgklrd", weights, apart), axis=0)

        return add_keys(held, scores, weigh)

    def fold(index, held: PartialSoftmax) -> PartialSoftmax:
        size = tile or stored.room
        place_S = index * size + jnp.arange(size, dtype=jnp.int32)
        outside_S = (place_S < start) | (place_S >= end)
        keys, values = stored.cut(index * size, size)
        return more(held, keys, values, see(place_S) & outside_S[None, None], "sgd")

    in_window = see(start + jnp.arange(k.shape[1], dtype=jnp.int32))
    held = more(empty_softmax(q_GKLRD), k, v, in_window, "ksgd")
    # Keys that end with the window are in the cache up to its start.
    until = jnp.where(reach > end, reach, start)
    tiles = 1 if tile is None else (until + tile - 1) // tile
    held = jax.lax.fori_loop(0, tiles, fold, held)
    by_draft = jax.tree.map(lambda a: jnp.swapaxes(jnp.swapaxes(a, 0, 1), 2, 3), held)
    return normalize(by_draft if begun is None else merge_softmax(by_draft, begun), q)


def grouped_attention(q, k, v, see_LL, length: int) -> PartialSoftmax:
    """Attention of a window to keys of its own, each query to those of its group.

    q: [K, L, H, D]; k, v: [K, L, G, D]; see_LL: which queries see which keys. Groups of
    `length` are a batch axis, so a group's bits do not depend on where it stands.
    """
    drafts, size = q.shape[:2]
    groups = size // length
    cut = lambda a: a.reshape(drafts * groups, length, *a.shape[2:])  # noqa: E731
    q_CLGRD, keys, values = _group_queries(cut(q), k), cut(k), cut(v)
    see_GLGL = see_LL.reshape(groups, length, groups, length)
    see_CLL = jnp.tile(jnp.einsum("glgs->gls", see_GLGL), (drafts, 1, 1))
    scores = _dot("clgrd,csgd->cgrls", q_CLGRD, keys) / math.sqrt(q.shape[-1])
    scores = jnp.where(see_CLL[:, None, None], scores, NEG_INF)
    top = jnp.max(scores, axis=-1)
    weights = jnp.exp(scores - top[..., None])
    context = _dot("cgrls,csgd->cgrld", weights.astype(v.dtype), values)

    def whole(a):
        apart = a.reshape(drafts, groups, *a.shape[1:])
        apart = jnp.moveaxis(apart, 1, 3)
        return apart.reshape(*apart.shape[:3], size, *apart.shape[5:])

    return PartialSoftmax(whole(top), whole(jnp.sum(weights, axis=-1)), whole(context))


def block_causal_mask(place_KL, length: int) -> MaskFn:
    """Queries at some places see keys whose block, counted from 0, is not later.

    place_KL: [K or 1, L or 1].
    """
    block_KL = place_KL // length
    return lambda place_S: place_S[None, None] // length <= block_KL[..., None]


def mask_before(end) -> MaskFn:
    """Queries see all keys before `end`."""
    return lambda place_S: place_S[None, None] < end


def _keys_per_part(keys: int) -> int:
    """Keys per part of a sum over so many."""
    return math.gcd(keys, SPLIT)


def _overlay_window(window, stored_SGD, offset_S):
    """One tile of stored keys with the window's laid over it, [K, TILE, G, D]."""
    tile = stored_SGD[None].astype(window.dtype)
    inside_S = (offset_S >= 0) & (offset_S < window.shape[1])
    picked = jnp.take(window, jnp.clip(offset_S, 0, window.shape[1] - 1), axis=1)
    return jnp.where(inside_S[None, :, None, None], picked, tile)


def _group_queries(q, k):
    """Queries by the key head that they share: [..., G, H / G, D]."""
    groups = k.shape[-2]
    return q.reshape(*q.shape[:-2], groups, q.shape[-2] // groups, q.shape[-1])


def _dot(spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(
        spec,
        a,
        b,
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
