"""Rotary position embeddings: the table of angles, and the rotation.

Source: RoFormer, arXiv 2104.09864, in the half-split form of GPT-NeoX and Llama; YaRN,
arXiv 2309.00071.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxdave.core.config import ModelConfig, RopeScaling, YarnScaling

Rope = tuple[jax.Array, ...]
"""Cosines and sines of some positions, [..., L, rotary_dim / 2] each; where queries
have a scale that depends on the position, that too, [..., L, 1]."""


def rope_table(config: ModelConfig, positions: int) -> tuple[np.ndarray, ...]:
    """Compute cosines and sines for all positions.

    Built once on the host, so that every program reads the same bits. Angles are
    float32 products, as in the published PyTorch modules.

    Args:
        config: The model's shape: `rotary_dim`, `rope_theta` and `rope_scaling`.
        positions: How many positions, counted from 0.

    Returns:
        Cosines and sines, float32 [positions, rotary_dim / 2] each, and a scale of
        queries [positions, 1] where the model has one: the arrays of a `Rope`.
    """
    scaling = config.rope_scaling
    exponent = np.arange(0, config.rotary_dim, 2, dtype=np.float32) / config.rotary_dim
    frequency = np.float32(1) / np.float32(config.rope_theta) ** exponent
    if isinstance(scaling, RopeScaling):
        frequency = _scale(frequency, scaling)
    elif scaling is not None:
        frequency = _yarn(frequency, config, scaling)
    position_T1 = np.arange(positions, dtype=np.float32)[:, None]
    angles = position_T1 * frequency[None]
    if not isinstance(scaling, YarnScaling):
        return np.cos(angles), np.sin(angles)
    magnitude = np.float32(scaling.magnitude)
    rotation = np.cos(angles) * magnitude, np.sin(angles) * magnitude
    if not scaling.query_beta:
        return rotation
    lengths = np.floor(position_T1 / np.float32(scaling.positions))
    return *rotation, 1 + np.float32(scaling.query_beta) * np.log(1 + lengths)


def _yarn(
    frequency: np.ndarray, config: ModelConfig, scaling: YarnScaling
) -> np.ndarray:
    """Frequencies after `scaling`, float32."""
    size = config.rotary_dim

    def feature_of(turns: float) -> float:
        # Where in a head the frequency is that turns so often in the first training.
        angle = scaling.positions / (turns * 2 * math.pi)
        return size * math.log(angle) / (2 * math.log(config.rope_theta))

    first = max(math.floor(feature_of(scaling.beta_fast)), 0)
    last = min(math.ceil(feature_of(scaling.beta_slow)), size - 1)
    # The published code keeps the ramp from being a step in the same way.
    width = np.float32(last - first or 0.001)
    index = np.arange(size // 2, dtype=np.float32)
    divided = np.clip((index - np.float32(first)) / width, 0, 1)
    return frequency / np.float32(scaling.factor) * divided + frequency * (1 - divided)


def _scale(frequency: np.ndarray, scaling: RopeScaling) -> np.ndarray:
    """Frequencies after `scaling`, float32."""
    turns = np.float32(scaling.positions) * frequency / np.float32(2 * np.pi)
    width = scaling.high_turns - scaling.low_turns
    kept = np.clip((turns - np.float32(scaling.low_turns)) / np.float32(width), 0, 1)
    return (1 - kept) * frequency / np.float32(scaling.factor) + kept * frequency


def scale_queries(q: jax.Array, rope: Rope) -> jax.Array:
    """Multiply queries by the scale of their positions, where there is one.

    Args:
        q: [..., L, H, D].
        rope: Of the positions of `q`.

    Returns:
        The scaled queries, of the shape and dtype of `q`.
    """
    if len(rope) == 2:
        return q
    scale = rope[2].astype(q.dtype)[..., None]
    return q * jnp.expand_dims(scale, tuple(range(q.ndim - scale.ndim)))


def rotate(x: jax.Array, rope: Rope, in_float32: bool) -> jax.Array:
    """Rotate the two halves of the first `rotary_dim` features of queries or keys.

    Args:
        x: [..., L, H, D].
        rope: Cosines and sines of the positions of `x`, [..., L, rotary_dim / 2]; a
            scale of queries is not looked at.
        in_float32: Rotate in float32 and cast back; otherwise in the dtype of `x`.

    Returns:
        The rotated array, of the shape and dtype of `x`.
    """
    dtype = jnp.float32 if in_float32 else x.dtype
    cos, sin = (part[..., None, :].astype(dtype) for part in rope[:2])
    half = cos.shape[-1]
    a, b = x[..., :half].astype(dtype), x[..., half : 2 * half].astype(dtype)
    # Leading axes of 1 where positions are shared by a batch.
    missing = x.ndim - cos.ndim
    cos, sin = (jnp.expand_dims(part, tuple(range(missing))) for part in (cos, sin))
    rotated = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    return jnp.concatenate([rotated.astype(x.dtype), x[..., 2 * half :]], axis=-1)
