"""Real processes of the command line, alone or together by `jax.distributed`."""

import os
import pathlib
import socket
import subprocess
import sys
from collections.abc import Callable

from helpers import compiling

PATIENCE = 600
"""Seconds after which commands are given up."""
QUICK_COMPILES = {
    **compiling.VARIABLES,
    "XLA_FLAGS": "--xla_force_host_platform_device_count=4 "
    + compiling.VARIABLES["XLA_FLAGS"],
}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def together(
    cache: pathlib.Path,
    *each: tuple[object, ...],
    meanwhile: Callable[[list[subprocess.Popen]], None] = lambda processes: None,
):
    """Run processes that belong together; gives (exit code, stdout, stderr) of each."""
    words = ("--distributed", "--coordinator", f"127.0.0.1:{free_port()}")
    words += ("--num-processes", str(len(each)), "--process-id")
    path = os.pathsep.join(one for one in sys.path if one)
    env = {**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu", **QUICK_COMPILES}
    env |= {"XDG_CACHE_HOME": str(cache)}
    env.pop("JAXDAVE_NO_CACHE", None)
    commands = [
        [*map(str, own), *(words if len(each) > 1 else ()), *([str(index)] * is_many)]
        for index, own in enumerate(each)
        for is_many in (len(each) > 1,)
    ]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "jaxdave", *command],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for command in commands
    ]
    meanwhile(processes)
    ends = [process.communicate(timeout=PATIENCE) for process in processes]
    return [
        (process.returncode, *end) for process, end in zip(processes, ends, strict=True)
    ]
