"""Parameters on a mesh: which part of each one every device has.

Column-parallel matrices (q, k, v, gate, up) are split over their outputs, row-parallel
ones (o, down) over their inputs, the embedding and the head over the vocabulary, as in
Megatron-LM (arXiv 1909.08053). The experts of a mixture are split over an axis of their
own; its shared experts and routers are on every device. Two parameters change their
shape so that they divide: tables get rows of no id at their end, and where there are
more devices than key/value heads each device has a copy of those that its queries read.
What does not divide at all is replicated (`core.shards.replicated_parts` says what).
"""

import functools
import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxdave.core.config import ModelConfig
from jaxdave.core.host_arrays import fetch_arrays
from jaxdave.core.param_paths import param_path
from jaxdave.core.shards import (
    mesh_kv_heads,
    replicated_parts,
    splits_attention,
    splits_mlp,
)
from jaxdave.numerics.quantization import channel_axis
from jaxdave.runtime.mesh_shape import EXPERT_AXIS, MODEL_AXIS
from jaxdave.runtime.meshes import auto_mesh, check_mesh, put_array

_LOGGER = logging.getLogger("jaxdave")

# Parameter path -> (the dimension that is split, what is counted along it).
_SPLITS = {
    "embedding": (0, "vocab"),
    "head": (0, "vocab"),
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
    # Of a mixture; its shared experts and routers are replicated.
    **{
        f"blocks/mlp/{part}/{name}/kernel": (1, unit)
        for part, unit in (("experts", "experts"), ("shared", "whole"))
        for name in ("gate", "up", "down")
    },
}


def partition_spec(path: str, config: ModelConfig, num_parts: int) -> PartitionSpec:
    """Say how one parameter is split.

    The values of an `EightBit` are split as the matrix is, and its scales along with
    their channels. Where a matrix is split across its channels, every part needs all
    scales.

    Args:
      path: the parameter's path; a quantised matrix has two, ending in "/values" and
        "/scale".
      config: the model.
      num_parts: devices along the model axis.

    Returns:
      The split of the parameter in the shape that it has on a mesh (`to_mesh_shape`);
      replication where it is not split, or where its units do not divide. Experts have
      their own axis, whatever `num_parts` is.

    Raises:
      ValueError: the path is that of a matrix in the layout of a CPU.

    Example:
      >>> from jaxdave.models.presets import preset
      >>> tuple(partition_spec("blocks/mlp/down/kernel", preset("sdar-4b"), 4))
      (None, 'model')
    """
    dimension = _split_dimension(path, config, num_parts)
    if dimension is None:
        return PartitionSpec()
    _, split = _unquantized_path(path)
    is_experts = split is not None and split[1] == "experts"
    return PartitionSpec(*[None] * dimension, EXPERT_AXIS if is_experts else MODEL_AXIS)


def shardings(params: Any, config: ModelConfig, mesh: Mesh) -> Any:
    """Build the shardings of a tree of parameters in the shapes of a mesh.

    Args:
      params: parameters, or their shapes as `param_shapes` returns them, with the
        layers stacked; float or `EightBit`.
      config: the model.
      mesh: the devices, with an axis named "model" or "data". Its other axes
        replicate. Axes of every type are treated as Auto.

    Returns:
      A tree of the same structure, of `NamedSharding`.

    Raises:
      ValueError: the mesh has no axis of ours, or one of experts that do not divide, or
        the parameters are in the layout of a CPU.
    """
    check_mesh(mesh)
    check_expert_axis(config, mesh)
    num_parts, mesh = mesh.shape.get(MODEL_AXIS, 1), auto_mesh(mesh)

    def leaf_sharding(key_path, _) -> NamedSharding:
        spec = partition_spec(param_path(key_path), config, num_parts)
        has_axis = set(spec) - {None} <= set(mesh.axis_names)
        return NamedSharding(mesh, spec if has_axis else PartitionSpec())

    return jax.tree_util.tree_map_with_path(leaf_sharding, params)


def check_expert_axis(config: ModelConfig, mesh: Mesh) -> None:
    """Refuse an axis of experts that a model's experts cannot be split over.

    Args:
      config: the model.
      mesh: the devices.

    Raises:
      ValueError: the model is dense, or its experts do not divide.
    """
    count = mesh.shape.get(EXPERT_AXIS, 1)
    experts = 0 if config.experts is None else config.experts.count
    if count > 1 and (not experts or experts % count):
        raise ValueError(
            f"expert={count} of the mesh must divide the experts of {config.name!r}, "
            f"which has {experts}; use another number, or the axis 'model'"
        )


