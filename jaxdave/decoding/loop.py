"""The decode loop: propose drafts, evaluate them in one call, commit what holds.

    drafts    = propose(...)    # drafts[0] is the policy's own next state: always right
    evaluated = evaluate(...)   # the one network call, all drafts share the KV cache
    result    = verify(...)     # the longest path of drafts that the policy confirms
    row       = commit(...)     # the only place where tokens are written

Plain decoding is the same loop with one draft. There is no other loop: static,
threshold and FreeDave decoding differ in the functions of their `DecodeSpec`, and
`generate`, `stream` and the benchmarks in who calls `run`.

A block of a block-causal model that an accepted draft has completed enters the cache
with the keys and values of that very call, and its neighbour's first prediction comes
from there too. So a request costs one prefill and its verify calls, nothing else, and
the last token needs no call at all: it is known before it is evaluated. A
full-attention model under a cache rule spends one more kind of call: the refresh at the
start of a block, which also evaluates the state that it starts from. Guarded numerics
spend a recheck call where a decision was too close to call.

Source: FreeDave, arXiv 2510.00294, Algorithm 2.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxdave.core.config import Numerics
from jaxdave.core.draft_api import DraftSet
from jaxdave.core.shapes import assert_shape
from jaxdave.core.spec import DecodeSpec
from jaxdave.core.state import (
    DecodeState,
    PromptBatch,
    RowState,
    RuntimeParams,
    squeeze_axis,
)
from jaxdave.decoding.block_states import evaluate
from jaxdave.decoding.commit import commit
from jaxdave.decoding.packed_numbers import while_packed
from jaxdave.decoding.prefill_rows import (
    begin_row,
    evaluate_prompt,
    prefill_row,
    refresh_row,
)
from jaxdave.decoding.propose import propose
from jaxdave.decoding.recheck import recheck_row
from jaxdave.decoding.rows import map_rows, replace_rows, update_rows
from jaxdave.decoding.verify import CallResult, StepInfo, empty_info, verify
from jaxdave.drafting.draft_length import (
    MAX_PROPOSED,
    choose_num_drafts,
    likeliest_drafts,
)
from jaxdave.models.kv_cache import write_windows


def prefill(
    spec: DecodeSpec,
    params: Any,
    runtime: RuntimeParams,
    prompts: PromptBatch,
    prefill_length: int,
    group_size: int = 1,
) -> DecodeState:
    """Evaluate the prompts, fill the KV cache and take the first policy step.

    Args:
        spec: What is decoded.
        params: The model's parameters, or `DraftedParams`.
        runtime: Only the error bound is read.
        prompts: Padded prompts, [B, T].
        prefill_length: A power of two that covers every row's prompt and first window.
        group_size: So many rows in a row have the same prompt, which is evaluated once.

    Returns:
        The state after one call; a single row has no batch axis (see `DecodeState`).
    """
    # Under guarded numerics a prefill may be computed in whatever shape is fastest, as
    # its decisions are certified like those of any call.
    is_guarded = spec.numerics is Numerics.GUARDED
    is_fast = is_guarded and spec.model.fast_prefill is not None
    error_bound = runtime.error_bound if is_fast else None
    batch, capacity = prompts.tokens_BT.shape

    def ending_spare(row: RowState, prompt: PromptBatch) -> RowState:
        if prompt.is_spare_B is None:
            return row
        return dataclasses.replace(row, done=row.done | prompt.is_spare_B)

    def prefill_one(prompt: PromptBatch):
        row, cache = prefill_row(spec, params, prompt, prefill_length, error_bound)
        return ending_spare(row, prompt), cache

    def evaluate_one(prompt: PromptBatch):
        return evaluate_prompt(spec, params, prompt, prefill_length, error_bound)

    def begin_one(prompt_and_hidden):
        prompt, hidden_LE = prompt_and_hidden
        row = begin_row(spec, params, prompt, hidden_LE, error_bound)
        return ending_spare(row, prompt)

    if batch == 1:
        return DecodeState(*prefill_one(squeeze_axis(prompts, 0)))
    # In the trusted shape rows go one after another: a row's bits must not depend on
    # how many others there are.
    one_by_one = spec.numerics is Numerics.EXACT or (is_guarded and not is_fast)
    each_row = jax.lax.map if one_by_one else _side_by_side
    if group_size > 1:
        evaluated = each_row(
            evaluate_one, jax.tree.map(lambda a: a[::group_size], prompts)
        )
        hidden_BLE, cache = jax.tree.map(
            lambda a: jnp.repeat(a, group_size, axis=0), evaluated
        )
        rows = each_row(begin_one, (prompts, hidden_BLE))
    else:
        rows, cache = each_row(prefill_one, prompts)
    assert_shape(rows.tokens_T, (batch, capacity))
    return DecodeState(rows, jax.tree.map(lambda a: jnp.moveaxis(a, 0, 1), cache))


def _side_by_side(function: Callable[[Any], Any], rows: Any) -> Any:
    """`lax.map` of rows that are computed together."""
    return jax.vmap(function)(rows)


def step(
    spec: DecodeSpec, params: Any, runtime: RuntimeParams, state: DecodeState
) -> tuple[DecodeState, StepInfo]:
    """One network call for every unfinished row.

    That is a verify call, or for a row that needs one its refresh. Under guarded
    numerics a row whose last decision was too close to call is rechecked before.

    Args:
        spec: What is decoded.
        params: The model's parameters, or `DraftedParams`.
        runtime: What may differ between runs of one compiled loop.
        state: Rows and caches.

    Returns:
        (the state after the call, how many drafts were proposed and steps accepted).
    """
    # Rows whose call of this round is a refresh rest in the verify call. A recheck does
    # not take its place: it decides anew where the row stands, and the verify call goes
    # on from there.
    resting_B = state.rows.done | state.rows.needs_refresh
    # First the calls that some rows need in place of a verify call, or before it. Rules
    # and numerics are static: a decode without them does not contain these branches.
    if spec.layout.cache_rule.needs_refresh:
        state = refresh_stale_rows(spec, params, state)
    if spec.numerics is Numerics.GUARDED:
        state = recheck_uncertain_rows(spec, params, state)
    # A refresh or recheck may have ended a row or, where a block is
    # one token, made its new cache stale again.
    resting_B |= state.rows.done | state.rows.needs_refresh
    result = _verify_rows(spec, params, runtime, state, resting_B)
    return _commit_rows(spec, params, state, result, resting_B)


def verify_call(
    spec: DecodeSpec,
    params: Any,
    runtime: RuntimeParams,
    row: RowState,
    cache: Any,
    proposed: DraftSet | None = None,
) -> CallResult:
    """Propose drafts for one row, evaluate them and find how far they hold.

    Args:
        spec: What is decoded; `spec.num_drafts` drafts are evaluated.
        params: The model's parameters, or `DraftedParams`.
        runtime: The draft limit and the error bound are read.
        row: One row.
        cache: Its KV cache, [N, T, ...].
        proposed: As many drafts or more, of which the likeliest are evaluated; None:
            none were proposed yet.

    Returns:
        The outcome of the call; `commit` makes the row move.
    """
    if proposed is None:
        drafts = propose(spec, params, runtime, row)
    else:
        drafts = likeliest_drafts(proposed, spec.num_drafts)
    evaluated = evaluate(spec, params, row, drafts, cache)
    return verify(spec, params, runtime, row, drafts, evaluated)


def run(
    spec: DecodeSpec, params: Any, runtime: RuntimeParams, state: DecodeState
) -> DecodeState:
    """Step until the rows have ended, or as `runtime` says, in one loop on the device.

    Args:
        spec: What is decoded.
        params: The model's parameters, or `DraftedParams`.
        runtime: `max_calls` and `stop_at_rows` bound the loop.
        state: Rows and caches. Their buffers may be donated by the caller's jit.

    Returns:
        The state after the last step, with a batch axis if `state` had one.
    """
    # A batch of one runs without its axis: see
    # `DecodeState` for what XLA does otherwise.
    if state.rows.done.shape == (1,):
        single = run(spec, params, runtime, state.without_batch_axis())
        return single.with_batch_axis()

    def is_running(carry):
        calls, state = carry
        live = jnp.sum(~state.rows.done, dtype=jnp.int32)
        # While a forced draft length is timed, rows that have ended are called too.
        goes_on = (runtime.forced_index >= 0) | (live > runtime.stop_at_rows)
        return (calls < runtime.max_calls) & goes_on

    def body(carry):
        calls, state = carry
        return calls + 1, step(spec, params, runtime, state)[0]

    # One loop on the device: the host is asked nothing between calls, whose launch and
    # transfer latency would otherwise be paid once per call.
    carry = jnp.int32(0), state
    packs = state.is_single and spec.model.saves_launches
    return while_packed(is_running, body, carry, packs=packs)[1]


def refresh_stale_rows(
    spec: DecodeSpec, params: Any, state: DecodeState
) -> DecodeState:
    """Recompute the cache of rows whose window has moved past what it holds.

    Args:
        spec: What is decoded.
        params: The model's parameters, or `DraftedParams`.
        state: Rows and caches.

    Returns:
        The state after the refresh and policy step of those rows; others are unchanged.
    """
    stale_B = state.rows.needs_refresh & ~state.rows.done

    def refresh_one(row: RowState):
        return refresh_row(spec, params, row)

    def refreshed(state: DecodeState) -> DecodeState:
        one_by_one = spec.numerics is not Numerics.FAST
        rows = replace_rows(refresh_one, state.rows, state.cache, stale_B, one_by_one)
        return DecodeState(*rows)

    # A refresh evaluates whole sequences, so a
    # round in which no row needs one skips it.
    return jax.lax.cond(jnp.any(stale_B), refreshed, lambda state: state, state)


def recheck_uncertain_rows(
    spec: DecodeSpec, params: Any, state: DecodeState
) -> DecodeState:
    """Decide again, in the trusted shape, for rows whose decision was uncertain.

    Args:
        spec: What is decoded.
        params: The model's parameters, or `DraftedParams`.
        state: Rows and caches.

    Returns:
        The state after the recheck and policy step of those rows; others are unchanged.
    """

    def recheck_one(row: RowState, cache):
        return recheck_row(spec, params, row, cache)

    rows = state.rows
    # A stale row gets a refresh in place of a
    # recheck: that decides in the trusted shape too.
    uncertain_B = rows.needs_recheck & ~rows.done & ~rows.needs_refresh
    packs = spec.model.saves_launches
    return DecodeState(
        *update_rows(recheck_one, rows, state.cache, uncertain_B, packs=packs)
    )


def _verify_rows(
    spec: DecodeSpec,
    params: Any,
    runtime: RuntimeParams,
    state: DecodeState,
    resting_B: jax.Array,
) -> CallResult:
    """The verify calls of all rows, at one draft length; of resting rows, anything."""
    chooses = len(spec.draft_steps) > 1
    proposed = None
    if chooses and spec.draft_steps[-1] <= MAX_PROPOSED:
        # As many as a call may carry: which drafts there are, and how likely they are
        # to be reached, says how many of them are worth their time.
        longest = spec.with_num_drafts(spec.draft_steps[-1])

        def propose_row(row: RowState, cache) -> DraftSet:
            del cache
            return propose(longest, params, runtime, row)

        proposed = map_rows(spec, state, propose_row)(state.rows, ())

    def calls_of(num_drafts: int):
        sized = spec.with_num_drafts(num_drafts)

        def call(row_inputs, cache) -> CallResult:
            row, rests, drafts = row_inputs

            def verify_row() -> CallResult:
                return verify_call(sized, params, runtime, row, cache, drafts)

            if spec.numerics is not Numerics.EXACT:
                return verify_row()
            # Rows go one after another, so one that rests can be skipped.
            shapes = jax.eval_shape(verify_row)
            zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
            return jax.lax.cond(rests, lambda: zeros, verify_row)

        def call_all(state: DecodeState) -> CallResult:
            row_inputs = state.rows, resting_B, proposed
            return map_rows(spec, state, call)(row_inputs, state.cache)

        return call_all

    # One branch per draft length, [Z] of them, all compiled: lengths are shapes, so
    # that a single branch cannot serve several. They return the same shapes (see
    # `CallResult`). Rows of a batch share the choice, as one call serves them all.
    branches = [calls_of(num_drafts) for num_drafts in spec.draft_steps]
    choice = 0
    if chooses:
        choice = choose_num_drafts(spec.draft_steps, runtime, state.rows, proposed)
    return jax.lax.switch(choice, branches, state)


def _commit_rows(
    spec: DecodeSpec,
    params: Any,
    state: DecodeState,
    result: CallResult,
    resting_B: jax.Array,
) -> tuple[DecodeState, StepInfo]:
    """Commit every row's outcome, and write the window's keys and values."""

    def commit_one(held, cache):
        del cache
        result, row, rests = held
        unchanged = row, empty_info()

        def moved():
            return commit(spec, params, result), result.info

        if spec.numerics is Numerics.EXACT:
            return jax.lax.cond(rests, lambda: unchanged, moved)
        # Side by side a cond would copy all that it reads, weights too, per row.
        return jax.tree.map(lambda a, b: jnp.where(rests, a, b), unchanged, moved())

    held = result, state.rows, resting_B
    rows, info = map_rows(spec, state, commit_one)(held, ())
    # Written at the old start, before the window moves: these are keys and values of
    # the state that was evaluated. Only block-causal models add any, and of theirs only
    # rows that have ended rest, whose caches nobody reads any more.
    cache = write_windows(state.cache, result.kept.cache_window, state.rows.start)
    return DecodeState(rows, cache), info
