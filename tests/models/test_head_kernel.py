"""The head with its statistics as a kernel: what a product and reductions give."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import fake_model
from helpers.kernel_machine import KERNEL_MACHINE

from bench.harness.scripted_drafts import outweigh
from jaxdave.core.config import SamplingConfig
from jaxdave.models import transformer
from jaxdave.models.block_causal import block_causal_model
from jaxdave.models.head_kernel import summarize_head
from jaxdave.numerics.eight_bit_kernel import BLOCK_IN, BLOCK_OUT, MAX_ROWS
from jaxdave.numerics.matmul import EightBitTable
from jaxdave.numerics.quantization import QUANTIZATIONS
from jaxdave.sampling.chunked_head import head_at, sample_and_score

FIRST, SUPPRESSED = 5, (9, 40)
SIZES = [(BLOCK_OUT, BLOCK_IN), (3 * BLOCK_OUT + 44, BLOCK_IN + 16)]
"""(ids, features)."""
HEADS = ["float32", "float16", "bfloat16", *QUANTIZATIONS]


def random(*shape: int) -> jax.Array:
    drawn = np.random.default_rng(sum(shape)).normal(size=shape)
    return jnp.asarray(drawn, jnp.float32)


def head_of(kind: str, size: int, inputs: int):
    table = random(size, inputs)
    if kind in QUANTIZATIONS:
        return EightBitTable(QUANTIZATIONS[kind]("head", table))
    return table.astype(kind)


@functools.partial(jax.jit, static_argnames="size")
def summarize(hidden_RE, table, size: int):
    return summarize_head(
        hidden_RE,
        table,
        FIRST,
        vocab_size=FIRST + size - 3,
        suppressed_ids=SUPPRESSED,
        machine=KERNEL_MACHINE,
    )


def as_float64(table) -> np.ndarray:
    if not isinstance(table, EightBitTable):
        return np.asarray(table, np.float64)
    values = np.asarray(table.table.values, np.float64)
    return values * np.asarray(table.table.scale, np.float64)[:, None]


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize(
    ("rows", "size", "inputs"),
    [(1, *SIZES[1]), (20, *SIZES[0]), (70, *SIZES[1]), (MAX_ROWS + 1, *SIZES[1])],
)
def test_it_is_what_float64_gives(kind, rows, size, inputs):
    hidden, table = random(rows, inputs), head_of(kind, size, inputs)
    got = summarize(hidden, table, size)
    logits = np.asarray(hidden, np.float64) @ as_float64(table).T
    # Two bfloat16 parts of a vector are off by at most 2^-16 of it.
    size_of_sum = np.abs(np.asarray(hidden)).sum(axis=1).max()
    error = 2.0**-16 * size_of_sum * np.abs(as_float64(table)).max()
    logits[:, [i - FIRST for i in SUPPRESSED]] = logits[:, size - 3 :] = -np.inf
    ranked = np.sort(logits, axis=1)[:, ::-1]
    np.testing.assert_allclose(got.top, ranked[:, 0], atol=error)
    np.testing.assert_allclose(got.second, ranked[:, 1], atol=error)
    each = np.arange(rows)
    token, runner_up = (np.asarray(a) - FIRST for a in (got.token, got.runner_up))
    np.testing.assert_allclose(logits[each, token], ranked[:, 0], atol=2 * error)
    np.testing.assert_allclose(logits[each, runner_up], ranked[:, 1], atol=2 * error)
    assert (token != runner_up).all()
    below = ranked[:, 1:2] - ranked[:, 1:]
    weight = np.exp(-below)
    below = np.where(weight > 0, below, 0.0)
    np.testing.assert_allclose(got.rest, weight.sum(axis=1), rtol=4 * error)
    moment = (weight * below).sum(axis=1)
    np.testing.assert_allclose(got.moment, moment, rtol=8 * error, atol=4 * error)


@pytest.mark.parametrize("kind", ["bfloat16", "int8"])
@pytest.mark.as_shipped
def test_a_vector_has_the_same_bits_whatever_travels_with_it(kind):
    size, inputs = SIZES[-1]
    hidden, table = random(70, inputs), head_of(kind, size, inputs)
    whole = summarize(hidden, table, size)
    by_batch = jax.vmap(lambda part: summarize(part, table, size))(
        hidden.reshape(5, 14, inputs)
    )
    alone = summarize(hidden[3:4], table, size)
    for want, batch, one in zip(whole, by_batch, alone, strict=True):
        np.testing.assert_array_equal(batch.reshape(-1), want)
        np.testing.assert_array_equal(one[0], want[3])


def test_predictions_of_a_model_are_those_of_its_logits():
    """Both ways see the same head, padding and mask."""
    config = fake_model.TINY
    model = block_causal_model(config, numerics="guarded", machine=KERNEL_MACHINE)
    params = transformer.init(config, seed=0, dtype=jnp.bfloat16)
    head = head_at(model, params, 4 * random(9, config.hidden))
    assert head.summarize is not None
    no_keys = jnp.zeros((9, 2), jnp.uint32)
    got = sample_and_score(head, SamplingConfig(), no_keys)
    slow = head._replace(summarize=None)
    want = sample_and_score(slow, SamplingConfig(), no_keys)
    np.testing.assert_array_equal(got.token, want.token)
    np.testing.assert_array_equal(got.runner_up, want.runner_up)
    for name in ("score", "gap", "margin", "entropy", "lead"):
        np.testing.assert_allclose(
            getattr(got, name), getattr(want, name), rtol=1e-5, atol=1e-5
        )


def test_the_summary_of_scripted_logits_is_that_of_their_sum():
    """`bench`'s script adds to one logit of each row behind the kernel's back."""
    size, inputs = SIZES[0]
    hidden, table = jnp.eye(6, inputs), random(size, inputs)
    logits = np.asarray(hidden @ table.T)
    order = np.argsort(-logits[:, 60:-3], axis=1) + 60
    index = np.where(np.arange(6) % 2, order[:, 0], order[:, 7]).astype(np.int32)
    each = np.arange(6)
    bonus = np.full(6, 50.0, np.float32)
    summary = summarize(hidden, table, size)
    got = outweigh(summary, index + FIRST, logits[each, index], bonus)
    # Scripted logits are those of a table with one feature more for each row.
    more = np.zeros((size, 6), np.float32)
    more[index, each] = bonus
    both = jnp.concatenate([table, more], axis=1)
    want = summarize(jnp.concatenate([hidden, jnp.eye(6)], axis=1), both, size)
    np.testing.assert_array_equal(got.token, want.token)
    np.testing.assert_array_equal(got.runner_up, want.runner_up)
    for name in ("top", "second", "rest", "moment"):
        np.testing.assert_allclose(
            getattr(got, name), getattr(want, name), rtol=1e-4, atol=1e-4
        )
