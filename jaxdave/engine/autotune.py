"""Autotuning: what calls cost, and how far their predictions may be off.

Both are facts of one model, device and set of shapes, measured before the first decode.
They are kept on disk beside the compiled programs. Timings that were disturbed, or that
decoding contradicts, are made again (`jaxdave.engine.timing`).

The seconds of a call at each draft length let the loop choose how many drafts pay. The
largest numerical error seen, times a safety factor, is the error bound of guarded
numerics: a decision whose margin is within it is evaluated again.
"""

import dataclasses
import threading
import time
import weakref
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from jaxdave.core.config import Numerics
from jaxdave.core.host_arrays import (
    fetch_arrays,
    host_array,
    largest_of_processes,
)
from jaxdave.core.prediction import ErrorBound
from jaxdave.core.spec import DecodeSpec
from jaxdave.core.state import DecodeState, RuntimeParams
from jaxdave.engine import measurements as measurements_on_disk
from jaxdave.engine import timing
from jaxdave.engine.measurements import Measurements
from jaxdave.engine.placement import placement_of
from jaxdave.engine.timing import NewStateFn, RunFn, SeenDecode
from jaxdave.runtime.compilation import CompileRequest, get_executable
from jaxdave.runtime.fingerprint import fingerprint
from jaxdave.runtime.phases import begin_phase

SAFETY_FACTOR = 8.0
"""The error bound is so many times the largest error that was seen."""
MIN_ERROR_BOUND = 1e-5
"""Log-odds; the bound is never smaller, however equal the numbers were."""
CHECKED_ROUNDS = 12
"""Rounds for each draft length in which every decision is made twice."""
CONTRADICTIONS = 3
"""Decodes in a row that must take longer than measured: a busy spell passes."""
MAX_CHECKS = 3
"""Times that a process measures again because of what decoding sees."""
SAMPLED_VALUES = 64
"""Values of every weight by which models are told apart."""


MEASUREMENTS: dict[Any, tuple[tuple[weakref.ref, ...], Measurements]] = {}
"""Of this process, beside weak references to the parameters that they are of."""
_TABLE_LOCK = threading.Lock()
_MEASURING_LOCK = threading.Lock()
"""Held while measuring: two threads would disturb each other's timings. Decodes that
are measured already do not wait for it."""


def tuned_params(
    spec: DecodeSpec,
    runtime: RuntimeParams,
    run: RunFn,
    params: Any,
    new_state: NewStateFn,
    shapes: Any,
) -> tuple[RuntimeParams, float]:
    """Runtime parameters with measured call times and error bound.

    Costs nothing where nothing has to be measured.

    Args:
        spec: What is decoded.
        runtime: Parameters to complete.
        run: The compiled loop.
        params: The model's parameters.
        new_state: runtime -> a new state of probe prompts for the loop.
        shapes: What tells the shapes that both were compiled for.

    Returns:
        (the parameters, seconds spent on measuring just now).
    """
    if spec.numerics is not Numerics.GUARDED and len(spec.draft_steps) == 1:
        return runtime, 0.0
    # Reached only where there is a draft length to choose, or an error to bound.
    measurements, seconds = _measured(spec, run, params, new_state, shapes)

    def bound(error: float) -> jax.Array:
        return host_array(np.float32(max(SAFETY_FACTOR * error, MIN_ERROR_BOUND)))

    runtime = runtime._replace(
        error_bound=ErrorBound(*map(bound, measurements.error)),
        seconds_Z=host_array(np.asarray(measurements.seconds, np.float32)),
    )
    return runtime, seconds