def storage_shardings(params: Any, config: ModelConfig, mesh: Mesh) -> Any:
    """The shardings that parameters are read with, in the shapes that files have.

    Args:
      params: shapes as `param_shapes` returns them.
      config: the model.
      mesh: as for `shardings`.

    Returns:
      A tree of `NamedSharding`: as `shardings` where the shape is that of the mesh.
      What changes its shape is split along another dimension if one divides, so that
      it is nowhere whole; `put_on_mesh` moves it to where it belongs.
    """
    num_parts = mesh.shape.get(MODEL_AXIS, 1)

    def leaf_sharding(key_path, leaf, sharding: NamedSharding) -> NamedSharding:
        path = param_path(key_path)
        if _mesh_shape(path, leaf.shape, config, num_parts) == leaf.shape:
            return sharding
        free = [i for i, size in enumerate(leaf.shape) if size % num_parts == 0]
        split = [MODEL_AXIS if i in free[-1:] else None for i in range(len(leaf.shape))]
        return NamedSharding(sharding.mesh, PartitionSpec(*split))

    target = shardings(params, config, mesh)
    return jax.tree_util.tree_map_with_path(leaf_sharding, params, target)


def put_on_mesh(params: Any, config: ModelConfig, mesh: Mesh) -> Any:
    """Put parameters on a mesh, each device's part where it computes with it.

    Args:
      params: stacked parameters (`models.param_shapes`), float or `EightBit`, on the
        host or on any devices.
      config: the model.
      mesh: the devices, as for `shardings`.

    Returns:
      The parameters in the shapes of the mesh; `from_mesh` undoes it.

    Raises:
      ValueError: as `shardings`.

    Example:
      >>> from jaxdave.models import transformer
      >>> from jaxdave.models.presets import preset
      >>> config = preset("sdar-1m", num_layers=1)
      >>> mesh = jax.make_mesh((1,), ("model",))
      >>> params = put_on_mesh(transformer.init(config, seed=0), config, mesh)
      >>> tuple(params["embedding"].sharding.spec)
      ('model',)
    """
    num_parts = mesh.shape.get(MODEL_AXIS, 1)
    target = shardings(params, config, mesh)
    if text := replicated_parts(config, num_parts):
        _LOGGER.warning("on %d devices %s", num_parts, text)

    def put(key_path, leaf, sharding: NamedSharding) -> jax.Array:
        path = param_path(key_path)
        if _mesh_shape(path, leaf.shape, config, num_parts) == leaf.shape:
            return put_array(leaf, sharding)
        if not isinstance(leaf, jax.Array):
            # On the host: each device is sent its own part alone.
            changed = _to_mesh_shape(np, leaf, path, config, num_parts)
            return put_array(changed, sharding)
        change = functools.partial(
            _to_mesh_shape, jnp, path=path, config=config, num_parts=num_parts
        )
        # On the devices: XLA exchanges what has to move, and no device has all of it.
        return jax.jit(change, out_shardings=sharding)(leaf)

    return jax.tree_util.tree_map_with_path(put, params, target)


def mesh_structs(params: Any, config: ModelConfig, mesh: Mesh) -> Any:
    """What `put_on_mesh` would return, as shapes: to compile programs for a mesh.

    Args:
      params: shapes as `param_shapes` returns them, or of quantised ones.
      config: the model.
      mesh: the devices, which need not be there.

    Returns:
      A tree of `jax.ShapeDtypeStruct`s with their shardings.
    """
    num_parts = mesh.shape.get(MODEL_AXIS, 1)

    def struct(key_path, leaf, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
        shape = _mesh_shape(param_path(key_path), leaf.shape, config, num_parts)
        return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=sharding)

    target = shardings(params, config, mesh)
    return jax.tree_util.tree_map_with_path(struct, params, target)


