"""The kernel of norms and rotation, against the modules that it stands for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.kernel_machine import KERNEL_MACHINE

from jaxdave.models.rope import rotate
from jaxdave.models.rotary_kernel import fits_kernel, norm_and_rotate

EPS = 1e-6


def draw(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def normed(x, scale_D):
    wide = np.asarray(x, np.float64)
    size = np.sqrt(np.mean(wide * wide, axis=-1, keepdims=True) + EPS)
    return jnp.asarray(wide / size * np.asarray(scale_D), jnp.float32)


@pytest.mark.parametrize("has_norm", [True, False])
@pytest.mark.parametrize(
    ("tokens", "queries", "groups", "width"),
    [(48, 4, 2, 32), (5, 3, 1, 16), (8, 7, 7, 64)],
)
def test_heads_are_normed_and_rotated(tokens, queries, groups, width, has_norm):
    x = draw(0, tokens, queries + 2 * groups, width) * 3
    angle = draw(1, tokens, width // 2)
    rope = jnp.cos(angle), jnp.sin(angle)
    scales = draw(2, width), draw(3, width)
    q, k, v = norm_and_rotate(
        x,
        rope,
        scales if has_norm else None,
        EPS,
        (queries, groups, groups),
        KERNEL_MACHINE,
    )
    parts = x[:, :queries], x[:, queries:-groups]
    wants = [
        rotate(normed(part, scale) if has_norm else part, rope, in_float32=True)
        for part, scale in zip(parts, scales, strict=True)
    ]
    np.testing.assert_allclose(q, wants[0], atol=1e-5)
    np.testing.assert_allclose(k, wants[1], atol=1e-5)
    np.testing.assert_array_equal(v, x[:, -groups:])


def test_what_the_kernel_leaves_to_xla():
    x = jnp.zeros((4, 64))
    assert fits_kernel(x, head_dim=32, rotary_dim=32)
    assert not fits_kernel(x, head_dim=32, rotary_dim=16)
    assert not fits_kernel(x, head_dim=96, rotary_dim=96)
    assert not fits_kernel(x.astype(jnp.bfloat16), head_dim=32, rotary_dim=32)
