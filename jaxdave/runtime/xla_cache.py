"""The folder in which JAX keeps the programs that `program_cache` does not.

JAX writes a file in place and loads whatever it holds. So every file gets a seal beside
it when the process ends, and a file without the right seal, because it was changed, or
because the process that wrote it was killed, is removed before JAX looks at it.
"""

import atexit
import contextlib
import hashlib
from pathlib import Path

from jaxdave.runtime.cache_files import (
    keep_latest,
    make_folder,
    read_sealed,
    trusted_folder,
    write_sealed,
)

XLA_FOLDER = "xla"
"""Folder of the files in the cache folder of jaxdave."""
MAX_FILES = 256
"""Files that are kept, the ones written last, half of them seals."""
_SEAL = ".seal"


def open_xla_cache() -> Path | None:
    """Make the folder ready for JAX, with nothing in it that was not sealed.

    Returns:
        The folder; None if nothing is to be kept or the folder cannot be trusted.
    """
    folder = trusted_folder(XLA_FOLDER)
    if folder is None:
        return None
    try:
        make_folder(folder)
        _remove_unsealed(folder)
    except OSError:
        return None  # a home that cannot be written to costs time, not the answer
    atexit.register(seal_files, folder)
    return folder


def seal_files(folder: Path) -> None:
    """Seal what JAX has written since, and drop what is too old.

    Args:
        folder: What `open_xla_cache` returned.
    """
    with contextlib.suppress(OSError):
        for path in _files(folder):
            seal = path.with_name(path.name + _SEAL)
            if not seal.exists():
                write_sealed(seal, path.name, _digest(path))
        keep_latest(folder, MAX_FILES)


def _remove_unsealed(folder: Path) -> None:
    for path in _files(folder):
        seal = path.with_name(path.name + _SEAL)
        # Another process may do the same at this moment.
        with contextlib.suppress(FileNotFoundError):
            if read_sealed(seal, path.name) != _digest(path):
                path.unlink()
                seal.unlink(missing_ok=True)
    for seal in folder.glob(f"*{_SEAL}"):
        if not seal.with_name(seal.name.removesuffix(_SEAL)).exists():
            seal.unlink(missing_ok=True)


def _files(folder: Path) -> list[Path]:
    """The files of JAX."""
    return [
        path
        for path in folder.iterdir()
        if not path.name.startswith(".") and path.suffix != _SEAL
    ]


def _digest(path: Path) -> bytes:
    """The digest of a file; empty, which no seal holds, for what is no plain file."""
    if path.is_symlink() or not path.is_file():
        return b""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
