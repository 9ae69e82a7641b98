"""What is recorded of every committed token: its policy step and its log-probability.

Recording is a setting of the decode (`DecodeSpec.records_steps`): programs without it
hold none of these arrays. Drafts change neither number, as they are those of the states
on the accepted path, which are the policy's own.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxdave.core.draft_api import DraftSet
from jaxdave.core.prediction import NO_TOKEN, Prediction
from jaxdave.core.spec import DecodeSpec
from jaxdave.core.state import RowState, Stats
from jaxdave.core.window import WindowLayout
from jaxdave.decoding.accepted_path import AcceptedPath

NO_STEP = -1
"""The step of a position that is not committed."""


class StepRecord(NamedTuple):
    """What a call's accepted path has committed in the window.

    Attributes:
        is_new_L: Positions that were filled, bool [L].
        step_L: The policy step that filled each, int32 [L].
        log_prob_L: The log-probability of the token under the tempered distribution of
            that step, before top-k and top-p, float32 [L]; NaN where the policy has
            filled in another token than the predicted one.
    """

    is_new_L: jax.Array
    step_L: jax.Array
    log_prob_L: jax.Array


def record_path(
    spec: DecodeSpec,
    row: RowState,
    drafts: DraftSet,
    pred_KW: Prediction,
    block_K: jax.Array,
    path: AcceptedPath,
) -> StepRecord | None:
    """Record the steps that an accepted path commits.

    Args:
        spec: What is decoded.
        row: The row as before the call.
        drafts: K drafts of one candidate; the first is the row's own state.
        pred_KW: The prediction of each draft's active block.
        block_K: The index of that block, int32 [K].
        path: The path, with the drafts that it visits.

    Returns:
        The record; None if this decode records nothing. Of a position that was filled
        twice, as by policies that take tokens back, the later step counts.
    """
    if path.visited_K is None:
        return None
    layout, visited_K = spec.layout, path.visited_K
    index_K = jnp.arange(visited_K.shape[0], dtype=jnp.int32)
    tokens_KL = drafts.tokens_KNL[visited_K, 0].at[0].set(layout.window_tokens(row))
    # Every step leads to the next draft of the path, and the last one to the target.
    after_KL = jnp.concatenate([tokens_KL[1:], path.target.tokens_L[None]])
    is_last_K1 = (index_K == path.num_hops)[:, None]
    after_KL = jnp.where(is_last_K1, path.target.tokens_L, after_KL)
    is_new_KL = (after_KL != tokens_KL) & (after_KL != layout.mask_id)
    # The step from the last draft is committed only if it is certain.
    is_new_KL &= (index_K < path.accepted_length)[:, None]

    pred_KW = jax.tree.map(lambda part: part[visited_K], pred_KW)
    log_prob_KL = jax.vmap(functools.partial(_log_probs, layout))(
        pred_KW, block_K[visited_K], after_KL
    )
    latest_L = jnp.max(jnp.where(is_new_KL, index_K[:, None], NO_STEP), axis=0)
    latest_1L = jnp.maximum(latest_L, 0)[None]
    return StepRecord(
        is_new_L=latest_L >= 0,
        step_L=row.n + latest_L,
        log_prob_L=jnp.take_along_axis(log_prob_KL, latest_1L, axis=0)[0],
    )


def write_record(
    layout: WindowLayout, stats: Stats, record: StepRecord | None, row: RowState
) -> Stats:
    """Enter what a call has committed.

    Args:
        layout: Geometry of the window.
        stats: The totals of the row.
        record: The call's record; None: nothing is recorded.
        row: The row as before the call, which says where its window is.

    Returns:
        The totals with the record.
    """
    if record is None:
        return stats

    def write(array_T: jax.Array, new_L: jax.Array) -> jax.Array:
        old_L = layout.slice_window(array_T, row)
        part_L = jnp.where(record.is_new_L, new_L, old_L)
        return jax.lax.dynamic_update_slice(array_T, part_L, (row.start,))

    return stats._replace(
        step_T=write(stats.step_T, record.step_L),  # pyright: ignore
        log_prob_T=write(stats.log_prob_T, record.log_prob_L),  # pyright: ignore
    )


def empty_record(spec: DecodeSpec, capacity: int) -> dict[str, jax.Array]:
    """The fields of `Stats` that hold records, before the first call.

    Args:
        spec: What is decoded.
        capacity: Positions of a row, T.

    Returns:
        The fields by name; none if this decode records nothing.
    """
    if not spec.records_steps:
        return {}
    return {
        "step_T": jnp.full((capacity,), NO_STEP, jnp.int32),
        "log_prob_T": jnp.full((capacity,), jnp.nan, jnp.float32),
    }


def _log_probs(
    layout: WindowLayout, pred_W: Prediction, block: jax.Array, after_L: jax.Array
) -> jax.Array:
    """Log-probabilities [L] of a state's tokens in its active block; NaN elsewhere."""

    def in_window(part_W: jax.Array, fill: jax.Array) -> jax.Array:
        blocks_L = jnp.tile(part_W, layout.num_blocks)
        return jnp.where(layout.block_indices() == block, blocks_L, fill)

    nan = jnp.float32(jnp.nan)
    predicted_L = in_window(pred_W.token, jnp.int32(NO_TOKEN))
    # `score` is the log-odds of the predicted token: no probability that saturates.
    log_prob_L = in_window(-jax.nn.softplus(-pred_W.score), nan)
    return jnp.where(predicted_L == after_L, log_prob_L, nan)
