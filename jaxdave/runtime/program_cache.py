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
            shapes, dtypes and tree count.

    Returns:
        The name; None if the program is not kept on disk, because nothing is
        (`trusted_folder`), because it does not run on the first device alone, or
        because the function has no fingerprint.
    """
    if trusted_folder(PROGRAM_FOLDER) is None:
        return None
    if not is_on_first_device(args):
        LOGGER.debug(
            "program %s is not kept on disk: its arguments are on several devices, or "
            "not on the first one",
            _function_name(function),
        )
        return None
    # Weak types count, as JAX promotes weakly typed scalars in another way.
    leaves, tree = jax.tree.flatten(args)
    shapes = [(a.shape, str(a.dtype), getattr(a, "weak_type", False)) for a in leaves]
    return fingerprint(function, donate, options, str(tree), shapes)


def is_on_first_device(args: Any) -> bool:
    """Tell if arrays are on the first device only.

    Args:
        args: A pytree of arrays or `jax.ShapeDtypeStruct`.

    Returns:
        True if every array is there, or will be when it is used because it has no
        sharding yet.
    """
    shardings = (getattr(a, "sharding", None) for a in jax.tree.leaves(args))
    first = {jax.devices()[0]}
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


def load(name: str, args: Sequence[Any]) -> Any | None:
    """Load an executable onto the first device.

    Args:
        name: Its `program_key`.
        args: The arguments that it was compiled for.

    Returns:
        The executable, or None if there is none that works.
    """
    path = _program_path(name)
    # Checked before anything is unpickled: a
    # flipped bit in machine code can do anything.
    content = None if path is None else read_sealed(path, name)
    if path is None or content is None:
        return None
    try:
        # Trees of the arguments and the results are needed to call the executable: that
        # of the arguments comes from the caller, that of the results from the file.
        payload, outputs = pickle.loads(content)
        executable = serialize_executable.deserialize_and_load(
            payload,
            jax.tree.structure((tuple(args), {})),
            jax.tree.structure(outputs),
            execution_devices=jax.devices()[:1],
        )
    except Exception:  # noqa: BLE001
        return None  # e.g. too little memory; the program is compiled anew
    with contextlib.suppress(OSError):
        os.utime(path)  # the files used last are kept
    return executable


def store(name: str, executable: Any) -> None:
    """Store an executable, if it can be; failing to costs time, not the answer.

    Args:
        name: Its `program_key`.
        executable: A compiled program.
    """
    path = _program_path(name)
    if path is None:
        return
    try:
        payload, _, tree = serialize_executable.serialize(executable)
        # A definition of a tree cannot be pickled, but a tree with its leaves can, if
        # its classes are importable: those of a function's body are not.
        outputs = jax.tree.unflatten(tree, range(tree.num_leaves))
        write_sealed(path, name, pickle.dumps((payload, outputs)))
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
