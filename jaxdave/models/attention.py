"""Attention: dense for training, tiled and in two parts for decoding.

In decoding, K drafts of one window attend to the same row's cache. Keys are named by
their positions in the canvas: those of the window's positions come from the window
itself, fresh for every draft, all others from the cache, which the drafts share and
which is never copied per draft as a whole.

Two functions compute the same numbers up to rounding:

* `tiled_attention` folds over tiles of 64 keys on a grid that is fixed to the canvas.
  Its sums are always taken in the same order, whatever the window, the cache's capacity
  or the number of drafts: a state's output has one set of bits (exact numerics).
* `two_part_attention` computes the window's part and the cache's part, and merges them
  by their log-sum-exp. The cache is read once for all drafts, which is faster.

Axes: K drafts, Q or L queries, S keys, T canvas, H query heads, G key/value heads, R =
H / G query heads per key/value head, D head size.
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
"""Keys per step of `tiled_attention`; a multiple of every block length, so that a block
never straddles two tiles."""

SPLIT = 256
"""Keys that are summed in one go off a CPU, at most."""

MaskFn = Callable[[jax.Array], jax.Array]
"""Key positions, int32 [S] -> bool [K or 1, L or 1, S]: which queries see them."""

AttendFn = Callable[..., jax.Array]
"""`tiled_attention` or `two_part_attention`."""


class LayerCache(NamedTuple):
    """One layer of a row's cache, addressed inside the array of all layers.

    Slicing a layer out first would copy all positions that there is room for; `slice`
    copies only the keys that are asked for.

    Attributes:
        cache: Keys and values of all layers, [N, T, G, D].
        layer: The layer's index.
    """

    cache: KVCache
    layer: jax.Array | int

    @property
    def capacity(self) -> int:
        """T, the positions that the cache has room for."""
        return self.cache.k.shape[1]

    def slice(self, start, size: int) -> tuple[jax.Array, jax.Array]:
        """Keys and values of consecutive positions.

        Args:
            start: The first position, int32 scalar.
            size: How many.

        Returns:
            Keys and values, [size, G, D] each.
        """

        def slice_one(array: jax.Array) -> jax.Array:
            sizes = 1, size, *array.shape[2:]
            return jax.lax.dynamic_slice(array, (self.layer, start, 0, 0), sizes)[0]

        return slice_one(self.cache.k), slice_one(self.cache.v)


def dense_attention(q, k, v, mask):
    """Attention with an explicit mask, for training and whole-canvas evaluation.

    Args:
        q: Queries [B, Q, H, D].
        k: Keys [B, S, G, D] with H a multiple of G.
        v: Values [B, S, G, D].
        mask: bool [B or 1, Q, S], True where a query sees a key.

    Returns:
        Weighted values [B, Q, H, D] in the dtype of `q`. Scores and softmax are
        float32.
    """
    q_BQGRD = _group_queries(q, k)
    scores = _einsum("bqgrd,bsgd->bgrqs", q_BQGRD, k) / math.sqrt(q.shape[-1])
    scores = jnp.where(mask[:, None, None], scores, NEG_INF)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    context = _einsum("bgrqs,bsgd->bqgrd", weights, v)
    return context.astype(q.dtype).reshape(q.shape)


def tiled_attention(
    q, k, v, layer_cache: LayerCache, start, mask_fn: MaskFn, keys_end, initial=None
):
    """Attention as a fold over tiles of keys on an absolute grid, for exact numerics.

    Floating-point sums depend on their order, and XLA chooses the order by shape. Here
    tile c always covers positions c * TILE onwards, whether their keys come from the
    cache or from the window, and tiles are folded in order, each by a product of the
    same shape. So the bits of a state's output depend neither on where the window
    starts, nor on the capacity of the cache, nor (inside one program) on the draft's
    index. A grid counted from the window's start would group the same keys differently
    for each window. Only one tile at a time is copied per draft.

    Args:
        q: Queries [K, Q, H, D] of the window or of a part of it.
        k: Keys [K, L, G, D] of the window.
        v: Values [K, L, G, D] of the window.
        layer_cache: The row's cache, of a capacity that is a multiple of `TILE`.
        start: The window's first position, int32 scalar.
        mask_fn: Which queries see which key positions.
        keys_end: No query sees a key at this position or later, int32 scalar.
        initial: `PartialSoftmax` of keys that have no position in the canvas, or None.

    Returns:
        Weighted values [K, Q, H, D] in the dtype of `q`.
    """
    q_KLGRD = _group_queries(q, k)

    def add_tile(index, partial: PartialSoftmax) -> PartialSoftmax:
        position_S = index * TILE + jnp.arange(TILE, dtype=jnp.int32)
        # A tile is cut out of the cache at its place on the grid,
        # [TILE, G, D], then the window's own keys replace it where
        # they overlap, per draft: [K, TILE, G, D].
        cached = layer_cache.slice(index * TILE, TILE)
        keys, values = (
            _overlay_window(window, tile, position_S - start)
            for window, tile in zip((k, v), cached, strict=True)
        )
        scores = _einsum("klgrd,ksgd->kgrls", q_KLGRD, keys) / math.sqrt(q.shape[-1])
        scores = jnp.where(mask_fn(position_S)[:, None, None], scores, NEG_INF)

        def weighted_sum(weights):
            return _einsum("kgrls,ksgd->kgrld", weights.astype(v.dtype), values)

        return add_keys(partial, scores, weighted_sum)

    if initial is None:
        initial = empty_softmax(jnp.einsum("klgrd->kgrld", q_KLGRD))
    # Tiles behind the last visible key are skipped. Adding them would change no bit:
    # their weights are exactly 0.
    num_tiles = (keys_end + TILE - 1) // TILE
    partial = jax.lax.fori_loop(0, num_tiles, add_tile, initial)
    return normalize(partial, q)


def two_part_attention(
    q,
    k,
    v,
    layer_cache: LayerCache,
    start,
    mask_fn: MaskFn,
    keys_end,
    initial=None,
    tile=None,
):
    """Attention over the window and over the cache, under one softmax.

    The window's keys differ from draft to draft, the cache's do not: the cache's part
    is one product for the queries of all drafts, so it is read once. Both parts keep
    their maximum and their sums, so they merge into one softmax (log-sum-exp).

    Which keys are summed together depends on where the window starts, so equal states
    may differ in the last bits: this is the fast path, not the exact one.

    Args:
        q: Queries [K, Q, H, D] of the window or of a part of it.
        k: Keys [K, L, G, D] of the window.
        v: Values [K, L, G, D] of the window.
        layer_cache: The row's cache.
        start: The window's first position, int32 scalar.
        mask_fn: Which queries see which key positions.
        keys_end: No query sees a key at this position or later, int32 scalar.
        initial: `PartialSoftmax` of keys that have no position in the canvas, or None.
        tile: Keys of the cache that are read at a time, up to the last one that is
            seen; None: the whole capacity at once.

    Returns:
        Weighted values [K, Q, H, D] in the dtype of `q`.
    """
    end = start + k.shape[1]
    # Key/value heads lead: a batch axis of all products, for drafts and for the cache.
    q_GKLRD = jnp.moveaxis(_group_queries(q, k), 2, 0)

    def add_part(
        partial: PartialSoftmax, keys, values, mask_KLS, axes: str
    ) -> PartialSoftmax:
        """Add keys with the axes "ksgd" (of each draft) or "sgd" (shared)."""
        scores = _einsum(f"gklrd,{axes}->gklrs", q_GKLRD, keys)
        scores = scores / math.sqrt(q.shape[-1])
        scores = jnp.where(mask_KLS[None, :, :, None], scores, NEG_INF)
        is_split = tile is None and axes == "sgd"
        part = _keys_per_part(values.shape[0]) if is_split else None

        def weighted_sum(weights):
            weights = weights.astype(v.dtype)
            if part is None:
                return _einsum(f"gklrs,{axes}->gklrd", weights, values)
            # An accelerator would give one long sum per output to few processors:
            # partial sums over C parts run in parallel, and are added after that.
            weights = weights.reshape(*weights.shape[:-1], -1, part)
            values_CSGD = values.reshape(-1, part, *values.shape[1:])
            return jnp.sum(_einsum("gklrcs,csgd->cgklrd", weights, values_CSGD), axis=0)

        return add_keys(partial, scores, weighted_sum)

    def add_tile(index, partial: PartialSoftmax) -> PartialSoftmax:
        size = tile or layer_cache.capacity
        position_S = index * size + jnp.arange(size, dtype=jnp.int32)
        # What the cache holds at the window's positions is stale.
        outside_S = (position_S < start) | (position_S >= end)
        keys, values = layer_cache.slice(index * size, size)
        mask = mask_fn(position_S) & outside_S[None, None]
        return add_part(partial, keys, values, mask, "sgd")

    window_mask = mask_fn(start + jnp.arange(k.shape[1], dtype=jnp.int32))
    partial = add_part(empty_softmax(q_GKLRD), k, v, window_mask, "ksgd")
    # Where no key lies behind the window, only those before it are in the cache.
    cached_end = jnp.where(keys_end > end, keys_end, start)
    num_tiles = 1 if tile is None else (cached_end + tile - 1) // tile
    partial = jax.lax.fori_loop(0, num_tiles, add_tile, partial)

    def drafts_first(a: jax.Array) -> jax.Array:
        """[G, K, L, R, ...] -> [K, G, R, L, ...]."""
        return jnp.swapaxes(jnp.swapaxes(a, 0, 1), 2, 3)

    partial = jax.tree.map(drafts_first, partial)
    return normalize(partial if initial is None else merge_softmax(partial, initial), q)


def grouped_attention(q, k, v, mask_LL, length: int) -> PartialSoftmax:
    """Attention inside groups of consecutive positions, as an unfinished softmax.

    Groups are a batch axis, so a group's bits do not depend on where it stands in the
    window.

    Args:
        q: Queries [K, L, H, D].
        k: Keys [K, L, G, D] of the same positions.
        v: Values [K, L, G, D].
        mask_LL: Which queries see which keys; only pairs inside a group count.
        length: Positions of a group; it divides L.

    Returns:
        The softmax over the keys of each query's group.
    """
    drafts, size = q.shape[:2]
    groups = size // length

    def split_groups(a: jax.Array) -> jax.Array:
        """[K, L, ...] -> [C, length, ...] with C the groups of all drafts."""
        return a.reshape(drafts * groups, length, *a.shape[2:])

    q_CLGRD = _group_queries(split_groups(q), k)
    keys, values = split_groups(k), split_groups(v)
    mask_GLGL = mask_LL.reshape(groups, length, groups, length)
    # The diagonal over both group axes; every draft has the same mask.
    mask_CLL = jnp.tile(jnp.einsum("glgs->gls", mask_GLGL), (drafts, 1, 1))
    scores = _einsum("clgrd,csgd->cgrls", q_CLGRD, keys) / math.sqrt(q.shape[-1])
    scores = jnp.where(mask_CLL[:, None, None], scores, NEG_INF)
    max_score = jnp.max(scores, axis=-1)
    weights = jnp.exp(scores - max_score[..., None])
    context = _einsum("cgrls,csgd->cgrld", weights.astype(v.dtype), values)

    def join_groups(a: jax.Array) -> jax.Array:
        """[C, G, R, length, ...] -> [K, G, R, L, ...]."""
        by_draft = a.reshape(drafts, groups, *a.shape[1:])
        by_draft = jnp.moveaxis(by_draft, 1, 3)
        return by_draft.reshape(*by_draft.shape[:3], size, *by_draft.shape[5:])

    return PartialSoftmax(
        max_score=join_groups(max_score),
        denominator=join_groups(jnp.sum(weights, axis=-1)),
        numerator=join_groups(context),
    )


def block_causal_mask(position_KL: jax.Array, length: int) -> MaskFn:
    """The mask of block-causal models.

    Args:
        position_KL: Positions of the queries, int32 [K or 1, L or 1].
        length: Tokens of a block; blocks are counted from position 0.

    Returns:
        A function by which queries see keys whose block is not later than their own.
    """
    block_KL = position_KL // length

    def mask_fn(position_S: jax.Array) -> jax.Array:
        return position_S[None, None] // length <= block_KL[..., None]

    return mask_fn


def mask_before(end) -> MaskFn:
    """The mask of full attention.

    Args:
        end: The position after the row's last one, int32 scalar.

    Returns:
        A function by which all queries see all keys before `end`.
    """
    return lambda position_S: position_S[None, None] < end


def _keys_per_part(keys: int) -> int:
    """The size of the equal parts that a sum over so many keys is split into."""
    return math.gcd(keys, SPLIT)


def _overlay_window(window, tile_SGD, offset_S):
    """One tile of cached keys with the window's own laid over it, [K, TILE, G, D].

    offset_S: the tile's positions relative to the window's start.
    """
    tile = tile_SGD[None].astype(window.dtype)
    is_inside_S = (offset_S >= 0) & (offset_S < window.shape[1])
    picked = jnp.take(window, jnp.clip(offset_S, 0, window.shape[1] - 1), axis=1)
    return jnp.where(is_inside_S[None, :, None, None], picked, tile)


def _group_queries(q, k):
    """Queries by the key/value head that they share: [..., G, H / G, D]."""
    groups = k.shape[-2]
    return q.reshape(*q.shape[:-2], groups, q.shape[-2] // groups, q.shape[-1])


def _einsum(spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """`jnp.einsum` with float32 results at the highest precision."""
    return jnp.einsum(
        spec,
        a,
        b,
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
