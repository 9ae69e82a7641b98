"""Compiled programs on disk, so that the next process neither traces nor compiles.

A file holds one executable, as `jax.experimental.serialize_executable` writes it, under
its `fingerprint`. It is a pickle of machine code, so it is unpickled only if it is, bit
for bit, what this user has written (`jaxdave.runtime.cache_files`).
"""

import contextlib
import functools
import logging
import os
import pickle
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import jax
from jax.experimental import serialize_executable

from jaxdave.runtime.cache_files import (
    keep_latest,
    read_sealed,
    trusted_folder,
    write_sealed,
)
from jaxdave.runtime.fingerprint import fingerprint, warn_not_kept
from jaxdave.runtime.meshes import MeshProgram

LOGGER = logging.getLogger("jaxdave")

PROGRAM_FOLDER = "programs"
"""Folder of the files in the cache folder of jaxdave."""
MAX_FILES = 64
"""Files that are kept, those that were used last. One is a few megabytes."""


def program_key(
    function: Any, donate: int | None, options: dict[str, Any], args: Sequence[Any]
) -> str | None:
    """Name a program on disk.

    Args:
        function: The function that is compiled.
        donate: Index of the argument whose buffers it may reuse; None: of none.
        options: Options of the compiler.
        args: The arguments, as arrays or as `jax.ShapeDtypeStruct`; only their
            shapes, dtypes and tree count, and of a `MeshProgram` where they are.

    Returns:
        The name; None if the program is not kept on disk, because nothing is
        (`trusted_folder`), because it runs neither on the first device alone nor on a
        mesh of this process's devices, or because the function has no fingerprint.
    """
    if trusted_folder(PROGRAM_FOLDER) is None:
        return None
    if isinstance(function, MeshProgram):
        if not set(function.devices) <= set(jax.local_devices()):
            return None  # each process would have a part of it
        mesh, function = function.describe(), function.function
    elif is_on_first_device(args):
        mesh = ""
    else:
        LOGGER.debug(
            "program %s is not kept on disk: its arguments are on several devices, or "
            "not on the first one",
            _function_name(function),
        )
        return None
    # Weak types count, as JAX promotes weakly typed scalars in another way.
    leaves, tree = jax.tree.flatten(args)
    shapes = [(a.shape, str(a.dtype), getattr(a, "weak_type", False)) for a in leaves]
    return fingerprint(function, donate, options, str(tree), shapes, mesh)


def is_on_first_device(args: Any) -> bool:
    """Tell if arrays are on the first device of this process only.

    Args:
        args: A pytree of arrays or `jax.ShapeDtypeStruct`.

    Returns:
        True if every array is there, or will be when it is used because it has no
        sharding yet.
    """
    shardings = (getattr(a, "sharding", None) for a in jax.tree.leaves(args))
    first = {jax.local_devices()[0]}
    return all(s is None or s.device_set == first for s in shardings)


def compile_serializable(compile_fn: Callable[[], Any]) -> tuple[Any, bool]:
    """Compile, and tell if the executable can be stored.

    An executable from JAX's own persistent cache lacks the code that a CPU runs. It
    works in this process, but not after it was serialized.

    Args:
        compile_fn: Returns the executable.

    Returns:
        The executable, and True if the compiler has just made it. While other threads
        compile as well, False is possible for such a one, too.
    """
    # JAX reports a hit only as an event, without saying for which program. If none came
    # in while this one was compiled, it was not a hit.
    hits = _CACHE_HITS.count()
    executable = compile_fn()
    return executable, _CACHE_HITS.count() == hits


class _CacheHitCounter:
    """Counts the programs of this process that came from JAX's persistent cache."""

    EVENT = "/jax/compilation_cache/cache_hits"

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._hits = 0
        self._is_listening = False

    def count(self) -> int:
        """The number of hits since the first call of this method."""
        with self._lock:
            if not self._is_listening:
                jax.monitoring.register_event_listener(self._record)
                self._is_listening = True
            return self._hits

    def _record(self, event: str, **_: Any) -> None:
        if event == self.EVENT:
            with self._lock:
                self._hits += 1


_CACHE_HITS = _CacheHitCounter()


def contains(name: str) -> bool:
    """Tell if an executable is stored.

    Args:
        name: Its `program_key`.

    Returns:
        True if there is a file of that name.
    """
    path = _program_path(name)
    return path is not None and path.exists()


