"""A softmax over keys that come in parts, as a fold."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

NEVER = -1e30
"""A score that a visible key never has; finite, so that no row turns into NaN."""


class Attended(NamedTuple):
    """A softmax over some of the keys that a query sees, kept so that others can join.

    Float32: the highest score and the sum of weights [K, G, R, L], the weighted values
    [K, G, R, L, D], with R queries to a key head.
    """

    top: jax.Array
    total: jax.Array
    context: jax.Array


def nothing(like: jax.Array) -> Attended:
    """The softmax over no keys, of queries [..., D]."""
    lead = like.shape[:-1]
    zero = jnp.zeros(lead, jnp.float32)
    return Attended(jnp.full(lead, NEVER), zero, jnp.zeros(like.shape, jnp.float32))


def with_more(held: Attended, scores, weigh) -> Attended:
    """The softmax with more keys: their scores [..., S], weigh(weights) -> values."""
    top = jnp.maximum(held.top, jnp.max(scores, axis=-1))
    weights, fade = jnp.exp(scores - top[..., None]), jnp.exp(held.top - top)
    total = held.total * fade + jnp.sum(weights, axis=-1)
    return Attended(top, total, held.context * fade[..., None] + weigh(weights))


def joined(a: Attended, b: Attended) -> Attended:
    """The softmax over both sets of keys."""
    top = jnp.maximum(a.top, b.top)
    fade_a, fade_b = jnp.exp(a.top - top), jnp.exp(b.top - top)
    context = a.context * fade_a[..., None] + b.context * fade_b[..., None]
    return Attended(top, a.total * fade_a + b.total * fade_b, context)


def normed(held: Attended, q):
    """What queries shaped as `q` have attended to."""
    context = (held.context / held.total[..., None]).astype(q.dtype)
    return jnp.einsum("kgrld->klgrd", context).reshape(q.shape)
