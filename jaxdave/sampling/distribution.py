"""Gap, margin and entropy of a distribution, gathered chunk by chunk.

All sums are taken relative to the second best logit, so that nothing is lost however
far the best one is ahead: 1 - p of a token with p = 1 - 1e-12 keeps its precision in
float32.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxdave.core.prediction import NEG_INF


class DistributionStats(NamedTuple):
    """Sums over a part of the vocabulary, from which the measures can be computed.

    All arrays are float32 [R]. Sums leave out one best id.

    Attributes:
        top: The best logit.
        second: The second best logit.
        rest: Sum of exp(z - second).
        moment: Sum of (second - z) exp(z - second).
    """

    top: jax.Array
    second: jax.Array
    rest: jax.Array
    moment: jax.Array


def max_and_argmax(a: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The largest value of each row and its first index.

    On a CPU two plain reductions take a third of the time of `jnp.argmax`, which
    reduces pairs.

    Args:
        a: [R, X].

    Returns:
        Values [R], and indices int32 [R].
    """
    size = a.shape[1]
    top_R = jnp.max(a, axis=1)
    index_X = jnp.arange(size, dtype=jnp.int32)[None]
    argmax_R = jnp.min(jnp.where(a == top_R[:, None], index_X, size - 1), axis=1)
    return top_R, argmax_R


def distribution_stats(z: jax.Array) -> DistributionStats:
    """The sums over one chunk.

    Args:
        z: Tempered logits, float32 [R, X]; `NEG_INF` where an id is suppressed.

    Returns:
        Its statistics.
    """
    top_R, argmax_R = max_and_argmax(z)
    is_top = jnp.arange(z.shape[1], dtype=jnp.int32)[None] == argmax_R[:, None]
    second_R = jnp.max(jnp.where(is_top, NEG_INF, z), axis=1)
    # Suppressed ids weigh nothing, even in a chunk of nothing else, whose second best
    # is NEG_INF itself.
    counts = (z > NEG_INF) & ~is_top
    below = jnp.where(counts, second_R[:, None] - z, 0.0)
    weight = jnp.where(counts, jnp.exp(-below), 0.0)
    moment_R = jnp.sum(weight * below, axis=1)
    return DistributionStats(top_R, second_R, jnp.sum(weight, axis=1), moment_R)


def merge_stats(a: DistributionStats, b: DistributionStats) -> DistributionStats:
    """Merge the statistics of two disjoint parts of the vocabulary.

    Args:
        a: Of the earlier ids, whose best wins a tie.
        b: Of the later ids.

    Returns:
        Of both.
    """
    a_wins = a.top >= b.top
    winner, loser = (
        DistributionStats(
            *(jnp.where(a_wins, x, w) for x, w in zip(*pair, strict=True))
        )
        for pair in ((a, b), (b, a))
    )
    second = jnp.maximum(winner.second, loser.top)

    def rebase(rest, moment, old_second):
        """Sums relative to `old_second` as sums relative to `second`, not below it."""
        # An empty sum may be relative to NEG_INF, and must stay 0.
        below = jnp.where(rest > 0, second - old_second, 0.0)
        rescale = jnp.exp(-below)
        return rescale * rest, rescale * (below * rest + moment)

    # The loser's best id was left out of its sums; now it counts as one more part.
    has_loser = (loser.top > NEG_INF).astype(jnp.float32)
    parts = (
        rebase(winner.rest, winner.moment, winner.second),
        rebase(loser.rest, loser.moment, loser.second),
        rebase(has_loser, jnp.zeros_like(has_loser), loser.top),
    )
    rest, moment = (sum(part, jnp.float32(0)) for part in zip(*parts, strict=True))
    return DistributionStats(winner.top, second, rest, moment)


def gap_margin_entropy(
    stats: DistributionStats,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gap, margin and entropy of a distribution.

    With e = exp(-gap) and r = e * rest the best has probability 1 / (1 + r). The
    margin is -log(1 - p_best + p_second), which is -log(e (1 + rest) / (1 + r)); the
    entropy is log(1 + r) + e (gap * rest + moment) / (1 + r). None saturates, except
    that an entropy of less than about 1e-36 is 0.

    Args:
        stats: Statistics of the whole vocabulary, arrays [R].

    Returns:
        gap: Best logit less the second best, float32 [R].
        margin: -log(1 - (p_best - p_second)), float32 [R].
        entropy: In nats, float32 [R].
    """
    top, second, rest, moment = stats
    gap = top - second
    small = jnp.exp(-gap)
    others = small * rest
    margin = jnp.log1p(others) + gap - jnp.log1p(rest)
    weighted = small * (jnp.where(rest > 0, gap, 0.0) * rest + moment)
    return gap, margin, jnp.log1p(others) + weighted / (1.0 + others)
