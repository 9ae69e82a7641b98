"""Ctrl-C ends a command line at once, with exit code 130 and nothing half-written.

Python answers SIGINT with an exception between any two bytecodes of the main thread. It
is lost where nothing can be raised (callbacks of the garbage collector, code at exit),
ends in a traceback where nothing catches it yet (imports), and waits for as long as the
main thread computes in C. So a command line raises none: a thread that is told of the
signal by the operating system (`signal.set_wakeup_fd`) tidies up and ends the process,
whatever the main thread does, which stops as soon as it comes back to Python.

Writes that must not be cut are `unbroken`; what must not stay behind is registered with
`removed_on_interrupt` and `killed_on_interrupt`. In a process that is no command line
of jaxdave nothing is installed, and these do nothing.

This module imports nothing but the standard library, so that it can be the first that a
process loads.
"""

import atexit
import contextlib
import gc
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

from jaxdave.runtime import child_processes

INTERRUPTED = 130
"""Exit code of an interrupted command: 128 and the number of SIGINT."""
PATIENCE = 0.4
"""Seconds after which it is said what is still being written."""
SAME_SECONDS = 0.3
"""A second signal sooner than this is the first one again: some programs that pass a
signal on (`timeout`) send it to a process and to its group."""
_RESTORE = b"\x1b[0m\x1b[?25h"


class _Interrupts:
    """The state of one process.

    Attributes:
        name: The program's name; None: nothing is installed.
        exit_code: What the program ends with, once that is known.
        first_signal: When the main thread has first handled a signal; None: it has not.
        is_ending: No unbroken write may begin any more.
        writing: What is being written unbroken, one entry for each thread.
        paths: Files and folders that are removed, by a key of their own.
        groups: Process groups that are killed.
        kills_children: All processes below this one are, if it is not 0.
        depth: Of the unbroken writes of each thread.
        main_is_busy: The main thread may be in an unbroken write.
        has_watcher: There is a thread that will end the process.
        leaves_threads: Threads that still run are not waited for at the end.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self.exit_code: int | None = None
        self.first_signal: float | None = None
        self.is_ending = False
        self.writing: list[str] = []
        self.paths: dict[object, Path] = {}
        self.groups: dict[object, int] = {}
        self.kills_children = 0
        self.lock = threading.Lock()
        self.depth = threading.local()
        # Changed by the main thread alone, and read by its signal handler.
        self.main_is_busy = 0
        self.has_watcher = False
        self.leaves_threads = False


_STATE = _Interrupts()


def install(name: str) -> None:
    """Let Ctrl-C end this process, from now to its very end.

    Only a process whose Ctrl-C is Python's own is changed: one that ignores it, as
    under nohup, goes on doing so.

    Args:
        name: The program's name, which messages begin with.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) != signal.default_int_handler:
        return
    _STATE.name = name
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    # Before the handler, so that no signal that is handled goes untold.
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    signal.signal(signal.SIGINT, _stop_main_thread)
    threading.Thread(target=_watch, args=(reader,), daemon=True).start()
    _STATE.has_watcher = True
    if _STATE.first_signal is not None:
        _wait_for_the_end()
    # Registered first, so that it runs last.
    atexit.register(_end_process)


def install_for_program(name: str) -> None:
    """Install it if the caller of the caller is the program that this process runs.

    A script, `python -m` and `python -c` are. A test, or another program that calls a
    command line of jaxdave as a function, keeps its own ways.

    Args:
        name: The program's name.
    """
    if sys._getframe(2).f_globals.get("__name__") == "__main__":
        install(name)


def exit_program(code: int) -> NoReturn:
    """Exit by `SystemExit`, with interrupts answered to the end.

    Python gives up its signal handlers while it takes itself apart, which takes a
    fifth of a second. Under `install` the process ends right after its exit functions
    instead.

    Args:
        code: The exit code.
    """
    _STATE.exit_code = code
    if _STATE.has_watcher and _STATE.leaves_threads:
        _finish_writes()
        _tidy_up()
        _end_process()
    sys.exit(code)


@contextlib.contextmanager
def unbroken(what: str) -> Iterator[None]:
    """Let an interrupt wait until something is written.

    A second Ctrl-C does not wait.

    Args:
        what: What is being written, for the message "finishing WHAT".

    Returns:
        A context manager.
    """
    if getattr(_STATE.depth, "value", 0):
        yield  # part of what is unbroken already
        return
    is_main = threading.current_thread() is threading.main_thread()
    # Before the lock is taken: the signal handler must not stop this thread with it.
    _STATE.main_is_busy += is_main
    try:
        with _STATE.lock:
            may_begin = not _STATE.is_ending
            if may_begin:
                _STATE.writing.append(what)
        if not may_begin:
            _wait_for_the_end()
        _STATE.depth.value = 1
        try:
            yield
        finally:
            _STATE.depth.value = 0
            with _STATE.lock:
                _STATE.writing.remove(what)
    finally:
        _STATE.main_is_busy -= is_main
    # The handler has left the main thread alone until here.
    if _STATE.is_ending or (is_main and _STATE.first_signal is not None):
        _wait_for_the_end()


