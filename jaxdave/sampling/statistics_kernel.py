"""All statistics of a head read whole, as two kernels for GPUs.

XLA makes some fourteen launches of `chunked_head.sample_and_score`: it adds up the two
parts of the logits, writes the sum, and reads that once for each kind of reduction. Here
a program of the first kernel reads a part of a row's logits once and keeps everything
of it in registers; the second kernel merges the parts of a row.

A part is `PART_IDS` consecutive ids, reduced at once, and a row's parts are merged at
once. So the order of a sum depends on the vocabulary alone, not on how many rows there
are: equal logits give equal bits.

Axes: P parts of logits (see `numerics.quantization.einsum_parts`), R rows, V ids, C
parts of the vocabulary, X ids of one.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxdave.core.prediction import NEG_INF, HeadSummary

PART_IDS = 2048
"""Ids of a program: a block of Triton is a power of two, and this one fits into the
registers of four warps."""
MIN_PARTS = 16
"""Parts that a program merges, at least."""


def summarize_logits(
    logits_PRV: jax.Array,
    first_id: jax.Array | int,
    *,
    vocab_size: int,
    suppressed_ids: tuple[int, ...],
    interpret: bool,
) -> HeadSummary:
    """The best two ids of each row and the sums over all others, in two launches.

    Args:
        logits_PRV: Parts whose sum is the logits, float32 [P, R, V].
        first_id: The id of the first column, int32 scalar.
        vocab_size: Ids from here on cannot be predicted.
        suppressed_ids: Nor can these.
        interpret: Run the kernels as plain JAX, without a GPU.

    Returns:
        Arrays [R].
    """
    # Imported here, as Pallas takes half a second, and most starts trace nothing.
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    num_terms, rows, size = logits_PRV.shape
    parts = pl.cdiv(size, PART_IDS)
    settings: dict[str, Any] = {"interpret": True}
    if not interpret:
        params = triton.CompilerParams(num_warps=4, num_stages=1)
        settings = {"compiler_params": params}

    def numbers(*shape: int) -> HeadSummary:
        """Shapes of a summary's fields."""
        floats = jax.ShapeDtypeStruct(shape, jnp.float32)
        ids = jax.ShapeDtypeStruct(shape, jnp.int32)
        return HeadSummary(ids, ids, floats, floats, floats, floats)

    summarize = functools.partial(
        _summarize_part,
        size=size,
        vocab_size=vocab_size,
        suppressed_ids=suppressed_ids,
    )
    fields = len(HeadSummary._fields)
    partial = pl.pallas_call(
        summarize,
        grid=(rows, parts),
        in_specs=[
            pl.BlockSpec((1,), lambda *_: (0,)),
            pl.BlockSpec((num_terms, None, PART_IDS), lambda r, c: (0, r, c)),
        ],
        out_specs=[pl.BlockSpec((None, 1), lambda r, c: (r, c))] * fields,
        out_shape=[*numbers(rows, parts)],
        name="summarize_logits",
        **settings,
    )(jnp.full((1,), first_id, jnp.int32), logits_PRV)
    block = max(MIN_PARTS, pl.next_power_of_2(parts))
    return HeadSummary(
        *pl.pallas_call(
            functools.partial(_merge_parts, parts=parts),
            grid=(rows,),
            in_specs=[pl.BlockSpec((None, block), lambda r: (r, 0))] * fields,
            out_specs=[pl.BlockSpec((1,), lambda r: (r,))] * fields,
            out_shape=[*numbers(rows)],
            name="merge_summaries",
            **settings,
        )(*partial)
    )


