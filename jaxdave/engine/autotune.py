"""What is measured before a decode: how long its calls take, and how far they are off.

Both are facts of one model, device and set of shapes. They are kept on disk beside the
compiled programs, and asked for once in a process.
"""

import json
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxdave.core.prediction import ErrorBound
from jaxdave.core.spec import DecodeSpec
from jaxdave.core.state import DecodeState, RuntimeParams, host_array
from jaxdave.runtime.compilation import CompileRequest, get_executable
from jaxdave.runtime.files import cache_folder, replace_file
from jaxdave.runtime.fingerprint import fingerprint

SAFETY_FACTOR = 8.0
"""A decision is doubted within so many times the largest difference that was seen."""
MIN_ERROR_BOUND = 1e-5
"""Log-odds; no fewer, however equal the numbers were."""
CHECKED_ROUNDS = 12
"""Rounds per size in which every decision is made twice: from a fresh cache, and again
from one that calls have filled."""
TIMED_ROUNDS = 6
"""Rounds per timing; the fastest of `REPEATS` counts."""
REPEATS = 3
MEASUREMENT_FOLDER = "measured"
SAMPLED = 64

RunFn = Callable[[Any, RuntimeParams, DecodeState], DecodeState]
FreshStateFn = Callable[[RuntimeParams], DecodeState]


class Measurements(NamedTuple):
    """Seconds of a round by size; the largest differences, in the order of `Doubt`."""

    seconds: tuple[float, ...]
    error: tuple[float, ...]


MEASUREMENTS: dict[Any, tuple[tuple[weakref.ref, ...], Measurements]] = {}


def tuned_params(
    spec: DecodeSpec,
    runtime: RuntimeParams,
    run: RunFn,
    params,
    fresh: FreshStateFn,
    shapes,
) -> tuple[RuntimeParams, float]:
    """The terms of a decode, and the seconds spent on measuring what was not known.

    run: the compiled loop; fresh(terms) -> a new state of probe prompts for it; shapes:
    what both were compiled for. Costs nothing where nothing has to be measured.
    """
    if not spec.guarded and len(spec.draft_lengths) == 1:
        return runtime, 0.0
    found, seconds = _measured(spec, run, params, fresh, shapes)

    def bound(seen: float) -> jax.Array:
        return host_array(np.float32(max(SAFETY_FACTOR * seen, MIN_ERROR_BOUND)))

    told = runtime._replace(
        error_bound=ErrorBound(*map(bound, found.error)),
        seconds_Z=host_array(np.asarray(found.seconds, np.float32)),
    )
    return told, seconds


def measure(spec: DecodeSpec, run: RunFn, params, fresh: FreshStateFn) -> Measurements:
    """Time calls of every size, and let decisions be made twice for a while.

    At first every decision is; then those after some that nobody looked at, so that
    what earlier calls have left in the cache is as they made it.
    """
    seconds, error = [], np.zeros(len(ErrorBound._fields))
    always = ErrorBound.every(host_array(np.float32(np.inf)))
    for size in range(len(spec.draft_lengths)):
        runtime = spec.runtime(spec.max_drafts)._replace(
            forced_index=host_array(np.int32(size))
        )
        timed = runtime._replace(max_calls=host_array(np.int32(TIMED_ROUNDS)))
        spent, later = _time_rounds(run, params, timed, fresh)
        seconds.append(spent / TIMED_ROUNDS)
        if spec.guarded:
            checked = runtime._replace(
                max_calls=host_array(np.int32(CHECKED_ROUNDS)), error_bound=always
            )
            for state in (fresh(checked), later):
                seen = jax.device_get(run(params, checked, state).rows.stats.error)
                error = np.maximum(error, [np.max(one) for one in seen])
    return Measurements(tuple(seconds), tuple(error.tolist()))


def _time_rounds(
    run: RunFn, params, runtime: RuntimeParams, fresh: FreshStateFn
) -> tuple[float, DecodeState]:
    """The least time of a run of some rounds, and the state after it."""
    times = []
    for _ in range(REPEATS):
        state = jax.block_until_ready(fresh(runtime))
        start = time.perf_counter()
        state = jax.block_until_ready(run(params, runtime, state))
        times.append(time.perf_counter() - start)
    return min(times), state


def _measured(spec: DecodeSpec, run: RunFn, params, fresh: FreshStateFn, shapes):
    """What was measured, and the seconds that it took just now."""
    leaves = jax.tree.leaves(params)
    key = spec, shapes, tuple(map(id, leaves))
    if key in MEASUREMENTS:
        held, made = MEASUREMENTS[key]
        # What has been let go of may have left its id to another.
        if all(ref() is leaf for ref, leaf in zip(held, leaves, strict=True)):
            return made, 0.0
    start = time.perf_counter()
    name = _measurement_key(spec, params, shapes)
    made = _read_measurements(name)
    if made is None:
        made = measure(spec, run, params, fresh)
        _write_measurements(name, made)
    MEASUREMENTS[key] = tuple(map(weakref.ref, leaves)), made
    return made, time.perf_counter() - start


def _measurement_key(spec: DecodeSpec, params, shapes) -> str | None:
    """A name for all that a measurement depends on; None where that has none."""
    if cache_folder(MEASUREMENT_FOLDER) is None:
        return None
    lying = [(a.shape, str(a.dtype), str(getattr(a, "sharding", None)))
             for a in jax.tree.leaves(params)]  # fmt: skip
    return fingerprint(spec, shapes, sample_weights(params), lying)


def sample_weights(params: Any) -> list[np.ndarray]:
    """A few of every weight, by which models are told apart."""
    first, _ = get_executable(CompileRequest(None, "sample", _first_values, (params,)))
    return jax.device_get(first(params))


def _first_values(params) -> list[jax.Array]:
    return [leaf.reshape(-1)[:SAMPLED] for leaf in jax.tree.leaves(params)]


def _read_measurements(name: str | None) -> Measurements | None:
    path = _measurement_path(name)
    if path is None or not path.exists():
        return None
    try:
        raw = json.loads(path.read_text())
        if len(raw["error"]) != len(ErrorBound._fields):
            return None  # of another version
        return Measurements(tuple(raw["seconds"]), tuple(raw["error"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None  # what is broken is measured anew


def _write_measurements(name: str | None, made: Measurements) -> None:
    path = _measurement_path(name)
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, json.dumps(made._asdict()).encode())
    except OSError:
        return  # a home that cannot be written to costs time, not the answer


def _measurement_path(name: str | None) -> Path | None:
    folder = None if name is None else cache_folder(MEASUREMENT_FOLDER)
    return None if folder is None else folder / f"{name}.json"
