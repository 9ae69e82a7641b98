"""Rotary positions: the table of angles, and the rotation."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxdave.core.config import ModelConfig

Rope = tuple[jax.Array, jax.Array]


def rope_table(config: ModelConfig, positions: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines [positions, rotary_dim / 2], float32.

    Built once on the host, so that every program reads the same bits. Angles are
    float32 products, as in the published PyTorch modules.
    """
    exponent = np.arange(0, config.rotary_dim, 2, dtype=np.float32) / config.rotary_dim
    inverse = np.float32(1) / np.float32(config.rope_theta) ** exponent
    angles = np.arange(positions, dtype=np.float32)[:, None] * inverse[None]
    return np.cos(angles), np.sin(angles)


def rotate(x: jax.Array, rope: Rope, in_float32: bool) -> jax.Array:
    """Rotate the two halves of the first `rotary_dim` features of `x` [..., L, H, D].

    rope: cosines and sines [..., L, rotary_dim / 2] of the positions of `x`.
    """
    dtype = jnp.float32 if in_float32 else x.dtype
    cos, sin = (part[..., None, :].astype(dtype) for part in rope)
    half = cos.shape[-1]
    a, b = x[..., :half].astype(dtype), x[..., half : 2 * half].astype(dtype)
    missing = x.ndim - cos.ndim
    cos, sin = (jnp.expand_dims(part, tuple(range(missing))) for part in (cos, sin))
    turned = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    return jnp.concatenate([turned.astype(x.dtype), x[..., 2 * half :]], axis=-1)