def _summarize_part(
    first_ref,
    logits_ref,
    *summary_refs,
    size: int,
    vocab_size: int,
    suppressed_ids: tuple[int, ...],
):
    """One program: the summary of a part of one row's ids, as `distribution_stats`."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    index_X = jnp.arange(PART_IDS, dtype=jnp.int32)
    column_X = pl.program_id(1) * PART_IDS + index_X
    mask = None if size % PART_IDS == 0 else column_X < size
    other = None if mask is None else jnp.float32(NEG_INF)
    raw_X = functools.reduce(
        jnp.add,
        (
            triton.load(logits_ref.at[jnp.int32(number)], mask=mask, other=other)
            for number in range(logits_ref.shape[0])
        ),
    )
    ids_X = first_ref[0] + column_X
    may_come_X = (ids_X < vocab_size) & (column_X < size)
    for suppressed in suppressed_ids:
        may_come_X &= ids_X != suppressed
    # Not a number counts as suppressed, as it compares as false.
    z_X = jnp.where(may_come_X & (raw_X > NEG_INF), raw_X, NEG_INF)
    best = _best_two(z_X, ids_X)
    token, runner_up, top, second, is_top_X = best
    counts_X = (z_X > NEG_INF) & ~is_top_X
    below_X = jnp.where(counts_X, second - z_X, 0.0)
    weight_X = jnp.where(counts_X, jnp.exp(-below_X), 0.0)
    rest, moment = jnp.sum(weight_X), jnp.sum(weight_X * below_X)
    summary = HeadSummary(token, runner_up, top, second, rest, moment)
    for ref, value in zip(summary_refs, summary, strict=True):
        ref[0] = value


def _merge_parts(*refs, parts: int):
    """One program: the parts of one row as one, as `distribution.merge_stats`."""
    from jax.experimental.pallas import triton

    count = len(HeadSummary._fields)
    part_C = jnp.arange(refs[0].shape[0], dtype=jnp.int32)
    is_part_C = part_C < parts

    def load(ref, empty):
        empty = jnp.asarray(empty, ref.dtype)
        return triton.load(ref, mask=is_part_C, other=empty)

    # In the order of the fields: two ids, two logits, two sums.
    empty = 0, 0, NEG_INF, NEG_INF, 0.0, 0.0
    token_C, runner_C, top_C, second_C, rest_C, moment_C = (
        load(ref, value) for ref, value in zip(refs[:count], empty, strict=True)
    )
    top, best = _first_max(top_C, part_C)
    is_best_C = part_C == best
    # The second best is that of the best part, or another part's best.
    rival_C = jnp.where(is_best_C, second_C, top_C)
    second, rival = _first_max(rival_C, part_C)
    token = jnp.sum(jnp.where(is_best_C, token_C, 0))
    rival_id_C = jnp.where(is_best_C, runner_C, token_C)
    runner_up = jnp.sum(jnp.where(part_C == rival, rival_id_C, 0))
    # Sums relative to a part's second best as sums relative to that of all. An empty
    # sum may be relative to NEG_INF, and must stay 0.
    below_C = jnp.where(rest_C > 0, second - second_C, 0.0)
    rescale_C = jnp.exp(-below_C)
    # A part's best id is left out of its sums; but for the best of all it counts now.
    counts_C = (top_C > NEG_INF) & ~is_best_C
    top_below_C = jnp.where(counts_C, second - top_C, 0.0)
    weight_C = jnp.where(counts_C, jnp.exp(-top_below_C), 0.0)
    rest = jnp.sum(rescale_C * rest_C + weight_C)
    moment_C = rescale_C * (below_C * rest_C + moment_C) + weight_C * top_below_C
    summary = HeadSummary(token, runner_up, top, second, rest, jnp.sum(moment_C))
    for ref, value in zip(refs[count:], summary, strict=True):
        ref[0] = value


def _best_two(z_X: jax.Array, ids_X: jax.Array):
    """The best two ids, the lowest of equal ones, their logits, and where the best is.

    The ids are consecutive.
    """
    top, token = _first_max(z_X, ids_X)
    is_top_X = ids_X == token
    # Below all that may come and all that may not, so that the best is not found again.
    second, runner_up = _first_max(jnp.where(is_top_X, -jnp.inf, z_X), ids_X)
    return token, runner_up, top, jnp.maximum(second, NEG_INF), is_top_X


def _first_max(value_X: jax.Array, index_X: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The largest value, and the lowest index that has it."""
    top = jnp.max(value_X)
    none = jnp.iinfo(jnp.int32).max
    return top, jnp.min(jnp.where(value_X == top, index_X, none))
