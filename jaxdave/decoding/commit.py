"""What a call's outcome means for a row: how far the policy has come, and its move."""

import dataclasses
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from jaxdave.core.state import RowState
from jaxdave.decoding.verify import CallResult
from jaxdave.sampling.predictions import predict_window

if TYPE_CHECKING:
    from jaxdave.core.spec import DecodeSpec


def commit(spec: "DecodeSpec", params, result: CallResult) -> RowState:
    """The row after a call, whatever its size: what was confirmed is now known."""
    row, evaluated_L, kept, path, _ = result
    layout, known = spec.layout, path.known
    target_L, stats = known.tokens_L, row.stats
    # Calls are counted from 0, the prefill; revised positions keep their last call.
    call = stats.verify + stats.refresh + stats.recheck
    known_L = (layout.window(row) != target_L) & (target_L != layout.mask_id)
    call_L = jnp.where(known_L, call, layout.along(stats.call_T, row))
    put = lambda a, part: jax.lax.dynamic_update_slice(a, part, (row.start,))  # noqa: E731
    confirmed = stats.accepted_C.at[jnp.maximum(call - 1, 0)]
    accepted_C = jnp.where(call > 0, confirmed.set(path.steps), stats.accepted_C)
    moved = dataclasses.replace(
        row,
        tokens_T=put(row.tokens_T, target_L),
        n=known.n,
        memory=known.memory,
        done=layout.ended(target_L, row),
        needs_recheck=~path.is_certain,
        stats=stats._replace(call_T=put(stats.call_T, call_L), accepted_C=accepted_C),
    )
    blocks, stale = layout.slide(layout, evaluated_L, target_L, row)
    shift = blocks * layout.length
    slide = lambda a: jax.lax.dynamic_slice_in_dim(  # noqa: E731
        jnp.concatenate([a, jnp.zeros_like(a)]), shift, layout.window_length
    )
    hidden_LE, seen_L = slide(kept.hidden_LE), slide(kept.seen_L)
    moved = dataclasses.replace(moved, start=row.start + shift, needs_refresh=stale)
    pred = predict_window(spec, params, hidden_LE, moved)
    pred = pred._replace(token=jnp.where(seen_L[None], pred.token, -1))
    return dataclasses.replace(moved, hidden_LE=hidden_LE, pred=pred)
