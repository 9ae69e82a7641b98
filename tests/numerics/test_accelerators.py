"""What other machines compute otherwise than a CPU, tried on a CPU."""

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

HEADS, GROUPS, WIDE, WINDOW, DRAFTS = 4, 2, 16, 12, 3


@pytest.mark.parametrize("room", [64, 192, 512])
@pytest.mark.parametrize("start", [0, 20, 48])
def test_a_cache_read_at_once_is_a_cache_read_by_tiles_and_dense_attention(room, start):
    draw = lambda seed, shape: jax.random.normal(jax.random.key(seed), shape)  # noqa: E731
    q = draw(0, (DRAFTS, WINDOW, HEADS, WIDE))
    k, v = (draw(seed, (DRAFTS, WINDOW, GROUPS, WIDE)) for seed in (1, 2))
    cache = KVCache(*(draw(seed, (room, GROUPS, WIDE)) for seed in (3, 4)))
    place_L = start + jnp.arange(WINDOW, dtype=jnp.int32)
    see, reach = block_causal_mask(place_L[None], 4), jnp.int32(start + WINDOW)

    @functools.partial(jax.jit, static_argnums=0)
    def found(tile):
        stored = LayerCache(jax.tree.map(lambda a: a[None], cache), 0)
        return two_part_attention(
            q, k, v, stored, jnp.int32(start), see, reach, tile=tile
        )

    whole, tiles = found(None), found(64)
    np.testing.assert_allclose(whole, tiles, atol=2e-6)

    def laid(stored, window):
        before = jnp.broadcast_to(stored[None, :start], (DRAFTS, start, GROUPS, WIDE))
        return jnp.concatenate([before, window], axis=1)

    see_1LS = see(jnp.arange(start + WINDOW, dtype=jnp.int32))
    see_KLS = jnp.broadcast_to(see_1LS, (DRAFTS, *see_1LS.shape[1:]))
    want = dense_attention(q, laid(cache.k, k), laid(cache.v, v), see_KLS)
    np.testing.assert_allclose(whole, want, atol=2e-6)


@pytest.mark.parametrize(
    ("spec", "shape"), [("...i,io->...o", (32, 24)), ("re,rme->rm", (5, 6, 32))]
)
def test_activations_in_two_parts_lose_less_than_a_bfloat16(monkeypatch, spec, shape):
    x = jax.random.normal(jax.random.key(0), (5, 32))
    kernel = jax.random.normal(jax.random.key(1), shape).astype(jnp.bfloat16)
    want = quantization.einsum_kernel(spec, x, kernel)
    monkeypatch.setattr(quantization, "on_cpu", lambda: False)
    found = jax.jit(functools.partial(quantization.einsum_kernel, spec))(x, kernel)
    size = np.abs(want).max()
    assert np.abs(found - want).max() < 2**-15 * size
    rough = quantization.einsum_kernel(spec, x.astype(jnp.bfloat16), kernel)
    assert np.abs(rough - want).max() > 2**-12 * size


@pytest.mark.parametrize("rows", [776, NOISE_CHUNK, 2 * NOISE_CHUNK + 5, 151936])
def test_a_chunk_of_the_head_is_all_or_whole_parts_of_noise(monkeypatch, rows):
    for is_cpu in (True, False):
        monkeypatch.setattr(weight_layout, "on_cpu", lambda is_cpu=is_cpu: is_cpu)
        chunk = weight_layout.head_chunk(rows)
        assert chunk <= rows
        assert chunk == rows <= NOISE_CHUNK or chunk % NOISE_CHUNK == 0
