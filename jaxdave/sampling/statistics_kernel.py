"""All statistics of a head read whole, as kernels for GPUs.

XLA makes some fourteen launches of `chunked_head.sample_and_score`, and reads the
logits once for each kind of reduction. Here a program of the first kernel reads a part
of a row's logits once and keeps everything of it in registers; the second kernel merges
the parts of a row. `models.head_kernel` has another first one, which also computes the
logits.

A part is some consecutive ids, reduced at once, and a row's parts are merged at once.
So the order of a sum depends on the vocabulary alone, not on how many rows there are:
equal logits give equal bits.

Axes: R rows, V ids, C parts of the vocabulary, X ids of one.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxdave.core.prediction import NEG_INF, HeadSummary

PART_IDS = 2048
"""Ids of a program: a block of Triton is a power of two, and this one fits into the
registers of four warps."""
NUM_FIELDS = len(HeadSummary._fields)
MIN_PARTS = 16
"""Parts that a program merges, at least."""


def summarize_logits(
    logits_RV: jax.Array,
    first_id: jax.Array | int,
    *,
    vocab_size: int,
    suppressed_ids: tuple[int, ...],
    interpret: bool,
) -> HeadSummary:
    """The best two ids of each row and the sums over all others, in two launches.

    Args:
        logits_RV: The logits, float32 [R, V].
        first_id: The id of the first column, int32 scalar.
        vocab_size: Ids from here on cannot be predicted.
        suppressed_ids: Nor can these.
        interpret: Run the kernels as plain JAX, without a GPU.

    Returns:
        Arrays [R].
    """
    # Imported here, as Pallas takes half a second, and most starts trace nothing.
    from jax.experimental import pallas as pl

    rows, size = logits_RV.shape
    parts = pl.cdiv(size, PART_IDS)
    summarize = functools.partial(
        _summarize_part,
        size=size,
        vocab_size=vocab_size,
        suppressed_ids=suppressed_ids,
    )
    partial = pl.pallas_call(
        summarize,
        grid=(rows, parts),
        in_specs=[
            pl.BlockSpec((1,), lambda *_: (0,)),
            pl.BlockSpec((None, PART_IDS), lambda r, c: (r, c)),
        ],
        out_specs=[pl.BlockSpec((None, 1), lambda r, c: (r, c))] * NUM_FIELDS,
        out_shape=summary_shapes(rows, parts),
        name="summarize_logits",
        **backend(interpret, num_warps=4, num_stages=1),
    )(jnp.full((1,), first_id, jnp.int32), logits_RV)
    return merge_parts(HeadSummary(*partial), interpret)


def summary_shapes(*shape: int) -> list[jax.ShapeDtypeStruct]:
    """The shapes of a summary's fields.

    Args:
        *shape: Of each of them.

    Returns:
        Shapes and dtypes, in the order of the fields.
    """
    floats = jax.ShapeDtypeStruct(shape, jnp.float32)
    ids = jax.ShapeDtypeStruct(shape, jnp.int32)
    return [ids, ids, floats, floats, floats, floats]


def backend(interpret: bool, **settings: int) -> dict[str, Any]:
    """Settings of `pl.pallas_call`.

    Args:
        interpret: Run the kernel as plain JAX.
        **settings: For Triton.

    Returns:
        Keyword arguments.
    """
    from jax.experimental.pallas import triton

    if interpret:
        return {"interpret": True}
    return {"compiler_params": triton.CompilerParams(**settings)}


def summarize_ids(
    raw: jax.Array,
    ids_X: jax.Array,
    exists_X: jax.Array | None,
    vocab_size: int,
    suppressed_ids: tuple[int, ...],
) -> HeadSummary:
    """The summary of some ids, inside a kernel, as `distribution.distribution_stats`.

    Args:
        raw: Logits [X] of one row, or [X, R].
        ids_X: The ids, consecutive.
        exists_X: Which of them exist; None: all.
        vocab_size: Ids from here on cannot be predicted.
        suppressed_ids: Nor can these.

    Returns:
        Scalars, or arrays [R].
    """
    may_come_X = ids_X < vocab_size
    if exists_X is not None:
        may_come_X &= exists_X
    for suppressed in suppressed_ids:
        may_come_X &= ids_X != suppressed

    def each_row(a_X):
        return a_X if raw.ndim == 1 else jnp.broadcast_to(a_X[:, None], raw.shape)

    def each_id(a_R):
        return a_R if raw.ndim == 1 else a_R[None]

    # Not a number counts as suppressed, as it compares as false.
    z = jnp.where(each_row(may_come_X) & (raw > NEG_INF), raw, NEG_INF)
    ids = each_row(ids_X)
    top, token = _first_max(z, ids, each_id)
    is_top = ids == each_id(token)
    # Below all that may come and all that may not, so that the best is not found again.
    second, runner_up = _first_max(jnp.where(is_top, -jnp.inf, z), ids, each_id)
    second = jnp.maximum(second, NEG_INF)
    counts = (z > NEG_INF) & ~is_top
    below = jnp.where(counts, each_id(second) - z, 0.0)
    weight = jnp.where(counts, jnp.exp(-below), 0.0)
    rest, moment = jnp.sum(weight, axis=0), jnp.sum(weight * below, axis=0)
    return HeadSummary(token, runner_up, top, second, rest, moment)


def _summarize_part(
    first_ref, logits_ref, *summary_refs, size: int, vocab_size: int, suppressed_ids
):
    """One program: the summary of a part of one row's ids."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    first = pl.program_id(1) * PART_IDS
    column_X = first + jnp.arange(PART_IDS, dtype=jnp.int32)
    exists_X = None if size % PART_IDS == 0 else column_X < size
    other = None if exists_X is None else jnp.float32(NEG_INF)
    raw_X = triton.load(logits_ref, mask=exists_X, other=other)
    ids_X = first_ref[0] + column_X
    summary = summarize_ids(raw_X, ids_X, exists_X, vocab_size, suppressed_ids)
    for ref, value in zip(summary_refs, summary, strict=True):
        ref[0] = value


