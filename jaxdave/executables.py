"""Compiled programs, each made once in a process, and once on a machine if need be."""

import collections
import time
from typing import Any

import jax

from jaxdave import shelf

MOST_EXECUTABLES = 128
"""Executables that a process keeps, the latest ones. Each holds hundreds of memory maps
on Linux, where a process may hold 65,530 by default."""

OPTIONS: dict[str, Any] = {}
"""Options of the compiler; tests of logic compile with less care."""

KEPT: collections.OrderedDict[Any, Any] = collections.OrderedDict()


def forget_executables() -> None:
    """Let go of every compiled program; the next decode compiles anew."""
    KEPT.clear()


def compiled(owner: Any, name: str, function, args, donate: int | None = None):
    """The executable for these shapes, and the seconds spent on getting it now.

    owner, name: whose function it is, and which; equal ones are the same function.
    """
    leaves, tree = jax.tree.flatten(args)
    shapes = tuple((a.shape, a.dtype, getattr(a, "sharding", None)) for a in leaves)
    key = (owner, name, tree, shapes)
    if key in KEPT:
        KEPT.move_to_end(key)
        return KEPT[key], 0.0
    start = time.perf_counter()
    KEPT[key] = _found(function, args, donate)
    if len(KEPT) > MOST_EXECUTABLES:
        KEPT.popitem(last=False)
    return KEPT[key], time.perf_counter() - start


def _found(function, args, donate: int | None):
    """The executable that an earlier process has kept, or a new one."""
    label = shelf.label(function, donate, OPTIONS, args)
    found = None if label is None else shelf.take(label, args)
    if found is not None:
        return found
    jitted = jax.jit(function, donate_argnums=() if donate is None else donate)
    made, is_whole = shelf.whole(lambda: jitted.lower(*args).compile(OPTIONS))
    if label is not None and is_whole:
        shelf.put(label, made)
    return made


def analysed(owner: Any, name: str):
    """The `memory_analysis()` of the latest program of that name of an owner.

    None where the backend has none; raises LookupError where there is no such program.
    """
    for (of, called, *_), made in reversed(KEPT.items()):
        if of is owner and called == name:
            return made.memory_analysis()
    raise LookupError(f"no program {name!r} of this decoder has been run yet")
