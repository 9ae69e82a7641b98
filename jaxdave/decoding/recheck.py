"""The network calls of one row, and what each one moves.

A call evaluates states and so makes the policy's next state known. There are three
kinds: `opened` and `refresh` evaluate the state that a row stands at from its tokens
alone, and make the cache that later calls read (the prefill, and what a full-attention
model needs at a new block); `judge` evaluates drafts of the window against that cache;
`recheck` evaluates one state again where a call under guarded numerics was too close to
call.

What decides (the targets) is read from the active block only, always in the same
shapes; what merely guesses (the stale prediction of the whole window) is read apart
from it, so that no draft can touch a decision.
"""

import dataclasses
from typing import TYPE_CHECKING

import chex
import jax
import jax.numpy as jnp

from jaxdave.core.prediction import ErrorBound, Prediction
from jaxdave.core.state import RowState
from jaxdave.decoding.prefill_rows import step_from_tokens
from jaxdave.numerics.error_bounds import prediction_error

if TYPE_CHECKING:
    from jaxdave.core.spec import DecodeSpec


def recheck_row(spec: "DecodeSpec", params, row: RowState, cache):
    """One call that decides what a row doubts: (the row after it, its cache)."""
    again, near = spec.model.recheck, spec.layout.used_length(1)
    assert again is not None, "guarded numerics need a network that can recheck"
    hidden_LE, cache = again(
        params, row.tokens_T, row.verified_until, row.start, row.end, near, cache
    )
    # What other programs compute beside this must not be fused into it.
    hidden_LE = jax.lax.optimization_barrier(hidden_LE)
    chex.assert_shape(hidden_LE, (near, None))
    stats = row.stats._replace(recheck=row.stats.recheck + 1)
    row = dataclasses.replace(
        row, verified_until=row.start, stats=stats, needs_recheck=jnp.bool_(False)
    )
    moved, pred_SW, seen = step_from_tokens(spec, params, row, hidden_LE, None)
    found = _prediction_error(spec, row, pred_SW, seen.block_S[0])
    error = jax.tree.map(jnp.maximum, stats.error, found)
    stats = moved.stats._replace(error=error)
    return dataclasses.replace(moved, stats=stats), cache


def _prediction_error(spec: "DecodeSpec", row: RowState, pred_SW, block) -> ErrorBound:
    """How far the row's last prediction was from one in the trusted shape."""
    layout = spec.layout
    then = Prediction(*(layout.cut(part[0], block) for part in row.pred))
    now = Prediction(*(part[0] for part in pred_SW))
    open_W = layout.cut(layout.active(layout.window(row), row)[1], block)
    return prediction_error(now, then, open_W)
