"""Attention of one call as a kernel for GPUs: to a row's cache and to the call's keys.

XLA makes some fifteen launches of `attention.two_part_attention`, and copies what it
reads of the cache. Here it is two: one kernel in which every program takes some queries
of one key/value head and a part of the keys, and one that merges the parts in order.

All queries of a call share one set of keys: those that the cache holds, and those of
the call itself, of all its drafts or block states side by side. Which of the call's own
keys a query sees is a mask; so the window that each state sees need not be put
together, as it is elsewhere. Of the cache every query sees the same positions.

Keys are summed in an order that depends on nothing but the position where the window
starts: parts of `PART_KEYS` positions on a grid that is fixed to the canvas, each in
tiles of `TILE_KEYS`, then the call's own keys. A part without keys adds exact zeros, so
the capacity of the cache changes no bit.

Axes: K drafts or block states, Q queries of each, F = K Q keys of the call, H query
heads, G key/value heads, R = H / G query heads per key/value head, D head size, T
canvas, B queries of a program, X = B R query rows of a program, S keys of a tile, C
parts.

Source: split keys as in Flash-Decoding (Dao et al., 2023), running softmax as in
FlashAttention, arXiv 2205.14135; one set of keys with a mask of ancestors as in tree
attention, arXiv 2305.09781.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from jaxdave.core.model_api import KVCache
from jaxdave.core.prediction import NEG_INF
from jaxdave.models.attention import LayerCache, MaskFn
from jaxdave.runtime.machine import Machine

PART_KEYS = 256
"""Cached positions that one program looks at: an H100 then has some 120 programs for a
cache of 1,024 positions and 8 key/value heads."""
TILE_KEYS = 64
"""Keys per step of a program."""
MIN_TILE, MAX_TILE_ROWS = 16, 64
"""Rows of a block, as a matrix unit multiplies 16 at least, and query rows of a program
at most."""


def fits_kernel(head_dim: int, capacity: int) -> bool:
    """Tell if the kernel can compute a model's attention.

    Args:
        head_dim: The head size.
        capacity: Positions of the cache.

    Returns:
        True if both are whole blocks: blocks of Triton are powers of two.
    """
    is_power_of_two = head_dim >= 16 and head_dim & (head_dim - 1) == 0
    return is_power_of_two and capacity % TILE_KEYS == 0


def kernel_attention(
    q, k, v, layer_cache: LayerCache, visible_FF, bounds, machine: Machine
):
    """Attend to a layer's cache and to the keys of the call, in two launches.

    Args:
        q: Queries [K, Q, H, D].
        k: Keys of the call [K, Q, G, D].
        v: Values of the call [K, Q, G, D].
        layer_cache: The row's cache; the layer's index is a number.
        visible_FF: Which query (first axis) sees which key of the call, bool [F, F].
        bounds: Of the cached positions all queries see those before the first bound,
            and those from the second to before the third: int32 [3].
        machine: What the kernel is compiled for.

    Returns:
        Weighted values [K, Q, H, D] in the dtype of `q`.
    """
    drafts, queries, heads, head_dim = q.shape
    groups, num_keys = k.shape[2], drafts * queries
    shared = heads // groups
    q_FGRD = q.reshape(num_keys, groups, shared, head_dim)
    visible_FF = visible_FF.astype(jnp.int8)
    # A program takes all R heads of its queries. Where that is no power of two, each
    # head's query counts as a query of its own.
    is_split = shared & (shared - 1) != 0
    if is_split:
        q_FGRD = q_FGRD.swapaxes(1, 2).reshape(-1, groups, 1, head_dim)
        visible_FF = jnp.repeat(visible_FF, shared, axis=0)
    num_queries, tile = q_FGRD.shape[0], _tile_queries(q_FGRD.shape[0], q_FGRD.shape[2])
    q_FGRD = _pad_axis(q_FGRD, 0, tile)
    # Own keys in tiles that need no padding, where that is possible.
    key_tile = max(MIN_TILE, math.gcd(num_keys, TILE_KEYS))
    k_FGD, v_FGD = (
        _pad_axis(a.reshape(num_keys, groups, head_dim), 0, key_tile) for a in (k, v)
    )
    visible_FF = _pad_axis(_pad_axis(visible_FF, 0, tile), 1, key_tile)
    partial = _partial_attention(
        q_FGRD, k_FGD, v_FGD, visible_FF, layer_cache, bounds, tile, key_tile, machine
    )
    context_FGRD = _merge_parts(partial, q_FGRD, tile, machine)[:num_queries]
    if is_split:
        context_FGRD = context_FGRD.reshape(num_keys, shared, groups, head_dim)
        context_FGRD = context_FGRD.swapaxes(1, 2)
    return context_FGRD.reshape(q.shape)


def attend_in_window(
    shape: tuple[int, ...],
    cache: KVCache,
    bounds: tuple[Any, Any],
    mask_fn: MaskFn,
    window_of: Callable[[jax.Array], jax.Array],
    machine: Machine,
) -> Callable[..., jax.Array]:
    """The attention of a call's parts to their windows and a cache, by the kernel.

    Args:
        shape: Drafts and queries of the call, (K, Q).
        cache: The row's cache, [N, T, G, D].
        bounds: The window's first position, and before which keys end.
        mask_fn: Which queries see which key positions.
        window_of: Maps keys of all parts [K, Q, G, D] to those of the window as each
            part sees it, [K, L, G, D].
        machine: What it is compiled for.

    Returns:
        (index of the layer, queries, keys, values of the parts) -> [K, Q, H, D].
    """
    # Which key of the call stands where in a part's window: keys are moved by
    # `window_of`, and so are their numbers.
    start, keys_end = bounds
    drafts, queries = shape
    number_KQ = jnp.arange(drafts * queries, dtype=jnp.int32).reshape(shape)
    source_KL = window_of(number_KQ[..., None, None])[..., 0, 0]
    size = source_KL.shape[1]
    mask_KQL = mask_fn(start + jnp.arange(size, dtype=jnp.int32))
    visible_KQF = visible_keys(mask_KQL, source_KL, drafts * queries)
    visible_KQF = jnp.broadcast_to(visible_KQF, (*shape, drafts * queries))
    visible_FF = visible_KQF.reshape(drafts * queries, -1)
    ends = start, start + size, keys_end
    bounds_3 = jnp.stack([jnp.asarray(end, jnp.int32) for end in ends])

    def attend(index, q, k, v):
        layer_cache = LayerCache(cache, index)
        return kernel_attention(q, k, v, layer_cache, visible_FF, bounds_3, machine)

    return attend


def visible_keys(mask_KQL, source_KL, num_keys: int):
    """Which keys of a call each of its queries sees.

    Args:
        mask_KQL: Which positions of its window a query sees, bool [K or 1, Q or 1, L].
        source_KL: Which key of the call stands at each position of a draft's window,
            int32 [K, L].
        num_keys: Keys of the call, F.

    Returns:
        bool [K, Q or 1, F].
    """
    key_F = jnp.arange(num_keys, dtype=jnp.int32)
    is_there_KLF = source_KL[..., None] == key_F[None, None]
    return jnp.any(mask_KQL[..., None] & is_there_KLF[:, None], axis=2)


def _tile_queries(num_queries: int, shared: int) -> int:
    """Queries per program: a power of two that divides their number, if one can."""
    most = max(1, MAX_TILE_ROWS // shared)
    least = max(1, -(-MIN_TILE // shared))
    tile = most
    while tile > least and (num_queries % tile or tile > num_queries):
        tile //= 2
    return tile if num_queries % tile == 0 else most


def _partial_attention(
    q_FGRD, k_FGD, v_FGD, visible_FF, layer_cache, bounds, tile, key_tile, machine
):
    """The softmax over each part of the keys: numerator, maximum and denominator."""
    num_queries, groups, shared, head_dim = q_FGRD.shape
    num_keys, capacity = k_FGD.shape[0], layer_cache.capacity
    # One part more than the cache has: the keys of the call itself.
    num_parts = -(-capacity // PART_KEYS) + 1
    row_tiles, tile_rows = num_queries // tile, tile * shared
    # An operand and not a constant of the kernel: the layers' kernels are then one, and
    # compiled once.
    layer = jnp.full((1,), layer_cache.layer, jnp.int32)

    # One axis for row tiles and parts: a grid of Triton has three, of
    # which a batch of rows takes one.
    def tile_and_part(index):
        return index // num_parts, index % num_parts

    def of_queries(group, index):
        return tile_and_part(index)[0], group, 0, 0

    def of_parts(group, index):
        tile, part = tile_and_part(index)
        return part, group, tile

    def of_group(group, _):
        return 0, group, 0

    def whole(ndim: int):
        return lambda *_: (0,) * ndim

    in_specs = [
        pl.BlockSpec((1,), whole(1)),
        pl.BlockSpec((3,), whole(1)),
        pl.BlockSpec((tile, None, shared, head_dim), of_queries),
        pl.BlockSpec((num_keys, None, head_dim), of_group),
        pl.BlockSpec((num_keys, None, head_dim), of_group),
        pl.BlockSpec((tile, num_keys), lambda _, index: (tile_and_part(index)[0], 0)),
        *(pl.BlockSpec(a.shape, whole(4)) for a in layer_cache.cache),
    ]
    sums_shape = num_parts, groups, num_queries * shared
    sums = jax.ShapeDtypeStruct(sums_shape, jnp.float32)
    numerator = jax.ShapeDtypeStruct((*sums.shape, head_dim), jnp.float32)
    out_specs = [
        pl.BlockSpec(
            (None, None, tile_rows, head_dim),
            lambda group, index: (*of_parts(group, index), 0),
        ),
        pl.BlockSpec((None, None, tile_rows), of_parts),
        pl.BlockSpec((None, None, tile_rows), of_parts),
    ]
    kernel = functools.partial(
        _attention_kernel,
        num_parts=num_parts,
        key_tile=key_tile,
        interpret=machine.interpret_kernels,
    )
    return _call(
        kernel,
        machine,
        name="window_attention",
        grid=(groups, row_tiles * num_parts),
        in_specs=in_specs,
        out_specs=out_specs,
        out_shape=[numerator, sums, sums],
    )(layer, bounds, q_FGRD, k_FGD, v_FGD, visible_FF, *layer_cache.cache)


def _attention_kernel(
    layer_ref,
    bounds_ref,
    q_ref,
    own_keys_ref,
    own_values_ref,
    visible_ref,
    keys_ref,
    values_ref,
    numerator_ref,
    max_ref,
    denominator_ref,
    *,
    num_parts: int,
    key_tile: int,
    interpret: bool,
):
    """One program: some query rows of a key/value head, and one part of the keys."""
    layer, group = layer_ref[0], pl.program_id(0)
    part = pl.program_id(1) % num_parts
    before, behind, end = bounds_ref[0], bounds_ref[1], bounds_ref[2]
    tile, shared, head_dim = q_ref.shape
    num_rows = tile * shared
    q_XD = q_ref[...].reshape(num_rows, head_dim)

    def add_keys(carry, keys_SD, values_SD, visible_XS):
        """As `online_softmax.add_keys`."""
        numerator, top, denominator = carry
        scores = _dot(q_XD, keys_SD.astype(q_XD.dtype), interpret, trans_b=True)
        scores = jnp.where(visible_XS, scores / math.sqrt(head_dim), NEG_INF)
        new_top = jnp.maximum(top, jnp.max(scores, axis=1))
        # A key that is not seen weighs exactly 0, also where none is.
        weights = jnp.where(visible_XS, jnp.exp(scores - new_top[:, None]), 0.0)
        rescale = jnp.exp(top - new_top)
        denominator = denominator * rescale + jnp.sum(weights, axis=1)
        added = _dot(weights.astype(values_SD.dtype), values_SD, interpret)
        return numerator * rescale[:, None] + added, new_top, denominator

    def add_cached(index, carry):
        first = part * PART_KEYS + index * TILE_KEYS
        position_S = first + jnp.arange(TILE_KEYS, dtype=jnp.int32)
        is_seen_S = (position_S < before) | (position_S >= behind)
        is_seen_S &= position_S < end
        at = pl.ds(first, TILE_KEYS)
        keys_SD, values_SD = (
            ref[layer, at, group, :] for ref in (keys_ref, values_ref)
        )
        return add_keys(carry, keys_SD, values_SD, is_seen_S[None])

    def add_own(index, carry):
        at = pl.ds(index * key_tile, key_tile)
        is_seen_BS = visible_ref[:, at] != 0
        is_seen_BRS = jnp.broadcast_to(is_seen_BS[:, None], (tile, shared, key_tile))
        is_seen_XS = is_seen_BRS.reshape(num_rows, key_tile)
        return add_keys(carry, own_keys_ref[at, :], own_values_ref[at, :], is_seen_XS)

    carry = (
        jnp.zeros((num_rows, head_dim), jnp.float32),
        jnp.full((num_rows,), NEG_INF, jnp.float32),
        jnp.zeros((num_rows,), jnp.float32),
    )
    # Tiles of the cache in this part, up to the last one that is seen; the
    # last part, behind the cache's end, has the call's own keys instead.
    is_own = part == num_parts - 1
    cached_end = jnp.where(end > behind, end, jnp.minimum(before, end))
    num_tiles = pl.cdiv(cached_end - part * PART_KEYS, TILE_KEYS)
    num_tiles = jnp.clip(num_tiles, 0, PART_KEYS // TILE_KEYS)
    num_tiles = jnp.where(is_own, 0, num_tiles)
    carry = jax.lax.fori_loop(0, num_tiles, add_cached, carry)
    num_own = jnp.where(is_own, jnp.int32(own_keys_ref.shape[0] // key_tile), 0)
    numerator, top, denominator = jax.lax.fori_loop(0, num_own, add_own, carry)
    numerator_ref[...] = numerator
    max_ref[...] = top
    denominator_ref[...] = denominator


def _merge_parts(partial, q_FGRD, tile: int, machine: Machine):
    """The attention output of all parts, summed in order, shaped as the queries."""
    num_queries, groups, shared, head_dim = q_FGRD.shape
    num_parts, tile_rows = partial[0].shape[0], tile * shared

    def of_parts(group, tile):
        return 0, group, tile

    return _call(
        _merge_kernel,
        machine,
        name="merge_attention",
        grid=(groups, num_queries // tile),
        in_specs=[
            pl.BlockSpec(
                (num_parts, None, tile_rows, head_dim),
                lambda group, tile: (*of_parts(group, tile), 0),
            ),
            pl.BlockSpec((num_parts, None, tile_rows), of_parts),
            pl.BlockSpec((num_parts, None, tile_rows), of_parts),
        ],
        out_specs=pl.BlockSpec(
            (tile, None, shared, head_dim), lambda group, index: (index, group, 0, 0)
        ),
        out_shape=jax.ShapeDtypeStruct(q_FGRD.shape, q_FGRD.dtype),
    )(*partial)


def _merge_kernel(numerator_ref, max_ref, denominator_ref, context_ref):
    """One program: all parts of some query rows, as `online_softmax.merge_softmax`."""
    num_parts, num_rows, head_dim = numerator_ref.shape

    def add_part(part, carry):
        numerator, top, denominator = carry
        part_top = max_ref[part, :]
        new_top = jnp.maximum(top, part_top)
        old, new = jnp.exp(top - new_top), jnp.exp(part_top - new_top)
        numerator = numerator * old[:, None] + numerator_ref[part, :, :] * new[:, None]
        return numerator, new_top, denominator * old + denominator_ref[part, :] * new

    carry = (
        jnp.zeros((num_rows, head_dim), jnp.float32),
        jnp.full((num_rows,), NEG_INF, jnp.float32),
        jnp.zeros((num_rows,), jnp.float32),
    )
    numerator, _, denominator = jax.lax.fori_loop(0, num_parts, add_part, carry)
    # Rows that pad a tile see no key at all.
    denominator = jnp.where(denominator > 0, denominator, 1.0)
    context = (numerator / denominator[:, None]).astype(context_ref.dtype)
    context_ref[...] = context.reshape(context_ref.shape)


def _call(kernel: Any, machine: Machine, **settings: Any) -> Any:
    """`pl.pallas_call` for Triton, or interpreted where the machine says so."""
    if machine.interpret_kernels:
        return pl.pallas_call(kernel, interpret=True, **settings)
    params = plgpu.CompilerParams(num_warps=4, num_stages=2)
    return pl.pallas_call(kernel, compiler_params=params, **settings)


def _dot(a, b, interpret: bool, trans_b: bool = False):
    """A product of two blocks with float32 sums.

    Float32 factors are cut into three parts for the matrix units, which loses no more
    than float32 sums do; a CPU multiplies them as they are.
    """
    precision = None
    if a.dtype == jnp.float32:
        precision = jax.lax.DotAlgorithmPreset.TF32_TF32_F32_X3
        precision = jax.lax.Precision.HIGHEST if interpret else precision
    return plgpu.dot(a, b, trans_b=trans_b, precision=precision)


def _pad_axis(array: jax.Array, axis: int, multiple: int) -> jax.Array:
    """The array with zeros up to the next multiple along an axis."""
    missing = -array.shape[axis] % multiple
    if not missing:
        return array
    widths = [(0, missing if i == axis else 0) for i in range(array.ndim)]
    return jnp.pad(array, widths)
