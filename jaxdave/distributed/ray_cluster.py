"""Connecting to a Ray cluster, or starting one; nothing hangs or stays behind."""

import contextlib
import logging
import os
import socket
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxdave.distributed.ray_config import RayConfig
from jaxdave.runtime import child_processes
from jaxdave.runtime.files import temporary_folder
from jaxdave.runtime.interrupts import children_killed_on_interrupt
from jaxdave.runtime.messages import one_line
from jaxdave.runtime.streams import silenced

CONNECT_SECONDS, JOIN_SECONDS = 5.0, 20.0
"""How long the head of a cluster may take to accept a connection, and to answer."""
ACCELERATORS = ("GPU", "TPU")
"""Ray's names of devices of which every worker gets one, where a cluster has them."""
_ENVIRONMENT = {
    # A run reports nothing to anyone.
    "RAY_USAGE_STATS_ENABLED": "0",
    # Its C++ part writes past Python to the terminal.
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
_JOIN = """
import logging, sys, ray
ray.init(address=sys.argv[1], log_to_driver=False, logging_level=logging.ERROR)
"""


def import_ray() -> Any:
    """Import Ray, as quiet as it can be.

    Returns:
        The module `ray`, with `ray.data`.

    Raises:
        ValueError: It is not installed.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ValueError(
            f"Ray is not installed ({one_line(error)}); pip install 'jaxdave[ray]'"
        ) from error
    return ray


@contextlib.contextmanager
def connected(config: RayConfig) -> Iterator[Any]:
    """Be connected to a cluster, which is ended afterwards if it was started here.

    What Ray prints is dropped meanwhile: standard output is the caller's.

    Args:
        config: Which cluster.

    Returns:
        A context manager that gives the module `ray`.

    Raises:
        ValueError: Ray is not installed, the cluster cannot be started or reached, or
            it has too few devices for a worker.
    """
    ray = import_ray()
    with contextlib.ExitStack() as stack:
        quiet = stack.enter_context(open(os.devnull, "w"))
        stack.enter_context(contextlib.redirect_stdout(quiet))
        settings: dict[str, Any] = {"log_to_driver": False}
        settings["logging_level"] = logging.CRITICAL
        if config.is_local:
            # Sockets are in there, whose paths must be short.
            short = Path("/tmp")
            folder = stack.enter_context(
                temporary_folder(short if short.is_dir() else None)
            )
            # Its processes are ours to end, whatever ends this one.
            stack.enter_context(children_killed_on_interrupt())
            settings |= {
                "include_dashboard": False,
                "num_cpus": config.workers + 1,
                "_temp_dir": str(folder),
            }
        else:
            check_reachable(config)
        others = child_processes.descendants()
        stack.callback(_shut_down, ray, others)
        try:
            with _silent_start():
                ray.init(address=config.address, **settings)
        except Exception as error:  # Ray has many kinds of failure
            raise _cannot_connect(config, one_line(error)) from error
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        _check_resources(ray, config)
        yield ray


def check_reachable(config: RayConfig) -> None:
    """Refuse a cluster that does not answer, in bounded time.

    `ray.init` waits for two minutes, and then ends the process. So a process of its own
    tries first.

    Args:
        config: Which cluster.

    Raises:
        ValueError: There is none, or it does not answer.
    """
    if config.host_and_port is not None:
        try:
            socket.create_connection(config.host_and_port, CONNECT_SECONDS).close()
        except OSError as error:
            raise _cannot_connect(config, one_line(error)) from error
    command = [sys.executable, "-c", _JOIN, config.address]
    try:
        with children_killed_on_interrupt():
            tried = subprocess.run(
                command, capture_output=True, text=True, timeout=JOIN_SECONDS
            )
    except subprocess.TimeoutExpired as error:
        reason = f"no answer of a Ray cluster in {JOIN_SECONDS:.0f} s"
        raise _cannot_connect(config, reason) from error
    if tried.returncode:
        lines = tried.stderr.strip().splitlines() or ["Ray cannot connect"]
        raise _cannot_connect(config, one_line(lines[-1]))


def worker_resources(
    cluster: Mapping[str, float], num_devices: int = 1
) -> dict[str, Any]:
    """What Ray sets aside for one worker.

    Args:
        cluster: All that a cluster has, as `ray.cluster_resources` names it.
        num_devices: Devices of a worker's mesh.

    Returns:
        Arguments of `map_batches`: so many devices where there are some, else a CPU.

    Example:
        >>> worker_resources({"CPU": 8.0, "GPU": 4.0}, 2)
        {'num_gpus': 2}
    """
    if cluster.get("GPU"):
        return {"num_gpus": num_devices}
    if cluster.get("TPU"):
        return {"resources": {"TPU": num_devices}}
    return {"num_cpus": 1}


@contextlib.contextmanager
def _silent_start() -> Iterator[None]:
    """Nothing on the terminal while Ray starts, neither from Python nor from C++."""
    # JAX warns of forks: between them and what they run Ray's children do nothing
    # that would wait for a thread.
    with warnings.catch_warnings(), silenced(2):
        # Ray's C++ part says that it has read how much it may say.
        warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)
        yield


def _shut_down(ray: Any, others: Sequence[int]) -> None:
    """Leave the cluster; one that was started here ends with all of its processes."""
    own = set(child_processes.descendants()) - set(others)
    ray.shutdown()
    # Ray's workers look for their parent from time to time only.
    child_processes.kill(tuple(own))


def _check_resources(ray: Any, config: RayConfig) -> None:
    """Refuse a local cluster on which some workers would wait for ever."""
    cluster = ray.cluster_resources()
    for name in ACCELERATORS:
        count = int(cluster.get(name, 0))
        if config.is_local and 0 < count < config.workers:
            raise ValueError(
                f"workers={config.workers} want a {name} each and this machine has "
                f"{count}; use --workers {count}"
            )


def _cannot_connect(config: RayConfig, reason: str) -> ValueError:
    if config.is_local:
        return ValueError(
            f"no Ray cluster can be started here ({reason[:200]}); see Ray's manual"
        )
    return ValueError(
        f"the Ray cluster ray={config.address!r} cannot be reached ({reason[:200]}); "
        "check the address and that it runs, or use --ray local"
    )
