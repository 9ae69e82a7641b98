"""Compiled programs: compiled once in a process, or loaded from disk.

`get_executable` traces and compiles a function for the shapes of its arguments.
`get_executable_pair` traces a second program while the first is being compiled. Both
may be called from any thread; a program that several threads ask for is compiled once.
"""

import collections
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax

from jaxdave.runtime import program_cache
from jaxdave.runtime.meshes import MeshProgram
from jaxdave.runtime.phases import begin_phase
from jaxdave.runtime.platform import compiler_options

MAX_EXECUTABLES, MIN_EXECUTABLES = 128, 8
"""Executables that a process keeps, the latest ones: at most, and in any case."""
MAX_MEMORY_MAPS = 40_000
"""Memory maps of a process past which it keeps fewer. An executable takes hundreds, and
Linux allows 65,530 by default."""

LOGGER = logging.getLogger("jaxdave")
_UNKNOWN_OPTION = "No such compile option"

EXTRA_OPTIONS: dict[str, Any] = {}
"""Compiler options that are added to those of the platform. Tests of logic use them to
compile faster."""


class CompileRequest(NamedTuple):
    """A program to be compiled.

    Attributes:
        owner: The object that the program belongs to, compared by equality; None if
            `name` alone identifies the function.
        name: Identifies the function among those of its owner: requests of equal owner
            and name must have the same function.
        function: The function, of pytrees of arrays.
        args: Its positional arguments, as arrays or as `jax.ShapeDtypeStruct`.
        donate: Index of the argument whose buffers the program may reuse for its
            results; None: of none.
    """

    owner: Any
    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    donate: int | None = None


class _Compilation:
    """A program that is compiled or being compiled.

    Attributes:
        executable: Resolves to the compiled program.
        output_shapes: Resolves to the shapes of its results, as soon as it is traced.
    """

    def __init__(self) -> None:
        self.executable: Future[Any] = Future()
        self.output_shapes: Future[Any] = Future()

    @property
    def has_failed(self) -> bool:
        """True once tracing or compiling has raised."""
        return self.executable.done() and self.executable.exception() is not None

    def fail(self, error: BaseException) -> None:
        """Raise an error for all who wait for the program."""
        for future in (self.output_shapes, self.executable):
            if not future.done():
                future.set_exception(error)


