"""Rows that have ended leave, and the others go on in a loop of fewer rows.

Side by side, a row that has ended costs what it did before. So a loop comes back when
no more rows are left than the next smaller power of two, and those move there: under
guarded and exact numerics, whose texts do not depend on what a row is computed with.

A smaller loop has to be made once. That is done when rows that had ended have cost as
many seconds as this loop took to make, so at worst twice what hindsight had spent; and
soon where it was made before, in this process or an earlier one.
"""

import dataclasses
import functools
import time
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxdave.core.spec import DecodeSpec
from jaxdave.core.state import DecodeState, RuntimeParams, host_array
from jaxdave.decoding import loop as decode_loop
from jaxdave.engine.autotune import tuned_params
from jaxdave.engine.results import HostRows, host_fields
from jaxdave.runtime.compilation import CompileRequest, get_executable, is_available
from jaxdave.runtime.program_cache import is_on_first_device

MIN_WAIT_COMPILE, MIN_WAIT_CACHED = 5.0, 0.5
"""Seconds of waiting before a loop is made, however soon another one was found on disk,
and before one that is at hand is measured and used for the first time."""


class CompiledLoop(NamedTuple):
    """A compiled loop of so many rows.

    run(params, terms, state) -> state; fresh(terms) -> a state of probe prompts; room:
    what tells the shapes of one row.
    """

    spec: DecodeSpec
    rows: int
    run: Callable[..., DecodeState]
    runtime: RuntimeParams
    fresh: Callable[[RuntimeParams], DecodeState]
    room: tuple[Any, ...]


@dataclasses.dataclass
class IdleAccount:
    """Seconds that making a loop took, and that rows which had ended have cost it.

    moved: of how many rows the loops are that rows have moved to.
    """

    made: float = 0.0
    idle: float = 0.0
    moved: set[int] = dataclasses.field(default_factory=set)


_ACCOUNTS: weakref.WeakKeyDictionary[DecodeSpec, dict[Any, IdleAccount]] = (
    weakref.WeakKeyDictionary()
)


def idle_account(loop: CompiledLoop) -> IdleAccount:
    """What is on record of a loop."""
    return _ACCOUNTS.setdefault(loop.spec, {}).setdefault(
        (loop.rows, loop.room), IdleAccount()
    )


def run_to_end(
    loop: CompiledLoop, params: Any, state: DecodeState
) -> tuple[HostRows, float]:
    """All rows at their end, on the host, and the seconds spent on making loops."""
    fewest, idle = compaction_threshold(loop, params), 0.0
    while True:
        start = time.perf_counter()
        state, rows = _run_until(loop, params, state, fewest)
        idle_account(loop).idle += idle * (time.perf_counter() - start)
        live_R = np.flatnonzero(~rows.done)
        if not 0 < live_R.size <= fewest:
            return rows, 0.0
        count = 1 << (live_R.size - 1).bit_length()
        found = _smaller_loop(loop, params, state, count)
        if found is not None:
            break
        # One row under exact numerics takes twice as long among others as alone.
        idle = 0.5 if loop.spec.exact else 1 - live_R.size / loop.rows
        fewest = count // 2
    # What is left of the smaller loop's room is taken by a row that has ended.
    index_R = np.full(count, np.flatnonzero(rows.done)[0], np.int32)
    index_R[: live_R.size] = live_R
    moved = found.take(state, host_array(index_R))
    del state  # the cache of all rows
    others, seconds = run_to_end(found.loop, params, moved)
    return _scatter_rows(rows, others, index_R), found.seconds + seconds


def compaction_threshold(loop: CompiledLoop, params: Any) -> int:
    """How few rows must be left for a smaller loop to do; 0: there is none."""
    spec, rows = loop.spec, loop.rows
    if rows == 1 or not is_on_first_device(params):
        return 0
    if spec.guarded:
        return (1 << (rows - 1).bit_length()) // 2
    # Rows that go one after another cost nothing once they have ended; but one alone is
    # twice as fast as one among them.
    return 1 if spec.exact else 0


