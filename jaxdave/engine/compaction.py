"""Batch compaction: finished rows leave, and the others go on in a smaller loop.

Side by side, a row that has ended costs as much as before. So a loop returns when no
more rows are unfinished than the next smaller power of two, and those move to a loop of
that size: under guarded and exact numerics, whose texts do not depend on what a row is
computed with.

Compiling the smaller loop is deferred until finished rows have wasted as many seconds
as compiling the present loop took (at least 5 s). As in the ski-rental problem, the
total is then at most twice the optimum. A loop that is already compiled, in memory or
on disk, is used after 0.5 s.
"""

import dataclasses
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxdave.core.config import Numerics
from jaxdave.core.host_arrays import host_array
from jaxdave.core.spec import DecodeSpec
from jaxdave.core.state import DecodeState, RuntimeParams
from jaxdave.engine.autotune import tuned_params
from jaxdave.engine.placement import ONE_DEVICE, Placement
from jaxdave.engine.results import HostRows, host_fields
from jaxdave.runtime.compilation import CompileRequest, get_executable, is_available

MIN_WAIT_COMPILE = 5.0
"""Seconds that finished rows must have wasted before a loop is compiled at all."""
MIN_WAIT_CACHED = 0.5
"""The same for a loop that is compiled already: it is still measured and loaded."""


class CompiledLoop(NamedTuple):
    """A compiled decode loop of so many rows.

    Attributes:
        spec: What it decodes.
        num_rows: Rows of its batch; on a mesh those of each group of devices.
        run: (params, runtime, state) -> state.
        runtime: What it is run with.
        new_state: runtime -> a state of probe prompts, to measure with.
        row_shape: What tells the shapes of one row.
        placement: The devices that it runs on.
    """

    spec: DecodeSpec
    num_rows: int
    run: Callable[..., DecodeState]
    runtime: RuntimeParams
    new_state: Callable[[RuntimeParams], DecodeState]
    row_shape: tuple[Any, ...]
    placement: Placement = ONE_DEVICE


@dataclasses.dataclass
class IdleAccount:
    """What compaction has cost and would have saved, for one loop.

    Attributes:
        compile_seconds: Seconds that compiling the loop took.
        idle_seconds: Seconds that finished rows have cost in it.
        moved_to: Row counts of the smaller loops that rows have moved to.
    """

    compile_seconds: float = 0.0
    idle_seconds: float = 0.0
    moved_to: set[int] = dataclasses.field(default_factory=set)


_ACCOUNTS: weakref.WeakKeyDictionary[DecodeSpec, dict[Any, IdleAccount]] = (
    weakref.WeakKeyDictionary()
)
_ACCOUNTS_LOCK = threading.Lock()


def idle_account(loop: CompiledLoop) -> IdleAccount:
    """The account of a loop.

    Args:
        loop: A compiled loop.

    Returns:
        The account; the same object for all decodes of the loop's spec and shapes.
    """
    with _ACCOUNTS_LOCK:
        accounts = _ACCOUNTS.setdefault(loop.spec, {})
        return accounts.setdefault((loop.num_rows, loop.row_shape), IdleAccount())


def run_to_end(
    loop: CompiledLoop, params: Any, state: DecodeState
) -> tuple[HostRows, float]:
    """Run until all rows have ended, in smaller loops where that pays.

    Args:
        loop: The loop to begin with.
        params: The model's parameters.
        state: Its rows and caches, which are used up.

    Returns:
        (all rows on the host, seconds spent on compiling smaller loops).
    """
    threshold, idle_share = compaction_threshold(loop), 0.0
    groups = loop.placement.num_groups
    while True:
        # 1. Run until few enough rows are left, and
        # charge what the finished ones have cost.
        start = time.perf_counter()
        state, rows = _run_until(loop, params, state, threshold)
        seconds = time.perf_counter() - start
        idle_account(loop).idle_seconds += idle_share * seconds
        # Rows stay in their group of devices: the one with most left decides.
        done_GR = np.reshape(rows.done, (groups, -1))
        most = int(np.max(np.sum(~done_GR, axis=1)))
        if not 0 < most <= threshold:
            return rows, 0.0
        # 2. Find the smaller loop. If it does not pay yet, go on in
        # this one until half as many rows are left.
        count = 1 << (most - 1).bit_length()
        smaller = _smaller_loop(loop, params, state, count)
        if smaller is not None:
            break
        # One row under exact numerics takes twice as long among others as alone.
        is_exact = loop.spec.numerics is Numerics.EXACT
        idle_share = 0.5 if is_exact else 1 - most / loop.num_rows
        threshold = count // 2
    # Unfinished rows come first; what is left over repeats a row that has ended.
    index_GR = np.argsort(done_GR, axis=1, kind="stable")[:, :count].astype(np.int32)
    ended_G1 = np.argmax(done_GR, axis=1)[:, None]
    is_live_GR = ~np.take_along_axis(done_GR, index_GR, axis=1)
    index_GR = np.where(is_live_GR, index_GR, ended_G1).astype(np.int32)
    first_G1 = np.arange(groups)[:, None] * loop.num_rows
    # 3. Move the rows, run them to their end, and put them back in their places. This
    # calls itself, as the smaller loop may become too large in turn.
    moved = smaller.take(state, host_array(index_GR.reshape(-1)))
    del state  # the caches of all rows
    finished, seconds = run_to_end(smaller.loop, params, moved)
    index_B = (first_G1 + index_GR).reshape(-1)
    return _scatter_rows(rows, finished, index_B), smaller.seconds + seconds


