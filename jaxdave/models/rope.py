"""Rotary position embeddings: the table of angles, and the rotation.

Source: RoFormer, arXiv 2104.09864, in the half-split form of GPT-NeoX and Llama.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxdave.core.config import ModelConfig, RopeScaling

Rope = tuple[jax.Array, jax.Array]
"""Cosines and sines of some positions, [..., L, rotary_dim / 2] each."""


def rope_table(config: ModelConfig, positions: int) -> tuple[np.ndarray, np.ndarray]:
    """Compute cosines and sines for all positions.

    Built once on the host, so that every program reads the same bits. Angles are
    float32 products, as in the published PyTorch modules.

    Args:
        config: The model's shape: `rotary_dim`, `rope_theta` and `rope_scaling`.
        positions: How many positions, counted from 0.

    Returns:
        Cosines and sines, float32 [positions, rotary_dim / 2] each.
    """
    exponent = np.arange(0, config.rotary_dim, 2, dtype=np.float32) / config.rotary_dim
    frequency = np.float32(1) / np.float32(config.rope_theta) ** exponent
    if config.rope_scaling is not None:
        frequency = _scale(frequency, config.rope_scaling)
    angles = np.arange(positions, dtype=np.float32)[:, None] * frequency[None]
    return np.cos(angles), np.sin(angles)


def _scale(frequency: np.ndarray, scaling: RopeScaling) -> np.ndarray:
    """Frequencies after `scaling`, float32."""
    turns = np.float32(scaling.positions) * frequency / np.float32(2 * np.pi)
    width = scaling.high_turns - scaling.low_turns
    kept = np.clip((turns - np.float32(scaling.low_turns)) / np.float32(width), 0, 1)
    return (1 - kept) * frequency / np.float32(scaling.factor) + kept * frequency


def rotate(x: jax.Array, rope: Rope, in_float32: bool) -> jax.Array:
    """Rotate the two halves of the first `rotary_dim` features of queries or keys.

    Args:
        x: [..., L, H, D].
        rope: Cosines and sines of the positions of `x`, [..., L, rotary_dim / 2].
        in_float32: Rotate in float32 and cast back; otherwise in the dtype of `x`.

    Returns:
        The rotated array, of the shape and dtype of `x`.
    """
    dtype = jnp.float32 if in_float32 else x.dtype
    cos, sin = (part[..., None, :].astype(dtype) for part in rope)
    half = cos.shape[-1]
    a, b = x[..., :half].astype(dtype), x[..., half : 2 * half].astype(dtype)
    # Leading axes of 1 where positions are shared by a batch.
    missing = x.ndim - cos.ndim
    cos, sin = (jnp.expand_dims(part, tuple(range(missing))) for part in (cos, sin))
    rotated = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    return jnp.concatenate([rotated.astype(x.dtype), x[..., 2 * half :]], axis=-1)