def _fetch_rows(state: DecodeState) -> HostRows:
    """What is read of a state's rows, on the host, with their axis."""
    rows = jax.device_get(host_fields(state.rows))
    return jax.tree.map(lambda a: a[None], rows) if state.is_one else rows


def _run_until(loop: CompiledLoop, params, state: DecodeState, fewest: int):
    """The state when no more than so many rows are left, and its rows on the host."""
    runtime = loop.runtime._replace(stop_at_rows=host_array(np.int32(fewest)))
    state = loop.run(params, runtime, state)
    return state, _fetch_rows(state)


class _SmallerLoop(NamedTuple):
    """A loop of fewer rows, what moves rows there, and the seconds spent on both."""

    loop: CompiledLoop
    take: Callable[..., DecodeState]
    seconds: float


def _smaller_loop(
    loop: CompiledLoop, params, state: DecodeState, count: int
) -> _SmallerLoop | None:
    """The loop for so many rows, if that is worth its while."""
    args = params, loop.runtime, _shapes_like(state, count)
    running = functools.partial(decode_loop.run, loop.spec)
    wanted = CompileRequest(loop.spec, "run", running, args, donate=2)
    book = idle_account(loop)
    if count not in book.moved:
        wait = (
            MIN_WAIT_CACHED
            if is_available(wanted)
            else max(book.made, MIN_WAIT_COMPILE)
        )
        if book.idle < wait:
            return None
    try:
        found = _compile_smaller(loop, params, state, count, wanted)
    except jax.errors.JaxRuntimeError:
        book.made = float("inf")  # e.g. no memory for it; these rows need not move
        return None
    book.moved.add(count)
    return found


def _compile_smaller(
    loop: CompiledLoop, params, state, count: int, wanted: CompileRequest
) -> _SmallerLoop:
    """The loop for so many rows, compiled and measured."""
    spec, index = loop.spec, host_array(np.zeros(count, np.int32))
    take, taking = get_executable(
        CompileRequest(spec, f"take {count}", _take_rows, (state, index))
    )
    run, running = get_executable(wanted)

    def fresh(runtime: RuntimeParams) -> DecodeState:
        return take(loop.fresh(runtime), index)

    # Whichever loop rows come from, they move to the same one.
    shapes = (*loop.room, count)
    runtime, measuring = tuned_params(spec, loop.runtime, run, params, fresh, shapes)
    # What the larger loop has left behind is as far off as its calls were.
    doubt = jax.tree.map(np.maximum, loop.runtime.error_bound, runtime.error_bound)
    smaller = CompiledLoop(
        spec, count, run, runtime._replace(error_bound=doubt), fresh, loop.room
    )
    seconds = taking + running + measuring
    idle_account(smaller).made = max(idle_account(smaller).made, seconds)
    return _SmallerLoop(smaller, take, seconds)


def _shapes_like(state: DecodeState, count: int) -> DecodeState:
    """The shapes of some rows of a state, as `_taken` makes them."""
    size = () if count == 1 else (count,)

    def of(axis: int):
        def one(a) -> jax.ShapeDtypeStruct:
            shape = (*a.shape[:axis], *size, *a.shape[axis + 1 :])
            return jax.ShapeDtypeStruct(shape, a.dtype)

        return one

    rows = jax.tree.map(of(0), state.rows)
    return DecodeState(rows, jax.tree.map(of(1), state.cache))


def _take_rows(state: DecodeState, index_R: jax.Array) -> DecodeState:
    """Some rows of a state; one row alone has no axis."""
    rows = jax.tree.map(lambda a: a[index_R], state.rows)
    some = DecodeState(rows, jax.tree.map(lambda a: a[:, index_R], state.cache))
    return some.alone() if index_R.shape == (1,) else some


def _scatter_rows(rows: HostRows, others: HostRows, index_R: np.ndarray) -> HostRows:
    """Rows with some of them replaced."""

    def put(a, b):
        made = np.array(a)
        made[index_R] = b
        return made

    return jax.tree.map(put, rows, others)
