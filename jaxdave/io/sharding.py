"""Tensor parallelism: how each parameter is split over the devices of a mesh.

Column-parallel matrices (q, k, v, gate, up) are split over their outputs, row-parallel
ones (o, down) over their inputs, the embedding and the head over the vocabulary, as in
Megatron-LM (arXiv 1909.08053). XLA derives the rest, the KV cache included.
"""

from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxdave.core.config import ModelConfig
from jaxdave.core.param_paths import param_path
from jaxdave.numerics.quantization import channel_axis

MODEL_AXIS = "model"
"""Name of the mesh axis that parameters are split over."""

# Parameter path -> (the dimension that is split, the field that counts its units).
# Attention is counted in heads, so that no device has only a part of one.
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


def partition_spec(path: str, config: ModelConfig, num_parts: int) -> PartitionSpec:
    """Say how one parameter is split.

    The values of an `Int8` are split as the matrix is, and its scales along with their
    channels. Where a matrix is split across its channels, every part needs all scales.

    Args:
      path: the parameter's path; a quantised matrix has two, ending in "/values" and
        "/scale".
      config: the model.
      num_parts: devices along the model axis.

    Returns:
      The split; replication where the parameter is not split, or where its units do not
      divide into `num_parts`.

    Raises:
      ValueError: the path is that of a matrix in the layout of a CPU.

    Example:
      >>> from jaxdave.models.presets import preset
      >>> tuple(partition_spec("blocks/mlp/down/kernel", preset("sdar-4b"), 4))
      (None, 'model')
    """
    matrix_path, _, part = path.rpartition("/")
    is_int8 = matrix_path in _SPLITS
    if "/kernel/" in path and not is_int8:
        raise ValueError(
            f"{path} is a part of a matrix as a CPU reads it, which has no split; use "
            "`weight_layout.to_stacked` of the parameters"
        )
    # Heads and the vocabulary often do not divide; such a parameter is replicated
    # rather than padded, which would change its shape.
    dimension, field = _SPLITS.get(matrix_path if is_int8 else path, (0, None))
    if field is None or getattr(config, field) % num_parts:
        return PartitionSpec()
    if is_int8 and part == "scale":
        dimension = _scale_dimension(matrix_path, dimension)
    if dimension is None:
        return PartitionSpec()
    return PartitionSpec(*[None] * dimension, MODEL_AXIS)


def shardings(params: Any, config: ModelConfig, mesh: Mesh) -> Any:
    """Build the shardings of a tree of parameters.

    Args:
      params: parameters, or their shapes as `param_shapes` returns them, with the
        layers stacked; float or `Int8`.
      config: the model.
      mesh: the devices, with an axis named "model". Its other axes replicate.

    Returns:
      A tree of the same structure, of `NamedSharding`.

    Raises:
      ValueError: the mesh has no axis named "model", or the parameters are in the
        layout of a CPU.
    """
    if MODEL_AXIS not in mesh.shape:
        raise ValueError(
            f"mesh axes {tuple(mesh.shape)} must include {MODEL_AXIS!r}, over which "
            "parameters are split; name an axis so"
        )
    num_parts = mesh.shape[MODEL_AXIS]

    def leaf_sharding(key_path, _) -> NamedSharding:
        spec = partition_spec(param_path(key_path), config, num_parts)
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(leaf_sharding, params)


def _scale_dimension(path: str, dimension: int) -> int | None:
    """Map a dimension of a matrix to its scales, which lack the axis summed over."""
    # Kernels have a leading layer axis; the embedding and the head do not.
    ndim = 3 if path.startswith("blocks/") else 2
    summed_axis = (channel_axis(path) or 0) % ndim
    if dimension == summed_axis:
        return None
    return dimension - (dimension > summed_axis)
