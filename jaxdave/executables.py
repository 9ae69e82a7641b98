"""Compiled programs, each made once in a process, and once on a machine if need be."""

import collections
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax

from jaxdave import shelf
from jaxdave.backend import compiler_options

MOST_EXECUTABLES, LEAST_EXECUTABLES = 128, 8
"""Executables that a process keeps, the latest ones: at most, and in any case."""
MOST_MAPS = 40_000
"""Memory maps of a process past which it keeps fewer. An executable holds hundreds, and
Linux allows 65,530 by default."""

OPTIONS: dict[str, Any] = {}
"""Options of the compiler; tests of logic compile with less care."""

KEPT: collections.OrderedDict[Any, Any] = collections.OrderedDict()
MISSED: set[Any] = set()
"""Programs that were looked for on disk and not found."""


def options() -> dict[str, Any]:
    """The options of the compiler on this machine, and those set by hand."""
    return compiler_options() | OPTIONS


def forget_executables() -> None:
    """Let go of every compiled program; the next decode compiles anew."""
    KEPT.clear()
    MISSED.clear()


class Wanted(NamedTuple):
    """A program: whose function it is and which (equal ones are the same function), the
    function, its arguments or such as they will be, and which of them it may use up."""

    owner: Any
    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    donate: int | None = None


def compiled(wanted: Wanted) -> tuple[Any, float]:
    """The executable, and the seconds spent on getting it now; 0 if it was here."""
    start = time.perf_counter()
    making, is_new = _begun(wanted)
    return making.made.result(), _spent(start, is_new)


def at_hand(wanted: Wanted) -> bool:
    """Whether this process or an earlier one has made a program; the disk is asked
    once."""
    key = _key(wanted)
    if key in KEPT and not _has_failed(KEPT[key].made):
        return True
    if key in MISSED:
        return False
    name = shelf.label(wanted.function, wanted.donate, options(), wanted.args)
    found = name is not None and shelf.has(name)
    if not found:
        if len(MISSED) >= MOST_EXECUTABLES:
            MISSED.clear()
        MISSED.add(key)
    return found


def compiled_in_turn(
    first: Wanted, second_of: Callable[[Any], Wanted]
) -> tuple[Any, Any, float]:
    """Two executables, and the seconds spent: the second works on what the first makes.

    second_of(shapes of that) -> Wanted. It is traced while the first is being compiled.
    """
    start = time.perf_counter()
    one, is_first_new = _begun(first)
    two, is_second_new = _begun(second_of(one.out))
    made = one.made.result(), two.made.result()
    return *made, _spent(start, is_first_new or is_second_new)


def _spent(start: float, is_new: bool) -> float:
    """Seconds since then; none were spent on what this process had."""
    return time.perf_counter() - start if is_new else 0.0


class _Making(NamedTuple):
    """An executable that is here or being made, and the shapes of what it makes."""

    made: "Future[Any]"
    out: Any


def _begun(wanted: Wanted) -> tuple[_Making, bool]:
    """What this process has and False, or what it finds or begins to make and True."""
    key = _key(wanted)
    if key in KEPT and not _has_failed(KEPT[key].made):
        KEPT.move_to_end(key)
        return KEPT[key], False
    KEPT[key] = making = _found(wanted)
    MISSED.discard(key)
    _make_room()
    return making, True


def _key(wanted: Wanted) -> tuple[Any, ...]:
    """What tells a program from every other of this process."""
    leaves, tree = jax.tree.flatten(wanted.args)
    shapes = tuple((a.shape, a.dtype, getattr(a, "sharding", None)) for a in leaves)
    return wanted.owner, wanted.name, tree, shapes


def _make_room() -> None:
    """Let go of the executables that were made first, if there are too many."""
    if len(KEPT) > MOST_EXECUTABLES:
        KEPT.popitem(last=False)
    while len(KEPT) > LEAST_EXECUTABLES and _maps() > MOST_MAPS:
        for _ in range(max(1, len(KEPT) // 8)):
            KEPT.popitem(last=False)


def _maps() -> int:
    """Memory maps of this process, where the system tells."""
    try:
        with open("/proc/self/maps", "rb") as lines:
            return sum(1 for _ in lines)
    except OSError:
        return 0


def _found(wanted: Wanted) -> _Making:
    """The executable that an earlier process has kept, or a new one."""
    _, _, function, args, donate = wanted
    label = shelf.label(function, donate, options(), args)
    found = None if label is None else shelf.take(label, args)
    if found is not None:
        return _Making(_done(found), _shapes(found.out_info, at_home=True))
    jitted = jax.jit(function, donate_argnums=() if donate is None else donate)
    traced = jitted.trace(*args)
    lowered = traced.lower()

    def make() -> Any:
        made, is_whole = shelf.whole(lambda: lowered.compile(options()))
        if label is not None and is_whole:
            shelf.put(label, made)
        return made

    if shelf.on_first_device(args):
        # The compiler needs no Python, so that the next program can be traced.
        return _Making(COMPILING.submit(make), _shapes(traced.out_info, at_home=True))
    # Over several devices only the compiled program tells where its results lie.
    made = make()
    return _Making(_done(made), _shapes(made.out_info, at_home=False))


COMPILING = ThreadPoolExecutor(1, "compiler")


def _done(made: Any) -> "Future[Any]":
    future: Future[Any] = Future()
    future.set_result(made)
    return future


def _has_failed(future: "Future[Any]") -> bool:
    return future.done() and future.exception() is not None


def _shapes(out: Any, at_home: bool) -> Any:
    """Results as they will be passed on, on the first device or where they lie."""
    return jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(
            a.shape, a.dtype, sharding=None if at_home else a.sharding
        ),
        out,
    )


def analysed(owner: Any, name: str):
    """The `memory_analysis()` of the latest program of that name of an owner.

    None where the backend has none; raises LookupError where there is no such program.
    """
    for (of, called, *_), made in reversed(KEPT.items()):
        if of is owner and called == name:
            return made.made.result().memory_analysis()
    raise LookupError(f"no program {name!r} of this decoder has been run yet")
