"""Compiled programs, each made once in a process."""

import collections
import time
from typing import Any

import jax

MOST_EXECUTABLES = 128
"""Executables that a process keeps, the latest ones. Each holds hundreds of memory maps
on Linux, where a process may hold 65,530 by default."""

KEPT: collections.OrderedDict[Any, Any] = collections.OrderedDict()


def forget_executables() -> None:
    """Let go of every compiled program; the next decode compiles anew."""
    KEPT.clear()


def compiled(owner: Any, name: str, function, args, donate: int | None = None):
    """The executable for these shapes, and the seconds spent on making it now.

    owner, name: whose function it is, and which; equal ones are the same function.
    """
    leaves, tree = jax.tree.flatten(args)
    shapes = tuple((a.shape, a.dtype, getattr(a, "sharding", None)) for a in leaves)
    key = (owner, name, tree, shapes)
    if key in KEPT:
        KEPT.move_to_end(key)
        return KEPT[key], 0.0
    start = time.perf_counter()
    jitted = jax.jit(function, donate_argnums=() if donate is None else donate)
    KEPT[key] = jitted.lower(*args).compile()
    if len(KEPT) > MOST_EXECUTABLES:
        KEPT.popitem(last=False)
    return KEPT[key], time.perf_counter() - start


def analysed(owner: Any, name: str):
    """The `memory_analysis()` of the latest program of that name of an owner.

    None where the backend has none; raises LookupError where there is no such program.
    """
    for (of, called, *_), made in reversed(KEPT.items()):
        if of is owner and called == name:
            return made.memory_analysis()
    raise LookupError(f"no program {name!r} of this decoder has been run yet")
