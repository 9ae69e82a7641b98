"""Paired timing: alternating rounds, and medians of ratios with an interval.

On a shared machine other people's load changes from second to second, so nothing is
timed on its own. Whatever is compared is timed in the same rounds, and a result is the
median of the ratios within a round.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

RESAMPLES = 2000
"""Bootstrap samples behind every interval."""


class MedianInterval(NamedTuple):
    """A median of paired ratios and its 95 % bootstrap interval.

    Attributes:
        median: median of the ratios.
        low: 2.5th percentile of the medians of the bootstrap samples.
        high: 97.5th percentile of them.
    """

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3f} [{self.low:.3f}, {self.high:.3f}]"


def time_call(function: Callable[[], Any], repeats: int = 1) -> float:
    """Time a call until its arrays are computed.

    Args:
        function: a function without arguments; its result may contain JAX arrays.
        repeats: number of calls.

    Returns:
        The median of the wall times, in seconds.
    """
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        # JAX dispatches asynchronously: without this only the dispatch is timed.
        jax.block_until_ready(function())
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def time_alternately(timers: Sequence[Callable[[], float]], rounds: int) -> np.ndarray:
    """Run every timer once a round, in alternating order.

    The order is reversed from round to round, so that a load that drifts does not
    favour one timer. The first round is a warm-up and is discarded.

    Args:
        timers: functions that run something and return its seconds.
        rounds: number of rounds that count.

    Returns:
        Seconds, `[rounds, len(timers)]`.

    Example:
        >>> time_alternately([lambda: 1.0, lambda: 2.0], rounds=2)
        array([[1., 2.],
               [1., 2.]])
    """
    seconds = np.zeros((rounds + 1, len(timers)))
    for turn in range(rounds + 1):
        order = range(len(timers)) if turn % 2 else reversed(range(len(timers)))
        for index in order:
            seconds[turn, index] = timers[index]()
    return seconds[1:]


def median_with_interval(ratios: np.ndarray) -> MedianInterval:
    """Compute the median of paired ratios and its bootstrap interval.

    The bootstrap is seeded, so equal ratios always give an equal interval.

    Args:
        ratios: one ratio per round, `[rounds]`.

    Returns:
        The median with its 95 % interval.
    """
    rng = np.random.default_rng(0)
    samples = rng.choice(ratios, (RESAMPLES, len(ratios)))
    low, high = np.percentile(np.median(samples, axis=1), (2.5, 97.5))
    return MedianInterval(float(np.median(ratios)), float(low), float(high))


def time_cores(function: Callable[[], Any]) -> float:
    """Time a call until its arrays are computed, in seconds of all cores.

    Args:
        function: a function without arguments; its result may contain JAX arrays.

    Returns:
        Processor seconds of this process.
    """
    start = time.process_time()
    jax.block_until_ready(function())
    return time.process_time() - start