def merge_parts(parts_RC: HeadSummary, interpret: bool) -> HeadSummary:
    """The summaries of all parts of the vocabulary as one, in one launch.

    Args:
        parts_RC: Arrays [R, C], parts in the order of their ids.
        interpret: Run the kernel as plain JAX.

    Returns:
        Arrays [R].
    """
    from jax.experimental import pallas as pl

    rows, parts = parts_RC.token.shape
    block = max(MIN_PARTS, pl.next_power_of_2(parts))
    return HeadSummary(
        *pl.pallas_call(
            functools.partial(_merge_parts, parts=parts),
            grid=(rows,),
            in_specs=[pl.BlockSpec((None, block), lambda r: (r, 0))] * NUM_FIELDS,
            out_specs=[pl.BlockSpec((1,), lambda r: (r,))] * NUM_FIELDS,
            out_shape=summary_shapes(rows),
            name="merge_summaries",
            **backend(interpret, num_warps=4, num_stages=1),
        )(*parts_RC)
    )


def _merge_parts(*refs, parts: int):
    """One program: the parts of one row as one, as `distribution.merge_stats`."""
    from jax.experimental.pallas import triton

    def same(a):
        return a

    part_C = jnp.arange(refs[0].shape[0], dtype=jnp.int32)
    is_part_C = part_C < parts

    def load(ref, empty):
        empty = jnp.asarray(empty, ref.dtype)
        return triton.load(ref, mask=is_part_C, other=empty)

    # In the order of the fields: two ids, two logits, two sums.
    empty = 0, 0, NEG_INF, NEG_INF, 0.0, 0.0
    token_C, runner_C, top_C, second_C, rest_C, moment_C = (
        load(ref, value) for ref, value in zip(refs[:NUM_FIELDS], empty, strict=True)
    )
    top, best = _first_max(top_C, part_C, same)
    is_best_C = part_C == best
    # The second best is that of the best part, or another part's best.
    rival_C = jnp.where(is_best_C, second_C, top_C)
    second, rival = _first_max(rival_C, part_C, same)
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
    for ref, value in zip(refs[NUM_FIELDS:], summary, strict=True):
        ref[0] = value


def _first_max(
    values: jax.Array, ids: jax.Array, each_id: Callable[[jax.Array], jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """The largest value along the first axis, and the lowest id that has it."""
    top = jnp.max(values, axis=0)
    none = jnp.iinfo(jnp.int32).max
    return top, jnp.min(jnp.where(values == each_id(top), ids, none), axis=0)