class StoredProgram:
    """An executable from disk, called as a compiled one is.

    It is restored for flat arguments and results, so that it can be loaded before
    anyone knows the trees of the arguments that it will be called with.
    """

    def __init__(self, flat: Any, out_tree: Any) -> None:
        self._flat = flat
        self._out_tree = out_tree

    def __call__(self, *args: Any) -> Any:
        """Run it with arguments of the shapes that it was compiled for."""
        results = self._flat(*jax.tree.leaves(args))
        return jax.tree.unflatten(self._out_tree, results)

    @property
    def out_info(self) -> Any:
        """The shapes of its results."""
        return jax.tree.unflatten(self._out_tree, self._flat.out_info)

    def memory_analysis(self) -> Any:
        """XLA's memory analysis."""
        return self._flat.memory_analysis()


class _Preloads:
    """Programs that a thread loads before they are asked for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._programs: dict[str, Future[StoredProgram | None]] = {}

    def announce(self, names: Sequence[str]) -> list[tuple[str, Future[Any]]]:
        """Enter programs that are about to be loaded; gives what to resolve."""
        with self._lock:
            new = [(name, Future()) for name in names if name not in self._programs]
            self._programs.update(new)
        return new

    def take(self, name: str) -> StoredProgram | None:
        """A program that was announced, once it is loaded; None if it was not."""
        with self._lock:
            future = self._programs.pop(name, None)
        return None if future is None else future.result()

    def drop(self) -> None:
        """Forget what nobody has asked for."""
        with self._lock:
            self._programs.clear()


_PRELOADS = _Preloads()
_USED_NAMES: dict[str, None] = {}


def used_names() -> list[str]:
    """Names of the programs that this process has loaded or stored, in order."""
    return list(_USED_NAMES)


def preload(names: Sequence[str]) -> None:
    """Load executables that will probably be asked for; `load` then waits for them.

    Loading links machine code, which needs no Python: in a thread it goes on beside
    imports and the reading of weights.

    Args:
        names: Their `program_key`s. Those that are not stored are passed over.
    """
    announced = _PRELOADS.announce(names)
    try:
        for name, future in announced:
            future.set_result(_read_program(name))
    finally:
        for _, future in announced:
            if not future.done():
                future.set_result(None)  # nobody may wait for it in vain


def drop_preloads() -> None:
    """Free the preloaded executables that nobody has asked for."""
    _PRELOADS.drop()


def load(name: str) -> StoredProgram | None:
    """Load an executable onto the devices that it was compiled for.

    Args:
        name: Its `program_key`.

    Returns:
        The executable, or None if there is none that works.
    """
    program, path = _PRELOADS.take(name) or _read_program(name), _program_path(name)
    if program is not None and path is not None:
        _USED_NAMES[name] = None
        with contextlib.suppress(OSError):
            os.utime(path)  # the files used last are kept
    return program


def _read_program(name: str) -> StoredProgram | None:
    path = _program_path(name)
    # Checked before anything is unpickled: a
    # flipped bit in machine code can do anything.
    content = None if path is None else read_sealed(path, name)
    if content is None:
        return None
    try:
        payload, num_args, outputs, places = pickle.loads(content)
        # By their places here: another process may have compiled it.
        devices = jax.local_devices()
        leaves, out_tree = jax.tree.flatten(outputs)
        flat = serialize_executable.deserialize_and_load(
            payload,
            jax.tree.structure((tuple(range(num_args)), {})),
            jax.tree.structure(leaves),
            execution_devices=[devices[place] for place in places],
        )
    except Exception:  # noqa: BLE001
        return None  # e.g. too little memory; the program is compiled anew
    return StoredProgram(flat, out_tree)


def store(name: str, executable: Any, function: Any = None) -> None:
    """Store an executable, if it can be; failing to costs time, not the answer.

    Args:
        name: Its `program_key`.
        executable: A compiled program.
        function: What it was compiled from; a `MeshProgram` says on which devices.
    """
    is_meshed = isinstance(function, MeshProgram)
    local = jax.local_devices()
    devices = function.devices if is_meshed else local[:1]
    path = _program_path(name)
    if path is None:
        return
    try:
        payload, inputs, tree = serialize_executable.serialize(executable)
        # A definition of a tree cannot be pickled, but a tree with its leaves can, if
        # its classes are importable: those of a function's body are not.
        outputs = jax.tree.unflatten(tree, range(tree.num_leaves))
        places = [local.index(device) for device in devices]
        content = pickle.dumps((payload, inputs.num_leaves, outputs, places))
        write_sealed(path, name, content)
        _USED_NAMES[name] = None
        keep_latest(path.parent, MAX_FILES)
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        LOGGER.debug("a program cannot be stored in %s: %s", path, error)
    except (AttributeError, pickle.PicklingError) as error:
        warn_not_kept(f"{error}; define the classes of memories at the top of a module")


def _function_name(function: Any) -> str:
    """The name of a function for a log."""
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__qualname__", None) or repr(function)


def _program_path(name: str) -> Path | None:
    folder = trusted_folder(PROGRAM_FOLDER)
    return None if folder is None else folder / f"{name}.program"
