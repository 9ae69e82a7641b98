"""Running a program that a model wrote, in an interpreter of its own.

This keeps honest mistakes (endless loops, huge lists, early exits) away from the
evaluation. It is not a security boundary: a determined program can still read the file
system, inspect its own frames and leave its process group, and the limit on processes
does not bind root. Run untrusted models inside a container.
"""

import contextlib
import dataclasses
import math
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from typing import IO, Literal

MEMORY_BYTES = 1 << 30
FILE_BYTES = 1 << 20
OPEN_FILES = 64
PROCESSES = 64

# Read by the child's interpreter. The nonce comes on the first line of the input and
# goes back only after the last statement, from the process that was started: leaving
# early, printing a verdict and forking all fail to send it.
CHILD = """
import os, resource, sys
def limit(name, value):
    try:
        resource.setrlimit(getattr(resource, name), (value, value))
    except (AttributeError, OSError, ValueError):
        pass
def main():
    limits, nonce, program = sys.stdin.buffer.read().split(b"\\n", 2)
    for pair in limits.decode().split():
        name, value = pair.split("=")
        limit(name, int(value))
    back, first = os.dup(1), os.getpid()
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    code = compile(program, "<program>", "exec")
    exec(code, {"__name__": "__main__"})
    if os.getpid() == first:
        os.write(back, nonce)
main()
"""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a program ended.

    passed: it ran to its last statement without an error. reason: "passed", "failed"
    (an error, an early exit, a broken limit) or "timeout".
    """

    passed: bool
    reason: Literal["passed", "failed", "timeout"]


def run_program(source: str, *, seconds: float = 2.0) -> Outcome:
    """Whether `source` runs to its last statement within the time and the limits.

    The program gets an empty environment, an empty working folder and no output; it
    passes when no statement raised, so end it with the assertions that matter.
    Raises ValueError when `seconds` is not above 0.
    """
    if not seconds > 0:
        raise ValueError(f"seconds={seconds} must be above 0; 2.0 suits most programs")
    nonce = secrets.token_hex(16).encode()
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        tempfile.TemporaryFile() as given,
        tempfile.TemporaryFile() as back,
    ):
        # A lone surrogate cannot be in a program; with "replace" it becomes a `?`.
        program = source.encode("utf-8", "replace")
        given.write(b"\n".join((_limits(seconds).encode(), nonce, program)))
        given.seek(0)
        status = _run(folder, given, back, seconds)
        if status is None:
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
        [sys.executable, "-I", "-S", "-B", "-c", CHILD],
        stdin=given,
        stdout=back,
        stderr=subprocess.DEVNULL,
        cwd=folder,
        env={},
        start_new_session=True,
    )
    try:
        return process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        # Also after a normal end, for the children that the program left behind.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _limits(seconds: float) -> str:
    limits = {
        "RLIMIT_AS": MEMORY_BYTES,
        "RLIMIT_CPU": math.ceil(seconds) + 1,
        "RLIMIT_FSIZE": FILE_BYTES,
        "RLIMIT_NOFILE": OPEN_FILES,
        "RLIMIT_NPROC": PROCESSES,
        "RLIMIT_CORE": 0,
    }
    return " ".join(f"{name}={value}" for name, value in limits.items())
