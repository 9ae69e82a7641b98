"""Kernels for statistics of the head: what XLA's reductions give, whatever the shape."""

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
def summarize(parts_PRV, vocab_size: int, suppressed_ids: tuple[int, ...] = ()):
    return summarize_logits(
        parts_PRV,
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


@pytest.mark.parametrize("num_parts", [1, 2])
@pytest.mark.parametrize("size", SIZES)
def test_it_is_what_the_reductions_give(size, num_parts):
    parts = random(num_parts, ROWS, size)
    vocab_size, suppressed = FIRST + size - NUM_PADDING, (FIRST + 3, FIRST + 11)
    table = parts.sum(axis=0, dtype=np.float32)
    # The best of all may not be predicted, nor may padding.
    parts[0, :, 3] += 100
    parts[0, :, -NUM_PADDING:] += 200
    table[:, [3, 11]] = table[:, -NUM_PADDING:] = NEG_INF
    summary = summarize(parts, vocab_size, suppressed)
    assert_same_predictions(predictions(table, summary), predictions(table, None))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("values", [2, 40])
def test_of_equal_logits_the_lowest_ids_win(size, values):
    drawn = np.random.default_rng(values).integers(0, values, (1, ROWS, size))
    summary = summarize(drawn.astype("f"), FIRST + size)
    order = np.argsort(-drawn[0], axis=1, kind="stable")
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
    got = predictions(table, summarize(table[None], FIRST + size))
    want = predictions(table, None)
    np.testing.assert_array_equal(got.token, want.token)
    np.testing.assert_array_equal(got.runner_up[1:], want.runner_up[1:])
    assert got.token[0] == got.token[2] == got.runner_up[1] == -1
    rows = slice(3, 5)
    assert_same_predictions(*(jax.tree.map(lambda a: a[rows], p) for p in (got, want)))


@pytest.mark.parametrize("size", [40, 3 * PART_IDS + 17])
def test_a_row_has_the_same_bits_whatever_travels_with_it(size):
    parts = random(2, ROWS, size)
    whole = summarize(parts, FIRST + size)
    for row in range(ROWS):
        alone = summarize(parts[:, row : row + 1], FIRST + size)
        for got, want in zip(alone, whole, strict=True):
            np.testing.assert_array_equal(got[0], want[row])
    batch = np.moveaxis(parts, 1, 0)[:, :, None]
    mapped = jax.vmap(lambda one: summarize(one, FIRST + size))(batch)
    for got, want in zip(mapped, whole, strict=True):
        np.testing.assert_array_equal(got[:, 0], want)
