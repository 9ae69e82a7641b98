"""Tensor parallelism: how each parameter lies on the devices of a mesh."""

from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxdave.core.config import ModelConfig
from jaxdave.io import safetensors_io
from jaxdave.numerics.quantization import channel_axis

AXIS = "model"

# Parameter path -> (the dimension that is split, the field that counts its units).
# Heads are units, so that no device holds a part of one.
_SPLITS = {
    "embedding": (0, "vocab_rows"),
    "head": (0, "vocab_rows"),
    "blocks/attn/q/kernel": (2, "heads"),
    "blocks/attn/k/kernel": (2, "kv_heads"),
    "blocks/attn/v/kernel": (2, "kv_heads"),
    "blocks/attn/q/bias": (1, "heads"),
    "blocks/attn/k/bias": (1, "kv_heads"),
    "blocks/attn/v/bias": (1, "kv_heads"),
    "blocks/attn/o/kernel": (1, "heads"),
    "blocks/mlp/gate/kernel": (2, "inter"),
    "blocks/mlp/up/kernel": (2, "inter"),
    "blocks/mlp/down/kernel": (1, "inter"),
}


def partition(path: str, config: ModelConfig, parts: int) -> PartitionSpec:
    """The split of one parameter; whole on every device where it does not divide.

    The values of an `Int8` are split as the matrix is, and its scales along with their
    channels: where channels are cut across, every part needs all scales.
    """
    whole, _, part = path.rpartition("/")
    is_int8 = whole in _SPLITS
    if "/kernel/" in path and not is_int8:
        raise ValueError(
            f"{path} is a part of a matrix as a CPU reads it, which has no split; use "
            "`weight_layout.to_stacked` of the parameters"
        )
    dimension, field = _SPLITS.get(whole if is_int8 else path, (0, None))
    if field is None or getattr(config, field) % parts:
        return PartitionSpec()
    if is_int8 and part == "scale":
        dimension = _of_scale(whole, dimension)
    return PartitionSpec() if dimension is None else _split(dimension)


def shardings(like: Any, config: ModelConfig, mesh: Mesh) -> Any:
    """A tree as `like` (see `params.abstract`) of shardings over the mesh.

    Raises ValueError when the mesh has no axis named "model".
    """
    if AXIS not in mesh.shape:
        raise ValueError(
            f"mesh axes {tuple(mesh.shape)} must include {AXIS!r}, over which "
            "parameters are split; name an axis so"
        )
    parts = mesh.shape[AXIS]

    def of(path, _) -> NamedSharding:
        return NamedSharding(
            mesh, partition(safetensors_io.path_of(path), config, parts)
        )

    return jax.tree_util.tree_map_with_path(of, like)


def _of_scale(path: str, dimension: int) -> int | None:
    """Where a matrix's split falls in its scales, which lack the channels' own axis."""
    # Layers come first in every kernel; the embedding and the head have rows.
    ndim = 3 if path.startswith("blocks/") else 2
    gone = (channel_axis(path) or 0) % ndim
    return None if dimension == gone else dimension - (dimension > gone)


def _split(dimension: int) -> PartitionSpec:
    return PartitionSpec(*[None] * dimension, AXIS)
