"""Whether the weights of a model fit into the memory of its devices."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxdave.core.config import ModelConfig
from jaxdave.core.param_paths import leaves_by_path
from jaxdave.io.safetensors_io import DTYPES
from jaxdave.io.sharding import part_shapes
from jaxdave.models.param_shapes import param_shapes
from jaxdave.numerics.quantization import quantize_params
from jaxdave.runtime.mesh_shape import EXPERT_AXIS, MODEL_AXIS

MAX_PARTS = 256
"""A mesh of more devices is not proposed."""


def check_memory(
    config: ModelConfig, dtype: str, quantize: str | None, mesh: Mesh | None
) -> None:
    """Refuse a model whose weights do not fit, before any of them is read.

    Args:
      config: the model.
      dtype: of its parameters.
      quantize: "int8", or None.
      mesh: the devices; None: the first one.

    Raises:
      ValueError: they do not fit; one line says by how much, and what would.
    """
    local = jax.local_devices() if mesh is None else mesh.local_devices
    device = local[0]
    limit = device_bytes(device)
    sizes = {} if mesh is None else mesh.shape
    num_parts, expert_parts = sizes.get(MODEL_AXIS, 1), sizes.get(EXPERT_AXIS, 1)
    if limit is not None:
        check_fits(config, dtype, quantize, num_parts, limit, expert_parts)


def check_fits(
    config: ModelConfig,
    dtype: str,
    quantize: str | None,
    num_parts: int,
    limit: int,
    expert_parts: int = 1,
) -> None:
    """Refuse a model whose weights do not fit into so many bytes of each device.

    Args:
      config: the model.
      dtype: of its parameters.
      quantize: "int8", or None.
      num_parts: devices that the weights are split over.
      limit: bytes of one device.
      expert_parts: devices that its experts are split over.

    Raises:
      ValueError: they do not fit.
    """
    needed = weight_bytes(config, dtype, quantize, num_parts, expert_parts)
    if needed <= limit:
        return
    remedies = _remedies(config, dtype, quantize, num_parts, limit, expert_parts)
    advice = " or ".join(remedies) or "a smaller model"
    raise ValueError(
        f"the weights of {config.name!r} take {_gigabytes(needed)} of each device, "
        f"which has {_gigabytes(limit)}: {_gigabytes(needed - limit)} too much; "
        f"use {advice}"
    )


def _remedies(
    config: ModelConfig,
    dtype: str,
    quantize: str | None,
    num_parts: int,
    limit: int,
    expert_parts: int,
) -> list[str]:
    """What would make a model's weights fit; arguments as of `check_fits`."""
    remedies = []
    int8 = weight_bytes(config, dtype, "int8", num_parts, expert_parts)
    if int8 <= limit:
        remedies.append(f"quantize='int8' ({_gigabytes(int8)})")
    # Most of a mixture is its experts.
    experts = 0 if config.experts is None else config.experts.count
    axis, parts = ("expert", expert_parts) if experts else ("model", num_parts)
    while parts < MAX_PARTS and (not experts or experts % (2 * parts) == 0):
        parts *= 2
        counts = (num_parts, parts) if experts else (parts, 1)
        split = weight_bytes(config, dtype, quantize, *counts)
        if split <= limit:
            remedies.append(f"mesh='{axis}={parts}' ({_gigabytes(split)} each)")
            break
    return remedies


def weight_bytes(
    config: ModelConfig,
    dtype: str,
    quantize: str | None,
    num_parts: int,
    expert_parts: int = 1,
) -> int:
    """Bytes of a model's weights on one device.

    Args:
      config: the model.
      dtype: of its parameters.
      quantize: "int8", or None.
      num_parts: devices that they are split over.
      expert_parts: devices that the experts of a mixture are split over.

    Returns:
      The bytes, without the cache and what a program needs beside.

    Example:
      >>> from jaxdave.models.presets import preset
      >>> round(weight_bytes(preset("sdar-4b"), "bfloat16", None, 4) / 1e9, 1)
      2.2
    """
    shapes = param_shapes(config, jnp.dtype(DTYPES[dtype]))
    if quantize is not None:
        shapes = jax.eval_shape(quantize_params, shapes)
    split = part_shapes(shapes, config, num_parts, expert_parts)
    parts = leaves_by_path(split).values()
    return sum(math.prod(part.shape) * part.dtype.itemsize for part in parts)


def device_bytes(device: Any) -> int | None:
    """Bytes of memory of a device.

    Args:
      device: the device.

    Returns:
      The bytes; None where the device does not tell, as a CPU does not.
    """
    stats = device.memory_stats()
    return None if not stats else stats.get("bytes_limit")


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
