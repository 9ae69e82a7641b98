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

from jaxdave.decode import DecodeState
from jaxdave.executables import Wanted, compiled
from jaxdave.files import cache_folder, replace_file
from jaxdave.signature import signature
from jaxdave.spec import Program
from jaxdave.terms import Terms, hosted
from jaxdave.types import Doubt

SAFETY = 8.0
"""A decision is doubted within so many times the largest difference that was seen."""
LEAST_DOUBT = 1e-5
"""Log-odds; no fewer, however equal the numbers were."""
CHECKED = 12
"""Rounds per size in which every decision is made twice: from a fresh cache, and again
from one that calls have filled."""
TIMED = 6
"""Rounds per timing; the fastest of `REPEATS` counts."""
REPEATS = 3
FOLDER = "measured"
SAMPLED = 64

Run = Callable[[Any, Terms, DecodeState], DecodeState]
Fresh = Callable[[Terms], DecodeState]


class Measured(NamedTuple):
    """Seconds of a round by size; the largest differences, in the order of `Doubt`."""

    seconds: tuple[float, ...]
    error: tuple[float, ...]


KNOWN: dict[Any, tuple[tuple[weakref.ref, ...], Measured]] = {}


def terms_for(
    program: Program, terms: Terms, run: Run, params, fresh: Fresh, shapes
) -> tuple[Terms, float]:
    """The terms of a decode, and the seconds spent on measuring what was not known.

    run: the compiled loop; fresh(terms) -> a new state of probe prompts for it; shapes:
    what both were compiled for. Costs nothing where nothing has to be measured.
    """
    if not program.guarded and len(program.sizes) == 1:
        return terms, 0.0
    found, seconds = _known(program, run, params, fresh, shapes)
    bound = lambda seen: hosted(np.float32(max(SAFETY * seen, LEAST_DOUBT)))  # noqa: E731
    told = terms._replace(
        doubt=Doubt(*map(bound, found.error)),
        seconds_Z=hosted(np.asarray(found.seconds, np.float32)),
    )
    return told, seconds


def measure(program: Program, run: Run, params, fresh: Fresh) -> Measured:
    """Time calls of every size, and let decisions be made twice for a while.

    At first every decision is; then those after some that nobody looked at, so that
    what earlier calls have left in the cache is as they made it.
    """
    seconds, error = [], np.zeros(len(Doubt._fields))
    always = Doubt.every(hosted(np.float32(np.inf)))
    for size in range(len(program.sizes)):
        terms = program.terms(program.most)._replace(forced=hosted(np.int32(size)))
        timed = terms._replace(calls=hosted(np.int32(TIMED)))
        spent, later = _seconds(run, params, timed, fresh)
        seconds.append(spent / TIMED)
        if program.guarded:
            checked = terms._replace(calls=hosted(np.int32(CHECKED)), doubt=always)
            for state in (fresh(checked), later):
                seen = jax.device_get(run(params, checked, state).rows.stats.error)
                error = np.maximum(error, [np.max(one) for one in seen])
    return Measured(tuple(seconds), tuple(error.tolist()))


def _seconds(run: Run, params, terms: Terms, fresh: Fresh) -> tuple[float, DecodeState]:
    """The least time of a run of some rounds, and the state after it."""
    times = []
    for _ in range(REPEATS):
        state = jax.block_until_ready(fresh(terms))
        start = time.perf_counter()
        state = jax.block_until_ready(run(params, terms, state))
        times.append(time.perf_counter() - start)
    return min(times), state


def _known(program: Program, run: Run, params, fresh: Fresh, shapes):
    """What was measured, and the seconds that it took just now."""
    leaves = jax.tree.leaves(params)
    key = program, shapes, tuple(map(id, leaves))
    if key in KNOWN:
        held, made = KNOWN[key]
        # What has been let go of may have left its id to another.
        if all(ref() is leaf for ref, leaf in zip(held, leaves, strict=True)):
            return made, 0.0
    start = time.perf_counter()
    name = _name(program, params, shapes)
    made = _read(name)
    if made is None:
        made = measure(program, run, params, fresh)
        _write(name, made)
    KNOWN[key] = tuple(map(weakref.ref, leaves)), made
    return made, time.perf_counter() - start


def _name(program: Program, params, shapes) -> str | None:
    """A name for all that a measurement depends on; None where that has none."""
    if cache_folder(FOLDER) is None:
        return None
    lying = [(a.shape, str(a.dtype), str(getattr(a, "sharding", None)))
             for a in jax.tree.leaves(params)]  # fmt: skip
    return signature(program, shapes, sample(params), lying)


def sample(params: Any) -> list[np.ndarray]:
    """A few of every weight, by which models are told apart."""
    first, _ = compiled(Wanted(None, "sample", _sample, (params,)))
    return jax.device_get(first(params))


def _sample(params) -> list[jax.Array]:
    return [leaf.reshape(-1)[:SAMPLED] for leaf in jax.tree.leaves(params)]


def _read(name: str | None) -> Measured | None:
    path = _path(name)
    if path is None or not path.exists():
        return None
    try:
        raw = json.loads(path.read_text())
        if len(raw["error"]) != len(Doubt._fields):
            return None  # of another version
        return Measured(tuple(raw["seconds"]), tuple(raw["error"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None  # what is broken is measured anew


def _write(name: str | None, made: Measured) -> None:
    path = _path(name)
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, json.dumps(made._asdict()).encode())
    except OSError:
        return  # a home that cannot be written to costs time, not the answer


def _path(name: str | None) -> Path | None:
    folder = None if name is None else cache_folder(FOLDER)
    return None if folder is None else folder / f"{name}.json"
