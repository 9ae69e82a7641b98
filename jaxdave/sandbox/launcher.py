"""Runs a program that a model wrote, in an interpreter of its own.

This keeps mistakes (endless loops, huge lists, early exits) and plain mischief (looking
for the result, signals, forks, connections) away from the evaluation. It is not a
security boundary: a determined program can still read what its user may read, use up
memory in several processes, or define objects that compare equal to everything. Run
untrusted models inside a container.

Where the system permits it, the program has process ids and a network of its own, and
is not root. Elsewhere connections, signals and new programs are only refused by an
audit hook, which native code can bypass.
"""

import contextlib
import dataclasses
import functools
import marshal
import math
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import IO, Literal

from jaxdave.runtime.files import temporary_folder
from jaxdave.runtime.interrupts import killed_on_interrupt, unbroken
from jaxdave.sandbox import worker

GRACE_SECONDS = 5.0
"""Time beyond a program's own limit after which the watcher process is killed too."""
MEMORY_BYTES = 1 << 30
FILE_BYTES = 1 << 20
OPEN_FILES = 64
PROCESSES = 64


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a program ended.

    Attributes:
        passed: True if the program ran to its last statement without an error.
        reason: "passed"; "failed" for an error, an early exit or an exceeded limit of
            memory, files or processes; "timeout" for an exceeded time limit.
    """

    passed: bool
    reason: Literal["passed", "failed", "timeout"]


def run_program(
    source: str,
    *,
    tests: str | None = None,
    redefined_builtins: Collection[str] = (),
    seconds: float = 2.0,
) -> Outcome:
    """Run a program, and tests after it, and report whether both ran to their ends.

    The program has an empty environment, an empty working folder and no output. It
    passes if no statement raises, so end it with the assertions that matter, or give
    them as `tests`. Tests are compiled apart from the program, so that no unfinished
    text of it (`if False:`) can swallow them, and they see what the program defined but
    the true builtins, so that it cannot pass by replacing `abs`.

    Args:
        source: Python code.
        tests: Python code that runs after `source`; None for no tests.
        redefined_builtins: Names of builtins that `source` is asked to define; the
            tests see its definitions of these.
        seconds: Time limit for both together, wall clock.

    Returns:
        How the program ended.

    Raises:
        ValueError: If `seconds` is not above 0.

    Example:
        >>> run_program("x = 1", tests="assert x == 1", seconds=30.0).passed
        True
        >>> run_program("raise SystemExit(0)", seconds=30.0).reason
        'failed'
    """
    if not seconds > 0:
        raise ValueError(f"seconds={seconds} must be above 0; 2.0 suits most programs")
    # The exit status proves nothing, as the program can leave with any. Only the worker
    # knows this number, and it sends it back after the last statement has returned.
    nonce = secrets.token_hex(16).encode()
    # A lone surrogate cannot be in a program; with "replace" it becomes a `?`.
    parts = [part.encode("utf-8", "replace") for part in (source, tests or "")]
    if tests is None:
        parts.pop()
    with (
        temporary_folder() as folder,
        tempfile.TemporaryFile() as request_file,
        tempfile.TemporaryFile() as result_file,
    ):
        request = (_limits(seconds), seconds, nonce, list(redefined_builtins), parts)
        marshal.dump(request, request_file)
        request_file.seek(0)
        status = _run_worker(folder, request_file, result_file, seconds)
        if status in (None, worker.TIMEOUT_STATUS):
            return Outcome(False, "timeout")
        result_file.seek(0)
        # One byte more than the nonce: the file must hold it and nothing else.
        if status == 0 and result_file.read(len(nonce) + 1) == nonce:
            return Outcome(True, "passed")
        return Outcome(False, "failed")


def _run_worker(
    folder: Path, request_file: IO[bytes], result_file: IO[bytes], seconds: float
) -> int | None:
    """Return the exit status of the watcher, or None when its time ran out."""
    # Files and not pipes: a pipe that a stray grandchild holds open would make the
    # parent wait for it.
    with contextlib.ExitStack() as stack:
        # An interrupt of ours does not reach a session of its own.
        with unbroken("the start of a program"):
            process = subprocess.Popen(
                # Isolated, without site-packages, and without writing bytecode.
                [sys.executable, "-I", "-S", "-B", "-c", _worker_source()],
                stdin=request_file,
                stdout=result_file,
                stderr=subprocess.DEVNULL,
                cwd=folder,
                env={},
                start_new_session=True,
            )
            stack.enter_context(killed_on_interrupt(process.pid))
        try:
            # The watcher ends its worker when the time is up; this is for the watcher.
            return process.wait(timeout=seconds + GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            return None
        finally:
            # Also after a normal end, for the children that the program left behind.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@functools.cache
def _worker_source() -> str:
    """The text of `worker.py`; sent as text, as the sandbox cannot import jaxdave."""
    return Path(worker.__file__).read_text(encoding="utf-8")


def _limits(seconds: float) -> dict[str, int]:
    """The resource limits of a program, by their names in the module `resource`."""
    return {
        "RLIMIT_AS": MEMORY_BYTES,
        # A second more than the time limit, so that "timeout" is what is reported.
        "RLIMIT_CPU": math.ceil(seconds) + 1,
        "RLIMIT_FSIZE": FILE_BYTES,
        "RLIMIT_NOFILE": OPEN_FILES,
        "RLIMIT_NPROC": PROCESSES,
        "RLIMIT_CORE": 0,
    }
