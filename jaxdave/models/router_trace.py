"""What routers have decided, carried along with hidden vectors under guarded numerics.

A router is not continuous: an error that changes which experts a token goes to changes
its logits by any amount. So a mixture of experts emits, of every token and layer, how
close that choice was. It is appended to the hidden vectors, as these go wherever the
decision goes that depends on it.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxdave.core.experts_config import ExpertsConfig
from jaxdave.core.model_api import RouterTrace

_ROUNDING = 4 * float(jnp.finfo(jnp.float32).eps)
"""What scores of 1 may be off by, beside what the error of their logits makes of them:
the exponential and the division of a score, and the addition of its bias."""
_SMALLEST_SLOPE = 1e-12
"""Added to what is divided by, so that equal scores of slope 0 have no margin."""


class _Ranks(NamedTuple):
    """What is chosen by, and how it may be off.

    An error of at most e in all router logits of a token changes a rank by at most
    about `slope` * e, and rounding by `rounding` whatever e is.

    Attributes:
        rank: The highest are chosen, float32 [S, X].
        slope: Not negative, [S, X].
        rounding: [S, X].
    """

    rank: jax.Array
    slope: jax.Array
    rounding: jax.Array


def layer_trace(
    logits_SX: jax.Array,
    rank_SX: jax.Array,
    expert_SC: jax.Array,
    is_kept_SG: jax.Array,
    config: ExpertsConfig,
) -> RouterTrace:
    """The trace of one router.

    Args:
        logits_SX: Its logits, float32 [S, X].
        rank_SX: What experts are compared by, all of them, float32 [S, X].
        expert_SC: The experts that were chosen, int32 [S, C].
        is_kept_SG: The groups that they are chosen from, bool [S, G].
        config: How experts are chosen.

    Returns:
        The margin [S] and the best logit [S].
    """
    ranks = _ranks(logits_SX, rank_SX, config)
    chosen = _Ranks(*(jnp.take_along_axis(a, expert_SC, axis=1) for a in ranks))
    is_chosen_SX = jnp.any(
        expert_SC[..., None] == jnp.arange(config.count)[None, None], axis=1
    )
    kept_SX = jnp.repeat(is_kept_SG, config.count // config.groups, axis=1)
    margin_S = _margin(chosen, ranks, (kept_SX & ~is_chosen_SX)[:, None])
    if config.groups > 1:
        groups = _group_ranks(ranks, config.groups)
        # All groups stand for those that are kept; other pairs do not count.
        is_pair_SGH = is_kept_SG[:, :, None] & ~is_kept_SG[:, None]
        margin_S = jnp.minimum(margin_S, _margin(groups, groups, is_pair_SGH))
    return RouterTrace(margin=margin_S, best=jnp.max(logits_SX, axis=1))


def _ranks(logits_SX: jax.Array, rank_SX: jax.Array, config: ExpertsConfig) -> _Ranks:
    """The ranks of experts."""
    if (config.score, config.bias, config.groups) == ("softmax", "none", 1):
        # The sum of a softmax is the same for all experts and decides nothing.
        return _Ranks(logits_SX, jnp.ones_like(logits_SX), jnp.zeros_like(logits_SX))
    if config.score == "sigmoid":
        score_SX = jax.nn.sigmoid(logits_SX)
        slope_SX = score_SX * (1 - score_SX)
    else:
        # The logits of all others are in the softmax's sum as well.
        slope_SX = 2 * jax.nn.softmax(logits_SX)
    rounding_SX = _ROUNDING * jnp.maximum(jnp.abs(rank_SX), slope_SX)
    return _Ranks(rank_SX, slope_SX, rounding_SX)


def _group_ranks(ranks: _Ranks, num_groups: int) -> _Ranks:
    """The ranks of groups, sums of those of their two best experts, [S, G]."""
    by_group = _Ranks(*(a.reshape(a.shape[0], num_groups, -1) for a in ranks))
    return _Ranks(
        rank=jnp.sum(jax.lax.top_k(by_group.rank, 2)[0], axis=-1),
        # Which two are the best may change as well: the steepest of all will do.
        slope=2 * jnp.max(by_group.slope, axis=-1),
        rounding=2 * jnp.max(by_group.rounding, axis=-1),
    )


def _margin(chosen: _Ranks, others: _Ranks, is_pair_SCX: jax.Array) -> jax.Array:
    """The smallest error at which a chosen one and one of the others change places.

    chosen: [S, C]; others: [S, X]; is_pair_SCX: which of them are compared, of a shape
    that is broadcast to [S, C, X].

    Returns:
        float32 [S]; infinity where there is no pair.
    """
    gap_SCX = chosen.rank[..., None] - others.rank[:, None]
    rounding_SCX = chosen.rounding[..., None] + others.rounding[:, None]
    slope_SCX = chosen.slope[..., None] + others.slope[:, None]
    margin_SCX = jnp.maximum(gap_SCX - rounding_SCX, 0) / (slope_SCX + _SMALLEST_SLOPE)
    return jnp.min(jnp.where(is_pair_SCX, margin_SCX, jnp.inf), axis=(1, 2))


def no_router(shape: tuple[int, ...]) -> RouterTrace:
    """The trace of a dense layer, which nothing can change.

    Args:
        shape: Of the tokens.

    Returns:
        Infinite margins.
    """
    return RouterTrace(jnp.full(shape, jnp.inf), jnp.zeros(shape))


class TracedVectors(NamedTuple):
    """Hidden vectors and the traces of all layers, as they are carried in one array.

    Attributes:
        hidden: [..., E].
        trace: Margins [...], of whatever a vector depends on; best logits [..., N].
    """

    hidden: jax.Array
    trace: RouterTrace


def num_columns(num_layers: int) -> int:
    """How much wider a trace makes hidden vectors.

    Args:
        num_layers: Layers of the model, N.

    Returns:
        The number of columns.
    """
    return 1 + num_layers


def join(vectors: TracedVectors) -> jax.Array:
    """Append traces to hidden vectors.

    Args:
        vectors: Both.

    Returns:
        [..., E + 1 + N].
    """
    hidden, trace = vectors
    columns = trace.margin[..., None], trace.best
    return jnp.concatenate(
        [hidden, *(part.astype(hidden.dtype) for part in columns)], axis=-1
    )


def split(joined: jax.Array, width: int) -> TracedVectors:
    """Take hidden vectors and traces apart.

    Args:
        joined: As `join` returns it.
        width: E.

    Returns:
        Both.
    """
    trace = RouterTrace(joined[..., width], joined[..., width + 1 :])
    return TracedVectors(joined[..., :width], trace)


def join_layers(hidden: jax.Array, traces: Sequence[RouterTrace]) -> jax.Array:
    """Append what the routers of all layers chose for the vectors' own tokens.

    Args:
        hidden: Vectors [..., E].
        traces: None, or one of margins and best logits [N, ...] of the layers.

    Returns:
        The vectors, [..., E + 1 + N] if there is a trace.
    """
    if not traces:
        return hidden
    margin_N, best_N = traces[0]
    trace = RouterTrace(jnp.min(margin_N, axis=0), jnp.moveaxis(best_N, 0, -1))
    return join(TracedVectors(hidden, trace))


def share_margins(
    joined: jax.Array, width: int, smallest: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    """Let the margins of vectors be those of all that they depend on.

    Args:
        joined: As `join` returns it.
        width: E.
        smallest: The tokens' own margins [...] -> the smallest that each vector depends
            on, [...] or of a shape that is broadcast to it.

    Returns:
        The vectors with those margins.
    """
    vectors = split(joined, width)
    own = vectors.trace.margin
    margin = jnp.broadcast_to(smallest(own), own.shape)
    return join(vectors._replace(trace=vectors.trace._replace(margin=margin)))
