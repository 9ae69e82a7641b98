"""Conversion of parameters to the layout that this machine's products read fastest.

On a CPU and on a GPU every layer's matrix becomes an array of its own, and matrices
with a common input become one (see `numerics.matmul` for the reason). On a CPU so does
every chunk of the head, and large matrices are stored with one row per output channel,
the order that XLA:CPU's products read fastest; small ones stay [in, out]. On a GPU
matrices in 8 bits lie as the kernel that multiplies by them reads them. On a TPU the
stacked arrays stay as they are, and on a mesh of other devices than GPUs. `to_stacked`
gives the form of `models.param_shapes` back.
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxdave.core.config import NOISE_CHUNK, ModelConfig
from jaxdave.core.model_api import Params
from jaxdave.core.param_paths import param_path
from jaxdave.numerics.layer_stack import LayerStack, PerLayer
from jaxdave.numerics.matmul import (
    ChunkedTable,
    EightBitRows,
    EightBitTable,
    FusedKernels,
    RowMajor,
    RowTable,
    num_rows,
)
from jaxdave.numerics.quantization import (
    FLOAT8,
    EightBit,
    ParamTransform,
    is_eight_bit,
)
from jaxdave.runtime.machine import Machine, this_machine

CPU_HEAD_CHUNK, HEAD_CHUNK = NOISE_CHUNK, 4 * NOISE_CHUNK
"""Vocabulary ids in a chunk of the head, on a CPU and on a TPU. A GPU reads the head
whole: a part of it would be copied first, and every part costs a dozen launches."""
PlaceFn = Callable[[Any], Any]
"""Array on the host or on a device -> the same on the device that is meant."""
LARGE_MATRIX = 2**19
"""Weights from which on a matrix is stored row-major: 2 MB of float32, the cache of one
core of the machine that it was measured on (docs/lab_notes)."""
FUSED = (
    ("attn", ("q", "k", "v")),
    ("mlp", ("gate", "up")),
    ("mlp/shared", ("gate", "up")),
)
"""(module, matrices with a common input), which are fused except on a TPU."""
LAYERS = ("blocks", "dense_blocks")
"""The stacks of layers, of which a model has the first or both."""


def head_chunk(rows: int, machine: Machine) -> int:
    """The number of vocabulary ids that a chunk of the head covers.

    Noise is drawn `NOISE_CHUNK` ids at a time, so a chunk of a large head is a multiple
    of that.

    Args:
        rows: Rows of the head.
        machine: What reads it.

    Returns:
        `rows` for a small head and on a GPU, else a multiple of `NOISE_CHUNK` of at
        most `rows`.
    """
    max_chunk = CPU_HEAD_CHUNK if machine.is_cpu else HEAD_CHUNK
    if rows <= NOISE_CHUNK or machine.is_gpu:
        return rows
    return min(max_chunk, rows // NOISE_CHUNK * NOISE_CHUNK)


def to_device_layout(
    params: Params,
    config: ModelConfig,
    machine: Machine | None = None,
    *,
    place: PlaceFn = jax.device_put,
) -> Params:
    """Put parameters on the device, in the layout that it reads fastest.

    Leaves are converted one at a time, and each is released at once unless the caller
    holds it too. So peak memory exceeds the model by at most one fused group (q, k, v
    or gate, up).

    Args:
        params: Stacked parameters, float or `EightBit`, on the host or on the device;
            or the result of an earlier call.
        config: The config that they are of.
        machine: The kind of device; None: that of JAX's default backend.
        place: Puts an array on the device.

    Returns:
        The same tree with layout classes in place of some arrays.
    """
    # Parameters that have this layout already are stacked first, so that a second call
    # changes nothing.
    params, machine = to_stacked(params), machine or this_machine()
    leaves, tree = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_eight_bit)
    # From here on only `remaining` refers to the leaves. Popping one from it below lets
    # its memory be freed as soon as its converted form exists.
    del params
    remaining = {param_path(path): leaf for path, leaf in leaves}
    del leaves
    order, converted = list(remaining), {}
    # A fused matrix is stored under the first name of its group. The other names hold
    # an empty tuple, a pytree without leaves, so that the tree keeps its structure.
    for paths in _fused_paths() if _has_own_layers(machine) else ():
        if paths[0] not in remaining:
            continue
        converted |= dict.fromkeys(paths, ())
        converted[paths[0]] = _fuse(
            [remaining.pop(path) for path in paths], machine, place
        )
    for path in list(remaining):
        converted[path] = _to_layout(path, remaining.pop(path), config, machine, place)
    return tree.unflatten([converted[path] for path in order])


def unstack_layers(params: Params, machine: Machine) -> Params:
    """Parameters on a mesh, every layer's matrix an array of its own on a GPU.

    Matrices are not fused there, as each device has its part of every one, and not
    stored for the kernel of 8-bit products.

    Args:
        params: Stacked parameters on a mesh, or their shapes there.
        machine: The kind of its devices.

    Returns:
        The parameters; as they are on other machines.
    """
    if not machine.is_gpu:
        return params
    leaves, tree = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_eight_bit)
    # As in `to_device_layout`: a stack is let go of as soon as it is taken apart.
    del params
    remaining = {param_path(path): leaf for path, leaf in leaves}
    del leaves
    order, converted = list(remaining), {}
    for path in order:
        leaf = remaining.pop(path)
        if path.endswith("/kernel"):
            arrays, matrix = jax.tree.flatten(leaf)
            layers = zip(*map(_mesh_layers, arrays), strict=True)
            leaf = PerLayer(tuple(map(matrix.unflatten, layers)))
        converted[path] = leaf
    return tree.unflatten([converted[path] for path in order])


def _mesh_layers(stack: Any) -> tuple[Any, ...]:
    """The layers of an array [N, ...] on a mesh, each split as it is."""
    count, sharding = stack.shape[0], stack.sharding
    own = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
    if isinstance(stack, jax.ShapeDtypeStruct):
        layer = jax.ShapeDtypeStruct(stack.shape[1:], stack.dtype, sharding=own)
        return (layer,) * count
    take = jax.jit(lambda a: tuple(a[i] for i in range(count)), out_shardings=own)
    return take(stack)


def to_stacked(params: Params) -> Params:
    """Bring parameters back to the form of `models.param_shapes`.

    Args:
        params: Parameters in any layout.

    Returns:
        Nested dicts of arrays and `EightBit`s; those of the layers stacked, [N, ...].
    """

    def has_layout(leaf: Any) -> bool:
        return isinstance(leaf, LayerStack | RowTable)

    def stack(leaf: Any) -> Any:
        return leaf.to_stacked() if has_layout(leaf) else leaf

    return _split_fused(jax.tree.map(stack, params, is_leaf=has_layout))


def transfer_transform(
    transform: ParamTransform, machine: Machine | None = None
) -> ParamTransform:
    """Extend a transform so that its result leaves the host, on a TPU.

    Args:
        transform: What is applied to each parameter as it is read.
        machine: As for `to_device_layout`.

    Returns:
        A `ParamTransform` that puts the result on the device.
    """
    if _has_own_layers(machine or this_machine()):
        return transform
    return lambda path, leaf: jax.device_put(transform(path, leaf))


def _fused_paths() -> list[list[str]]:
    """The paths of matrices that are fused, where a model has them."""
    return [
        [f"{layers}/{module}/{name}/kernel" for name in names]
        for layers in LAYERS
        for module, names in FUSED
    ]


def _split_fused(tree: Any) -> Any:
    """Nested dicts in which every fused matrix is split into its parts again."""
    if not isinstance(tree, dict):
        return tree
    result = {name: _split_fused(part) for name, part in tree.items()}
    # The kernel of the first name holds all of them.
    for _, names in FUSED:
        fused = _kernel(tree.get(names[0]))
        if isinstance(fused, FusedKernels):
            for name, part in zip(names, fused.split(fused.matrix), strict=True):
                result[name] = result[name] | {"kernel": part}
    return result


def _kernel(part: Any) -> Any:
    """The kernel of a linear layer's parameters; None of anything else."""
    return part.get("kernel") if isinstance(part, dict) else None


