"""Weight matrices in several layouts, and the products that read them in place.

XLA copies a layer's matrices out of their stack before it multiplies by them (on a CPU
and on a GPU, not on a TPU), and a chunk of the head out of its table: as much memory
traffic again as reading them, or twice as much. There every matrix is therefore an
array of its own (see `weight_layout`), and a product is with one of several, chosen
when the program runs.

A layout is a frozen dataclass that is a pytree. What callers may do with it is one of
three small interfaces, so that a new layout is a new class and no edit elsewhere:

* `Matrix`: something to multiply by (`RowMajor`, `EightBitRows`, `SelectedMatrix`).
* `LayerStack`: the matrices of all layers (`layer_stack`).
* `RowTable`: an embedding or head, read by rows and by chunks (`ChunkedTable`,
  `EightBitTable`).

Plain arrays and `EightBit`s need no wrapper: the functions of this module take them as
the base case. `FusedKernels` has an interface of its own, as it is several matrices in
one.
"""

import abc
import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp

from jaxdave.numerics.eight_bit_kernel import MAX_ROWS, eight_bit_matmul
from jaxdave.numerics.quantization import EightBit, einsum_kernel, narrow_parts
from jaxdave.runtime.machine import Machine


class Matrix(abc.ABC):
    """One matrix [in, out] in a layout of its own."""

    @abc.abstractmethod
    def matmul(self, x: jax.Array, machine: Machine) -> jax.Array:
        """Multiply vectors by the matrix.

        Args:
            x: Vectors [..., in].
            machine: What the product is compiled for.

        Returns:
            Vectors [..., out], float32 unless the layout says otherwise.
        """


