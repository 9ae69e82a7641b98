"""Dense attention whose gradient is written out.

`models.attention.dense_attention` differentiated by JAX keeps several arrays of the
size of all scores for the backward pass, and XLA:CPU transposes them on the way between
its products. Here heads lead from the beginning, and one array of that size is kept,
the weights.

Axes: B rows, Q queries, S keys, H query heads, G key/value heads, R = H / G query heads
for each key/value head, D head size.
"""

import math

import jax
import jax.numpy as jnp

from jaxdave.core.prediction import NEG_INF


@jax.custom_vjp
def trained_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array
) -> jax.Array:
    """Compute `dense_attention`, with a gradient that is faster on a CPU.

    Args:
        q: Queries [B, Q, H, D].
        k: Keys [B, S, G, D] with H a multiple of G.
        v: Values [B, S, G, D].
        mask: bool [B or 1, Q, S], True where a query sees a key.

    Returns:
        Weighted values [B, Q, H, D] in the dtype of `q`. Scores and softmax are
        float32.
    """
    return _forward(q, k, v, mask)[0]


def _forward(q, k, v, mask):
    q_BGRQD, k_BGSD, v_BGSD = _by_head(q, k.shape[2]), _swap(k), _swap(v)
    scores = _einsum("bgrqd,bgsd->bgrqs", q_BGRQD, k_BGSD) / math.sqrt(q.shape[-1])
    scores = jnp.where(mask[:, None, None], scores, NEG_INF)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    context = _einsum("bgrqs,bgsd->bgrqd", weights, v_BGSD).astype(q.dtype)
    saved = q_BGRQD, k_BGSD, v_BGSD, weights, context
    return _by_position(context), saved


def _backward(saved, d_out):
    q, k, v, weights, context = saved
    d_context = _by_head(d_out, k.shape[1])
    d_weights = _einsum("bgrqd,bgsd->bgrqs", d_context, v)
    # The sum over keys of weights times their gradients, from what they add up to.
    product = d_context.astype(jnp.float32) * context.astype(jnp.float32)
    mean = jnp.sum(product, axis=-1, keepdims=True)
    d_scores = weights.astype(jnp.float32) * (d_weights - mean)
    # A masked key has weight 0, so that its score has gradient 0; a query that sees
    # nothing has equal weights, as in `dense_attention`, and hands nothing back.
    d_scores = (d_scores / math.sqrt(q.shape[-1])).astype(q.dtype)
    # Computed once, rather than anew in each of the two products that read it.
    d_scores = jax.lax.optimization_barrier(d_scores)
    d_q = _einsum("bgrqs,bgsd->bgrqd", d_scores, k)
    d_k = _einsum("bgrqs,bgrqd->bgsd", d_scores, q)
    d_v = _einsum("bgrqs,bgrqd->bgsd", weights, d_context)
    return (
        _by_position(d_q).astype(q.dtype),
        _swap(d_k).astype(k.dtype),
        _swap(d_v).astype(v.dtype),
        None,
    )


trained_attention.defvjp(_forward, _backward)


def _by_head(a: jax.Array, groups: int) -> jax.Array:
    """[B, Q, H, D] -> [B, G, R, Q, D]."""
    rows, positions, heads, size = a.shape
    grouped = a.reshape(rows, positions, groups, heads // groups, size)
    return jnp.transpose(grouped, (0, 2, 3, 1, 4))


def _by_position(a: jax.Array) -> jax.Array:
    """[B, G, R, Q, D] -> [B, Q, H, D]."""
    rows, groups, repeats, positions, size = a.shape
    moved = jnp.transpose(a, (0, 3, 1, 2, 4))
    return moved.reshape(rows, positions, groups * repeats, size)


def _swap(a: jax.Array) -> jax.Array:
    """[B, S, G, D] <-> [B, G, S, D]."""
    return jnp.swapaxes(a, 1, 2)


def _einsum(spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """`jnp.einsum` with float32 results at the highest precision."""
    return jnp.einsum(
        spec,
        a,
        b,
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
