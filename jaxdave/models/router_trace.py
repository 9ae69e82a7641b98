"""What routers have decided, carried along with hidden vectors under guarded numerics.

A router is not continuous: an error that changes which experts a token goes to changes
its logits by any amount. So a mixture of experts emits, of every token and layer, how
close that choice was. It is appended to the hidden vectors, as these go wherever the
decision goes that depends on it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxdave.core.experts_config import ExpertsConfig
from jaxdave.core.model_api import RouterTrace

_ROUNDING = 16 * float(jnp.finfo(jnp.float32).eps)
"""What scores of 1 may be off by, beside what the error of their logits makes of them:
a few additions in float32."""
_SMALLEST_SLOPE = 1e-12
"""Added to what is divided by, so that equal scores of slope 0 have no margin."""


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
    is_by_logits = (config.score, config.bias, config.groups) == ("softmax", "none", 1)
    if is_by_logits:
        # The sum of a softmax is the same for all experts and decides nothing.
        rank_SX, slope_SX = logits_SX, jnp.ones_like(logits_SX)
        rounding_SX = jnp.zeros_like(logits_SX)
    else:
        slope_SX, rounding_SX = _sensitivity(logits_SX, rank_SX, config)
    chosen_SX = jnp.any(
        expert_SC[..., None] == jnp.arange(config.count)[None, None], axis=1
    )
    kept_SX = jnp.repeat(is_kept_SG, config.count // config.groups, axis=1)
    margin_S = _margin(
        *(jnp.take_along_axis(a, expert_SC, axis=1) for a in (rank_SX, slope_SX)),
        rank_SX,
        slope_SX,
        rounding_SX,
        kept_SX & ~chosen_SX,
    )
    if config.groups > 1:
        group_margin_S = _group_margin(rank_SX, slope_SX, rounding_SX, is_kept_SG)
        margin_S = jnp.minimum(margin_S, group_margin_S)
    return RouterTrace(margin=margin_S, best=jnp.max(logits_SX, axis=1))


def _sensitivity(
    logits_SX: jax.Array, rank_SX: jax.Array, config: ExpertsConfig
) -> tuple[jax.Array, jax.Array]:
    """By how much a rank changes with the errors of logits, and by rounding alone.

    Returns:
        The slope: an error of at most e in all logits of a token changes the rank by
        at most about slope * e; and what is added to it whatever e is. Both [S, X].
    """
    if config.score == "sigmoid":
        score_SX = jax.nn.sigmoid(logits_SX)
        slope_SX = score_SX * (1 - score_SX)
    else:
        # The logits of all others are in the softmax's sum as well.
        slope_SX = 2 * jax.nn.softmax(logits_SX)
    return slope_SX, _ROUNDING * jnp.maximum(jnp.abs(rank_SX), slope_SX)


def _margin(
    chosen_SC: jax.Array,
    chosen_slope_SC: jax.Array,
    other_SX: jax.Array,
    other_slope_SX: jax.Array,
    rounding_SX: jax.Array,
    is_other_SX: jax.Array,
) -> jax.Array:
    """The smallest error at which a chosen one and one of the others change places.

    Returns:
        float32 [S]; infinity where there is no other.
    """
    gap_SCX = chosen_SC[..., None] - other_SX[:, None]
    # The larger of two ranks that are close is about the smaller one.
    gap_SCX = jnp.maximum(gap_SCX - 2 * rounding_SX[:, None], 0)
    slope_SCX = chosen_slope_SC[..., None] + other_slope_SX[:, None]
    margin_SCX = gap_SCX / (slope_SCX + _SMALLEST_SLOPE)
    margin_SCX = jnp.where(is_other_SX[:, None], margin_SCX, jnp.inf)
    return jnp.min(margin_SCX, axis=(1, 2))


def _group_margin(
    rank_SX: jax.Array,
    slope_SX: jax.Array,
    rounding_SX: jax.Array,
    is_kept_SG: jax.Array,
) -> jax.Array:
    """`_margin` of the choice of groups, whose rank is the sum of their two best."""

    def by_group(a_SX: jax.Array) -> jax.Array:
        return a_SX.reshape(*is_kept_SG.shape, -1)

    rank_SG = jnp.sum(jax.lax.top_k(by_group(rank_SX), 2)[0], axis=-1)
    # Which two are the best may change as well: the steepest of all will do.
    slope_SG = 2 * jnp.max(by_group(slope_SX), axis=-1)
    rounding_SG = 2 * jnp.max(by_group(rounding_SX), axis=-1)
    # All groups take the place of the chosen ones; pairs that are none do not count.
    gap_SGH = rank_SG[:, :, None] - rank_SG[:, None]
    gap_SGH = jnp.maximum(gap_SGH - 2 * rounding_SG[:, None], 0)
    slope_SGH = slope_SG[:, :, None] + slope_SG[:, None]
    margin_SGH = gap_SGH / (slope_SGH + _SMALLEST_SLOPE)
    is_pair_SGH = is_kept_SG[:, :, None] & ~is_kept_SG[:, None]
    return jnp.min(jnp.where(is_pair_SGH, margin_SGH, jnp.inf), axis=(1, 2))


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
