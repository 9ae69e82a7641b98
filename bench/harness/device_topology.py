"""Devices that are not there, to compile programs for.

XLA compiles for a TPU with libtpu and for a GPU with JAX's CUDA plugin alone: neither
needs the device, or a driver. What the compiler makes of a program is then a fact; only
how long it takes is not known.
"""

import dataclasses
import importlib.util
import math
import os
import re
from typing import Any

import jax
from jax.experimental import topologies

from jaxdave.runtime import machine
from jaxdave.runtime.machine import Machine

GPU_MACHINES = {"h100": machine.H100, "h200": machine.H200}
"""Targets that are GPUs."""
TPU_MACHINES = {"v4": machine.V4, "v5e": machine.V5E, "v6e": machine.V6E}
"""Targets that are TPUs, to which a topology such as "2x2" is added."""

# What the compiler asks a GPU of Hopper's architecture. Source: CUDA's device
# properties of an H100 SXM; an H200 differs in its memory. Without a driver's version
# XLA would leave library products out of command buffers, as drivers before 12.3 must.
_HOPPER_CONFIG = """gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132
  fpus_per_core: 128 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535 memory_bandwidth: {bytes_per_second:.0f}
  l2_cache_size: 52428800 clock_rate_ghz: 1.98 device_memory_size: {memory_bytes}
  shared_memory_per_block_optin: 232448 cuda_compute_capability {{ major: 9 }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  driver_version: "12.9.0" runtime_version: "12.9.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 }}
runtime_version {{ major: 12 minor: 9 patch: 0 }}
device_description_str: "{description}"
"""
_DESCRIPTIONS = {"h100": "NVIDIA H100 80GB HBM3", "h200": "NVIDIA H200"}
# libtpu asks for the machine that it runs on, and would wait for an answer; and it lets
# one process at a time use the TPU of a machine, of which there is none.
_TPU_SETTINGS = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
}
_SMALL = {"v4": "2x2x1", "v5e": "2x2", "v6e": "2x2"}
_TPU_TARGET = re.compile(r"(v\w+):(\d+(?:x\d+)*)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """Devices of one kind to compile for.

    Attributes:
        name: As it was asked for, e.g. "v5e:2x2".
        machine: One of the devices.
        devices: JAX's descriptions of them.
    """

    name: str
    machine: Machine
    devices: tuple[Any, ...]

    @property
    def platform(self) -> str:
        """What JAX calls the platform when it lowers a program."""
        return "cuda" if self.machine.is_gpu else "tpu"


def target_devices(name: str, count: int = 1) -> Target:
    """Describe devices to compile for.

    Args:
        name: "h100", or a TPU and its topology: "v5e:2x2", "v6e:2x4", "v4:2x2x1".
        count: How many devices are wanted; of a TPU's topology all, or one.

    Returns:
        The devices.

    Raises:
        ValueError: The target is unknown, has another number of devices, or what
            compiles for it is not installed.
    """
    # With a GPU's plugin JAX would look for a GPU, and complain that there is none.
    jax.config.update("jax_platforms", "cpu")
    if name.lower() in GPU_MACHINES:
        return _gpu_devices(name.lower(), count)
    found = _TPU_TARGET.fullmatch(name.lower())
    if found is None or found[1] not in TPU_MACHINES:
        raise ValueError(
            f"target {name!r} is unknown; use {', '.join(GPU_MACHINES)} or one of "
            f"{', '.join(TPU_MACHINES)} with its topology, e.g. v5e:2x2"
        )
    total = math.prod(map(int, found[2].split("x")))
    if count not in (1, total):
        raise ValueError(
            f"target {name!r} has {total} devices, but the mesh has {count}; use a "
            "mesh of as many, or another topology"
        )
    return _tpu_devices(name.lower(), TPU_MACHINES[found[1]], count)


def _gpu_devices(name: str, count: int) -> Target:
    """GPUs of one host."""
    _check_installed(name, "jax[cuda12]", ("jax_cuda12_plugin", "jax_cuda13_plugin"))
    jax.devices()  # Loads JAX's plugins, and CUDA's with them.
    described = topologies.get_topology_desc(
        platform="cuda",
        topology_name=name,
        target_config=_HOPPER_CONFIG.format(
            bytes_per_second=GPU_MACHINES[name].bytes_per_second,
            memory_bytes=GPU_MACHINES[name].memory_bytes,
            description=_DESCRIPTIONS[name],
        ),
        topology=f"1x1x{count}",
    )
    return Target(
        name=name, machine=GPU_MACHINES[name], devices=tuple(described.devices)
    )


def _tpu_devices(name: str, of: Machine, count: int) -> Target:
    """TPUs of one slice."""
    _check_installed(name, "jax[tpu]", ("libtpu",))
    for setting, value in _TPU_SETTINGS.items():
        os.environ.setdefault(setting, value)
    try:
        described = topologies.get_topology_desc(platform="tpu", topology_name=name)
    except (ValueError, RuntimeError) as error:
        line = " ".join(str(error).split())[:120]
        raise ValueError(
            f"target {name!r} is no topology of {of.name} ({line}); use another, e.g. "
            f"{of.name}:{_SMALL[of.name]}"
        ) from None
    return Target(name=name, machine=of, devices=tuple(described.devices)[:count])


def _check_installed(name: str, extra: str, modules: tuple[str, ...]) -> None:
    """Refuse a target whose compiler is not installed."""
    if not any(map(importlib.util.find_spec, modules)):
        raise ValueError(
            f"target {name!r} needs a compiler that is not installed; "
            f'pip install "{extra}"'
        )