def _to_layout(
    path: str, leaf: Any, config: ModelConfig, machine: Machine, place: PlaceFn
) -> Any:
    """One parameter on the device."""
    head_path = "embedding" if config.tie_embeddings else "head"
    # A router is small, and computed in float32 wherever it lies.
    is_matrix = path.endswith("/kernel") and not path.endswith("/router/kernel")
    if _has_own_layers(machine) and is_matrix:
        # Those of all experts, [X, in, out], stay as they are: one expert's are read
        # where they lie (`models.experts`).
        if "/experts/" in path:
            layers = _host_layers(leaf)
            return PerLayer(tuple(jax.tree.map(place, layer) for layer in layers))
        return _per_layer(_host_layers(leaf), machine, place)
    chunk = head_chunk(config.vocab_rows, machine)
    # The head is read chunk by chunk; tied embeddings are the head, and lookups read
    # chunks, too. An untied embedding is only looked up, and stays in one piece.
    if machine.is_cpu and path == head_path and chunk < num_rows(leaf):
        return _to_chunks(leaf, chunk, place)
    placed = jax.tree.map(place, leaf)
    has_kernel = path == head_path and _has_kernel(leaf, machine)
    return EightBitTable(placed) if has_kernel else placed


def _fuse(stacks: list[Any], machine: Machine, place: PlaceFn) -> FusedKernels:
    """Stacks [N, in, out] of several matrices as one fused matrix per layer."""
    # Output channels, the last axis. Scales of an `EightBit` have that axis as well, so
    # that values and scales are concatenated alike.
    sizes = tuple(jax.tree.leaves(stack)[0].shape[-1] for stack in stacks)

    def concatenate(*matrices: np.ndarray) -> np.ndarray:
        return np.concatenate(matrices, axis=-1)

    layers = (
        jax.tree.map(concatenate, *matrices)
        for matrices in zip(*map(_host_layers, stacks), strict=True)
    )
    return FusedKernels(_per_layer(layers, machine, place), sizes)