def measure(
    spec: DecodeSpec,
    run: RunFn,
    params: Any,
    new_state: NewStateFn,
    max_repeats: int = timing.MAX_REPEATS,
) -> Measurements:
    """Measure seconds per call for every draft length, and the largest error.

    For the error the bound is infinite, so that every decision is computed again in the
    trusted shape and compared: once from a freshly prefilled cache, and once from one
    that ordinary calls have filled, as its entries carry their errors.

    Args:
        spec: What is decoded.
        run: The compiled loop.
        params: The model's parameters.
        new_state: runtime -> a new state of probe prompts for the loop.
        max_repeats: Timings of each length at most.

    Returns:
        The measurements; errors are 0 unless numerics are guarded.
    """
    error = np.zeros(len(ErrorBound._fields))
    # No lead exceeds an infinite bound: no decision is certain, and each is rechecked.
    check_all = ErrorBound.uniform(host_array(np.float32(np.inf)))

    def find_errors(index: int, filled: DecodeState) -> None:
        nonlocal error
        if spec.numerics is not Numerics.GUARDED:
            return
        checked = timing.forced_runtime(spec, index, CHECKED_ROUNDS)
        checked = checked._replace(error_bound=check_all)
        # `filled` comes out of a timing run, in
        # which fast calls have written its cache.
        for state in (new_state(checked), filled):
            observed = run(params, checked, state).rows.stats.error
            largest = [np.max(field) for field in fetch_arrays(observed)]
            error = np.maximum(error, largest)

    timed = timing.time_lengths(spec, run, params, new_state, find_errors, max_repeats)
    return Measurements(error=tuple(error.tolist()), **timed._asdict())


def sample_weights(params: Any) -> list[np.ndarray]:
    """A few values of every weight, by which models of equal shapes are told apart.

    Args:
        params: A model's parameters, in any layout.

    Returns:
        Arrays on the host, the first `SAMPLED_VALUES` values of each leaf.
    """
    # Of a mesh, what its first device has tells models apart as well.
    params = jax.tree.map(_first_part, params)
    # Through the program cache: under a plain
    # `jit` each process would compile it again.
    request = CompileRequest(None, "sample", _first_values, (params,))
    return jax.device_get(get_executable(request)[0](params))


def _first_values(params: Any) -> list[jax.Array]:
    return [leaf.reshape(-1)[:SAMPLED_VALUES] for leaf in jax.tree.leaves(params)]


def _first_part(leaf: Any) -> Any:
    """What the first device of a mesh has of an array."""
    is_on_mesh = isinstance(getattr(leaf, "sharding", None), NamedSharding)
    return leaf.addressable_shards[0].data if is_on_mesh else leaf


def _measured(
    spec: DecodeSpec, run: RunFn, params: Any, new_state: NewStateFn, shapes: Any
) -> tuple[Measurements, float]:
    """Measurements from this process, the disk or the device, and the seconds spent."""
    leaves = jax.tree.leaves(params)
    key = _key(spec, shapes, leaves)
    measurements = _known_measurements(key, leaves)
    if measurements is not None and not _must_check(key):
        return measurements, 0.0
    start = time.perf_counter()
    with _MEASURING_LOCK:
        # Another thread may have measured the same while this one waited.
        measurements = _known_measurements(key, leaves)
        direction = _take_check(key)
        if measurements is None or direction:
            is_shared = placement_of(params).spans_processes
            name = None if is_shared else _measurement_key(spec, params, shapes)
            old = measurements or measurements_on_disk.read(name, len(spec.draft_steps))
            measurements = old
            if is_shared and old is None:
                measurements = _measure_together(spec, run, params, new_state)
            elif old is None:
                begin_phase("measuring what calls cost")
                measurements = measure(spec, run, params, new_state)
            elif direction or timing.is_doubted(old):
                # As briefly as can be: what is noisy now as well is kept in doubt.
                new = timing.time_lengths(
                    spec, run, params, new_state, max_repeats=timing.REPEATS
                )
                measurements = timing.merged(old, new, is_too_fast=direction > 0)
            assert measurements is not None
            if measurements != old:
                measurements_on_disk.write(name, measurements)
            with _TABLE_LOCK:
                MEASUREMENTS[key] = tuple(map(weakref.ref, leaves)), measurements
    return measurements, time.perf_counter() - start


