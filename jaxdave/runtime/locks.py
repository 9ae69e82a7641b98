"""Locks that keep other processes away from a file or a folder.

The system gives a lock back when its process ends, killed or not.
"""

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

from jaxdave.runtime.interrupts import removed_on_interrupt

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK_FILE = ".lock"
"""Name of the file in a locked folder."""
_BUSY_ERRORS = (errno.EAGAIN, errno.EACCES)


class Busy(OSError):
    """Another process, or another thread of this one, holds the lock."""


@contextlib.contextmanager
def locked(path: Path, *, timeout: float = 0.0) -> Iterator[None]:
    """Hold the lock of a name, and take its file away at the end.

    Args:
        path: The lock's file, in a folder that exists.
        timeout: Seconds to wait for it.

    Returns:
        A context manager.

    Raises:
        Busy: It is held by another process, or another thread.
        OSError: The file cannot be made, or its file system has no locks.
    """
    handle = _acquire(path, time.monotonic() + timeout)
    try:
        with removed_on_interrupt(path):
            yield
    finally:
        # Removed while it is held, so that it is nobody else's; if its folder was moved
        # meanwhile, the name may be.
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                path.unlink()
        os.close(handle)


@contextlib.contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Make a folder where there is none, and hold it for this process.

    Taken before anything in the folder is looked at, one of two processes does all of
    its work and the other none. A folder that was made for the lock and is still empty
    at the end is removed again.

    Args:
        folder: The folder.

    Returns:
        A context manager.

    Raises:
        Busy: Another process holds it.
        OSError: It cannot be made or written to.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        with contextlib.ExitStack() as stack:
            while True:
                folder.mkdir(parents=True, exist_ok=True)
                # Another process may remove the empty folder that it has made.
                with contextlib.suppress(FileNotFoundError):
                    stack.enter_context(locked(folder / LOCK_FILE))
                    break
            yield
    finally:
        with contextlib.suppress(OSError):
            for path in missing:
                path.rmdir()


@contextlib.contextmanager
def output_folder(out: Path) -> Iterator[None]:
    """Hold the folder of `--out` for one run.

    Args:
        out: The folder; made where there is none (see `locked_folder`).

    Returns:
        A context manager.

    Raises:
        ValueError: Another run is in there, or nothing can be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked_folder(out))
            if not os.access(out, os.W_OK | os.X_OK):
                raise OSError(errno.EACCES, "it is read-only")
        except Busy:
            raise ValueError(
                f"out={out} is being written to by another run; wait until it has "
                "ended, or choose another folder"
            ) from None
        except OSError as error:
            raise ValueError(
                f"out={out} cannot be written to ({error.strerror}); choose another "
                "folder"
            ) from None
        yield


def _acquire(path: Path, latest: float) -> int:
    """The handle of a lock file that is locked and still has its name."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock(handle)
            # Whoever held it before may have removed the file: then this handle is of
            # a file without a name, which the next process would not meet.
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                return handle
        except FileNotFoundError:
            pass
        except BaseException as error:
            os.close(handle)
            if not isinstance(error, Busy) or time.monotonic() > latest:
                raise
            time.sleep(0.02)
            continue
        os.close(handle)


def _lock(handle: int) -> None:
    try:
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            import msvcrt

            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # pyright: ignore
    except OSError as error:
        if error.errno in _BUSY_ERRORS:
            raise Busy(error.errno, "another process holds the lock") from error
        raise
