"""Compiled programs, each made once in a process, and once on a machine if need be."""

import collections
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax

from jaxdave.runtime import program_cache
from jaxdave.runtime.platform import compiler_options

MAX_EXECUTABLES, MIN_EXECUTABLES = 128, 8
"""Executables that a process keeps, the latest ones: at most, and in any case."""
MAX_MEMORY_MAPS = 40_000
"""Memory maps of a process past which it keeps fewer. An executable holds hundreds, and
Linux allows 65,530 by default."""

EXTRA_OPTIONS: dict[str, Any] = {}
"""Options of the compiler; tests of logic compile with less care."""

EXECUTABLES: collections.OrderedDict[Any, Any] = collections.OrderedDict()
NOT_ON_DISK: set[Any] = set()
"""Programs that were looked for on disk and not found."""


def compile_options() -> dict[str, Any]:
    """The options of the compiler on this machine, and those set by hand."""
    return compiler_options() | EXTRA_OPTIONS


def clear_executables() -> None:
    """Let go of every compiled program; the next decode compiles anew."""
    EXECUTABLES.clear()
    NOT_ON_DISK.clear()


class CompileRequest(NamedTuple):
    """A program: whose function it is and which (equal ones are the same function), the
    function, its arguments or such as they will be, and which of them it may use up."""

    owner: Any
    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    donate: int | None = None


def get_executable(wanted: CompileRequest) -> tuple[Any, float]:
    """The executable, and the seconds spent on getting it now; 0 if it was here."""
    start = time.perf_counter()
    making, is_new = _start(wanted)
    return making.made.result(), _elapsed(start, is_new)


def is_available(wanted: CompileRequest) -> bool:
    """Whether this process or an earlier one has made a program; the disk is asked
    once."""
    key = _cache_key(wanted)
    if key in EXECUTABLES and not _has_failed(EXECUTABLES[key].made):
        return True
    if key in NOT_ON_DISK:
        return False
    name = program_cache.program_key(
        wanted.function, wanted.donate, compile_options(), wanted.args
    )
    found = name is not None and program_cache.contains(name)
    if not found:
        if len(NOT_ON_DISK) >= MAX_EXECUTABLES:
            NOT_ON_DISK.clear()
        NOT_ON_DISK.add(key)
    return found


def get_executable_pair(
    first: CompileRequest, second_of: Callable[[Any], CompileRequest]
) -> tuple[Any, Any, float]:
    """Two executables, and the seconds spent: the second works on what the first makes.

    second_of(shapes of that) -> Wanted. It is traced while the first is being compiled.
    """
    start = time.perf_counter()
    one, is_first_new = _start(first)
    two, is_second_new = _start(second_of(one.out))
    made = one.made.result(), two.made.result()
    return *made, _elapsed(start, is_first_new or is_second_new)


def _elapsed(start: float, is_new: bool) -> float:
    """Seconds since then; none were spent on what this process had."""
    return time.perf_counter() - start if is_new else 0.0


class _Compilation(NamedTuple):
    """An executable that is here or being made, and the shapes of what it makes."""

    made: "Future[Any]"
    out: Any


def _start(wanted: CompileRequest) -> tuple[_Compilation, bool]:
    """What this process has and False, or what it finds or begins to make and True."""
    key = _cache_key(wanted)
    if key in EXECUTABLES and not _has_failed(EXECUTABLES[key].made):
        EXECUTABLES.move_to_end(key)
        return EXECUTABLES[key], False
    EXECUTABLES[key] = making = _load_or_compile(wanted)
    NOT_ON_DISK.discard(key)
    _evict()
    return making, True


def _cache_key(wanted: CompileRequest) -> tuple[Any, ...]:
    """What tells a program from every other of this process."""
    leaves, tree = jax.tree.flatten(wanted.args)
    shapes = tuple((a.shape, a.dtype, getattr(a, "sharding", None)) for a in leaves)
    return wanted.owner, wanted.name, tree, shapes


def _evict() -> None:
    """Let go of the executables that were made first, if there are too many."""
    if len(EXECUTABLES) > MAX_EXECUTABLES:
        EXECUTABLES.popitem(last=False)
    while len(EXECUTABLES) > MIN_EXECUTABLES and _memory_maps() > MAX_MEMORY_MAPS:
        for _ in range(max(1, len(EXECUTABLES) // 8)):
            EXECUTABLES.popitem(last=False)


def _memory_maps() -> int:
    """Memory maps of this process, where the system tells."""
    try:
        with open("/proc/self/maps", "rb") as lines:
            return sum(1 for _ in lines)
    except OSError:
        return 0


def _load_or_compile(wanted: CompileRequest) -> _Compilation:
    """The executable that an earlier process has kept, or a new one."""
    _, _, function, args, donate = wanted
    label = program_cache.program_key(function, donate, compile_options(), args)
    found = None if label is None else program_cache.load(label, args)
    if found is not None:
        return _Compilation(
            _finished(found), _output_shapes(found.out_info, at_home=True)
        )
    jitted = jax.jit(function, donate_argnums=() if donate is None else donate)
    traced = jitted.trace(*args)
    lowered = traced.lower()

    def make() -> Any:
        made, is_whole = program_cache.compile_serializable(
            lambda: lowered.compile(compile_options())
        )
        if label is not None and is_whole:
            program_cache.store(label, made)
        return made

    if program_cache.is_on_first_device(args):
        # The compiler needs no Python, so that the next program can be traced.
        return _Compilation(
            _COMPILER_THREAD.submit(make), _output_shapes(traced.out_info, at_home=True)
        )
    # Over several devices only the compiled program tells where its results lie.
    made = make()
    return _Compilation(_finished(made), _output_shapes(made.out_info, at_home=False))


_COMPILER_THREAD = ThreadPoolExecutor(1, "compiler")


def _finished(made: Any) -> "Future[Any]":
    future: Future[Any] = Future()
    future.set_result(made)
    return future


def _has_failed(future: "Future[Any]") -> bool:
    return future.done() and future.exception() is not None


def _output_shapes(out: Any, at_home: bool) -> Any:
    """Results as they will be passed on, on the first device or where they lie."""
    return jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(
            a.shape, a.dtype, sharding=None if at_home else a.sharding
        ),
        out,
    )


def memory_analysis(owner: Any, name: str):
    """The `memory_analysis()` of the latest program of that name of an owner.

    None where the backend has none; raises LookupError where there is no such program.
    """
    for (of, called, *_), made in reversed(EXECUTABLES.items()):
        if of is owner and called == name:
            return made.made.result().memory_analysis()
    raise LookupError(f"no program {name!r} of this decoder has been run yet")
