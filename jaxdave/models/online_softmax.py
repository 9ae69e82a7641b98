"""A softmax over keys that arrive in parts, as in FlashAttention.

softmax(scores) @ values = sum(exp(s - m) v) / sum(exp(s - m)) for any m. Keeping the
running maximum m, the numerator and the denominator lets keys be added part by part: at
a new maximum the old sums are multiplied by exp(old m - new m). Nothing overflows, as
no exponent is ever positive.

Source: Milakov & Gimelshein, arXiv 1805.02867; FlashAttention, arXiv 2205.14135.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxdave.core.prediction import NEG_INF


class PartialSoftmax(NamedTuple):
    """The softmax over some of the keys that a query sees, in a form that can grow.

    Axes: K drafts, G key/value heads, R query heads per key/value head, L queries, D
    head size. Everything is float32.

    Attributes:
        max_score: The highest score so far, [K, G, R, L].
        denominator: Sum of exp(score - max_score), [K, G, R, L].
        numerator: Sum of exp(score - max_score) times values, [K, G, R, L, D].
    """

    max_score: jax.Array
    denominator: jax.Array
    numerator: jax.Array


def empty_softmax(like: jax.Array) -> PartialSoftmax:
    """The softmax over no keys.

    Args:
        like: An array [..., D] in the shape of the queries.

    Returns:
        Sums of 0, and a maximum that any real score replaces.
    """
    lead = like.shape[:-1]
    zero = jnp.zeros(lead, jnp.float32)
    # NEG_INF is finite: exp(NEG_INF - NEG_INF) is 1 where -inf would give NaN.
    return PartialSoftmax(
        jnp.full(lead, NEG_INF), zero, jnp.zeros(like.shape, jnp.float32)
    )


def add_keys(
    partial: PartialSoftmax,
    scores: jax.Array,
    weighted_sum: Callable[[jax.Array], jax.Array],
) -> PartialSoftmax:
    """Add keys to a softmax.

    Args:
        partial: The softmax over earlier keys.
        scores: Their scores, float32 [K, G, R, L, S]; `NEG_INF` where not seen.
        weighted_sum: Maps weights [K, G, R, L, S] to the sums of the S values that they
            weigh, [K, G, R, L, D].

    Returns:
        The softmax over all of them.
    """
    # The new maximum, weights relative to it, and the old sums brought to it.
    top = jnp.maximum(partial.max_score, jnp.max(scores, axis=-1))
    weights = jnp.exp(scores - top[..., None])
    rescale = jnp.exp(partial.max_score - top)
    denominator = partial.denominator * rescale + jnp.sum(weights, axis=-1)
    numerator = partial.numerator * rescale[..., None] + weighted_sum(weights)
    return PartialSoftmax(top, denominator, numerator)


def merge_softmax(a: PartialSoftmax, b: PartialSoftmax) -> PartialSoftmax:
    """Merge the softmaxes over two disjoint sets of keys.

    Args:
        a: One of them.
        b: The other, of the same queries.

    Returns:
        The softmax over both sets.
    """
    top = jnp.maximum(a.max_score, b.max_score)
    rescale_a, rescale_b = jnp.exp(a.max_score - top), jnp.exp(b.max_score - top)
    numerator = a.numerator * rescale_a[..., None] + b.numerator * rescale_b[..., None]
    denominator = a.denominator * rescale_a + b.denominator * rescale_b
    return PartialSoftmax(top, denominator, numerator)


def normalize(partial: PartialSoftmax, q: jax.Array) -> jax.Array:
    """The attention output, once all keys have been added.

    Args:
        partial: The softmax over all keys of each query.
        q: The queries [K, L, H, D], for shape and dtype.

    Returns:
        Weighted means of the values, [K, L, H, D].
    """
    context = (partial.numerator / partial.denominator[..., None]).astype(q.dtype)
    return jnp.einsum("kgrld->klgrd", context).reshape(q.shape)