@contextlib.contextmanager
def handled_by(handler: Callable[..., object]) -> Iterator[None]:
    """Let a function answer Ctrl-C for a while, in place of ending the process.

    Of the main thread of a process that does not ignore Ctrl-C; elsewhere it does
    nothing.

    Args:
        handler: (signal number, frame) -> anything, as `signal.signal` takes it.

    Returns:
        A context manager.
    """
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT)
    if not is_main or before is None or before == signal.SIG_IGN:
        yield
        return
    # In this order both ways: a signal in between is answered by the watcher, which
    # ends the process, and never by neither.
    signal.signal(signal.SIGINT, handler)
    writer = signal.set_wakeup_fd(-1)
    try:
        yield
    finally:
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGINT, before)


def leave_threads() -> None:
    """Let `exit_program` end the process without waiting for what threads still do.

    Unbroken writes are finished, and what must not stay behind is removed.
    """
    _STATE.leaves_threads = True


@contextlib.contextmanager
def removed_on_interrupt(path: Path) -> Iterator[Callable[[], None]]:
    """Remove a file or a folder if an interrupt ends the process meanwhile.

    Args:
        path: What is unfinished as long as the context lasts.

    Returns:
        A context manager that gives a function: after its call the path may stay.
    """
    key = object()
    _STATE.paths[key] = path

    def keep() -> None:
        _STATE.paths.pop(key, None)

    try:
        yield keep
    finally:
        keep()


@contextlib.contextmanager
def killed_on_interrupt(group: int) -> Iterator[None]:
    """Kill a process group if an interrupt ends this process meanwhile.

    For processes with a session of their own, which the terminal's Ctrl-C does not
    reach.

    Args:
        group: Id of the group.

    Returns:
        A context manager.
    """
    key = object()
    _STATE.groups[key] = group
    try:
        yield
    finally:
        _STATE.groups.pop(key, None)


@contextlib.contextmanager
def children_killed_on_interrupt() -> Iterator[None]:
    """Kill all processes below this one if an interrupt ends it meanwhile.

    See `child_processes.descendants`.

    Returns:
        A context manager.
    """
    _STATE.kills_children += 1
    try:
        yield
    finally:
        _STATE.kills_children -= 1


def _stop_main_thread(*_: object) -> None:
    """The signal handler: the main thread goes no further, and the watcher ends it."""
    if _STATE.first_signal is None:
        _STATE.first_signal = time.monotonic()
    elif time.monotonic() - _STATE.first_signal > SAME_SECONDS:
        os._exit(INTERRUPTED)
    # Not in the middle of a write, and not before there is a watcher.
    if _STATE.has_watcher and not _STATE.main_is_busy:
        _wait_for_the_end()


def _wait_for_the_end() -> None:
    while True:
        time.sleep(60)


def _watch(reader: int) -> None:
    """Wait for the signal, tidy up, and end the process."""
    while signal.SIGINT not in os.read(reader, 1):
        pass
    # Collecting garbage runs code of other packages, which may want what the main
    # thread holds.
    gc.disable()
    os.set_blocking(reader, False)
    _let_writes_end(reader)
    _tidy_up()
    _say("interrupted")
    os._exit(INTERRUPTED)


def _let_writes_end(reader: int) -> None:
    """Let no unbroken write begin, and wait for those that have, or another signal."""
    start, has_said = time.monotonic(), False
    while True:
        with _STATE.lock:
            _STATE.is_ending = True
            writing = list(_STATE.writing)
        if not writing:
            return
        if not has_said and time.monotonic() - start > PATIENCE:
            has_said = True
            _say(f"finishing {writing[0]}; Ctrl-C again ends it unfinished")
        time.sleep(0.01)
        with contextlib.suppress(BlockingIOError):
            is_signal = signal.SIGINT in os.read(reader, 1)
            if is_signal and time.monotonic() - start > SAME_SECONDS:
                os._exit(INTERRUPTED)


def _finish_writes() -> None:
    """Let no unbroken write begin, and wait for those of other threads that have."""
    while True:
        with _STATE.lock:
            _STATE.is_ending = True
            if not _STATE.writing:
                return
        time.sleep(0.01)


def _tidy_up() -> None:
    """Kill and remove what must not stay behind."""
    if _STATE.kills_children:
        child_processes.kill(child_processes.descendants())
    for group in list(_STATE.groups.values()):
        with contextlib.suppress(OSError):
            os.killpg(group, signal.SIGKILL)
    for path in list(_STATE.paths.values()):
        # Threads may still be writing into it: what they add is removed as well.
        for _ in range(3):
            with contextlib.suppress(OSError):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
            if not path.exists():
                break


def _say(message: str) -> None:
    """Write a line to stderr, past its buffer, which another thread may hold."""
    with contextlib.suppress(OSError):
        # Progress bars and live views hide the cursor, on either stream.
        terminals = [stream for stream in (1, 2) if os.isatty(stream)]
        for stream in terminals:
            os.write(stream, _RESTORE)
        if terminals:
            os.write(terminals[-1], b"\n")
    with contextlib.suppress(OSError):
        os.write(2, f"{_STATE.name}: {message}\n".encode())


def _end_process() -> None:
    """The last exit function: end here, while interrupts are still answered."""
    if _STATE.exit_code is None:
        return  # an exception of which Python has to tell
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(_STATE.exit_code)


def _after_fork() -> None:
    """In a forked child there is no watcher: Python's own handler is back."""
    was_installed = _STATE.name is not None
    # The lock may have been held by a thread that the child does not have.
    _STATE.__init__()
    if was_installed:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGINT, signal.default_int_handler)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
