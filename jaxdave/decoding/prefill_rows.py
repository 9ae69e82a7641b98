"""Calls from the tokens alone: the prefill of a row, and the refresh of its cache.

Both evaluate the state that the row stands at and fill the KV cache that later calls
read: the prefill at the row's beginning, the refresh where a full-attention model
enters a new block under a cache rule. Like every call they end with the policy's step.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxdave.core.config import Numerics
from jaxdave.core.draft_api import DraftSet, draft_params
from jaxdave.core.prediction import ErrorBound, Prediction
from jaxdave.core.shapes import assert_shape
from jaxdave.core.spec import DecodeSpec
from jaxdave.core.state import EditProgress, PromptBatch, RowState, Stats
from jaxdave.decoding.block_states import EvaluatedStates, evaluated_window
from jaxdave.decoding.commit import commit
from jaxdave.decoding.step_record import empty_record, record_path
from jaxdave.decoding.verify import CallResult, empty_info, verify_drafts
from jaxdave.sampling.noise import request_key
from jaxdave.sampling.predictions import (
    empty_prediction,
    pad_prediction,
    predict_active_blocks,
    predict_vectors,
    reads_head_once,
)

PREFILL_LOOKAHEAD = 8
"""A call from the tokens alone looks ahead as far as so many drafts reach."""


def prefill_row(
    spec: DecodeSpec,
    params: Any,
    prompt: PromptBatch,
    prefill_length: int,
    error_bound: ErrorBound | None,
) -> tuple[RowState, Any]:
    """The first call of a row: evaluate its prompt and take the first policy step.

    Args:
        spec: What is decoded.
        params: The model's parameters, or `DraftedParams`.
        prompt: One prompt, without a batch axis.
        prefill_length: A power of two that covers the prompt and the first window.
        error_bound: The call may be computed in any shape, and its predictions be off
            by as much; None: in the trusted shape.

    Returns:
        (the row after the step, its KV cache [N, T, ...]).
    """
    hidden_LE, cache = evaluate_prompt(
        spec, params, prompt, prefill_length, error_bound
    )
    return begin_row(spec, params, prompt, hidden_LE, error_bound), cache


def evaluate_prompt(
    spec: DecodeSpec,
    params: Any,
    prompt: PromptBatch,
    prefill_length: int,
    error_bound: ErrorBound | None,
) -> tuple[jax.Array, Any]:
    """The network's part of the first call, which no noise has a part in.

    Args:
        spec: What is decoded.
        params: The model's parameters, or `DraftedParams`.
        prompt: One prompt, without a batch axis.
        prefill_length: A power of two that covers the prompt and the first window.
        error_bound: The call may be computed in any shape, and its predictions be off
            by as much; None: in the trusted shape.

    Returns:
        (hidden vectors of the window's front, the KV cache [N, T, ...]).
    """
    call = spec.model.prefill if error_bound is None else spec.model.fast_prefill
    assert call is not None, "this model has no prefill but the trusted one"
    start = spec.layout.first_start(prompt.begin_B)
    sequence = prompt.tokens_BT, prompt.begin_B, start, prompt.end_B
    return _evaluate_tokens(spec, call, params, sequence, prefill_length)


def begin_row(
    spec: DecodeSpec,
    params: Any,
    prompt: PromptBatch,
    hidden_LE: jax.Array,
    error_bound: ErrorBound | None,
) -> RowState:
    """Take the first policy step from an evaluated prompt.

    Args:
        spec: What is decoded.
        params: The model's parameters, or `DraftedParams`.
        prompt: One prompt, without a batch axis.
        hidden_LE: Hidden vectors of the window's front.
        error_bound: How far predictions may be off; None: they are trusted.

    Returns:
        The row after the step.
    """
    start = spec.layout.first_start(prompt.begin_B)
    row = empty_row(spec, prompt, hidden_LE)
    memory = spec.draft.init(draft_params(params), row)
    row = dataclasses.replace(row, draft_memory=memory)
    # What a trusted prefill has computed never has to be rechecked; of a fast one,
    # nothing is trusted, and a first recheck starts at position 0.
    verified_until = start if error_bound is None else jnp.int32(0)
    row = dataclasses.replace(row, verified_until=verified_until)
    # A trusted prefill evaluates as many vectors as drafts reach, so that the shape of
    # one read for all would differ between programs.
    reads_once = error_bound is not None
    stepped = step_from_tokens(
        spec, params, row, hidden_LE, error_bound, reads_once=reads_once
    )
    return stepped[0]


def refresh_row(spec: DecodeSpec, params: Any, row: RowState) -> tuple[RowState, Any]:
    """Recompute a row's cache from its tokens, and take the policy's step.

    Args:
        spec: What is decoded.
        params: The model's parameters, or `DraftedParams`.
        row: A row whose window has moved to where the cache does not reach.

    Returns:
        (the row after the step, its KV cache).
    """
    sequence = row.tokens_T, row.begin, row.start, row.end
    # Full attention: every key depends on every
    # token, so the whole sequence is evaluated.
    size = row.tokens_T.shape[0]
    hidden_LE, cache = _evaluate_tokens(
        spec, spec.model.prefill, params, sequence, size
    )
    stats = row.stats._replace(refresh=row.stats.refresh + 1)
    row = dataclasses.replace(row, verified_until=row.start, stats=stats)
    return step_from_tokens(spec, params, row, hidden_LE, None)[0], cache


def step_from_tokens(
    spec: DecodeSpec,
    params: Any,
    row: RowState,
    hidden_LE: jax.Array,
    error_bound: ErrorBound | None,
    *,
    reads_once: bool = False,
) -> tuple[RowState, Prediction, EvaluatedStates]:
    """Take the policy's step from the row's own state, once that was evaluated.

    Args:
        spec: Its policy steps.
        params: The model's parameters, or `DraftedParams`.
        row: A row whose tokens are the state that was evaluated.
        hidden_LE: Hidden vectors of the front of its window.
        error_bound: How far the prediction may be off; None: it is trusted.
        reads_once: Read the head once for all vectors, where `reads_head_once` allows
            it. A trusted prediction then needs as many vectors in every program.

    Returns:
        (the row after the step, the prediction [1, W], the evaluated state).
    """
    window_L = spec.layout.window_tokens(row)
    # The row's own state as a set of one draft: this step then runs through the very
    # code of a verify call, and plain and drafted decoding cannot drift apart.
    only = DraftSet(
        tokens_KNL=window_L[None, None],
        depth_K=jnp.zeros((1,), jnp.int32),
        valid_K=jnp.ones((1,), bool),
        worth_K=jnp.ones((1,)),
        progress_K=jax.tree.map(lambda part: part[None], row.progress),
    )
    evaluated = evaluated_window(spec, row, hidden_LE)
    # Fused into what reads it, the head's arithmetic could be reordered, and this
    # prediction would differ in its last bits from that of a verify call.
    pred_L = None
    if reads_once and reads_head_once(spec):
        pred_R = predict_vectors(spec, params, hidden_LE)
        pred_L = pad_prediction(spec, jax.lax.optimization_barrier(pred_R))
        pred_SW = jax.tree.map(lambda part: part[evaluated.active_SW], pred_L)
    else:
        # The row has not taken the step of this state yet, so it stands at n itself.
        pred_SW = predict_active_blocks(
            spec, params, evaluated.hidden_SWE, evaluated.block_S, only.depth_K, row
        )
        pred_SW = jax.lax.optimization_barrier(pred_SW)
    path = verify_drafts(spec, params, row, only, evaluated, pred_SW, error_bound)
    kept = evaluated.keep(jnp.int32(0))
    result = CallResult(
        row=row,
        evaluated_L=window_L,
        kept=kept,
        pred_DL=jax.tree.map(lambda part_L: part_L[None], pred_L),
        path=path,
        info=empty_info(),
        record=record_path(spec, row, only, pred_SW, evaluated.block_S, path),
    )
    return commit(spec, params, result), pred_SW, evaluated


def empty_row(spec: DecodeSpec, prompt: PromptBatch, hidden_LE: jax.Array) -> RowState:
    """A row before its first call, and before the draft function has seen it.

    Args:
        spec: What is decoded.
        prompt: One prompt, without a batch axis.
        hidden_LE: Has the dtype and width of the model's vectors.

    Returns:
        The row; its draft memory is ().
    """
    layout, width = spec.layout, hidden_LE.shape[-1]
    zero, capacity = jnp.int32(0), prompt.tokens_BT.shape[0]
    # With a recheck call after every verify call there are two calls a position.
    max_calls = capacity * (2 if spec.numerics is Numerics.GUARDED else 1)
    max_calls *= spec.steps_per_position
    start = layout.first_start(prompt.begin_B)
    stats = Stats(
        verify=zero,
        refresh=zero,
        recheck=zero,
        size_Z=jnp.zeros((len(spec.draft_steps),), jnp.int32),
        drafts=jnp.zeros((2,), jnp.int32),
        error=ErrorBound.uniform(jnp.float32(0)),
        call_T=jnp.full((capacity,), -1, jnp.int32),
        accepted_C=jnp.zeros((max_calls,), jnp.int32),
        **empty_record(spec, capacity),
    )
    return RowState(
        tokens_T=prompt.tokens_BT,
        hidden_LE=jnp.zeros((layout.window_length, width), hidden_LE.dtype),
        pred=empty_prediction(spec),
        begin=prompt.begin_B,
        end=prompt.end_B,
        draft_text_T=prompt.draft_text_BT,
        start=start,
        # A placeholder, as is the empty prediction: the
        # commit that ends the prefill replaces both.
        needs_refresh=jnp.bool_(True),
        n=zero,
        memory=spec.policy.init(layout.block_length, width),
        draft_memory=(),
        done=jnp.bool_(False),
        key=request_key(prompt.seed_B, prompt.request_B),
        needs_recheck=jnp.bool_(False),
        verified_until=zero,
        acceptance_counts=jnp.zeros((2,), jnp.float32),
        stats=stats,
        progress=EditProgress(start, zero) if spec.policy.edits else None,
    )


def _evaluate_tokens(
    spec: DecodeSpec,
    call: Callable[..., tuple[jax.Array, Any]],
    params: Any,
    sequence: tuple[jax.Array, ...],
    prefill_length: int,
) -> tuple[jax.Array, Any]:
    """One call from tokens: (hidden vectors of the next few blocks, KV cache)."""
    # Masks behind the active block are evaluated for the drafts of the next call alone,
    # so their number is bounded however many drafts a call may carry.
    lookahead = min(max(spec.draft_steps), PREFILL_LOOKAHEAD)
    length = spec.layout.used_length(lookahead)
    hidden_LE, cache = call(params, *sequence, length, prefill_length)
    assert_shape(hidden_LE, (length, None))
    return hidden_LE, cache
