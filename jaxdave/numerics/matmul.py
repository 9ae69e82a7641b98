"""Matrices of any kind, and the products that read them where they lie.

XLA:CPU copies a layer's matrices out of their stack before it multiplies by them, and a
chunk of the head out of its table: as much traffic again as reading them. On a CPU,
every layer's matrix and every chunk is an array of its own (see `placing.py`), and a
product is a `switch` over them: each is read where it lies, and the layer is still
compiled once.
"""

import dataclasses
import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdave.numerics.quantization import Int8, einsum_kernel


class RowMajor(NamedTuple):
    """A matrix with a row an output channel: an array [out, in] or such an `Int8`."""

    matrix: Any


class PerLayer(NamedTuple):
    """The matrices of all layers, each on its own, in the place of their stack."""

    layers: tuple[Any, ...]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FusedKernels:
    """Matrices that share their input, side by side in one, in the first one's place.

    Nothing lies in the places of the others; sizes: output channels of each.
    """

    matrix: Any
    sizes: tuple[int, ...] = dataclasses.field(metadata={"static": True})

    def split(self, y: Any) -> list[Any]:
        """The part of each matrix in arrays, or `Int8`s, by channels."""
        cuts = list(itertools.accumulate(self.sizes))[:-1]
        parts = jax.tree.map(lambda a: jnp.split(a, cuts, axis=-1), y)
        outer, inner = jax.tree.structure(y), jax.tree.structure([0] * len(self.sizes))
        return jax.tree.transpose(outer, inner, parts)


class SelectedMatrix(NamedTuple):
    """One of several matrices of a shape, which one is known when the program runs."""

    some: tuple[Any, ...]
    index: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ChunkedTable:
    """A table [V, E] in chunks [X, E] of equal sizes, the last one moved back to fit.

    chunks: arrays or `Int8`s; rows: V.
    """

    chunks: tuple[Any, ...]
    rows: int = dataclasses.field(metadata={"static": True})

    def first_of(self, index: int) -> int:
        """The first row of a chunk."""
        size = num_rows(self.chunks[0])
        return min(index * size, self.rows - size)


def matmul(x: jax.Array, matrix) -> jax.Array:
    """Vectors [..., in] times a matrix of any kind here, [..., out].

    In float32, but for a plain matrix [in, out] of the dtype of x: then in that dtype.
    """
    if isinstance(matrix, SelectedMatrix):
        own = [functools.partial(matmul, matrix=one) for one in matrix.some]
        return jax.lax.switch(matrix.index, own, x)
    if isinstance(matrix, RowMajor):
        return einsum_kernel("...i,oi->...o", x, matrix.matrix)
    if isinstance(matrix, Int8) or x.dtype != matrix.dtype:
        return einsum_kernel("...i,io->...o", x, matrix)
    return jnp.matmul(x, matrix, precision=jax.lax.Precision.HIGHEST)


def scan_over_layers(layers: Any):
    """What a scan over layers is given of them, and how it puts one layer together."""
    leaves, tree = jax.tree.flatten(layers, is_leaf=_is_per_layer)
    stacks = [None if _is_per_layer(leaf) else leaf for leaf in leaves]
    count = len(next(leaf for leaf in jax.tree.leaves(stacks)))

    def layer(given):
        parts, index = given
        taken = [
            SelectedMatrix(leaf.layers, index) if _is_per_layer(leaf) else part
            for leaf, part in zip(leaves, parts, strict=True)
        ]
        return tree.unflatten(taken)

    return (stacks, jnp.arange(count, dtype=jnp.int32)), layer


def gather_rows(table: Any, ids: jax.Array) -> Any:
    """Rows of a table as they are kept, [..., E]: an array or an `Int8` of them."""
    if not isinstance(table, ChunkedTable):
        return jax.tree.map(lambda a: a[ids], table)
    size, found = num_rows(table.chunks[0]), None
    for index, chunk in enumerate(table.chunks):
        first = table.first_of(index)
        at = jnp.clip(ids - first, 0, size - 1)
        here = jax.tree.map(lambda a, at=at: a[at], chunk)
        is_here = ids >= first
        found = here if found is None else jax.tree.map(
            functools.partial(_select_rows, is_here), here, found
        )  # fmt: skip
    return found


def embed(table: Any, ids: jax.Array, dtype) -> jax.Array:
    """Vectors of ids, [..., E]; of an `Int8` only these are scaled."""
    rows = gather_rows(table, ids)
    if isinstance(rows, Int8):
        rows = rows.values.astype(jnp.float32) * rows.scale[..., None]
    return rows.astype(dtype)


def table_chunk(table: Any, first: jax.Array, size: int) -> RowMajor | SelectedMatrix:
    """The matrix of the ids from `first` on: `size` of them, a chunk as `Cut` has."""
    if isinstance(table, ChunkedTable):
        index = (first + size - 1) // size  # the last chunk is moved back to fit
        return SelectedMatrix(tuple(map(RowMajor, table.chunks)), index)
    cut = lambda a: jax.lax.dynamic_slice_in_dim(a, first, size)  # noqa: E731
    return RowMajor(jax.tree.map(cut, table))


def unchunked(table: Any) -> Any:
    """The whole table [V, E]."""
    if not isinstance(table, ChunkedTable):
        return table
    size = num_rows(table.chunks[0])
    starts = [i * size - table.first_of(i) for i in range(len(table.chunks))]

    def joined(*parts):
        return jnp.concatenate([a[n:] for a, n in zip(parts, starts, strict=True)])

    return jax.tree.map(joined, *table.chunks)


def num_rows(table: Any) -> int:
    """V of a table [V, E]."""
    return jax.tree.leaves(table)[0].shape[0]


def _is_per_layer(leaf: Any) -> bool:
    return isinstance(leaf, PerLayer)


def _select_rows(is_new, new, old):
    shape = is_new.shape + (1,) * (new.ndim - is_new.ndim)
    return jnp.where(is_new.reshape(shape), new, old)
