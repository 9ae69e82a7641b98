"""What a distribution looks like beside its best token: gap, margin, entropy.

Gathered a chunk of the vocabulary at a time, and relative to the second best logit, so
that nothing is lost however far the best is ahead.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxdave.core.prediction import NEG_INF


class DistributionStats(NamedTuple):
    """A distribution seen from its second best logit, which has weight 1.

    top, second: the two best logits. rest: sum of exp(z - second) over all but one
    best. moment: sum of (second - z) exp(z - second) over the same.
    """

    top: jax.Array
    second: jax.Array
    rest: jax.Array
    moment: jax.Array


def max_and_argmax(a: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The highest value of each row, and its first place.

    On a CPU two plain reductions take a third of the time of `argmax`, which reduces
    pairs.
    """
    size = a.shape[1]
    top_R = jnp.max(a, axis=1)
    place_X = jnp.arange(size, dtype=jnp.int32)[None]
    place_R = jnp.min(jnp.where(a == top_R[:, None], place_X, size - 1), axis=1)
    return top_R, place_R


def distribution_stats(z: jax.Array) -> DistributionStats:
    """The spread of logits [R, X]."""
    top_R, place_R = max_and_argmax(z)
    first = jnp.arange(z.shape[1], dtype=jnp.int32)[None] == place_R[:, None]
    second_R = jnp.max(jnp.where(first, NEG_INF, z), axis=1)
    # Ids that may not be predicted weigh nothing; a whole chunk may be of them.
    live = (z > NEG_INF) & ~first
    below = jnp.where(live, second_R[:, None] - z, 0.0)
    weight = jnp.where(live, jnp.exp(-below), 0.0)
    moment_R = jnp.sum(weight * below, axis=1)
    return DistributionStats(top_R, second_R, jnp.sum(weight, axis=1), moment_R)


def merge_stats(a: DistributionStats, b: DistributionStats) -> DistributionStats:
    """Two parts of a distribution as one."""
    first = a.top >= b.top
    win, lose = (
        DistributionStats(*(jnp.where(first, x, w) for x, w in zip(*pair, strict=True)))
        for pair in ((a, b), (b, a))
    )
    second = jnp.maximum(win.second, lose.top)

    def seen(rest, moment, old):
        """A sum seen from a logit that is no lower than the one it was seen from."""
        # Where nothing was alive there is nothing to see.
        below = jnp.where(rest > 0, second - old, 0.0)
        fade = jnp.exp(-below)
        return fade * rest, fade * (below * rest + moment)

    is_alive = (lose.top > NEG_INF).astype(jnp.float32)
    parts = (
        seen(win.rest, win.moment, win.second),
        seen(lose.rest, lose.moment, lose.second),
        seen(is_alive, jnp.zeros_like(is_alive), lose.top),
    )
    rest, moment = (sum(part, jnp.float32(0)) for part in zip(*parts, strict=True))
    return DistributionStats(win.top, second, rest, moment)


def gap_margin_entropy(
    spread: DistributionStats,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(gap, margin, entropy) of a distribution.

    With e = exp(-gap) and r = e * rest the best has probability 1 / (1 + r). The
    margin is -log(1 - p_best + p_second), which is -log(e (1 + rest) / (1 + r)); the
    entropy is log(1 + r) + e (gap * rest + moment) / (1 + r). None saturates, but that
    an entropy of less than about 1e-36 is 0.
    """
    top, second, rest, moment = spread
    gap = top - second
    small = jnp.exp(-gap)
    others = small * rest
    margin = jnp.log1p(others) + gap - jnp.log1p(rest)
    weighed = small * (jnp.where(rest > 0, gap, 0.0) * rest + moment)
    return gap, margin, jnp.log1p(others) + weighed / (1.0 + others)
