"""Conversion of parameters to the layout that this machine's products read fastest.

On a CPU every layer's matrix and every chunk of the head becomes an array of its own
(see `numerics.matmul` for the reason). Large matrices are stored with one row per
output channel, the order that XLA:CPU's products read fastest; small ones stay
[in, out]. Elsewhere the stacked arrays stay as they are. `to_stacked` gives the form of
`models.param_shapes` back.
"""

from typing import Any

import jax
import numpy as np

from jaxdave.core.config import NOISE_CHUNK, ModelConfig
from jaxdave.core.model_api import Params
from jaxdave.core.param_paths import param_path
from jaxdave.numerics.matmul import (
    ChunkedTable,
    FusedKernels,
    LayerStack,
    PerLayer,
    RowMajor,
    RowTable,
    num_rows,
)
from jaxdave.numerics.quantization import Int8, ParamTransform, is_int8
from jaxdave.runtime.platform import on_cpu

CPU_HEAD_CHUNK, HEAD_CHUNK = NOISE_CHUNK, 4 * NOISE_CHUNK
"""Vocabulary ids in a chunk of the head, on a CPU and elsewhere. Off a CPU chunks are
larger, as reading one costs a dozen kernel launches whatever its size."""
LARGE_MATRIX = 2**19
"""Weights from which on a matrix is stored row-major: 2 MB of float32, the cache of one
core of the machine that it was measured on (docs/lab_notes)."""
FUSED = (("attn", ("q", "k", "v")), ("mlp", ("gate", "up")))
"""(module, matrices with a common input), which are fused on a CPU."""


def head_chunk(rows: int) -> int:
    """The number of vocabulary ids that a chunk of the head covers.

    Noise is drawn `NOISE_CHUNK` ids at a time, so a chunk of a large head is a multiple
    of that.

    Args:
        rows: Rows of the head.

    Returns:
        `rows` for a small head, else a multiple of `NOISE_CHUNK` of at most `rows`.
    """
    max_chunk = CPU_HEAD_CHUNK if on_cpu() else HEAD_CHUNK
    if rows <= NOISE_CHUNK:
        return rows
    return min(max_chunk, rows // NOISE_CHUNK * NOISE_CHUNK)


def to_device_layout(params: Params, config: ModelConfig) -> Params:
    """Put parameters on the device, in the layout that it reads fastest.

    Leaves are converted one at a time, and each is released at once unless the caller
    holds it too. So peak memory exceeds the model by at most one fused group (q, k, v
    or gate, up).

    Args:
        params: Stacked parameters, float or `Int8`, on the host or on the device; or
            the result of an earlier call.
        config: The config that they are of.

    Returns:
        The same tree with layout classes in place of some arrays.
    """
    # Parameters that have this layout already are stacked first, so that a second call
    # changes nothing.
    params = to_stacked(params)
    leaves, tree = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_int8)
    # From here on only `remaining` refers to the leaves. Popping one from it below lets
    # its memory be freed as soon as its converted form exists.
    del params
    remaining = {param_path(path): leaf for path, leaf in leaves}
    del leaves
    order, converted = list(remaining), {}
    # A fused matrix is stored under the first name of its group. The other names hold
    # an empty tuple, a pytree without leaves, so that the tree keeps its structure.
    for module, names in FUSED if on_cpu() else ():
        paths = [f"blocks/{module}/{name}/kernel" for name in names]
        converted |= dict.fromkeys(paths, ())
        converted[paths[0]] = _fuse([remaining.pop(path) for path in paths])
    for path in list(remaining):
        converted[path] = _to_layout(path, remaining.pop(path), config)
    return tree.unflatten([converted[path] for path in order])


def to_stacked(params: Params) -> Params:
    """Bring parameters back to the form of `models.param_shapes`.

    Args:
        params: Parameters in any layout.

    Returns:
        Nested dicts of arrays and `Int8`s; those of the layers stacked, [N, ...].
    """

    def has_layout(leaf: Any) -> bool:
        return isinstance(leaf, LayerStack | RowTable)

    def stack(leaf: Any) -> Any:
        return leaf.to_stacked() if has_layout(leaf) else leaf

    return _split_fused(jax.tree.map(stack, params, is_leaf=has_layout))


def transfer_transform(transform: ParamTransform) -> ParamTransform:
    """Extend a transform so that its result leaves the host, except on a CPU.

    Args:
        transform: What is applied to each parameter as it is read.

    Returns:
        A `ParamTransform` that puts the result on the device.
    """
    if on_cpu():
        return transform
    return lambda path, leaf: jax.device_put(transform(path, leaf))


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


def _to_layout(path: str, leaf: Any, config: ModelConfig) -> Any:
    """One parameter on the device."""
    head_path = "embedding" if config.tie_embeddings else "head"
    if on_cpu() and path.endswith("/kernel"):
        return PerLayer(tuple(map(_layer_matrix, _host_layers(leaf))))
    chunk = head_chunk(config.vocab_rows)
    # The head is read chunk by chunk; tied embeddings are the head, and lookups read
    # chunks, too. An untied embedding is only looked up, and stays in one piece.
    if on_cpu() and path == head_path and chunk < num_rows(leaf):
        return _to_chunks(leaf, chunk)
    return jax.device_put(leaf)


def _fuse(stacks: list[Any]) -> FusedKernels:
    """Stacks [N, in, out] of several matrices as one fused matrix per layer."""
    # Output channels, the last axis. Scales of an `Int8` have that axis as well, so
    # that values and scales are concatenated alike.
    sizes = tuple(jax.tree.leaves(stack)[0].shape[-1] for stack in stacks)

    def concatenate(*matrices: np.ndarray) -> np.ndarray:
        return np.concatenate(matrices, axis=-1)

    layers = (
        _layer_matrix(jax.tree.map(concatenate, *matrices))
        for matrices in zip(*map(_host_layers, stacks), strict=True)
    )
    return FusedKernels(PerLayer(tuple(layers)), sizes)


def _host_layers(stack: Any) -> list[Any]:
    """The matrices of a stack, on the host: a slice on a device would be compiled."""
    host = jax.tree.map(np.asarray, stack)
    return [jax.tree.map(lambda a, i=i: a[i], host) for i in range(num_rows(host))]


def _layer_matrix(matrix: Any) -> Any:
    """One layer's matrix on the device, row-major if it is large."""
    # Small matrices stay in the cache of a core in either order.
    if jax.tree.leaves(matrix)[0].size < LARGE_MATRIX:
        return jax.device_put(matrix)
    return RowMajor(jax.device_put(_transposed(matrix)))


def _transposed(matrix: Any) -> Any:
    """A host matrix transposed; scales belong to output channels in either order."""
    if isinstance(matrix, Int8):
        return Int8(_transposed(matrix.values), matrix.scale)
    return np.ascontiguousarray(matrix.T)


def _to_chunks(table: Any, size: int) -> ChunkedTable:
    """A table [V, E] in chunks of `size` rows, each on the device."""
    host = jax.tree.map(np.asarray, table)
    rows = num_rows(host)
    # The chunks of `sampling.chunked_head.chunk_logits`: the last one starts earlier so
    # that it is full.
    firsts = [min(first, rows - size) for first in range(0, rows, size)]

    def chunk(first: int) -> Any:
        return jax.device_put(jax.tree.map(lambda a: a[first : first + size], host))

    return ChunkedTable(tuple(chunk(first) for first in firsts), rows)
