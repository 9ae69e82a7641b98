"""The programs that a command needed last time, loaded while it starts.

Which programs a decode needs is known once the model is loaded and the prompts are
encoded. The same command with another prompt mostly needs the same ones, so their names
are kept on disk, and a thread loads them while the main one imports and reads files.
What was loaded in vain is dropped.
"""

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Iterator
from typing import Any

import jax

from jaxdave.runtime import program_cache
from jaxdave.runtime.cache_files import (
    keep_latest,
    read_sealed,
    trusted_folder,
    write_sealed,
)
from jaxdave.runtime.fingerprint import cpu_features

COMMAND_FOLDER = "commands"
"""Folder of the lists in the cache folder of jaxdave."""
MAX_COMMANDS, MAX_PROGRAMS = 64, 8
"""Lists that are kept, and programs of one list."""


@contextlib.contextmanager
def preloaded(*settings: Any) -> Iterator[None]:
    """Load what a command with these settings needed last time, in a thread.

    At the end it is noted what the command needed this time.

    Args:
        *settings: Frozen dataclasses and plain values that tell commands apart.

    Returns:
        A context manager.
    """
    before: list[str] = []

    def load_programs() -> None:
        before.extend(_read_names(settings))
        program_cache.preload(before)

    thread = threading.Thread(target=load_programs, name="preload")
    thread.start()
    try:
        yield
    finally:
        thread.join()
        program_cache.drop_preloads()
    names = program_cache.used_names()[:MAX_PROGRAMS]
    if names and names != before:
        _write_names(settings, names)


def _read_names(settings: tuple[Any, ...]) -> list[str]:
    """The names of the programs that these settings needed."""
    folder, key = trusted_folder(COMMAND_FOLDER), _key(settings)
    if folder is None:
        return []
    content = read_sealed(folder / key, key)
    return [] if content is None else json.loads(content)


def _write_names(settings: tuple[Any, ...], names: list[str]) -> None:
    folder, key = trusted_folder(COMMAND_FOLDER), _key(settings)
    if folder is None:
        return
    # Without the list the next start takes longer, and that is all.
    with contextlib.suppress(OSError):
        write_sealed(folder / key, key, json.dumps(names).encode())
        keep_latest(folder, MAX_COMMANDS)


def _key(settings: tuple[Any, ...]) -> str:
    """A name for settings, made in no time, where a program could run at all.

    It need not say all that a program depends on: its own name does.
    """
    flags = [os.environ.get(name) for name in ("XLA_FLAGS", "JAX_PLATFORMS")]
    text = repr((settings, jax.__version__, flags, cpu_features()))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
