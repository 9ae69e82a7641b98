"""Recheck: decide once more, in the trusted shape, what was too close to call.

Guarded numerics compute calls in whatever shape is fastest and certify each decision
against a measured error bound. A decision within the bound is not trusted: the accepted
path stops before it, and one call evaluates that state in the shape that exact numerics
use. It also tells how far the fast call was off.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxdave.core.prediction import ErrorBound, Prediction
from jaxdave.core.shapes import assert_shape
from jaxdave.core.spec import DecodeSpec
from jaxdave.core.state import RowState
from jaxdave.decoding.block_states import EvaluatedStates
from jaxdave.decoding.prefill_rows import step_from_tokens
from jaxdave.numerics.error_bounds import (
    is_continuous,
    prediction_error,
    router_error,
)


def recheck_row(
    spec: DecodeSpec, params: Any, row: RowState, cache: Any
) -> tuple[RowState, Any]:
    """Evaluate a row's own state in the trusted shape and take the policy's step.

    Args:
        spec: Its model must have a `recheck` function.
        params: The model's parameters.
        row: A row whose last decision was uncertain.
        cache: Its KV cache; what the trusted shape has not computed yet is replaced.

    Returns:
        (the row after the step, its cache).
    """
    # As long as a call of one draft: nothing but
    # the policy's next step is decided here.
    recheck, length = spec.model.recheck, spec.layout.used_length(1)
    assert recheck is not None, "guarded numerics need a model that can recheck"
    # In a block-causal model the cache since the last recheck is remade as
    # well: its entries come from fast calls, whose rounding would
    # otherwise reach this decision through attention.
    hidden_LE, cache = recheck(
        params, row.tokens_T, row.verified_until, row.start, row.end, length, cache
    )
    # Keep XLA from fusing this with code around it that differs between programs.
    hidden_LE = jax.lax.optimization_barrier(hidden_LE)
    assert_shape(hidden_LE, (length, None))
    stats = row.stats._replace(recheck=row.stats.recheck + 1)
    row = dataclasses.replace(
        row, verified_until=row.start, stats=stats, needs_recheck=jnp.bool_(False)
    )
    # No error bound: the trusted shape's decision is the definition of what is right.
    # Its vectors are as many in every program, so that one read of the head will do.
    next_row, pred_SW, evaluated = step_from_tokens(
        spec, params, row, hidden_LE, None, reads_once=True
    )
    error = _observed_error(spec, row, pred_SW, evaluated)
    # Kept as a running maximum, which `autotune` reads to set the bound.
    error = jax.tree.map(jnp.maximum, stats.error, error)
    stats = next_row.stats._replace(error=error)
    return dataclasses.replace(next_row, stats=stats), cache


def _observed_error(
    spec: DecodeSpec, row: RowState, pred_SW: Prediction, evaluated: EvaluatedStates
) -> ErrorBound:
    """How far the fast call's prediction was from the one in the trusted shape."""
    layout, block = spec.layout, evaluated.block_S[0]
    # Entry 0 of the depths [D]: the noise of the step that was just decided.
    fast = layout.block_slice(jax.tree.map(lambda part_DL: part_DL[0], row.pred), block)
    trusted = Prediction(*(part[0] for part in pred_SW))
    open_L = layout.active_block(layout.window_tokens(row), row, row.progress)[1]
    if spec.policy.edits:
        # Decoded tokens of the block are decided anew, too.
        is_answer_L = layout.positions(row) >= row.begin
        open_L |= is_answer_L & layout.pending_positions(
            layout.window_tokens(row), row, row.progress
        )
    error = prediction_error(trusted, fast, layout.block_slice(open_L, block))
    if spec.model.router_trace is None:
        return error
    fast_WE = layout.block_slice(row.hidden_LE, block)
    fast_trace = spec.model.router_trace(fast_WE)
    trusted_trace = spec.model.router_trace(evaluated.hidden_SWE[0])
    error = error._replace(router=router_error(trusted_trace, fast_trace))
    counts = is_continuous(fast_trace)
    return jax.tree.map(lambda part: jnp.where(counts, part, 0.0), error)
