"""Parameters where and how this machine's products read them best.

On a CPU the matrices of the layers, and the chunks of the head, are arrays of their own
(why: `matrices.py`). Large ones have a row an output channel, the order that XLA:CPU's
products read fastest; small ones have a column, as everywhere else. Whoever wants the
parameters as `params.abstract` has them asks for `stacked`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdave.core.config import NOISE_CHUNK, ModelConfig
from jaxdave.core.model_api import Params
from jaxdave.numerics.matmul import (
    ChunkedTable,
    FusedKernels,
    PerLayer,
    RowMajor,
    num_rows,
    unchunked,
)
from jaxdave.numerics.quantization import Int8, ParamTransform, is_int8
from jaxdave.runtime.platform import on_cpu

CPU_HEAD_CHUNK, HEAD_CHUNK = NOISE_CHUNK, 4 * NOISE_CHUNK
"""Ids of the vocabulary that are looked at together, on a CPU and elsewhere, where a
pass costs a dozen launches whatever its size."""
LARGE_MATRIX = 2**19
"""Numbers in a matrix from where on it has a row a channel: 2 MB, what a core of the
machine that it was measured on keeps (docs/lab_notes/README.md, "XLA on a CPU")."""
FUSED = (("attn", ("q", "k", "v")), ("mlp", ("gate", "up")))
"""Matrices of a layer that share their input; on a CPU they are one."""


def head_chunk(rows: int) -> int:
    """Ids per chunk of the head: all, or a multiple of what noise is drawn for."""
    most = CPU_HEAD_CHUNK if on_cpu() else HEAD_CHUNK
    return rows if rows <= NOISE_CHUNK else min(most, rows // NOISE_CHUNK * NOISE_CHUNK)


def to_device_layout(params: Params, config: ModelConfig) -> Params:
    """Parameters of `params.abstract` or `Int8`, on the device, as it reads them best.

    They may lie on the host, and lie so already. What the caller does not keep is let
    go of on the way, so that no more than what is joined is held twice.
    """
    params = to_stacked(params)
    leaves, tree = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_int8)
    del params
    held = {jax.tree_util.keystr(p, simple=True, separator="/"): x for p, x in leaves}
    del leaves
    order, made = list(held), {}
    for home, names in FUSED if on_cpu() else ():
        paths = [f"blocks/{home}/{name}/kernel" for name in names]
        made |= dict.fromkeys(paths, ())
        made[paths[0]] = _fuse([held.pop(path) for path in paths])
    for path in list(held):
        made[path] = _to_layout(path, held.pop(path), config)
    return tree.unflatten([made[path] for path in order])


def to_stacked(params: Params) -> Params:
    """Parameters as `params.abstract` has them, whatever machine they were read for."""
    is_placed = lambda leaf: isinstance(leaf, PerLayer | ChunkedTable)  # noqa: E731
    return _split_fused(jax.tree.map(_to_stack, params, is_leaf=is_placed))


def transfer_transform(kept: ParamTransform) -> ParamTransform:
    """What becomes of a parameter once it is read: off a CPU it leaves the host."""
    if on_cpu():
        return kept
    return lambda path, leaf: jax.device_put(kept(path, leaf))


def _to_stack(leaf: Any) -> Any:
    """What a matrix of all layers, or a table, was made of."""
    if isinstance(leaf, PerLayer):
        return jax.tree.map(
            lambda *own: jnp.stack(own), *map(_input_major, leaf.layers)
        )
    return unchunked(leaf) if isinstance(leaf, ChunkedTable) else leaf


def _split_fused(tree: Any) -> Any:
    """Dicts of dicts with matrices that were joined in places of their own again."""
    if not isinstance(tree, dict):
        return tree
    made = {name: _split_fused(part) for name, part in tree.items()}
    for _, names in FUSED:
        joined = _kernel(tree.get(names[0]))
        if isinstance(joined, FusedKernels):
            for name, part in zip(names, joined.split(joined.matrix), strict=True):
                made[name] = made[name] | {"kernel": part}
    return made


def _kernel(part: Any) -> Any:
    return part.get("kernel") if isinstance(part, dict) else None


def _to_layout(path: str, leaf: Any, config: ModelConfig) -> Any:
    """One parameter on the device."""
    table = "embedding" if config.tie_embeddings else "head"
    if on_cpu() and path.endswith("/kernel"):
        return PerLayer(tuple(map(_layer_matrix, _host_layers(leaf))))
    if on_cpu() and path == table and head_chunk(config.vocab_rows) < num_rows(leaf):
        return _to_chunks(leaf, head_chunk(config.vocab_rows))
    return jax.device_put(leaf)


def _fuse(stacks: list[Any]) -> FusedKernels:
    sizes = tuple(jax.tree.leaves(stack)[0].shape[-1] for stack in stacks)
    together = lambda *own: np.concatenate(own, axis=-1)  # noqa: E731
    layers = (
        _layer_matrix(jax.tree.map(together, *own))
        for own in zip(*map(_host_layers, stacks), strict=True)
    )
    return FusedKernels(PerLayer(tuple(layers)), sizes)


def _host_layers(stack: Any) -> list[Any]:
    """The matrices of a stack, on the host: a slice on a device would be compiled."""
    host = jax.tree.map(np.asarray, stack)
    return [jax.tree.map(lambda a, i=i: a[i], host) for i in range(num_rows(host))]


def _layer_matrix(matrix: Any) -> Any:
    if jax.tree.leaves(matrix)[0].size < LARGE_MATRIX:
        return jax.device_put(matrix)
    return RowMajor(jax.device_put(_transposed(matrix)))


def _transposed(matrix: Any) -> Any:
    """The other order of a matrix, on the host; scales are of channels in either."""
    if isinstance(matrix, Int8):
        return Int8(_transposed(matrix.values), matrix.scale)
    return np.ascontiguousarray(matrix.T)


def _input_major(matrix: Any) -> Any:
    """A matrix [in, out] of either order."""
    if not isinstance(matrix, RowMajor):
        return matrix
    inner = matrix.matrix
    return Int8(inner.values.T, inner.scale) if isinstance(inner, Int8) else inner.T


def _to_chunks(table: Any, size: int) -> ChunkedTable:
    host = jax.tree.map(np.asarray, table)
    rows = num_rows(host)
    firsts = [min(at, rows - size) for at in range(0, rows, size)]
    part = lambda at: jax.tree.map(lambda a: a[at : at + size], host)  # noqa: E731
    return ChunkedTable(tuple(jax.device_put(part(at)) for at in firsts), rows)