class RowTable(abc.ABC):
    """A table [V, E] in another form than one array."""

    @abc.abstractmethod
    def gather_rows(self, ids: jax.Array) -> Any:
        """Rows as they are stored.

        Args:
            ids: Row numbers, int32 [...].

        Returns:
            An array [..., E] or an `EightBit` of one.
        """

    @abc.abstractmethod
    def select_chunk(self, first: jax.Array, size: int) -> Matrix:
        """The matrix [E, size] of some consecutive rows.

        Args:
            first: The first of them, int32 scalar.
            size: How many.

        Returns:
            Their matrix, not copied.
        """

    @abc.abstractmethod
    def to_stacked(self) -> Any:
        """One array [V, E], or an `EightBit` of one."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RowMajor(Matrix):
    """A matrix stored with one row per output channel.

    Attributes:
        matrix: An array [out, in], or an `EightBit` of one.
    """

    matrix: Any

    def matmul(self, x: jax.Array, machine: Machine) -> jax.Array:
        """Multiply vectors by the matrix.

        Args:
            x: Vectors [..., in].
            machine: What the product is compiled for.

        Returns:
            Vectors [..., out], float32.
        """
        return einsum_kernel("...i,oi->...o", x, self.matrix, machine)

    def to_input_major(self) -> Any:
        """The matrix in the usual order [in, out]."""
        inner = self.matrix
        return (
            EightBit(inner.values.T, inner.scale)
            if isinstance(inner, EightBit)
            else inner.T
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class EightBitRows(RowMajor):
    """An `EightBit` with one row per output channel, which a GPU reads as it is stored.

    The kernel needs the whole matrix on one device: over a mesh other layouts are used,
    or this one inside a `shard_map`.

    Attributes:
        matrix: The `EightBit` [out, in].
    """

    def matmul(self, x: jax.Array, machine: Machine) -> jax.Array:
        """Multiply vectors by the matrix.

        Args:
            x: Vectors [..., in].
            machine: What the product is compiled for. Only on a GPU, and only for few
                vectors, are weights what a product waits for.

        Returns:
            Vectors [..., out], float32.
        """
        x_RI = x.reshape(-1, x.shape[-1])
        if not machine.is_gpu or x_RI.shape[0] > MAX_ROWS:
            return super().matmul(x, machine)
        y_RO = eight_bit_matmul(
            narrow_parts(x_RI),
            self.matrix.values,
            self.matrix.scale,
            interpret=machine.interpret_kernels,
        )
        return y_RO.reshape(*x.shape[:-1], y_RO.shape[-1])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SelectedMatrix(Matrix):
    """One of several matrices of equal shape, chosen when the program runs.

    Attributes:
        matrices: The candidates, of any kind that `matmul` takes.
        index: Which one it is, int32 scalar.
    """

    matrices: tuple[Any, ...]
    index: jax.Array

    def matmul(self, x: jax.Array, machine: Machine) -> jax.Array:
        """Multiply vectors by the chosen matrix.

        Args:
            x: Vectors [..., in].
            machine: What the product is compiled for.

        Returns:
            Vectors [..., out], in the dtype that `matmul` gives for that matrix.
        """
        # A branch per matrix, each closing over its own array: XLA:CPU reads the chosen
        # one in place. Indexing a stack would copy it first.
        branches = [
            functools.partial(matmul, matrix=one, machine=machine)
            for one in self.matrices
        ]
        return jax.lax.switch(self.index, branches, x)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FusedKernels:
    """Matrices with a common input, side by side in one, in the first one's place.

    The places of the others hold an empty tuple. One product with the fused matrix
    reads the input once and starts one kernel where there were two or three.

    Attributes:
        matrix: The fused matrix [in, sum of sizes]: a `PerLayer` of all layers, or one
            layer's matrix inside a scan.
        sizes: Output channels of each of the matrices.
    """

    matrix: Any
    sizes: tuple[int, ...] = dataclasses.field(metadata={"static": True})

    def matmul_each(self, x: jax.Array, machine: Machine) -> list[jax.Array]:
        """Multiply vectors by each of the matrices.

        Args:
            x: Vectors [..., in].
            machine: What the product is compiled for.

        Returns:
            One array [..., size] for each of `sizes`, in the dtype of `x`.
        """
        return self.split(self.matmul(x, machine))

    def matmul(self, x: jax.Array, machine: Machine) -> jax.Array:
        """Multiply vectors by all of the matrices.

        Args:
            x: Vectors [..., in].
            machine: What the product is compiled for.

        Returns:
            Their products side by side, [..., sum of sizes], in the dtype of `x`.
        """
        return matmul(x, self.matrix, machine).astype(x.dtype)

    def split(self, y: Any) -> list[Any]:
        """Cut an array along its last axis, the channels, into the matrices' parts.

        Args:
            y: An array [..., sum of sizes] or an `EightBit` of such.

        Returns:
            One array or `EightBit` for each of `sizes`.
        """
        cuts = list(itertools.accumulate(self.sizes))[:-1]
        parts = jax.tree.map(lambda a: jnp.split(a, cuts, axis=-1), y)
        # A tree of lists of parts, turned into a list of trees.
        outer, inner = jax.tree.structure(y), jax.tree.structure([0] * len(self.sizes))
        return jax.tree.transpose(outer, inner, parts)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ChunkedTable(RowTable):
    """A table [V, E] in chunks [X, E] of equal size.

    The last chunk is moved back so that it is full: it repeats some rows of the one
    before it.

    Attributes:
        chunks: Arrays or `EightBit`s.
        rows: V.
    """

    chunks: tuple[Any, ...]
    rows: int = dataclasses.field(metadata={"static": True})

    def first_row(self, index: int) -> int:
        """The first row of a chunk.

        Args:
            index: The chunk.

        Returns:
            The row's number in the table.
        """
        size = num_rows(self.chunks[0])
        return min(index * size, self.rows - size)

    def gather_rows(self, ids: jax.Array) -> Any:
        """Rows as they are stored.

        Args:
            ids: Row numbers, int32 [...].

        Returns:
            An array [..., E] or an `EightBit` of one.
        """
        # Every chunk is gathered from, ids outside it clipped into it; the last chunk
        # whose first row is not above the id has the row.
        size, rows = num_rows(self.chunks[0]), None
        for index, chunk in enumerate(self.chunks):
            first = self.first_row(index)
            offset = jnp.clip(ids - first, 0, size - 1)
            gathered = jax.tree.map(lambda a, offset=offset: a[offset], chunk)
            is_in_chunk = ids >= first
            if rows is None:
                rows = gathered
            else:
                select = functools.partial(_select_rows, is_in_chunk)
                rows = jax.tree.map(select, gathered, rows)
        return rows

    def select_chunk(self, first: jax.Array, size: int) -> SelectedMatrix:
        """The matrix of one chunk.

        Args:
            first: The chunk's first row, int32 scalar.
            size: Rows of a chunk, X.

        Returns:
            The matrix [E, X], not copied.
        """
        # Rounded up: the last chunk is moved back so that it is full, so its first row
        # need not be a multiple of the size.
        index = (first + size - 1) // size
        return SelectedMatrix(tuple(map(RowMajor, self.chunks)), index)

    def to_stacked(self) -> Any:
        """One array [V, E], or an `EightBit` of one."""
        # Rows of the last chunk that the one before it has already are left out.
        size = num_rows(self.chunks[0])
        repeated = [i * size - self.first_row(i) for i in range(len(self.chunks))]

        def join(*parts):
            return jnp.concatenate(
                [a[n:] for a, n in zip(parts, repeated, strict=True)]
            )

        return jax.tree.map(join, *self.chunks)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class EightBitTable(RowTable):
    """A table in 8 bits, which a GPU reads as it is stored.

    Attributes:
        table: The `EightBit` [V, E].
    """

    table: EightBit

    def gather_rows(self, ids: jax.Array) -> EightBit:
        """Rows as they are stored.

        Args:
            ids: Row numbers, int32 [...].

        Returns:
            An `EightBit` [..., E].
        """
        return jax.tree.map(lambda a: a[ids], self.table)

    def select_chunk(self, first: jax.Array, size: int) -> EightBitRows:
        """The matrix of some consecutive rows; not copied if these are all of them.

        Args:
            first: The first of them, int32 scalar.
            size: How many.

        Returns:
            The matrix [E, size].
        """
        return EightBitRows(_cut_rows(self.table, first, size))

    def to_stacked(self) -> EightBit:
        """The table [V, E]."""
        return self.table


def matmul(x: jax.Array, matrix: Any, machine: Machine) -> jax.Array:
    """Multiply vectors by a matrix of any layout.

    Args:
        x: Vectors [..., in].
        matrix: A `Matrix`, or an array or `EightBit` [in, out].
        machine: What the product is compiled for.

    Returns:
        Vectors [..., out]: in the dtype of `x` for a plain array of that dtype, else in
        float32.
    """
    if isinstance(matrix, Matrix):
        return matrix.matmul(x, machine)
    if isinstance(matrix, EightBit) or x.dtype != matrix.dtype:
        return einsum_kernel("...i,io->...o", x, matrix, machine)
    # Equal dtypes: the product keeps that of the weights, as in the published modules.
    return jnp.matmul(x, matrix, precision=jax.lax.Precision.HIGHEST)


def gather_rows(table: Any, ids: jax.Array) -> Any:
    """Rows of a table as they are stored.

    Args:
        table: [V, E]: an array, an `EightBit` or a `RowTable`.
        ids: Row numbers, int32 [...].

    Returns:
        An array [..., E] or an `EightBit` of one, not scaled.
    """
    if isinstance(table, RowTable):
        return table.gather_rows(ids)
    return jax.tree.map(lambda a: a[ids], table)


def embed(table: Any, ids: jax.Array, dtype) -> jax.Array:
    """Embedding vectors of ids.

    Args:
        table: [V, E]: an array, an `EightBit` or a `RowTable`.
        ids: int32 [...].
        dtype: Of the result.

    Returns:
        Vectors [..., E]; of an `EightBit` only the gathered rows are scaled.
    """
    rows = gather_rows(table, ids)
    # One scale per row of the table, which is one output channel of the head.
    if isinstance(rows, EightBit):
        rows = rows.values.astype(jnp.float32) * rows.scale[..., None]
    return rows.astype(dtype)


def table_chunk(table: Any, first: jax.Array, size: int) -> Matrix:
    """The matrix [E, size] that gives the logits of one chunk of ids.

    Args:
        table: The head [V, E]: an array, an `EightBit` or a `RowTable`.
        first: The first id of the chunk, int32 scalar.
        size: Ids in the chunk; of a `ChunkedTable` the size of its chunks.

    Returns:
        The matrix of ids first ... first + size - 1.
    """
    if isinstance(table, RowTable):
        return table.select_chunk(first, size)
    return RowMajor(_cut_rows(table, first, size))


def whole_table(table: Any) -> Any:
    """A table of any layout as one array [V, E], or one `EightBit`.

    Args:
        table: An array, an `EightBit` or a `RowTable`.

    Returns:
        The table itself where it is in one piece already.
    """
    return table.to_stacked() if isinstance(table, RowTable) else table


def num_rows(table: Any) -> int:
    """The length V of the leading axis.

    Args:
        table: An array [V, ...] or an `EightBit` of one.

    Returns:
        V.
    """
    return jax.tree.leaves(table)[0].shape[0]


def _cut_rows(table: Any, first: jax.Array, size: int) -> Any:
    """Consecutive rows of an array or `EightBit`, from `first` on."""
    return jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, first, size), table)


def _select_rows(condition, new, old):
    """`jnp.where` of whole rows: the condition [...] against arrays [..., E]."""
    shape = condition.shape + (1,) * (new.ndim - condition.ndim)
    return jnp.where(condition.reshape(shape), new, old)
