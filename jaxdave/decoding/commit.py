"""Commit: write the accepted tokens. The only place where tokens of a row change."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxdave.core.draft_api import draft_params
from jaxdave.core.spec import DecodeSpec
from jaxdave.core.state import PolicyState, RowState
from jaxdave.decoding.step_record import write_record
from jaxdave.decoding.verify import CallResult
from jaxdave.drafting.validation import check_memory
from jaxdave.sampling.predictions import predict_window


def commit(spec: DecodeSpec, params: Any, result: CallResult) -> RowState:
    """Write what a call has confirmed, and move the window.

    Args:
        spec: What is decoded.
        params: The model's parameters, for the stale prediction of the window.
        result: The outcome of a verify call, or of a call from the tokens alone.

    Returns:
        The row after the call: its tokens hold the policy's next state, which is
        certain but not evaluated yet.
    """
    layout, row, path = spec.layout, result.row, result.path
    state, stats = path.committed, row.stats
    # Calls are counted from 0, the prefill; revised positions keep their last call.
    call = stats.verify + stats.refresh + stats.recheck
    is_new_L = layout.window_tokens(row) != state.tokens_L
    is_new_L &= state.tokens_L != layout.mask_id
    call_L = jnp.where(is_new_L, call, layout.slice_window(stats.call_T, row))
    lengths_C = stats.accepted_C.at[jnp.maximum(call - 1, 0)].set(path.accepted_length)
    # `accepted_C` starts with the first call after the prefill. An index of -1 would
    # wrap around, so the update of the prefill goes to entry 0 and is dropped.
    stats = stats._replace(
        call_T=_write(stats.call_T, call_L, row.start),
        accepted_C=jnp.where(call > 0, lengths_C, stats.accepted_C),
    )
    stats = write_record(layout, stats, result.record, row)
    committed = dataclasses.replace(
        row,
        tokens_T=_write(row.tokens_T, state.tokens_L, row.start),
        n=state.n,
        memory=state.memory,
        # Decided by the new tokens and the old window: `is_ended` counts positions from
        # `row.start`, and the window has not moved yet.
        done=layout.is_ended(state.tokens_L, row, state.progress),
        progress=state.progress,
        needs_recheck=~path.is_certain,
        stats=stats,
    )
    # The draft function's memory is updated last: it sees committed tokens only, so
    # that a rejected draft leaves no trace in it.
    moved = _move_window(spec, params, result, committed, state)
    memory = spec.draft.update(draft_params(params), row.draft_memory, moved)
    memory = check_memory(row.draft_memory, memory)
    return dataclasses.replace(moved, draft_memory=memory)


def _move_window(
    spec: DecodeSpec,
    params: Any,
    result: CallResult,
    row: RowState,
    state: PolicyState,
) -> RowState:
    """Move the window of a committed row, and predict what the next drafts need."""
    layout = spec.layout
    evaluated = result.path.policy_state._replace(tokens_L=result.evaluated_L)
    blocks, is_stale = layout.advance(evaluated, state, result.row)
    shift = blocks * layout.block_length

    def moved(array, axis: int = 0):
        # Zeros move in from the right. `dynamic_slice` would clamp its start without
        # them and shift by too little.
        padded = jnp.concatenate([array, jnp.zeros_like(array)], axis)
        return jax.lax.dynamic_slice_in_dim(padded, shift, layout.window_length, axis)

    hidden_LE = moved(result.kept.hidden_LE)
    evaluated_L = moved(result.kept.evaluated_L)
    row = dataclasses.replace(
        row, start=row.start + shift, needs_refresh=is_stale, hidden_LE=hidden_LE
    )
    if result.pred_DL is not None:
        pred = jax.tree.map(lambda part_DL: moved(part_DL, axis=1), result.pred_DL)
    else:
        # Apart from what decides, so that no draft can touch a decision.
        pred = predict_window(spec, params, hidden_LE, row)
    # Where nothing was evaluated there is no
    # prediction: -1 ends chains of drafts there.
    pred = pred._replace(token=jnp.where(evaluated_L[None], pred.token, -1))
    return dataclasses.replace(row, pred=pred)


def _write(array_T: jax.Array, part_L: jax.Array, start: jax.Array) -> jax.Array:
    """An array along the sequence with the window's part replaced."""
    return jax.lax.dynamic_update_slice(array_T, part_L, (start,))
