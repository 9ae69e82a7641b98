"""The decode loop: draft, evaluate all drafts in one network call, keep what holds.

    drafts  = draft(policy, state)          # drafts[0]: the policy's own next state
    hidden  = forward(params, drafts)       # the one network call, the prefix shared
    targets = policy(read(hidden), drafts)  # what the policy does next from each draft
    state'  = the target of the last draft that the walk reaches

Plain decoding is the same loop with one draft. There is no other loop: static,
threshold and FreeDave differ in the functions that they pass in, and `generate`,
`stream` and the benchmarks in who calls `step`.

A block of a block-causal model that an accepted draft has completed is committed with
the keys and values of that very call; its neighbour's first prediction comes from there
too. So a request costs one prefill and its verify calls, nothing else, and the last
token needs no call at all: it is known before it is evaluated. A full-attention model
under a cache rule spends one more kind of call: the refresh at the start of a block,
which is also the evaluation of the state that it starts from. Guarded numerics spend a
call more where a decision was too close to call.
"""

import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp

from jaxdave.core.spec import DecodeSpec
from jaxdave.core.state import (
    DecodeState,
    PromptBatch,
    RowState,
    RuntimeParams,
    squeeze_axis,
)
from jaxdave.core.window import past_known
from jaxdave.decoding.commit import commit
from jaxdave.decoding.prefill_rows import prefill_row, refresh_row
from jaxdave.decoding.recheck import recheck_row
from jaxdave.decoding.rows import map_state_rows, replace_rows, update_rows
from jaxdave.decoding.verify import CallResult, StepInfo, empty_info, verify_call
from jaxdave.drafting.draft_length import choose_draft_length
from jaxdave.models.kv_cache import write_windows


def prefill(
    spec: DecodeSpec,
    params: Any,
    runtime: RuntimeParams,
    prompts: PromptBatch,
    prefill_length: int,
) -> DecodeState:
    """Prefill the prompts and take the first policy step: one network call.

    prefill_length: a power of two that covers every row's prompt and first window.
    """
    is_loose = spec.guarded and spec.model.fast_prefill is not None
    doubt = runtime.error_bound if is_loose else None
    rows, capacity = prompts.tokens_BT.shape

    def one(prompt: PromptBatch):
        return prefill_row(spec, params, prompt, prefill_length, doubt)

    apart = spec.exact or (spec.guarded and not is_loose)
    if rows == 1:
        # Without its axis from here on: XLA copies the cache where a loop's result
        # is laid out with an axis of one.
        return DecodeState(*one(squeeze_axis(prompts, 0)))
    states, cache = jax.lax.map(one, prompts) if apart else jax.vmap(one)(prompts)
    chex.assert_shape(states.tokens_T, (rows, capacity))
    return DecodeState(states, jax.tree.map(lambda a: jnp.moveaxis(a, 0, 1), cache))


def step(
    spec: DecodeSpec, params: Any, runtime: RuntimeParams, state: DecodeState
) -> tuple[DecodeState, StepInfo]:
    """One call of every row that has not ended: a verify call, or its refresh.

    Under guarded numerics a row that doubts makes its recheck call before that.
    """
    resting_B = state.rows.done | state.rows.needs_refresh
    # Only where the window may move past what the cache holds is it made again.
    refreshes = spec.layout.slide is past_known
    state = refresh_stale_rows(spec, params, state) if refreshes else state
    state = recheck_uncertain_rows(spec, params, state) if spec.guarded else state
    resting_B |= state.rows.done | state.rows.needs_refresh
    sized = [
        _calls_of_size(spec, size, params, runtime, resting_B)
        for size in spec.draft_lengths
    ]
    choice = (
        choose_draft_length(spec.draft_lengths, runtime, state.rows)
        if len(sized) > 1
        else 0
    )
    result = jax.lax.switch(choice, sized, state)

    def settled(held, cache):
        del cache
        result, row, rests = held
        there = row, empty_info()
        act = lambda: (commit(spec, params, result), result.info)  # noqa: E731
        if spec.exact:
            return jax.lax.cond(rests, lambda: there, act)
        # Side by side a cond would copy all that it reads, weights too, per row.
        return jax.tree.map(lambda a, b: jnp.where(rests, a, b), there, act())

    held = result, state.rows, resting_B
    moved, info = map_state_rows(spec, state)(settled)(held, ())
    cache = write_windows(state.cache, result.kept.added, state.rows.start)
    return DecodeState(moved, cache), info


def _calls_of_size(
    spec: DecodeSpec,
    size: int,
    params: Any,
    runtime: RuntimeParams,
    resting_B: jax.Array,
):
    """state -> the outcome of calls of one size; of rows that rest, anything."""
    sized = dataclasses.replace(spec, draft_steps=size)

    def call(held, cache) -> CallResult:
        row, rests = held
        act = lambda: verify_call(sized, params, runtime, row, cache)  # noqa: E731
        if not spec.exact:
            return act()
        like = jax.eval_shape(act)
        none = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), like)
        return jax.lax.cond(rests, lambda: none, act)

    return lambda state: map_state_rows(spec, state)(call)(
        (state.rows, resting_B), state.cache
    )


def recheck_uncertain_rows(
    spec: DecodeSpec, params: Any, state: DecodeState
) -> DecodeState:
    """The state after the recheck calls of those rows that doubt."""

    def one(row: RowState, cache):
        return recheck_row(spec, params, row, cache)

    doubted_B = state.rows.needs_recheck & ~state.rows.done & ~state.rows.needs_refresh
    return DecodeState(*update_rows(one, state.rows, state.cache, doubted_B))


def refresh_stale_rows(
    spec: DecodeSpec, params: Any, state: DecodeState
) -> DecodeState:
    """The state after the refresh calls of those rows that need one."""
    stale_B = state.rows.needs_refresh & ~state.rows.done

    def one(row: RowState):
        return refresh_row(spec, params, row)

    def some(held: DecodeState) -> DecodeState:
        apart = spec.exact or spec.guarded
        made = replace_rows(one, held.rows, held.cache, stale_B, apart)
        return DecodeState(*made)

    return jax.lax.cond(jnp.any(stale_B), some, lambda held: held, state)


def run(spec: DecodeSpec, params: Any, runtime: RuntimeParams, state: DecodeState):
    """Step until as few rows are left, or as often, as the terms allow."""
    if state.rows.done.shape == (1,):
        return run(spec, params, runtime, state.alone()).as_batch()

    def running(held):
        calls, state = held
        live = jnp.sum(~state.rows.done, dtype=jnp.int32)
        goes_on = (runtime.forced_index >= 0) | (live > runtime.stop_at_rows)
        return (calls < runtime.max_calls) & goes_on

    def body(held):
        calls, state = held
        return calls + 1, step(spec, params, runtime, state)[0]

    return jax.lax.while_loop(running, body, (jnp.int32(0), state))[1]
