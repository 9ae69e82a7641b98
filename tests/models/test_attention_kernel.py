"""The attention kernel of GPUs, interpreted on a CPU, against XLA's way."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import fake_model
from helpers.kernel_machine import KERNEL_MACHINE

from jaxdave.core.model_api import KVCache
from jaxdave.engine import decoders
from jaxdave.engine.generation import generate
from jaxdave.models.attention import (
    LayerCache,
    block_causal_mask,
    mask_before,
    two_part_attention,
)
from jaxdave.models.attention_kernel import (
    PART_KEYS,
    fits_kernel,
    kernel_attention,
    visible_keys,
)
from jaxdave.numerics.weight_layout import to_device_layout
from jaxdave.policies import static
from jaxdave.runtime.machine import CPU

SHAPES = {
    # drafts, window, query heads, key/value heads, head size, capacity, start
    "one draft": (1, 64, 4, 2, 16, 192, 64),
    "a window inside a part": (3, 12, 8, 2, 32, 640, 300),
    "seven heads a group": (2, 4, 14, 2, 64, 256, 20),
    "no group": (2, 8, 4, 4, 16, 512, 248),
    "queries that need padding": (5, 4, 4, 2, 16, 128, 40),
    "an empty cache": (2, 4, 4, 1, 16, 64, 0),
}


def draw(seed: int, shape, dtype=jnp.float32):
    """NumPy's, which compiles nothing."""
    drawn = np.random.default_rng(seed).normal(size=shape)
    return drawn.astype(np.float32).astype(dtype)


def case(name: str, dtype=jnp.float32, capacity: int | None = None):
    """Queries, keys and values of a call, and a cache of two layers."""
    drafts, window, heads, groups, width, room, start = SHAPES[name]
    q = draw(0, (drafts, window, heads, width), dtype)
    k, v = (draw(seed, (drafts, window, groups, width), dtype) for seed in (1, 2))
    cached = [draw(seed, (2, room, groups, width), dtype) for seed in (3, 4)]
    more = (capacity or room) - room
    # Positions that there is only room for hold anything.
    cached = [
        np.concatenate([a, draw(9, (2, more, groups, width), dtype)], axis=1)
        for a in cached
    ]
    q, k, v, *cached = map(jnp.asarray, (q, k, v, *cached))
    return q, k, v, KVCache(*cached), start


def by_kernel(qkv, cache, start, mask_fn, keys_end, layer=1):
    drafts, window = qkv[0].shape[:2]
    count = drafts * window

    @jax.jit
    def attend(q, k, v, cache, start, keys_end):
        source_KL = jnp.arange(count, dtype=jnp.int32).reshape(drafts, window)
        position_L = start + jnp.arange(window, dtype=jnp.int32)
        visible_KQF = visible_keys(mask_fn(position_L), source_KL, count)
        visible_KQF = jnp.broadcast_to(visible_KQF, (drafts, window, count))
        return kernel_attention(
            q,
            k,
            v,
            LayerCache(cache, layer),
            visible_KQF.reshape(count, count),
            jnp.stack([start, start + window, keys_end]),
            KERNEL_MACHINE,
        )

    return attend(*qkv, cache, jnp.int32(start), jnp.int32(keys_end))


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("kind", ["block-causal", "full"])
def test_the_kernel_computes_attention(name, kind):
    q, k, v, cache, start = case(name)
    end = start + q.shape[1]
    position_L = start + jnp.arange(q.shape[1], dtype=jnp.int32)
    mask_fn, keys_end = block_causal_mask(position_L[None], 4), end
    if kind == "full":
        # Cached keys on both sides of the window, and some that nobody sees.
        keys_end = max(end, cache.k.shape[1] - 10)
        mask_fn = mask_before(jnp.int32(keys_end))

    @jax.jit
    def plain(q, k, v, cache, start, keys_end):
        layer = LayerCache(cache, 1)
        return two_part_attention(q, k, v, layer, start, mask_fn, keys_end)

    want = plain(q, k, v, cache, jnp.int32(start), jnp.int32(keys_end))
    result = by_kernel((q, k, v), cache, start, mask_fn, keys_end)
    np.testing.assert_allclose(result, want, atol=2e-6)


