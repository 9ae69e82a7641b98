"""The output head and all statistics of it as kernels for GPUs: no logits in memory.

Logits of 48 positions over 151,936 ids are 29 MB, or 58 in the two parts that a library
product gives, beside 34 MB that it works in; XLA writes and reads them several times. A
program of this kernel computes the logits of `BLOCK_OUT` ids, as
`numerics.eight_bit_kernel` does, and keeps what is needed of them: the best two and
two sums. A second kernel merges that (`sampling.statistics_kernel`).

Sums over features go from the first to the last, those over ids as the second kernel
has them: equal vectors give equal bits, however many travel with them.

Axes: P parts of vectors, R rows, E features, V ids, C blocks of ids.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxdave.core.prediction import HeadSummary
from jaxdave.numerics.eight_bit_kernel import (
    BLOCK_IN,
    BLOCK_OUT,
    MAX_ROWS,
    STAGES,
    WARPS,
    multiply_block,
    rows_per_program,
    which_exist,
)
from jaxdave.numerics.matmul import (
    EightBitTable,
    matmul,
    num_rows,
    table_chunk,
    whole_table,
)
from jaxdave.numerics.quantization import narrow_parts
from jaxdave.runtime.machine import Machine
from jaxdave.sampling.statistics_kernel import (
    NUM_FIELDS,
    backend,
    merge_parts,
    summarize_ids,
    summarize_logits,
    summary_shapes,
)


def summarize_head(
    hidden_RE: jax.Array,
    table: Any,
    first_id: jax.Array | int,
    *,
    vocab_size: int,
    suppressed_ids: tuple[int, ...],
    machine: Machine,
) -> HeadSummary:
    """The best two ids of each vector, and sums over all others.

    Under `vmap` over the vectors all of them become rows of one product.

    Args:
        hidden_RE: Vectors [R, E].
        table: The head [V, E] of any layout.
        first_id: The id of its first row, int32 scalar.
        vocab_size: Ids from here on cannot be predicted.
        suppressed_ids: Nor can these.
        machine: A GPU that it is compiled for.

    Returns:
        Arrays [R].
    """
    settings = {
        "vocab_size": vocab_size,
        "suppressed_ids": suppressed_ids,
        "interpret": machine.interpret_kernels,
    }

    @jax.custom_batching.custom_vmap
    def summarize(hidden_RE, table, first_id):
        values_VE, scale_V = _narrow_matrix(table)
        # With many vectors the multiplications are what costs, which the library's
        # products are better at.
        if values_VE is None or hidden_RE.shape[0] > MAX_ROWS:
            matrix = table_chunk(table, jnp.int32(0), num_rows(whole_table(table)))
            logits_RV = matmul(hidden_RE, matrix, machine).astype(jnp.float32)
            return summarize_logits(logits_RV, first_id, **settings)
        parts_PRE = narrow_parts(hidden_RE)
        return _summarize(parts_PRE, values_VE, scale_V, first_id, **settings)

    @summarize.def_vmap
    def summarize_batch(axis_size, is_batched, hidden_BRE, table, first_id):
        if any(jax.tree.leaves(is_batched[1:])):
            raise NotImplementedError("a batch of heads; map over the heads")
        rows = hidden_BRE.reshape(-1, hidden_BRE.shape[-1])
        found = summarize(rows, table, first_id)
        return (
            jax.tree.map(lambda a: a.reshape(axis_size, -1), found),
            jax.tree.map(lambda _: True, found),
        )

    return summarize(hidden_RE, table, jnp.asarray(first_id, jnp.int32))


def _narrow_matrix(table: Any) -> tuple[jax.Array | None, jax.Array | None]:
    """A head that matrix units read as it is stored, and its scales; or nothing."""
    if isinstance(table, EightBitTable):
        return table.table.values, table.table.scale
    if isinstance(table, jax.Array) and table.dtype == jnp.bfloat16:
        return table, None
    return None, None


def _summarize(
    x_PRE: jax.Array,
    values_VE: jax.Array,
    scale_V: jax.Array | None,
    first_id: jax.Array,
    *,
    interpret: bool,
    **settings: Any,
) -> HeadSummary:
    """`summarize_head` of vectors that are given as sums of parts."""
    from jax.experimental import pallas as pl

    (num_parts, rows, inputs), outputs = x_PRE.shape, values_VE.shape[0]
    block_rows, blocks = rows_per_program(rows), pl.cdiv(outputs, BLOCK_OUT)
    width = pl.cdiv(inputs, BLOCK_IN) * BLOCK_IN
    kernel = functools.partial(
        _kernel, rows=rows, inputs=inputs, outputs=outputs, **settings
    )
    scales = [] if scale_V is None else [scale_V]
    # Blocks of rows are neighbours in the grid, so that weights that one of them has
    # read are still in the cache when the next one does.
    partial = pl.pallas_call(
        kernel,
        grid=(pl.cdiv(rows, block_rows), blocks),
        in_specs=[
            pl.BlockSpec((1,), lambda *_: (0,)),
            pl.BlockSpec((num_parts, block_rows, width), lambda r, c: (0, r, 0)),
            pl.BlockSpec((BLOCK_OUT, width), lambda r, c: (c, 0)),
            *[pl.BlockSpec((BLOCK_OUT,), lambda r, c: (c,))] * len(scales),
        ],
        out_specs=[pl.BlockSpec((block_rows, None), lambda r, c: (r, c))] * NUM_FIELDS,
        out_shape=summary_shapes(rows, blocks),
        name="summarize_head",
        **backend(interpret, num_warps=WARPS, num_stages=STAGES),
    )(first_id[None], x_PRE, values_VE, *scales)
    return merge_parts(HeadSummary(*partial), interpret)


def _kernel(
    first_ref,
    x_ref,
    values_ref,
    *refs,
    rows: int,
    inputs: int,
    outputs: int,
    vocab_size: int,
    suppressed_ids: tuple[int, ...],
):
    """One program: the logits of a block of ids and rows, and their summary."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    scale_refs, summary_refs = refs[:-NUM_FIELDS], refs[-NUM_FIELDS:]
    block = pl.program_id(1)
    has_row = which_exist(rows, pl.program_id(0), x_ref.shape[1])
    has_id = which_exist(outputs, block, BLOCK_OUT)
    logits_XR = multiply_block(
        x_ref,
        values_ref,
        has_row,
        has_id,
        inputs=inputs,
        first_step=0,
        steps=pl.cdiv(inputs, BLOCK_IN),
    )
    for scale_ref in scale_refs:
        logits_XR *= triton.load(scale_ref, mask=has_id)[:, None]
    first = first_ref[0] + block * BLOCK_OUT
    ids_X = first + jnp.arange(BLOCK_OUT, dtype=jnp.int32)
    summary = summarize_ids(logits_XR, ids_X, has_id, vocab_size, suppressed_ids)
    for ref, value in zip(summary_refs, summary, strict=True):
        triton.store(ref, value, mask=has_row)