def compaction_threshold(loop: CompiledLoop) -> int:
    """How few rows must be unfinished for a smaller loop to do; 0: there is none.

    Args:
        loop: A loop of a batch.

    Returns:
        The number of rows.
    """
    spec, num_rows = loop.spec, loop.num_rows
    # Processes that decode together must move at the same time, and what decides are
    # seconds, which each has its own of.
    if num_rows == 1 or loop.placement.spans_processes:
        return 0
    # The largest power of two below the number of rows.
    if spec.numerics is Numerics.GUARDED:
        return (1 << (num_rows - 1).bit_length()) // 2
    # Rows that go one after another cost nothing once they have ended; but one alone is
    # twice as fast as one among them.
    return 1 if spec.numerics is Numerics.EXACT else 0


def _run_until(
    loop: CompiledLoop, params: Any, state: DecodeState, stop_at_rows: int
) -> tuple[DecodeState, HostRows]:
    """Run until no more than so many rows are unfinished; rows come on the host too."""
    runtime = loop.runtime._replace(stop_at_rows=host_array(np.int32(stop_at_rows)))
    state = loop.run(params, runtime, state)
    return state, state.fetch(host_fields(state.rows))


class _SmallerLoop(NamedTuple):
    """A smaller loop, what moves rows there, and the seconds spent on both."""

    loop: CompiledLoop
    take: Callable[..., DecodeState]
    seconds: float


def _smaller_loop(
    loop: CompiledLoop, params: Any, state: DecodeState, count: int
) -> _SmallerLoop | None:
    """The loop of so many rows, if finished rows have wasted enough to pay for it."""
    # Shapes alone: the smaller state is not made before it is known to be wanted.
    placement, groups = loop.placement, loop.placement.num_groups
    # A single row has no batch axis, but for one of each of several groups.
    taken = state.take_shapes(groups * count)
    run_loop = placement.loop_program(loop.spec, params, taken.is_single)
    specs = placement.state_specs(loop.spec, taken.is_single)
    args = params, loop.runtime, placement.structs(taken, specs)
    request = CompileRequest(loop.spec, "run", run_loop, args, donate=2)
    account = idle_account(loop)
    # A loop that rows have moved to once is compiled, and needs no waiting.
    if count not in account.moved_to:
        wait = max(account.compile_seconds, MIN_WAIT_COMPILE)
        if is_available(request):
            wait = MIN_WAIT_CACHED
        if account.idle_seconds < wait:
            return None
    try:
        smaller = _compile_smaller(loop, params, state, count, request)
    except jax.errors.JaxRuntimeError:
        # E.g. no memory for it. These rows need not move.
        # An infinite price: from here on only loops compiled already are tried.
        account.compile_seconds = float("inf")
        return None
    account.moved_to.add(count)
    return smaller


def _compile_smaller(
    loop: CompiledLoop,
    params: Any,
    state: DecodeState,
    count: int,
    request: CompileRequest,
) -> _SmallerLoop:
    """The loop of so many rows, compiled and measured."""
    spec, groups = loop.spec, loop.placement.num_groups
    index = host_array(np.zeros(groups * count, np.int32))
    take_rows = loop.placement.take_program(spec, count)
    take, take_seconds = get_executable(
        CompileRequest(spec, f"take {count}", take_rows, (state, index))
    )
    run, run_seconds = get_executable(request)

    def new_state(runtime: RuntimeParams) -> DecodeState:
        return take(loop.new_state(runtime), index)

    # Whichever loop rows come from, they move to the same one.
    shapes = (*loop.row_shape, count)
    runtime, tune_seconds = tuned_params(
        spec, loop.runtime, run, params, new_state, shapes
    )
    # What the larger loop has left in the cache is as far off as its calls were.
    bounds = loop.runtime.error_bound, runtime.error_bound
    runtime = runtime._replace(error_bound=jax.tree.map(np.maximum, *bounds))
    smaller = loop._replace(
        num_rows=count, run=run, runtime=runtime, new_state=new_state
    )
    seconds = take_seconds + run_seconds + tune_seconds
    account = idle_account(smaller)
    account.compile_seconds = max(account.compile_seconds, seconds)
    return _SmallerLoop(smaller, take, seconds)


def _scatter_rows(rows: HostRows, part: HostRows, index_R: np.ndarray) -> HostRows:
    """Rows on the host with some of them replaced."""

    # Spare rows repeat an ended row, and so write its own values back to it.
    def scatter(a, b):
        result = np.array(a)
        result[index_R] = b
        return result

    return jax.tree.map(scatter, rows, part)
