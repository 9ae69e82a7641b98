"""A softmax over keys that come in parts, as a fold."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxdave.core.prediction import NEG_INF


class PartialSoftmax(NamedTuple):
    """A softmax over some of the keys that a query sees, kept so that others can join.

    Float32: the highest score and the sum of weights [K, G, R, L], the weighted values
    [K, G, R, L, D], with R queries to a key head.
    """

    top: jax.Array
    total: jax.Array
    context: jax.Array


def empty_softmax(like: jax.Array) -> PartialSoftmax:
    """The softmax over no keys, of queries [..., D]."""
    lead = like.shape[:-1]
    zero = jnp.zeros(lead, jnp.float32)
    return PartialSoftmax(
        jnp.full(lead, NEG_INF), zero, jnp.zeros(like.shape, jnp.float32)
    )


def add_keys(held: PartialSoftmax, scores, weigh) -> PartialSoftmax:
    """The softmax with more keys: their scores [..., S], weigh(weights) -> values."""
    top = jnp.maximum(held.top, jnp.max(scores, axis=-1))
    weights, fade = jnp.exp(scores - top[..., None]), jnp.exp(held.top - top)
    total = held.total * fade + jnp.sum(weights, axis=-1)
    return PartialSoftmax(top, total, held.context * fade[..., None] + weigh(weights))


def merge_softmax(a: PartialSoftmax, b: PartialSoftmax) -> PartialSoftmax:
    """The softmax over both sets of keys."""
    top = jnp.maximum(a.top, b.top)
    fade_a, fade_b = jnp.exp(a.top - top), jnp.exp(b.top - top)
    context = a.context * fade_a[..., None] + b.context * fade_b[..., None]
    return PartialSoftmax(top, a.total * fade_a + b.total * fade_b, context)


def normalize(held: PartialSoftmax, q):
    """What queries shaped as `q` have attended to."""
    context = (held.context / held.total[..., None]).astype(q.dtype)
    return jnp.einsum("kgrld->klgrd", context).reshape(q.shape)