def test_bfloat16_is_rounded_once():
    q, k, v, cache, start = case("a window inside a part", jnp.bfloat16)
    wide = [a.astype(jnp.float32) for a in (q, k, v)]
    mask_fn = mask_before(jnp.int32(start + q.shape[1]))
    wide_cache = jax.tree.map(lambda a: a.astype(jnp.float32), cache)
    want = by_kernel(wide, wide_cache, start, mask_fn, start + q.shape[1])
    result = by_kernel((q, k, v), cache, start, mask_fn, start + q.shape[1])
    assert result.dtype == jnp.bfloat16
    np.testing.assert_allclose(result.astype(jnp.float32), want, atol=2**-7)


@pytest.mark.as_shipped
def test_neither_the_capacity_nor_unseen_keys_change_a_bit():
    outputs = []
    for capacity in (640, 640 + PART_KEYS, 2048):
        q, k, v, cache, start = case("a window inside a part", capacity=capacity)
        # What the cache holds at the window and behind it is stale.
        stale = 7.0 + capacity
        cache = jax.tree.map(lambda a, s=stale: a.at[:, 300:].multiply(s), cache)
        mask_fn = mask_before(jnp.int32(312))
        outputs.append(np.asarray(by_kernel((q, k, v), cache, start, mask_fn, 312)))
    for other in outputs[1:]:
        np.testing.assert_array_equal(outputs[0], other)


def test_a_batch_of_rows_is_its_rows():
    q, k, v, cache, start = case("no group")
    mask_fn = mask_before(jnp.int32(start + 8))
    rows = [jax.tree.map(lambda a, s=s: a * s, (q, k, v)) for s in (1.0, 0.5)]
    caches = [jax.tree.map(lambda a, s=s: a * s, cache) for s in (1.0, -1.0)]

    def attend(qkv, cache):
        return by_kernel(qkv, cache, start, mask_fn, start + 8)

    stack = functools.partial(jax.tree.map, lambda *a: jnp.stack(a))
    along_1 = functools.partial(jax.tree.map, lambda *a: jnp.stack(a, axis=1))
    result = jax.vmap(attend, (0, 1))(stack(*rows), along_1(*caches))
    for index in range(2):
        want = attend(rows[index], caches[index])
        np.testing.assert_allclose(result[index], want, atol=1e-6)


def test_head_sizes_that_are_no_power_of_two_stay_with_xla():
    assert fits_kernel(128, 1280)
    assert not fits_kernel(96, 1280) and not fits_kernel(8, 64)


@functools.cache
def decode(machine, drafts: int, dtype=jnp.float32, numerics: str = "guarded"):
    config = dataclasses.replace(fake_model.TINY, head_dim=16)
    params = fake_model.scaled(config, 0)
    params = jax.tree.map(lambda a: a.astype(dtype), params)
    decoder = decoders.freedave(
        config,
        static(1),
        draft_steps=drafts,
        max_new_tokens=12,
        numerics=numerics,
        machine=machine,
    )
    laid_out = to_device_layout(params, config, machine)
    rows = generate(decoder, laid_out, [[5, 3, 8, 1], [2, 7, 7, 1, 4, 9, 3]])
    return [row.token_ids for row in rows.completions]


@pytest.mark.slow
@pytest.mark.parametrize("drafts", [1, 4])
def test_a_gpus_program_gives_the_text_of_a_cpus(drafts):
    """Layers spelled out, fused projections, the kernel, one read of the head."""
    assert decode(KERNEL_MACHINE, drafts) == decode(CPU, 1)


@pytest.mark.as_shipped
@pytest.mark.slow
def test_drafts_leave_a_gpus_text_as_it_is_in_bfloat16():
    plain = decode(KERNEL_MACHINE, 1, jnp.bfloat16)
    assert decode(KERNEL_MACHINE, 4, jnp.bfloat16) == plain
