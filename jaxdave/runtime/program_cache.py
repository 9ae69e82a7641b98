"""Compiled programs on disk, so that the next process neither traces nor compiles.

A file holds one executable, as `jax.experimental.serialize_executable` writes it, under
its `signature`. Files are pickles in the user's own cache folder, like those of jax.
"""

import os
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.experimental import serialize_executable

from jaxdave.runtime.files import cache_folder, replace_file
from jaxdave.runtime.fingerprint import fingerprint

PROGRAM_FOLDER = "programs"
_HIT_EVENT = "/jax/compilation_cache/cache_hits"
_cache_hits: list[str] = []
"""Events of programs that came out of jax's own cache."""
MAX_FILES = 64
"""Files that are kept, those that were used last. One is a few megabytes."""


def program_key(
    function: Any, donate: int | None, options: dict[str, Any], args: Sequence[Any]
) -> str | None:
    """The name of a function compiled for these arguments; None: it is not kept."""
    if cache_folder(PROGRAM_FOLDER) is None:
        return None
    leaves, tree = jax.tree.flatten(args)
    if not is_on_first_device(args):
        return None
    weak = lambda a: getattr(a, "weak_type", False)  # noqa: E731
    shapes = [(a.shape, str(a.dtype), weak(a)) for a in leaves]
    return fingerprint(function, donate, options, str(tree), shapes)


def is_on_first_device(args: Sequence[Any]) -> bool:
    """Whether arrays are there and nowhere else, or will be when they are used."""
    places = (getattr(a, "sharding", None) for a in jax.tree.leaves(args))
    first = {jax.devices()[0]}
    return all(place is None or place.device_set == first for place in places)


def compile_serializable(compile: Callable[[], Any]) -> tuple[Any, bool]:
    """What `compile` makes, and whether it is whole enough to be written down.

    What comes out of jax's own cache lacks the code that a CPU runs.
    """
    if not _cache_hits:
        jax.monitoring.register_event_listener(_record_event)
        _cache_hits.append("listening")
    before = len(_cache_hits)
    made = compile()
    return made, len(_cache_hits) == before


def _record_event(event: str, **_: Any) -> None:
    if event == _HIT_EVENT:
        _cache_hits.append(event)


def contains(name: str) -> bool:
    """Whether there is an executable of that name."""
    path = _program_path(name)
    return path is not None and path.exists()


def load(name: str, args: Sequence[Any]) -> Any | None:
    """The executable of that name, or None where there is none that works."""
    path = _program_path(name)
    if path is None or not path.exists():
        return None
    try:
        payload, shape = pickle.loads(path.read_bytes())
        trees = jax.tree.structure((tuple(args), {})), jax.tree.structure(shape)
        first = jax.devices()[:1]
        found = serialize_executable.deserialize_and_load(
            payload, *trees, execution_devices=first
        )
        os.utime(path)
    except Exception:  # noqa: BLE001
        return None  # whatever is broken in it, the program is compiled anew
    return found


def store(name: str, executable: Any) -> None:
    """Keep an executable, where this backend can write one down."""
    path = _program_path(name)
    if path is None:
        return
    try:
        payload, _, tree = serialize_executable.serialize(executable)
        # A tree of our own classes can be pickled; its definition cannot.
        shape = jax.tree.unflatten(tree, range(tree.num_leaves))
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, pickle.dumps((payload, shape)))
        _evict_oldest(path.parent)
    except (OSError, RuntimeError, ValueError, TypeError, pickle.PicklingError):
        return  # what cannot be kept costs time, not the answer


def _program_path(name: str) -> Path | None:
    folder = cache_folder(PROGRAM_FOLDER)
    return None if folder is None else folder / f"{name}.pickle"


def _evict_oldest(folder: Path) -> None:
    """Drop the files that were not used for longest."""
    files = sorted(folder.glob("*.pickle"), key=lambda path: path.stat().st_mtime)
    for path in files[:-MAX_FILES]:
        path.unlink(missing_ok=True)