def part_shapes(
    params: Any, config: ModelConfig, num_parts: int, expert_parts: int = 1
) -> Any:
    """The shapes of what each device has of parameters.

    Args:
      params: shapes as `param_shapes` returns them, or of quantised ones.
      config: the model.
      num_parts: devices along the model axis.
      expert_parts: devices along the axis of experts.

    Returns:
      A tree of `jax.ShapeDtypeStruct`s.
    """

    def part(key_path, leaf) -> jax.ShapeDtypeStruct:
        path = param_path(key_path)
        shape = list(_mesh_shape(path, leaf.shape, config, num_parts))
        spec = partition_spec(path, config, num_parts)
        for dimension, axis in enumerate(spec):
            if axis is not None:
                shape[dimension] //= num_parts if axis == MODEL_AXIS else expert_parts
        return jax.ShapeDtypeStruct(tuple(shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(part, params)


def from_mesh(params: Any, config: ModelConfig) -> Any:
    """Bring parameters back from the shapes of a mesh to those of files.

    Args:
      params: what `put_on_mesh` has returned, or parameters that are on no mesh.
      config: the model.

    Returns:
      The parameters; those that had copies or added rows are numpy arrays.
    """

    def undo(key_path, leaf) -> Any:
        path, split = _unquantized_path(param_path(key_path))
        dimension, unit = split or (0, "")
        dimension = _own_dimension(path, param_path(key_path), dimension)
        if dimension is None or unit not in ("vocab", "kv_heads"):
            return leaf
        size = config.vocab_rows
        if unit == "kv_heads":
            size = config.kv_heads * config.head_dim
        if leaf.shape[dimension] == size:
            return leaf
        host = fetch_arrays(leaf)
        if unit == "vocab":
            return host[:size]
        heads = _split_heads(host, dimension, config.head_dim)
        repeats = heads.shape[dimension] // config.kv_heads
        kept = np.arange(config.kv_heads) * repeats
        return np.take(heads, kept, dimension).reshape(
            *host.shape[:dimension], size, *host.shape[dimension + 1 :]
        )

    return jax.tree_util.tree_map_with_path(undo, params)


def _unquantized_path(path: str) -> tuple[str, tuple[int, str] | None]:
    """The path of the matrix that a parameter is or belongs to, and its split."""
    matrix_path, _, _ = path.rpartition("/")
    is_part = _of_stack(matrix_path) in _SPLITS
    if "/kernel/" in path and not is_part:
        raise ValueError(
            f"{path} is a part of a matrix as a CPU reads it, which has no split; use "
            "`weight_layout.to_stacked` of the parameters"
        )
    own = matrix_path if is_part else path
    return own, _SPLITS.get(_of_stack(own))


def _of_stack(path: str) -> str:
    """The path of a layer's parameter, in whichever stack of layers it is."""
    return path.removeprefix("dense_")


def _own_dimension(matrix_path: str, path: str, dimension: int) -> int | None:
    """The split dimension of a matrix, in its scales if the path is theirs."""
    is_scale = path != matrix_path and path.endswith("/scale")
    return _scale_dimension(matrix_path, dimension) if is_scale else dimension


def _split_dimension(path: str, config: ModelConfig, num_parts: int) -> int | None:
    """The dimension along which a parameter is split; None: it is not."""
    matrix_path, split = _unquantized_path(path)
    if split is None:
        return None
    dimension, unit = split
    divides = {
        # Attention is counted in heads, so that no device has only a part of one.
        "heads": num_parts == 1 or splits_attention(config, num_parts),
        "kv_heads": num_parts == 1 or splits_attention(config, num_parts),
        "inter": num_parts == 1 or splits_mlp(config, num_parts),
        "vocab": True,
        "experts": True,
        "whole": False,
    }
    return _own_dimension(matrix_path, path, dimension) if divides[unit] else None


def _mesh_shape(
    path: str, shape: tuple[int, ...], config: ModelConfig, num_parts: int
) -> tuple[int, ...]:
    """The shape that a parameter has on a mesh."""
    matrix_path, split = _unquantized_path(path)
    if split is None:
        return shape
    dimension, unit = split
    dimension = _own_dimension(matrix_path, path, dimension)
    sizes = {
        "vocab": -(-config.vocab_rows // num_parts) * num_parts,
        "kv_heads": mesh_kv_heads(config, num_parts) * config.head_dim,
    }
    if dimension is None or unit not in sizes:
        return shape
    return (*shape[:dimension], sizes[unit], *shape[dimension + 1 :])


def _to_mesh_shape(
    xp: Any, leaf: Any, path: str, config: ModelConfig, num_parts: int
) -> Any:
    """A parameter in the shape of a mesh, by numpy or by JAX (`xp`)."""
    shape = _mesh_shape(path, leaf.shape, config, num_parts)
    (dimension,) = (i for i in range(leaf.ndim) if shape[i] != leaf.shape[i])
    if dimension == 0:  # rows of the vocabulary
        widths = [(0, shape[0] - leaf.shape[0])] + [(0, 0)] * (leaf.ndim - 1)
        return xp.pad(leaf, widths)
    heads = _split_heads(leaf, dimension, config.head_dim)
    repeats = mesh_kv_heads(config, num_parts) // config.kv_heads
    return xp.repeat(heads, repeats, axis=dimension).reshape(shape)


def _split_heads(array: Any, dimension: int, head_dim: int) -> Any:
    """An array whose dimension of heads and features is two dimensions."""
    before, after = array.shape[:dimension], array.shape[dimension + 1 :]
    return array.reshape(*before, -1, head_dim, *after)


def _scale_dimension(path: str, dimension: int) -> int | None:
    """Map a dimension of a matrix to its scales, which lack the axis summed over."""
    # Kernels have a leading layer axis, and those of experts one of experts behind it;
    # the embedding and the head do not.
    ndim = 3 if "blocks/" in path else 2
    ndim += "/experts/" in path
    summed_axis = (channel_axis(path) or 0) % ndim
    if dimension == summed_axis:
        return None
    return dimension - (dimension > summed_axis)
