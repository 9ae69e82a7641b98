"""Running a program that a model wrote, in an interpreter of its own.

This keeps mistakes (endless loops, huge lists, early exits) and plain mischief (looking
for the verdict, signals, forks, connections) away from the evaluation. It is not a
security boundary: a determined program can still read what its user may read, use up
memory in several processes, or compare equal to everything. Run untrusted models
inside a container.

Where the system permits, the program has process ids and a network of its own, and is
not root. Elsewhere connections, signals and new programs are only refused by an audit
hook, which native code can go around.
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

from jaxdave.sandbox import worker

GRACE_SECONDS = 5.0
MEMORY_BYTES = 1 << 30
FILE_BYTES = 1 << 20
OPEN_FILES = 64
PROCESSES = 64


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a program ended.

    passed: it ran to its last statement without an error. reason: "passed", "failed"
    (an error, an early exit, a broken limit) or "timeout".
    """

    passed: bool
    reason: Literal["passed", "failed", "timeout"]


def run_program(
    source: str,
    *,
    tests: str | None = None,
    kept: Collection[str] = (),
    seconds: float = 2.0,
) -> Outcome:
    """Whether `source`, and `tests` after it, run to their ends within the limits.

    The program gets an empty environment, an empty working folder and no output; it
    passes when no statement raised, so end it with the assertions that matter, or give
    them as `tests`: these see what `source` defined, but true builtins, save those
    named in `kept`, which `source` is to define; no text of `source` runs on into them.
    Raises ValueError when `seconds` is not above 0.
    """
    if not seconds > 0:
        raise ValueError(f"seconds={seconds} must be above 0; 2.0 suits most programs")
    nonce = secrets.token_hex(16).encode()
    # A lone surrogate cannot be in a program; with "replace" it becomes a `?`.
    parts = [part.encode("utf-8", "replace") for part in (source, tests or "")]
    if tests is None:
        parts.pop()
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        tempfile.TemporaryFile() as given,
        tempfile.TemporaryFile() as back,
    ):
        marshal.dump((_limits(seconds), seconds, nonce, list(kept), parts), given)
        given.seek(0)
        status = _run(folder, given, back, seconds)
        if status in (None, worker.LATE):
            return Outcome(False, "timeout")
        back.seek(0)
        if status == 0 and back.read(len(nonce) + 1) == nonce:
            return Outcome(True, "passed")
        return Outcome(False, "failed")


def _run(folder: str, given: IO[bytes], back: IO[bytes], seconds: float) -> int | None:
    """The exit status, or None when the time ran out."""
    # Files and not pipes: a pipe that a stray grandchild holds open would make the
    # parent wait for it.
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-B", "-c", _child()],
        stdin=given,
        stdout=back,
        stderr=subprocess.DEVNULL,
        cwd=folder,
        env={},
        start_new_session=True,
    )
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
def _child() -> str:
    return Path(worker.__file__).read_text(encoding="utf-8")


def _limits(seconds: float) -> dict[str, int]:
    return {
        "RLIMIT_AS": MEMORY_BYTES,
        "RLIMIT_CPU": math.ceil(seconds) + 1,
        "RLIMIT_FSIZE": FILE_BYTES,
        "RLIMIT_NOFILE": OPEN_FILES,
        "RLIMIT_NPROC": PROCESSES,
        "RLIMIT_CORE": 0,
    }
