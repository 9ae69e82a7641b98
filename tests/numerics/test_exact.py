"""The guarantee of `exact` numerics, tested on bits.

A state's hidden vectors depend on the state alone, not on the draft's index, its
neighbours, the window's start or the capacity of the cache.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdave.core.config import ModelConfig
from jaxdave.core.model_api import KVCache
from jaxdave.models import transformer
from jaxdave.models.attention import TILE
from jaxdave.models.block_causal import block_causal_model
from jaxdave.models.shadow_masks import with_shadow_masks

pytestmark = pytest.mark.as_shipped

BLOCK, WINDOW, DRAFTS = 4, 20, 8


def make(
    seed: int, hidden: int, layers: int, rope_fp32: bool, maker=block_causal_model
):
    """A random model whose predictions vary, and its jitted forward."""
    config = ModelConfig(
        name="t", family="sdar", num_layers=layers, hidden=hidden, inter=2 * hidden,
        heads=4, kv_heads=2, head_dim=16, rotary_dim=16, vocab_rows=40, vocab_size=37,
        mask_id=36, pad_id=35, stop_ids=(34,), qk_norm=True, block_length=BLOCK,
        rope_fp32=rope_fp32, max_positions=512,
    )  # fmt: skip
    params = transformer.init(config, seed)
    params = jax.tree.map(lambda a: a * 6 if a.ndim > 1 else a, params)
    net = maker(config, numerics="exact")

    @jax.jit
    def forward(tokens_KL, start, cache):
        hidden_KLE, window = net.forward(params, tokens_KL, start, start, cache)
        return hidden_KLE, KVCache(*(part[:, 0] for part in window))

    def empty(capacity):
        shape = (layers, capacity, config.kv_heads, config.head_dim)
        return KVCache(jnp.zeros(shape), jnp.zeros(shape))

    return empty, forward


def fill(empty, forward, tokens_T, upto: int, capacity: int, tile: int) -> KVCache:
    """The cache after a chunked prefill of `upto` tokens."""
    cache = empty(capacity)
    for at in range(0, upto, tile):
        chunk = jnp.asarray(tokens_T[None, at : at + tile])
        _, new = forward(chunk, jnp.int32(at), cache)
        cache = jax.tree.map(
            lambda a, b, at=at: jax.lax.dynamic_update_slice(a, b, (0, at, 0, 0)),
            cache,
            new,
        )
    return cache


def bits(array) -> np.ndarray:
    return np.asarray(array).view(np.uint32)


WITH_SHADOWS = with_shadow_masks(block_causal_model, BLOCK)


@pytest.mark.parametrize(
    ("seed", "hidden", "layers", "rope_fp32", "maker"),
    [
        (0, 32, 2, False, block_causal_model),
        pytest.param(1, 64, 3, True, block_causal_model, marks=pytest.mark.slow),
        pytest.param(2, 128, 2, False, block_causal_model, marks=pytest.mark.slow),
        (3, 256, 2, False, block_causal_model),
        pytest.param(4, 64, 2, False, WITH_SHADOWS, marks=pytest.mark.slow),
        (5, 128, 2, True, WITH_SHADOWS),
    ],
)
def test_a_state_has_one_set_of_bits(seed, hidden, layers, rope_fp32, maker):
    empty, forward = make(seed, hidden, layers, rope_fp32, maker)
    rng = np.random.default_rng(seed)
    tokens_T = rng.integers(0, 34, 256).astype(np.int32)
    cache = fill(empty, forward, tokens_T, 128, 256, TILE)
    start = 96
    drafts = rng.integers(0, 37, (DRAFTS, WINDOW)).astype(np.int32)
    drafts[:, :8] = tokens_T[start : start + 8]
    drafts[3, 8:12] = tokens_T[start + 8 : start + 12]
    first, _ = forward(jnp.asarray(drafts), jnp.int32(start), cache)

    # Permuted drafts, and all drafts equal.
    order = rng.permutation(DRAFTS)
    moved, _ = forward(jnp.asarray(drafts[order]), jnp.int32(start), cache)
    np.testing.assert_array_equal(bits(moved), bits(first)[order])
    equal, _ = forward(
        jnp.asarray(np.repeat(drafts[3:4], DRAFTS, 0)), jnp.int32(start), cache
    )
    np.testing.assert_array_equal(bits(equal), np.repeat(bits(first)[3:4], DRAFTS, 0))

    # The same state seen from windows that start later: its first blocks then come
    # from the cache, as computed by an earlier call of this very program.
    for shift in (4, 8, 12):
        _, window = forward(
            jnp.asarray(np.roll(drafts, -3, 0)), jnp.int32(start), cache
        )
        longer = jax.tree.map(
            lambda a, b: jax.lax.dynamic_update_slice(a, b, (0, start, 0, 0)),
            cache,
            window,
        )
        later = rng.integers(0, 37, (DRAFTS, WINDOW)).astype(np.int32)
        later[5, : WINDOW - shift] = drafts[3, shift:]
        seen, _ = forward(jnp.asarray(later), jnp.int32(start + shift), longer)
        np.testing.assert_array_equal(
            bits(seen)[5, : WINDOW - shift], bits(first)[3, shift:]
        )


@pytest.mark.parametrize("hidden", [pytest.param(32, marks=pytest.mark.slow), 128])
def test_capacity_does_not_change_bits(hidden):
    empty, forward = make(5, hidden, 2, False)
    rng = np.random.default_rng(5)
    tokens_T = rng.integers(0, 34, 512).astype(np.int32)
    drafts = jnp.asarray(rng.integers(0, 37, (DRAFTS, WINDOW)).astype(np.int32))
    seen = [
        forward(drafts, jnp.int32(64), fill(empty, forward, tokens_T, 64, size, TILE))[
            0
        ]
        for size in (128, 256, 512)
    ]
    for other in seen[1:]:
        np.testing.assert_array_equal(bits(other), bits(seen[0]))
