"""How long calls of each draft length take, and how far that can be believed.

Whatever else a machine does can only add time, so the fastest of several timings
counts, and how far the usual one is above it (the spread) says how busy the machine
was. Lengths are timed in turn, so that a busy spell meets all of them: what decides is
their ratio. Timings that vary are made again, now and by later processes.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxdave.core.host_arrays import host_array
from jaxdave.core.spec import DecodeSpec
from jaxdave.core.state import DecodeState, RuntimeParams
from jaxdave.engine.measurements import Measurements

TIMED_ROUNDS = 6
"""Rounds of one timing."""
REPEATS, MAX_REPEATS = 3, 9
"""Timings of each length: on a quiet machine, and at most."""
QUIET_SPREAD = 0.15
"""Timings that spread further were disturbed."""
MAX_TRIES = 6
"""Times that disturbed timings are made again, by as many processes."""
FASTER, SLOWER = 0.7, 2.0
"""A decode that takes less, or more, of the time that was expected contradicts it."""
SLACK_SECONDS = 0.005
"""What a decode may take beside its calls."""

RunFn = Callable[[Any, RuntimeParams, DecodeState], DecodeState]
NewStateFn = Callable[[RuntimeParams], DecodeState]


class Timing(NamedTuple):
    """What was timed.

    Attributes:
        seconds: Seconds of a round at each draft length.
        prefill: Seconds of a prefill.
        spread: How much longer the median timing took than the fastest, as a share of
            it, at the length that varied most.
    """

    seconds: tuple[float, ...]
    prefill: float
    spread: float


class SeenDecode(NamedTuple):
    """A decode of one row, as it went.

    Attributes:
        seconds: Its seconds, the prefill included.
        sizes: Verify calls by draft length.
        other_calls: Its other calls after the prefill.
    """

    seconds: float
    sizes: tuple[int, ...]
    other_calls: int


def forced_runtime(spec: DecodeSpec, index: int, rounds: int) -> RuntimeParams:
    """Runtime parameters for so many rounds of one draft length.

    Args:
        spec: What is decoded.
        index: Index of the length in `spec.draft_steps`.
        rounds: Rounds of the loop.

    Returns:
        The parameters.
    """
    # A forced length also keeps the loop going past the rows' ends, so that every
    # length is timed over the same number of rounds.
    return spec.runtime(max(spec.draft_steps), rounds)._replace(
        forced_index=host_array(np.int32(index))
    )


def time_lengths(
    spec: DecodeSpec,
    run: RunFn,
    params: Any,
    new_state: NewStateFn,
    on_filled: Callable[[int, DecodeState], None] = lambda index, state: None,
    max_repeats: int = MAX_REPEATS,
) -> Timing:
    """Time the rounds of every draft length.

    Args:
        spec: What is decoded.
        run: The compiled loop.
        params: The model's parameters.
        new_state: runtime -> a new state of probe prompts for the loop.
        on_filled: Called once for every length with its index and the state after its
            rounds, which it may use up.
        max_repeats: Timings of each length at most, `REPEATS` or more.

    Returns:
        The timing.
    """
    lengths = range(len(spec.draft_steps))
    runtimes = [forced_runtime(spec, index, TIMED_ROUNDS) for index in lengths]
    times: list[list[float]] = [[] for _ in lengths]
    prefills: list[float] = []
    repeats = 0
    while repeats < REPEATS or (repeats < max_repeats and spread(times) > QUIET_SPREAD):
        for index, runtime in enumerate(runtimes):
            # JAX returns before the device has finished; the clock
            # starts and stops on arrays that are there.
            start = time.perf_counter()
            # A fresh state each time, as the
            # loop takes the buffers of the one that it is given.
            state = jax.block_until_ready(new_state(runtime))
            begin = time.perf_counter()
            state = jax.block_until_ready(run(params, runtime, state))
            times[index].append(time.perf_counter() - begin)
            prefills.append(begin - start)
            if not repeats:
                on_filled(index, state)
            del state  # room for the next one
        repeats += 1
    seconds = tuple(min(one) / TIMED_ROUNDS for one in times)
    return Timing(seconds, min(prefills), spread(times))


def spread(times: Sequence[Sequence[float]]) -> float:
    """How much longer the median took than the fastest, at worst.

    Args:
        times: Timings of each of several things.

    Returns:
        The share; 0: all took the same time.

    Example:
        >>> spread([[1.0, 1.5, 2.0], [4.0, 4.0, 9.0]])
        0.5
    """
    return max(statistics.median(one) / min(one) - 1 for one in times)


def is_doubted(found: Measurements) -> bool:
    """Tell if a measurement was disturbed, so that it should be made again.

    Args:
        found: The measurement.

    Returns:
        True if it spreads too far and has not been tried too often.
    """
    return found.spread > QUIET_SPREAD and found.tries < MAX_TRIES


def merged(old: Measurements, new: Timing, is_too_fast: bool = False) -> Measurements:
    """A measurement after another timing.

    Args:
        old: The measurement so far.
        new: The timing.
        is_too_fast: Decoding has shown that calls take longer than measured.

    Returns:
        The measurement, with the old errors: they do not depend on the time.
    """
    kept = old._replace(tries=old.tries + 1)
    if new.spread <= QUIET_SPREAD:
        return kept._replace(**new._asdict())
    if is_too_fast:
        return kept  # the machine is busy now, which says nothing of it
    # Noise only adds time: the less of two timings is nearer to the truth.
    return kept._replace(
        seconds=tuple(map(min, old.seconds, new.seconds)),
        prefill=min(old.prefill, new.prefill),
        spread=min(old.spread, new.spread),
    )


def contradiction(found: Measurements, seen: SeenDecode) -> int:
    """Tell if a decode took a time that the measurement does not allow.

    Args:
        found: The measurement.
        seen: The decode.

    Returns:
        -1 if calls take less time than was measured, 1 if more, 0 if neither.
    """
    verify = sum(map(float.__mul__, found.seconds, map(float, seen.sizes)))
    others = seen.other_calls * max(found.seconds, default=0.0)
    # The prefill counts where it makes the bound safer, as the other calls do.
    if seen.seconds < FASTER * verify:
        return -1
    expected = found.prefill + verify + others
    return int(seen.seconds > SLOWER * expected + SLACK_SECONDS)