def _has_own_layers(machine: Machine) -> bool:
    """True where every layer's matrix is an array of its own."""
    return machine.is_cpu or machine.is_gpu


def _has_kernel(matrix: Any, machine: Machine) -> bool:
    """True for a matrix in 8 bits that this machine multiplies by without widening."""
    if not isinstance(matrix, EightBit) or not machine.is_gpu:
        return False
    return machine.has_float8 or matrix.values.dtype != FLOAT8


def _per_layer(layers: Iterable[Any], machine: Machine, place: PlaceFn) -> PerLayer:
    """Matrices of the layers, on the host, as arrays of their own on the device."""

    def layout_of(matrix: Any) -> Any:
        if _has_kernel(matrix, machine):
            return EightBitRows(jax.tree.map(place, _transposed(matrix)))
        # Small matrices stay in the cache of a CPU's core in either order.
        is_large = jax.tree.leaves(matrix)[0].size >= LARGE_MATRIX
        if machine.is_cpu and is_large:
            return RowMajor(jax.tree.map(place, _transposed(matrix)))
        return jax.tree.map(place, matrix)

    return PerLayer(tuple(map(layout_of, layers)))


def _host_layers(stack: Any) -> list[Any]:
    """The matrices of a stack, on the host: a slice on a device would be compiled."""
    host = jax.tree.map(np.asarray, stack)
    return [jax.tree.map(lambda a, i=i: a[i], host) for i in range(num_rows(host))]


def _transposed(matrix: Any) -> Any:
    """A host matrix transposed; scales belong to output channels in either order."""
    if isinstance(matrix, EightBit):
        return EightBit(_transposed(matrix.values), matrix.scale)
    return np.ascontiguousarray(matrix.T)


def _to_chunks(table: Any, size: int, place: PlaceFn) -> ChunkedTable:
    """A table [V, E] in chunks of `size` rows, each on the device."""
    host = jax.tree.map(np.asarray, table)
    rows = num_rows(host)
    # The chunks of `sampling.chunked_head.chunk_logits`: the last one starts earlier so
    # that it is full.
    firsts = [min(first, rows - size) for first in range(0, rows, size)]

    def chunk(first: int) -> Any:
        return jax.tree.map(lambda a: place(a[first : first + size]), host)

    return ChunkedTable(tuple(chunk(first) for first in firsts), rows)
