"""Rows that have ended leave, and the others go on in a loop of fewer rows.

Side by side, a row that has ended costs what it did before. So a loop comes back when
no more rows are left than the next smaller power of two, and those move there: under
guarded and exact numerics, whose texts do not depend on what a row is computed with.

A smaller loop has to be compiled once. That is done when rows that had ended have cost
as many seconds as this loop took to make (so at worst twice what hindsight had spent),
and at no cost where the loop is at hand, in memory or on disk.
"""

import dataclasses
import time
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxdave.decode import DecodeState, Program
from jaxdave.executables import Wanted, at_hand, compiled
from jaxdave.result import Told, told
from jaxdave.shelf import on_first_device
from jaxdave.terms import Terms, hosted
from jaxdave.tune import terms_for


class Loop(NamedTuple):
    """A compiled loop of so many rows.

    run(params, terms, state) -> state; fresh(terms) -> a state of probe prompts;
    shapes: what `run` was compiled for.
    """

    program: Program
    rows: int
    run: Callable[..., DecodeState]
    terms: Terms
    fresh: Callable[[Terms], DecodeState]
    shapes: tuple[Any, ...]


@dataclasses.dataclass
class Spent:
    """Seconds that making a loop took, and that rows which had ended have cost it.

    likes: shapes of its state with fewer rows; telling them takes as long as a call.
    """

    made: float = 0.0
    idle: float = 0.0
    likes: dict[int, DecodeState] = dataclasses.field(default_factory=dict)


BOOK: weakref.WeakKeyDictionary[Program, dict[Any, Spent]] = weakref.WeakKeyDictionary()


def spent(loop: Loop) -> Spent:
    """What is on record of a loop."""
    return BOOK.setdefault(loop.program, {}).setdefault(
        (loop.rows, loop.shapes), Spent()
    )


def to_the_end(loop: Loop, params: Any, state: DecodeState) -> tuple[Told, float]:
    """All rows at their end, on the host, and the seconds spent on making loops."""
    fewest = below(loop, params)
    state, rows = _until(loop, params, state, fewest)
    live_R = np.flatnonzero(~rows.done)
    if not 0 < live_R.size <= fewest:
        return rows, 0.0
    count = 1 << (live_R.size - 1).bit_length()
    found = _smaller(loop, params, state, count)
    if found is None:
        start = time.perf_counter()
        rows = _until(loop, params, state, 0)[1]
        idle = (time.perf_counter() - start) * (1 - live_R.size / loop.rows)
        spent(loop).idle += idle
        return rows, 0.0
    # What is left of the smaller loop's room is taken by a row that has ended.
    ended = np.flatnonzero(rows.done)[0]
    index_R = np.full(count, ended, np.int32)
    index_R[: live_R.size] = live_R
    moved = found.take(state, hosted(index_R))
    others, seconds = to_the_end(found.loop, params, moved)
    return _put(rows, others, index_R), found.seconds + seconds


def below(loop: Loop, params: Any) -> int:
    """How few rows must be left for a smaller loop to do; 0: there is none."""
    program, rows = loop.program, loop.rows
    if rows == 1 or not on_first_device(params):
        return 0
    if program.guarded:
        return (1 << (rows - 1).bit_length()) // 2
    # Rows that go one after another cost nothing once they have ended; but one alone is
    # twice as fast as one among them.
    return 1 if program.exact else 0


def _fetched(state: DecodeState) -> Told:
    """What is read of a state's rows, on the host, with their axis."""
    rows = jax.device_get(told(state.rows))
    return jax.tree.map(lambda a: a[None], rows) if state.is_one else rows


def _until(loop: Loop, params, state: DecodeState, fewest: int):
    """The state when no more than so many rows are left, and its rows on the host."""
    terms = loop.terms._replace(fewest=hosted(np.int32(fewest)))
    state = loop.run(params, terms, state)
    return state, _fetched(state)


class _Smaller(NamedTuple):
    """A loop of fewer rows, what moves rows there, and the seconds spent on both."""

    loop: Loop
    take: Callable[..., DecodeState]
    seconds: float


def _smaller(loop: Loop, params, state: DecodeState, count: int) -> _Smaller | None:
    """The loop for so many rows, if it is at hand or worth to be made."""
    program, index = loop.program, hosted(np.zeros(count, np.int32))
    book = spent(loop)
    if count not in book.likes:
        book.likes[count] = jax.eval_shape(_taken, state, index)
    args = params, loop.terms, book.likes[count]
    wanted = Wanted(program, "run", program.run, args, donate=2)
    if book.idle < book.made and not at_hand(wanted):
        return None
    take, taking = compiled(Wanted(program, f"take {count}", _taken, (state, index)))
    run, running = compiled(wanted)

    def fresh(terms: Terms) -> DecodeState:
        return take(loop.fresh(terms), index)

    shapes = (*loop.shapes, count)
    terms, measuring = terms_for(program, loop.terms, run, params, fresh, shapes)
    # What the larger loop has left behind is as far off as its calls were.
    doubt = jax.tree.map(np.maximum, loop.terms.doubt, terms.doubt)
    smaller = Loop(program, count, run, terms._replace(doubt=doubt), fresh, shapes)
    seconds = taking + running + measuring
    spent(smaller).made = max(spent(smaller).made, seconds)
    return _Smaller(smaller, take, seconds)


def _taken(state: DecodeState, index_R: jax.Array) -> DecodeState:
    """Some rows of a state; one row alone has no axis."""
    rows = jax.tree.map(lambda a: a[index_R], state.rows)
    some = DecodeState(rows, jax.tree.map(lambda a: a[:, index_R], state.cache))
    return some.alone() if index_R.shape == (1,) else some


def _put(rows: Told, others: Told, index_R: np.ndarray) -> Told:
    """Rows with some of them replaced."""

    def put(a, b):
        made = np.array(a)
        made[index_R] = b
        return made

    return jax.tree.map(put, rows, others)
