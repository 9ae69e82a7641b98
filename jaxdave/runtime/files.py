"""Files and folders that are replaced as a whole, and the folder for caches.

Nothing half-written survives a failure: content is written under a temporary name, and
then renamed.
"""

import contextlib
import errno
import json
import os
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxdave.runtime.interrupts import removed_on_interrupt, unbroken

NO_CACHE = "JAXDAVE_NO_CACHE"
"""Environment variable; if it is set, nothing is kept from run to run."""


def replace_file(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Write a file, or replace it, in one step.

    Args:
        path: The file. Its folder must exist.
        content: What the file will hold.
        mode: Its permissions.

    Raises:
        OSError: It cannot be written; what was there before is unchanged.
    """
    with unbroken(f"{path}"):
        # In the same folder, as a rename is atomic within one file system only.
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            os.chmod(name, mode)  # a temporary file is private
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise


def check_replaceable(path: Path, name: str) -> Path:
    """Check that a file can be written before what it will hold is worked out.

    Args:
        path: The file.
        name: What the user knows the path as, which errors begin with.

    Returns:
        The path that `replace_file` should write: where links lead to.

    Raises:
        ValueError: It is a folder, a device or a pipe, or its folder is missing or
            cannot be written to.
    """
    # The link stays, and the file that it stands for is replaced.
    target = Path(os.path.realpath(path))
    # These functions answer False, and do not raise, where a name is too long.
    if os.path.isdir(target):
        raise ValueError(f"{name}={path} is a folder; name a file in it")
    if os.path.exists(target) and not os.path.isfile(target):
        raise ValueError(
            f"{name}={path} is no regular file, which could be replaced; name another"
        )
    if not target.parent.is_dir():
        raise ValueError(f"{name}={path} is in no folder; make {path.parent} first")
    try:
        with unbroken(f"{path}"):
            # What `replace_file` begins with.
            handle, work = tempfile.mkstemp(
                dir=target.parent, prefix=f".{target.name}."
            )
            os.close(handle)
            os.unlink(work)
    except OSError as error:
        raise ValueError(
            f"{name}={path} cannot be written ({error.strerror}); name another file"
        ) from error
    return target


@contextlib.contextmanager
def unfinished_folder(target: Path) -> Iterator[Path]:
    """Make a hidden folder beside a folder that is to be made or replaced.

    Example:
        with unfinished_folder(target) as work:
            ...  # write files
            replace_folder(work, target)

    Args:
        target: The folder. Those that it is in are made.

    Returns:
        A context manager that gives the hidden folder, which is removed if anything
        fails or the command is interrupted.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    work = _unused_path(target.parent, f".{target.name}.")
    # Before it is there, so that no interrupt comes in between.
    with removed_on_interrupt(work):
        work.mkdir(mode=0o700)
        try:
            yield work
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise


@contextlib.contextmanager
def temporary_folder(parent: Path | None = None) -> Iterator[Path]:
    """Make a folder that is gone in the end, interrupted or not.

    Args:
        parent: The folder that it is made in; None: the system's for such folders.

    Returns:
        A context manager that gives the folder.
    """
    path = _unused_path(parent or Path(tempfile.gettempdir()), "jaxdave-")
    # As long as it may be there, and a moment longer.
    with removed_on_interrupt(path):
        path.mkdir(mode=0o700)
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)


def _unused_path(folder: Path, prefix: str) -> Path:
    """A path in a folder that nobody else will make."""
    return folder / f"{prefix}{secrets.token_hex(4)}"


def make_readable(folder: Path) -> None:
    """Give a temporary folder, which is private, the permissions of any other.

    Args:
        folder: The folder; the files in it are made readable, too.
    """
    folder.chmod(0o755)
    for path in folder.iterdir():
        path.chmod(0o644)


def replace_folder(source: Path, target: Path) -> None:
    """Move a folder to where another one may be.

    Args:
        source: The new folder, in the same file system as `target`.
        target: Where it goes. A folder that is there is removed.

    Raises:
        OSError: It cannot be moved; the old folder is in its place again.
    """
    with unbroken(f"{target}"):
        if not target.exists():
            source.rename(target)
            return
        # Folders cannot replace each other in one step, as files can. The old one is
        # moved aside, and back again if the new one cannot take its place.
        aside = source.with_name(source.name + ".old")
        target.rename(aside)
        try:
            source.rename(target)
        except BaseException:
            aside.rename(target)
            raise
        shutil.rmtree(aside)


def cache_folder(name: str) -> Path | None:
    """The folder in which this platform keeps what can be made again.

    Args:
        name: Name of the folder in jaxdave's own.

    Returns:
        The folder, which need not exist; None if nothing is to be kept (`NO_CACHE`).
    """
    if os.environ.get(NO_CACHE):
        return None
    if sys.platform == "win32":
        root = os.environ.get("LOCALAPPDATA", "~/AppData/Local")
    elif sys.platform == "darwin":
        root = "~/Library/Caches"
    else:
        root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(root).expanduser() / "jaxdave" / name


def check_path(path: Path) -> None:
    """Refuse a path of another encoding, which libraries of C++ cannot open.

    Args:
        path: The path.

    Raises:
        ValueError: It has a byte that is no UTF-8.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"path {str(path)!a} is not UTF-8 at position {error.start}; rename it"
        ) from None


def read_regular(path: Path) -> bytes:
    """Read a whole file, links followed.

    Args:
        path: The file.

    Returns:
        Its content.

    Raises:
        OSError: It cannot be read, or is something else than a file: reading a pipe
            would wait for ever, and a device may have no end.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return path.read_bytes()


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Args:
        text: The text, or its bytes in UTF-8, with or without a byte-order mark.

    Returns:
        The value.

    Raises:
        ValueError: It is no JSON, or nested too deep to be read.
    """
    try:
        return json.loads(text.decode("utf-8-sig") if isinstance(text, bytes) else text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def read_json(path: Path, *, optional: bool = False) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Args:
        path: The file.
        optional: Take a missing file for an empty object.

    Returns:
        The object.

    Raises:
        ValueError: The file is missing, is not JSON or holds something else; the
            message names it.
    """
    # A link that leads nowhere is no missing file, but one that was lost.
    if optional and not os.path.lexists(path):
        return {}
    try:
        value = parse_json(read_regular(path))
    except FileNotFoundError as error:
        raise ValueError(
            f"{path}: missing file; a checkpoint folder must have it, so fetch or "
            "save the folder again"
        ) from error
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path}: cannot be read as JSON ({error}); fetch the folder again"
        ) from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: must hold a JSON object; fetch the folder again")
    return value
