"""Files of the cache folders: the user's own, sealed with a checksum and their key.

What is kept there is code, or decides how code runs, so it is read only where nobody
else may write, and only if it is what was once written for that key. Everything else is
made anew.
"""

import contextlib
import hashlib
import os
import stat
from pathlib import Path

from jaxdave.runtime.files import cache_folder, replace_file
from jaxdave.runtime.fingerprint import warn_not_kept

_FORMAT = "jaxdave-cache-1"
_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH
_FOLDER_MODE, _FILE_MODE = 0o700, 0o600
# A file must not be followed elsewhere, and a pipe must not be waited for.
_OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


def trusted_folder(name: str) -> Path | None:
    """The cache folder of this name, if only the user may write to it.

    Args:
        name: Name of the folder in jaxdave's own.

    Returns:
        The folder, which need not exist; None if nothing is to be kept, or if the
        folder or the one that it is in is another user's or may be written to by
        others (after one line on the logger "jaxdave").
    """
    folder = cache_folder(name)
    if folder is None:
        return None
    for path in (folder.parent, folder):
        reason = _distrust(path)
        if reason is not None:
            warn_not_kept(
                f"{path} {reason}, so nothing in it is read; make it yours alone "
                f"(chmod go-w), or set XDG_CACHE_HOME to a folder that is"
            )
            return None
    return folder


def make_folder(folder: Path) -> None:
    """Make a cache folder, for the user alone, where there is none.

    Args:
        folder: What `trusted_folder` returned.

    Raises:
        OSError: It cannot be made.
    """
    # Step by step, as `parents=True` gives only the last one the mode.
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(mode=_FOLDER_MODE, exist_ok=True)


def write_sealed(path: Path, key: str, content: bytes) -> None:
    """Write a file of a cache folder, in one step.

    Args:
        path: The file; its folder is made where there is none.
        key: What the content belongs to, a text without spaces.
        content: What is kept.

    Raises:
        OSError: It cannot be written.
    """
    make_folder(path.parent)
    header = f"{_FORMAT} {key} {_checksum(key, content)}\n".encode()
    replace_file(path, header + content, mode=_FILE_MODE)


def read_sealed(path: Path, key: str) -> bytes | None:
    """Read what was kept for a key.

    Args:
        path: The file.
        key: As it was written.

    Returns:
        The content, bit for bit as it was written; None if there is no such file, or
        it is not a plain file of the user's own, or not what was written for this key.
    """
    try:
        with os.fdopen(os.open(path, _OPEN_FLAGS), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or _distrust_status(status):
                return None
            header, content = file.readline(256), file.read()
    except OSError:
        return None
    expected = f"{_FORMAT} {key} {_checksum(key, content)}\n".encode()
    return content if header == expected else None


def keep_latest(folder: Path, max_files: int) -> None:
    """Drop the files of a folder that were not used for longest.

    Args:
        folder: A cache folder.
        max_files: How many may stay. Unfinished ones of other processes count too.

    Raises:
        OSError: The folder cannot be read.
    """
    times = {}
    for path in folder.iterdir():
        # Another process may drop the same files at this moment.
        with contextlib.suppress(OSError):
            times[path] = path.lstat().st_mtime
    for path in sorted(times, key=lambda path: times[path])[:-max_files]:
        with contextlib.suppress(OSError):
            path.unlink()


def _checksum(key: str, content: bytes) -> str:
    digest = hashlib.sha256(f"{key}\n".encode())
    digest.update(content)
    return digest.hexdigest()


def _distrust(path: Path) -> str | None:
    """Why a folder must not be read from; None if it may, or does not exist."""
    try:
        return _distrust_status(path.stat())
    except OSError:
        return None


def _distrust_status(status: os.stat_result) -> str | None:
    if not hasattr(os, "geteuid"):
        return None  # no such owners and modes, as on Windows
    if status.st_uid != os.geteuid():
        return f"belongs to another user (id {status.st_uid})"
    if status.st_mode & _OTHERS_MAY_WRITE:
        return f"may be written to by others (mode {stat.S_IMODE(status.st_mode):o})"
    return None