class ExecutableCache:
    """The compiled programs of a process, shared by its threads.

    The lock guards the tables only: tracing and compiling run without it, so that
    programs which are there already never wait for one that is not.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: collections.OrderedDict[Any, _Compilation] = (
            collections.OrderedDict()
        )
        self._not_on_disk: set[Any] = set()

    def __len__(self) -> int:
        """The number of programs, those being compiled included."""
        with self._lock:
            return len(self._entries)

    def clear(self) -> None:
        """Drop all programs. Those being compiled still reach who waits for them."""
        with self._lock:
            self._entries.clear()
            self._not_on_disk.clear()

    def start(self, request: CompileRequest) -> tuple[_Compilation, bool]:
        """Find a program, or trace it and start to compile it.

        Args:
            request: The program.

        Returns:
            The program, and True if this call has started it.
        """
        key = _request_key(request)
        with self._lock:
            entry = self._find(key)
            if entry is not None:
                self._entries.move_to_end(key)
                return entry, False
            # Entered before it is traced: other threads wait instead of tracing too.
            self._entries[key] = entry = _Compilation()
            self._not_on_disk.discard(key)
            self._evict()
        # Outside of the lock, which other programs must not wait for.
        try:
            _load_or_compile(request, entry)
        except BaseException as error:
            with self._lock:
                # It may have been evicted or cleared
                # meanwhile, and another one be in its place.
                if self._entries.get(key) is entry:
                    del self._entries[key]
            entry.fail(error)
            raise
        return entry, True

    def is_available(self, request: CompileRequest) -> bool:
        """Tell if a program is in memory or on disk.

        Args:
            request: The program.

        Returns:
            True if it is. That it is not on disk is remembered, so the disk is asked
            once.
        """
        key = _request_key(request)
        with self._lock:
            if self._find(key) is not None:
                return True
            if key in self._not_on_disk:
                return False
        name = program_cache.program_key(
            request.function, request.donate, compile_options(), request.args
        )
        is_stored = name is not None and program_cache.contains(name)
        if not is_stored:
            with self._lock:
                if len(self._not_on_disk) >= MAX_EXECUTABLES:
                    self._not_on_disk.clear()
                self._not_on_disk.add(key)
        return is_stored

    def latest(self, owner: Any, name: str) -> Any | None:
        """The executable that was used last of an owner's programs of one name.

        Args:
            owner: The `owner` of its request, the same object.
            name: The `name` of its request.

        Returns:
            The executable, once it is compiled; None if there is none.
        """
        with self._lock:
            entries = list(reversed(self._entries.items()))
        for (key_owner, key_name, *_), entry in entries:
            if key_owner is owner and key_name == name:
                return entry.executable.result()
        return None

    def _find(self, key: Any) -> _Compilation | None:
        """The program of a key; what has failed is compiled again."""
        entry = self._entries.get(key)
        return None if entry is None or entry.has_failed else entry

    def _evict(self) -> None:
        """Drop the programs that were not used for longest, if there are too many."""
        if len(self._entries) > MAX_EXECUTABLES:
            self._entries.popitem(last=False)
        # Dropped by the eighth, as counting the
        # maps reads a file of thousands of lines.
        while len(self._entries) > MIN_EXECUTABLES and _memory_maps() > MAX_MEMORY_MAPS:
            for _ in range(max(1, len(self._entries) // 8)):
                self._entries.popitem(last=False)


EXECUTABLES = ExecutableCache()
"""The programs of this process."""


def compile_options() -> dict[str, Any]:
    """The options of the compiler: those of this platform and `EXTRA_OPTIONS`."""
    return compiler_options() | EXTRA_OPTIONS


def clear_executables() -> None:
    """Drop every compiled program of the process; the next decode compiles anew."""
    EXECUTABLES.clear()


def get_executable(request: CompileRequest) -> tuple[Any, float]:
    """Compile a program, or take it from memory or disk.

    Args:
        request: The program.

    Returns:
        The executable, which is called with arguments of the request's shapes, and the
        seconds that it took to get it; 0 if it was in memory.
    """
    start = time.perf_counter()
    compilation, is_new = EXECUTABLES.start(request)
    return compilation.executable.result(), _elapsed(start, is_new)


def get_executable_pair(
    first: CompileRequest, second_of: Callable[[Any], CompileRequest]
) -> tuple[Any, Any, float]:
    """Compile two programs, the second of which works on the results of the first.

    The second is traced while the first is being compiled.

    Args:
        first: The first program.
        second_of: Maps the shapes of its results (a pytree of `jax.ShapeDtypeStruct`)
            to the second program.

    Returns:
        The two executables, and the seconds that it took to get them; 0 if both were
        in memory.
    """
    start = time.perf_counter()
    one, is_first_new = EXECUTABLES.start(first)
    two, is_second_new = EXECUTABLES.start(second_of(one.output_shapes.result()))
    executables = one.executable.result(), two.executable.result()
    return *executables, _elapsed(start, is_first_new or is_second_new)


def is_available(request: CompileRequest) -> bool:
    """Tell if a program was compiled before, by this process or by an earlier one.

    Args:
        request: The program.

    Returns:
        True if `get_executable` need not compile. The disk is asked once per program.
    """
    return EXECUTABLES.is_available(request)


def memory_analysis(owner: Any, name: str) -> Any:
    """XLA's memory analysis of a program that has been compiled.

    Args:
        owner: The `owner` of its `CompileRequest`, the same object.
        name: The `name` of its request. Of several, the one used last counts.

    Returns:
        `memory_analysis()` of the executable; None where the backend has none.

    Raises:
        LookupError: There is no such program.
    """
    executable = EXECUTABLES.latest(owner, name)
    if executable is None:
        raise LookupError(f"no program {name!r} of this decoder has been run yet")
    return executable.memory_analysis()


def _elapsed(start: float, is_new: bool) -> float:
    """Seconds since `start`; 0 for what was in memory."""
    return time.perf_counter() - start if is_new else 0.0


def _request_key(request: CompileRequest) -> tuple[Any, ...]:
    """The identity of a program in this process."""
    # Shapes and dtypes as `jax.jit` tells calls apart, and shardings: an executable
    # accepts its arguments only where it was compiled to find them.
    leaves, tree = jax.tree.flatten(request.args)
    shapes = tuple((a.shape, a.dtype, getattr(a, "sharding", None)) for a in leaves)
    return request.owner, request.name, tree, shapes


def _memory_maps() -> int:
    """The number of memory maps of this process; 0 where the system does not tell."""
    try:
        with open("/proc/self/maps", "rb") as lines:
            return sum(1 for _ in lines)
    except OSError:
        return 0


_COMPILER_THREAD = ThreadPoolExecutor(1, "compiler")


def _load_or_compile(request: CompileRequest, entry: _Compilation) -> None:
    """Load a program that an earlier process has stored, or trace and compile it."""
    _, _, function, args, donate = request
    # 1. From disk: neither traced nor compiled, and nothing to store.
    name = program_cache.program_key(function, donate, compile_options(), args)
    stored = None if name is None else program_cache.load(name)
    if stored is not None:
        entry.output_shapes.set_result(_shapes_of(stored.out_info, on_first=True))
        entry.executable.set_result(stored)
        return
    # 2. Trace and lower. That is Python, and takes the interpreter's lock in any case.
    begin_phase(f"compiling '{request.name}' (kept for later runs)")
    jitted = jax.jit(function, donate_argnums=() if donate is None else donate)
    traced = jitted.trace(*args)
    lowered = traced.lower()
    # Read here: in the compiler's thread they could be those of a later moment.
    options = compile_options()

    def compile_and_store() -> Any:
        executable, is_whole = program_cache.compile_serializable(
            lambda: _compile(lowered, options)
        )
        if name is not None and is_whole:
            program_cache.store(name, executable, function)
        return executable

    # 3. Compile, in a thread of its own where
    # the shapes of the results are known before.
    if program_cache.is_on_first_device(args) or isinstance(function, MeshProgram):
        # The compiler needs no Python, so that the next program can be traced.
        entry.output_shapes.set_result(_shapes_of(traced.out_info, on_first=True))
        _COMPILER_THREAD.submit(_resolve, entry, compile_and_store)
        return
    # On other devices only the compiled program tells where its results lie. Of a mesh
    # the caller knows.
    executable = compile_and_store()
    entry.output_shapes.set_result(_shapes_of(executable.out_info, on_first=False))
    entry.executable.set_result(executable)


def _compile(lowered: Any, options: dict[str, Any]) -> Any:
    """Compile, without the platform's options where XLA no longer knows one of them."""
    try:
        return lowered.compile(options)
    except jax.errors.JaxRuntimeError as error:
        if _UNKNOWN_OPTION not in str(error):
            raise
        LOGGER.warning("compiling without the platform's options: %s", error)
        return lowered.compile({k: v for k, v in options.items() if k in EXTRA_OPTIONS})


def _resolve(entry: _Compilation, compile_and_store: Callable[[], Any]) -> None:
    """Run the compiler, and pass on what it returns or raises."""
    try:
        entry.executable.set_result(compile_and_store())
    except BaseException as error:  # noqa: BLE001
        entry.fail(error)


def _shapes_of(outputs: Any, on_first: bool) -> Any:
    """The shapes of results, on the first device or where the program leaves them."""

    def shape_of(output: Any) -> jax.ShapeDtypeStruct:
        sharding = None if on_first else output.sharding
        return jax.ShapeDtypeStruct(output.shape, output.dtype, sharding=sharding)

    return jax.tree.map(shape_of, outputs)
