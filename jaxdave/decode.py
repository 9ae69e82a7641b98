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
import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxdave import calls
from jaxdave.cache import put_rows, put_some, put_windows
from jaxdave.grid import past_known
from jaxdave.outcome import Info, Judged, no_info, settle
from jaxdave.pace import fastest
from jaxdave.spec import Program
from jaxdave.state import RowState
from jaxdave.terms import Prompts, Terms


class DecodeState(NamedTuple):
    """All rows [B, ...] and their cache [N, B, T, ...]; or one, without that axis."""

    rows: RowState
    cache: Any

    @property
    def is_one(self) -> bool:
        """Whether it is one row without an axis."""
        return self.rows.done.ndim == 0

    def alone(self) -> "DecodeState":
        """The only row of a batch of one."""
        return DecodeState(without(self.rows, 0), without(self.cache, 1))

    def as_batch(self) -> "DecodeState":
        """A batch of the one row."""
        put = lambda tree, at: jax.tree.map(lambda a: jnp.expand_dims(a, at), tree)  # noqa: E731
        return DecodeState(put(self.rows, 0), put(self.cache, 1))


def without(tree: Any, axis: int) -> Any:
    """Arrays without an axis of one."""
    return jax.tree.map(lambda a: jax.lax.squeeze(a, (axis,)), tree)


def init(
    program: Program, params: Any, terms: Terms, prompts: Prompts, prefill_length: int
) -> DecodeState:
    """Prefill the prompts and take the first policy step: one network call.

    prefill_length: a power of two that covers every row's prompt and first window.
    """
    is_loose = program.guarded and program.network.opening is not None
    doubt = terms.doubt if is_loose else None
    rows, capacity = prompts.tokens_BT.shape

    def one(prompt: Prompts):
        return calls.opened(program, params, prompt, prefill_length, doubt)

    apart = program.exact or (program.guarded and not is_loose)
    if rows == 1:
        # Without its axis from here on: XLA copies the cache where a loop's result
        # is laid out with an axis of one.
        return DecodeState(*one(without(prompts, 0)))
    states, cache = jax.lax.map(one, prompts) if apart else jax.vmap(one)(prompts)
    chex.assert_shape(states.tokens_T, (rows, capacity))
    return DecodeState(states, jax.tree.map(lambda a: jnp.moveaxis(a, 0, 1), cache))


def step(
    program: Program, params: Any, terms: Terms, state: DecodeState
) -> tuple[DecodeState, Info]:
    """One call of every row that has not ended: a verify call, or its refresh.

    Under guarded numerics a row that doubts makes its guard call before that.
    """
    resting_B = state.rows.done | state.rows.stale
    # Only where the window may move past what the cache holds is it made again.
    refreshes = program.grid.slide is past_known
    state = _refreshed(program, params, state) if refreshes else state
    state = _rechecked(program, params, state) if program.guarded else state
    resting_B |= state.rows.done | state.rows.stale
    sized = [
        _of_size(program, size, params, terms, resting_B) for size in program.sizes
    ]
    choice = fastest(program.sizes, terms, state.rows) if len(sized) > 1 else 0
    judged = jax.lax.switch(choice, sized, state)

    def settled(held, cache):
        del cache
        judged, row, rests = held
        there = row, no_info()
        act = lambda: (settle(program, params, judged), judged.info)  # noqa: E731
        if program.exact:
            return jax.lax.cond(rests, lambda: there, act)
        # Side by side a cond would copy all that it reads, weights too, per row.
        return jax.tree.map(lambda a, b: jnp.where(rests, a, b), there, act())

    held = judged, state.rows, resting_B
    moved, info = _over(program, state)(settled)(held, ())
    cache = put_windows(state.cache, judged.kept.added, state.rows.start)
    return DecodeState(moved, cache), info


def _of_size(
    program: Program, size: int, params: Any, terms: Terms, resting_B: jax.Array
):
    """state -> the outcome of calls of one size; of rows that rest, anything."""
    sized = dataclasses.replace(program, draft_steps=size)

    def call(held, cache) -> Judged:
        row, rests = held
        act = lambda: calls.judge(sized, params, terms, row, cache)  # noqa: E731
        if not program.exact:
            return act()
        like = jax.eval_shape(act)
        none = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), like)
        return jax.lax.cond(rests, lambda: none, act)

    return lambda state: _over(program, state)(call)(
        (state.rows, resting_B), state.cache
    )


def _rechecked(program: Program, params: Any, state: DecodeState) -> DecodeState:
    """The state after the guard calls of those rows that doubt."""

    def one(row: RowState, cache):
        return calls.recheck(program, params, row, cache)

    doubted_B = state.rows.doubted & ~state.rows.done & ~state.rows.stale
    return DecodeState(*put_some(one, state.rows, state.cache, doubted_B))


def _refreshed(program: Program, params: Any, state: DecodeState) -> DecodeState:
    """The state after the refresh calls of those rows that need one."""
    stale_B = state.rows.stale & ~state.rows.done

    def one(row: RowState):
        return calls.refresh(program, params, row)

    def some(held: DecodeState) -> DecodeState:
        apart = program.exact or program.guarded
        made = put_rows(one, held.rows, held.cache, stale_B, apart)
        return DecodeState(*made)

    return jax.lax.cond(jnp.any(stale_B), some, lambda held: held, state)


def _over(program: Program, state: DecodeState):
    """How a function of (one row, its cache) becomes one of the state's rows.

    One row alone is not mapped: its slices stay slices, where those of many become
    gathers and scatters, and what it decides is a branch, where many select.
    """
    return (
        (lambda function: function)
        if state.is_one
        else functools.partial(over_rows, program)
    )


def over_rows(program: Program, function):
    """A function of (one row, its cache) as a function of all rows."""
    if not program.exact:
        return jax.vmap(function, in_axes=(0, 1))

    def mapped(rows, cache):
        def one(index):
            row = jax.tree.map(lambda a: a[index], rows)
            return function(row, jax.tree.map(lambda a: a[:, index], cache))

        count = jax.tree.leaves(rows)[0].shape[0]
        return jax.lax.map(one, jnp.arange(count))

    return mapped


def run(program: Program, params: Any, terms: Terms, state: DecodeState):
    """Step until as few rows are left, or as often, as the terms allow."""
    if state.rows.done.shape == (1,):
        return run(program, params, terms, state.alone()).as_batch()

    def running(held):
        calls, state = held
        live = jnp.sum(~state.rows.done, dtype=jnp.int32)
        goes_on = (terms.forced >= 0) | (live > terms.fewest)
        return (calls < terms.calls) & goes_on

    def body(held):
        calls, state = held
        return calls + 1, step(program, params, terms, state)[0]

    return jax.lax.while_loop(running, body, (jnp.int32(0), state))[1]