def _measure_together(
    spec: DecodeSpec, run: RunFn, params: Any, new_state: NewStateFn
) -> Measurements:
    """`measure` by processes that decode together, each with the same outcome."""
    # Equally often in all of them, whatever each one's clock says: every run of a
    # program waits for the others.
    found = measure(spec, run, params, new_state, max_repeats=timing.REPEATS)
    prefill, spread = largest_of_processes([found.prefill, found.spread]).tolist()
    return Measurements(
        seconds=tuple(largest_of_processes(found.seconds).tolist()),
        error=tuple(largest_of_processes(found.error).tolist()),
        prefill=prefill,
        spread=spread,
    )


def observe(spec: DecodeSpec, params: Any, shapes: Any, seen: SeenDecode) -> None:
    """Compare a decode with what was measured; what it contradicts is measured again.

    That is done by the next decode of these shapes, before it begins.

    Args:
        spec: What was decoded.
        params: The model's parameters.
        shapes: As for `tuned_params`.
        seen: The decode.
    """
    if len(spec.draft_steps) == 1 or placement_of(params).spans_processes:
        return  # nothing is chosen by it, or each process has seen other seconds
    leaves = jax.tree.leaves(params)
    key = _key(spec, shapes, leaves)
    measurements = _known_measurements(key, leaves)
    if measurements is None:
        return
    direction = timing.contradiction(measurements, seen)
    with _TABLE_LOCK:
        check = _CHECKS.setdefault(key, _Check())
        check.slower = check.slower + 1 if direction > 0 else 0
        # Nothing makes a call faster than it is, but much makes it slower.
        if check.count < MAX_CHECKS:
            is_due = direction < 0 or check.slower >= CONTRADICTIONS
            check.direction = direction if is_due else 0


@dataclasses.dataclass
class _Check:
    """What decoding has seen of a measurement.

    Attributes:
        slower: Decodes in a row that took longer than it allows.
        direction: As of `timing.contradiction`, if it must be measured again.
        count: Times that it was measured again.
    """

    slower: int = 0
    direction: int = 0
    count: int = 0


_CHECKS: dict[Any, _Check] = {}


def _must_check(key: Any) -> bool:
    check = _CHECKS.get(key)
    return check is not None and check.direction != 0


def _take_check(key: Any) -> int:
    """The direction in which a measurement is contradicted, which is dealt with now."""
    with _TABLE_LOCK:
        check = _CHECKS.get(key)
        if check is None or not check.direction:
            return 0
        direction = check.direction
        check.slower, check.direction, check.count = 0, 0, check.count + 1
        return direction


def _key(spec: DecodeSpec, shapes: Any, leaves: list[Any]) -> Any:
    """What a measurement is found by inside a process."""
    # Parameters are told apart by identity, which costs nothing;
    # `_known_measurements` makes sure that the identities are still theirs.
    return spec, shapes, tuple(map(id, leaves))


def _known_measurements(key: Any, leaves: list[Any]) -> Measurements | None:
    """What this process has measured of these very parameters."""
    with _TABLE_LOCK:
        references, measurements = MEASUREMENTS.get(key, ((), None))
    if measurements is None:
        return None
    # A parameter that is gone may have left its id to another one.
    pairs = zip(references, leaves, strict=True)
    return measurements if all(ref() is leaf for ref, leaf in pairs) else None


def _measurement_key(spec: DecodeSpec, params: Any, shapes: Any) -> str | None:
    """A name for all that a measurement depends on; None where it cannot be named."""
    if not measurements_on_disk.is_kept():
        return None
    # Shapes and shardings are those of the device
    # layout, which decides how fast calls are.
    layout = [
        (leaf.shape, str(leaf.dtype), str(getattr(leaf, "sharding", None)))
        for leaf in jax.tree.leaves(params)
    ]
    return fingerprint(spec, shapes, sample_weights(params), layout)
