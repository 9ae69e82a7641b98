"""Kernels for statistics of the head: what XLA's reductions give, in any shape."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.kernel_machine import KERNEL_MACHINE

from jaxdave.core.config import SamplingConfig
from jaxdave.core.prediction import NEG_INF, HeadSummary
from jaxdave.sampling.chunked_head import Head, sample_and_score
from jaxdave.sampling.statistics_kernel import PART_IDS, summarize_logits

SIZES = [40, PART_IDS, 3 * PART_IDS + 17, 20 * PART_IDS]
ROWS, FIRST = 5, 7
NUM_PADDING = 3


@functools.partial(jax.jit, static_argnames=("vocab_size", "suppressed_ids"))
def summarize(logits_RV, vocab_size: int, suppressed_ids: tuple[int, ...] = ()):
    return summarize_logits(
        logits_RV,
        FIRST,
        vocab_size=vocab_size,
        suppressed_ids=suppressed_ids,
        interpret=KERNEL_MACHINE.interpret_kernels,
    )


@jax.jit
def predictions(table_RV, summary: HeadSummary | None):
    """The prediction of a whole head, by XLA's reductions or of a summary."""
    size = table_RV.shape[1]
    head = Head(
        logits=lambda index: table_RV,
        num_chunks=1,
        chunk_size=size,
        first_id=FIRST,
        summarize=summary and (lambda: summary),
    )
    no_keys = jnp.zeros((table_RV.shape[0], 2), jnp.uint32)
    return sample_and_score(head, SamplingConfig(), no_keys)


def random(*shape: int, scale: float = 5.0) -> np.ndarray:
    drawn = np.random.default_rng(shape[-1]).normal(size=shape)
    return drawn.astype("f") * np.float32(scale)


def assert_same_predictions(got, want) -> None:
    np.testing.assert_array_equal(got.token, want.token)
    np.testing.assert_array_equal(got.runner_up, want.runner_up)
    np.testing.assert_array_equal(got.gap, want.gap)
    for name in ("score", "margin", "entropy", "lead"):
        np.testing.assert_allclose(
            getattr(got, name), getattr(want, name), rtol=2e-5, atol=2e-5
        )


@pytest.mark.parametrize("size", SIZES)
def test_it_is_what_the_reductions_give(size):
    raw = random(ROWS, size)
    # The best of all may not be predicted, nor may padding.
    raw[:, 3] += 100
    raw[:, -NUM_PADDING:] += 200
    table = raw.copy()
    table[:, [3, 11]] = table[:, -NUM_PADDING:] = NEG_INF
    summary = summarize(raw, FIRST + size - NUM_PADDING, (FIRST + 3, FIRST + 11))
    assert_same_predictions(predictions(table, summary), predictions(table, None))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("values", [2, 40])
def test_of_equal_logits_the_lowest_ids_win(size, values):
    drawn = np.random.default_rng(values).integers(0, values, (ROWS, size))
    summary = summarize(drawn.astype("f"), FIRST + size)
    order = np.argsort(-drawn, axis=1, kind="stable")
    np.testing.assert_array_equal(summary.token, FIRST + order[:, 0])
    np.testing.assert_array_equal(summary.runner_up, FIRST + order[:, 1])


@pytest.mark.parametrize("size", SIZES)
def test_broken_and_sharp_rows_come_out_as_ever(size):
    """No finite number, none but one, infinity, numbers that are none, far apart."""
    table = random(ROWS, size)
    table[0] = np.nan
    table[1] = -np.inf
    table[1, size // 2] = 1.0
    table[2, 5] = np.inf
    table[3, ::2] = np.nan
    table[4] *= 80
    got = predictions(table, summarize(table, FIRST + size))
    want = predictions(table, None)
    np.testing.assert_array_equal(got.token, want.token)
    np.testing.assert_array_equal(got.runner_up[1:], want.runner_up[1:])
    assert got.token[0] == got.token[2] == got.runner_up[1] == -1
    rows = slice(3, 5)
    assert_same_predictions(*(jax.tree.map(lambda a: a[rows], p) for p in (got, want)))


@pytest.mark.as_shipped
@pytest.mark.parametrize("size", [40, 3 * PART_IDS + 17])
def test_a_row_has_the_same_bits_whatever_travels_with_it(size):
    table = random(ROWS, size)
    whole = summarize(table, FIRST + size)
    mapped = jax.vmap(lambda row_V: summarize(row_V[None], FIRST + size))(table)
    for row in range(ROWS):
        alone = summarize(table[row : row + 1], FIRST + size)
        for got, in_batch, want in zip(alone, mapped, whole, strict=True):
            np.testing.assert_array_equal(got[0], want[row])
            np.testing.assert_array_equal(in_batch[row, 0], want[row])
