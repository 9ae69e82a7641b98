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

from jaxdave.core.draft_api import DraftSet
from jaxdave.core.prediction import ErrorBound
from jaxdave.core.state import RowState, Stats
from jaxdave.decoding.block_states import evaluated_window
from jaxdave.decoding.commit import commit
from jaxdave.decoding.verify import CallResult, empty_info, verify_drafts
from jaxdave.sampling.noise import request_key
from jaxdave.sampling.predictions import empty_prediction, predict_active_blocks

if TYPE_CHECKING:
    from jaxdave.core.spec import DecodeSpec
    from jaxdave.core.state import PromptBatch


PREFILL_LOOKAHEAD = 8
"""A call from the tokens alone looks ahead as far as so many drafts reach."""


def _initial_row(spec: "DecodeSpec", prompt: "PromptBatch", hidden_LE) -> RowState:
    """A row before its first call, which will make such vectors."""
    tokens_T, begin, end, draft_text_T, seed, request = prompt
    layout, policy = spec.layout, spec.policy
    shape = layout.window_length, hidden_LE.shape[-1]
    zero, no, none = jnp.int32(0), jnp.bool_(False), jnp.float32(0)
    # With a recheck call after every verify call there are two calls a position.
    calls = tokens_T.shape[0] * (2 if spec.guarded else 1)
    stats = Stats(
        zero, zero, zero, jnp.zeros((len(spec.draft_lengths),), jnp.int32),
        ErrorBound.uniform(none), jnp.full(tokens_T.shape, -1, jnp.int32),
        jnp.zeros((calls,), jnp.int32),
    )  # fmt: skip
    return RowState(
        tokens_T, jnp.zeros(shape, hidden_LE.dtype), empty_prediction(spec),
        begin, end,
        draft_text_T, layout.first(begin), jnp.bool_(True), zero,
        policy.init(layout.length, shape[-1]), no, request_key(seed, request), no, zero,
        jnp.zeros((2,), jnp.float32), stats,
    )  # fmt: skip


def prefill_row(
    spec: "DecodeSpec",
    params,
    prompt: "PromptBatch",
    size: int,
    doubt: ErrorBound | None,
):
    """A row's first call, the prefill: (the row after it, its cache [N, T, ...]).

    size: of the prompt, a power of two. doubt: the call may be made in any shape, and
    its numbers be off by so much; None: in the trusted shape.
    """
    call = spec.model.prefill if doubt is None else spec.model.fast_prefill
    assert call is not None, "no call may open a row but the trusted one"
    tokens_T, begin, end, *_ = prompt
    start = spec.layout.first(begin)
    hidden_LE, cache = _evaluate_tokens(
        spec, call, params, (tokens_T, begin, start, end), size
    )
    row = _initial_row(spec, prompt, hidden_LE)
    solid = start if doubt is None else jnp.int32(0)
    row = dataclasses.replace(row, verified_until=solid)
    return step_from_tokens(spec, params, row, hidden_LE, doubt)[0], cache


def refresh_row(spec: "DecodeSpec", params, row: RowState):
    """One call that makes a row's cache anew: (the row after it, its cache)."""
    canvas = row.tokens_T, row.begin, row.start, row.end
    size = row.tokens_T.shape[0]
    hidden_LE, cache = _evaluate_tokens(spec, spec.model.prefill, params, canvas, size)
    stats = row.stats._replace(refresh=row.stats.refresh + 1)
    row = dataclasses.replace(row, verified_until=row.start, stats=stats)
    return step_from_tokens(spec, params, row, hidden_LE, None)[0], cache


def _evaluate_tokens(spec: "DecodeSpec", call, params, canvas, size: int):
    """A call from the tokens alone, which tells of the window's next few blocks."""
    near = spec.layout.used_length(min(spec.max_drafts, PREFILL_LOOKAHEAD))
    hidden_LE, cache = call(params, *canvas, near, size)
    chex.assert_shape(hidden_LE, (near, None))
    return hidden_LE, cache


def step_from_tokens(spec: "DecodeSpec", params, row: RowState, hidden_LE, doubt):
    """A row after the state that it stands at was evaluated, and the prediction."""
    window_L = spec.layout.window(row)
    depth_K = jnp.zeros((1,), jnp.int32)
    sure_K, worth_K = jnp.ones((1,), bool), jnp.ones((1,))
    only = DraftSet(window_L[None, None], depth_K, sure_K, worth_K)
    seen = evaluated_window(spec, row, hidden_LE)
    # The row has not taken the step of this state yet, so it stands at n itself.
    pred_SW = predict_active_blocks(
        spec, params, seen.hidden_SWE, seen.block_S, depth_K, row
    )
    pred_SW = jax.lax.optimization_barrier(pred_SW)
    path = verify_drafts(spec, params, seen, pred_SW, only, row, doubt)
    result = CallResult(row, window_L, seen.keep(jnp.int32(0)), path, empty_info())
    return commit(spec, params, result), pred_SW, seen
