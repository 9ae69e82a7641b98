"""Code paths of accelerators (one read of the cache, split activations), on a CPU."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdave.core.config import NOISE_CHUNK
from jaxdave.core.model_api import KVCache
from jaxdave.models.attention import (
    LayerCache,
    block_causal_mask,
    dense_attention,
    two_part_attention,
)
from jaxdave.numerics import quantization, weight_layout
from jaxdave.runtime.machine import CPU, GPU, TPU

HEADS, GROUPS, WIDE, WINDOW, DRAFTS = 4, 2, 16, 12, 3


@pytest.mark.parametrize("capacity", [64, 192, 512])
@pytest.mark.parametrize("start", [0, 20, 48])
def test_a_cache_read_at_once_is_a_cache_read_by_tiles_and_dense_attention(
    capacity, start
):
    def draw(seed, shape):
        return jax.random.normal(jax.random.key(seed), shape)

    q = draw(0, (DRAFTS, WINDOW, HEADS, WIDE))
    k, v = (draw(seed, (DRAFTS, WINDOW, GROUPS, WIDE)) for seed in (1, 2))
    cache = KVCache(*(draw(seed, (capacity, GROUPS, WIDE)) for seed in (3, 4)))
    position_L = start + jnp.arange(WINDOW, dtype=jnp.int32)
    mask_fn, keys_end = (
        block_causal_mask(position_L[None], 4),
        jnp.int32(start + WINDOW),
    )

    @functools.partial(jax.jit, static_argnums=0)
    def attend(tile):
        layer_cache = LayerCache(jax.tree.map(lambda a: a[None], cache), 0)
        return two_part_attention(
            q, k, v, layer_cache, jnp.int32(start), mask_fn, keys_end, tile=tile
        )

    whole, tiles = attend(None), attend(64)
    np.testing.assert_allclose(whole, tiles, atol=2e-6)

    def canvas_of(cached, window):
        before = jnp.broadcast_to(cached[None, :start], (DRAFTS, start, GROUPS, WIDE))
        return jnp.concatenate([before, window], axis=1)

    mask_1LS = mask_fn(jnp.arange(start + WINDOW, dtype=jnp.int32))
    mask_KLS = jnp.broadcast_to(mask_1LS, (DRAFTS, *mask_1LS.shape[1:]))
    want = dense_attention(q, canvas_of(cache.k, k), canvas_of(cache.v, v), mask_KLS)
    np.testing.assert_allclose(whole, want, atol=2e-6)


@pytest.mark.parametrize(
    ("spec", "shape"), [("...i,io->...o", (32, 24)), ("re,rme->rm", (5, 6, 32))]
)
def test_activations_in_two_parts_lose_less_than_a_bfloat16(spec, shape):
    x = jax.random.normal(jax.random.key(0), (5, 32))
    kernel = jax.random.normal(jax.random.key(1), shape).astype(jnp.bfloat16)
    want = quantization.einsum_kernel(spec, x, kernel, CPU)
    on_gpu = functools.partial(quantization.einsum_kernel, spec, machine=GPU)
    result = jax.jit(on_gpu)(x, kernel)
    size = np.abs(want).max()
    assert np.abs(result - want).max() < 2**-15 * size
    rough = quantization.einsum_kernel(spec, x.astype(jnp.bfloat16), kernel, CPU)
    assert np.abs(rough - want).max() > 2**-12 * size


@pytest.mark.parametrize(
    ("spec", "shape"), [("...i,io->...o", (32, 24)), ("re,rme->rm", (5, 6, 32))]
)
@pytest.mark.parametrize("size", [1.0, 3e-9, 2e5])
def test_float16_weights_are_read_whole_by_activations_of_any_size(spec, shape, size):
    """Beyond 65504, and where float16 has few bits; zeros stay zeros."""
    x = (jax.random.normal(jax.random.key(0), (5, 32)) * size).at[2].set(0)
    x = x.at[1, ::2].multiply(1e-5)
    kernel = jax.random.normal(jax.random.key(1), shape).astype(jnp.float16)
    on_gpu = functools.partial(quantization.einsum_kernel, spec, machine=GPU)
    result = jax.jit(on_gpu)(x, kernel)
    want = np.einsum(spec, np.asarray(x, np.float64), np.asarray(kernel, np.float64))
    largest = np.abs(np.asarray(x)).max(axis=-1, keepdims=True)
    assert np.all(np.abs(result - want) <= 2.0**-20 * 32 * largest)
    # As bfloat16 the weights would be off by three bits more than that.
    rough = np.einsum(spec, x, kernel.astype(jnp.bfloat16).astype(jnp.float32))
    assert np.abs(rough - want).max() > 2.0**-12 * largest.max()


@pytest.mark.parametrize("rows", [776, NOISE_CHUNK, 2 * NOISE_CHUNK + 5, 151936])
def test_a_chunk_of_the_head_is_all_or_whole_parts_of_noise(rows):
    assert weight_layout.head_chunk(rows, GPU) == rows  # which is read whole
    for machine in (CPU, TPU):
        chunk = weight_layout.head_chunk(rows, machine)
        assert chunk <= rows
        assert chunk == rows <= NOISE_CHUNK or chunk % NOISE_CHUNK == 0
