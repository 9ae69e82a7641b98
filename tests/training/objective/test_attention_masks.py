"""Who sees whom: worked examples, and the definitions case by case."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdave.training.objective import attention_masks
from jaxdave.training.objective.attention_masks import (
    Layout,
    block_causal,
    clean_first,
    full,
    noisy_first,
    sees,
    visibility,
)

ONE_SAMPLE = jnp.zeros((1, 4), jnp.int32)


def rows_of(layout: Layout) -> list[str]:
    """The mask of a layout's first row, one string of 0 and 1 for each query."""
    mask = np.asarray(visibility(layout))[0].astype(int)
    return ["".join(map(str, row)) for row in mask]


def test_full_attention_sees_all():
    assert rows_of(full(ONE_SAMPLE)) == ["1111"] * 4


def test_block_causal():
    assert rows_of(block_causal(ONE_SAMPLE, 2)) == ["1100", "1100", "1111", "1111"]


def test_noisy_first():
    assert rows_of(noisy_first(block_causal(ONE_SAMPLE, 2))) == [
        *["11000000"] * 2,
        *["00111100"] * 2,
        *["00001100"] * 2,
        *["00001111"] * 2,
    ]


def test_clean_first_counts_blocks_from_the_answer():
    text = block_causal(jnp.zeros((1, 7), jnp.int32), 2, answer_start=3)
    assert rows_of(clean_first(text, 3)) == [
        "10000000000",
        *["11100000000"] * 2,
        *["11111000000"] * 2,
        *["11111110000"] * 2,
        *["11100001100"] * 2,
        *["11111000011"] * 2,
    ]


def test_copies_of_a_trajectory_do_not_see_each_other():
    text = block_causal(jnp.zeros((1, 3), jnp.int32), 2, answer_start=1)
    assert rows_of(clean_first(text, 1, copies=2)) == [
        "1000000",
        *["1110000"] * 2,
        *["1001100"] * 2,
        *["1000011"] * 2,
    ]


def test_a_context_may_end_blocks_before_a_masked_window():
    # A window of the demo's: blocks 1 and 2, masked as one group behind block 0.
    text = block_causal(jnp.zeros((1, 6), jnp.int32), 2)
    window = Layout(*(field[:, 2:] for field in text))
    window = window._replace(
        context_BQ=jnp.ones_like(window.block_BQ), copy_BQ=jnp.ones_like(window.copy_BQ)
    )
    joined = Layout(
        *(jnp.concatenate(f, axis=1) for f in zip(text, window, strict=True))
    )
    assert rows_of(joined)[6:] == [*["1100001100"] * 2, *["1100001111"] * 2]


def test_packed_samples_do_not_see_each_other_and_blocks_restart():
    sample = jnp.array([[0, 0, 0, 1, 1, -1]])
    assert rows_of(block_causal(sample, 2)) == [
        *["110000"] * 2,
        "111000",
        *["000110"] * 2,
        "000001",
    ]
    mask = np.asarray(visibility(noisy_first(block_causal(sample, 2))))[0]
    other = np.asarray(sample[0])[:, None] != np.asarray(sample[0])
    assert not mask[np.tile(other, (2, 2))].any()
    assert rows_of(full(sample)) == [*["111000"] * 3, *["000110"] * 2, "000001"]


@pytest.mark.parametrize("length, block", [(6, 1), (6, 3), (8, 4), (7, 3)])
def test_noisy_first_is_the_union_of_the_three_published_masks(length, block):
    layout = noisy_first(block_causal(jnp.zeros((1, length), jnp.int32), block))
    mask = np.asarray(visibility(layout))[0]
    for q in range(2 * length):
        for k in range(2 * length):
            q_clean, k_clean = q >= length, k >= length
            q_block, k_block = q % length // block, k % length // block
            diagonal = q_block == k_block and q_clean == k_clean
            offset = q_block > k_block and k_clean and not q_clean
            causal = q_block >= k_block and k_clean and q_clean
            assert mask[q, k] == (diagonal or offset or causal)


def test_the_predicate_of_indices_is_the_mask():
    layout = noisy_first(block_causal(jnp.array([[0, 0, 0, 0, 1, 1]]), 2))
    mask = visibility(layout)[0]
    for q, k in [(0, 0), (2, 6), (2, 8), (7, 6), (10, 4), (4, 10)]:
        query, key = (Layout(*(f[0, i] for f in layout)) for i in (q, k))
        assert bool(sees(query, key)) == bool(mask[q, k])


def test_positions_are_those_of_the_sample_in_every_copy():
    sample = jnp.array([[-1, 0, 0, 0, 0]])
    text = block_causal(sample, 2, answer_start=3)
    assert text.position_BQ.tolist() == [[0, 0, 1, 2, 3]]
    assert clean_first(text, 3).position_BQ.tolist() == [[0, 0, 1, 2, 3, 2, 3]]
    text = attention_masks.block_causal(jnp.array([[0, 0, 1]]), 2)
    assert noisy_first(text).position_BQ.tolist() == [[0, 1, 0, 0, 1, 0]]
