"""Attention functions: dense for training, two-part and tiled for decoding."""

import math

import jax
import jax.numpy as jnp

NEVER = -1e30
"""A score that a visible key never has; finite, so that no row turns into NaN."""


def dense(q, k, v, see):
    """Attention with an explicit mask.

    q: [B, Q, H, D]; k, v: [B, S, G, D] with H a multiple of G; see: bool [B or 1, Q, S],
    True where a query sees a key. Scores and statistics are float32.
    """
    batch, queries, heads, size = q.shape
    groups = k.shape[2]
    q = q.reshape(batch, queries, groups, heads // groups, size)
    scores = _dot("bqgrd,bsgd->bgrqs", q, k) / math.sqrt(size)
    scores = jnp.where(see[:, None, None], scores, NEVER)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return _dot("bgrqs,bsgd->bqgrd", weights, v).astype(q.dtype).reshape(
        batch, queries, heads, size
    )


def _dot(spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(
        spec,
        a,
        b,
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
