"""Recorded answers as arrays: what they hold is what was recorded, wherever it lies."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdave.models.presets import preset
from jaxdave.training.reinforce import answer_batch
from jaxdave.training.reinforce.step_maps import (
    GIVEN,
    NEVER,
    RecordedCanvas,
    canvas_of_text,
)

CAUSAL, FULL = preset("sdar-1m"), preset("llada-1m")
LENGTH = CAUSAL.block_length
END = CAUSAL.stop_ids[0]


def ranks_one_by_one(steps: list[int]) -> list[int]:
    """The rank of each step among the different ones of its block."""
    found = []
    for place, step in enumerate(steps):
        block = steps[place // LENGTH * LENGTH :][:LENGTH]
        others = {other for other in block if other not in (GIVEN, NEVER)}
        is_decoded = step not in (GIVEN, NEVER)
        found.append(sorted(others).index(step) if is_decoded else step)
    return found


@given(st.integers(0, 2**31), st.integers(0, 3), st.integers(1, 4))
def test_ranks_of_blocks(seed, given_tokens, blocks):
    rng = np.random.default_rng(seed)
    steps = [GIVEN] * given_tokens
    for block in range(blocks):
        size = LENGTH - given_tokens if block == 0 else LENGTH
        steps += (10 * block + rng.integers(0, 6, size)).tolist()
    if rng.random() < 0.5:
        steps[-1] = NEVER
    got = answer_batch.block_ranks(np.array([steps, steps], np.int32), LENGTH)
    assert got.tolist() == [ranks_one_by_one(steps)] * 2


def test_blocks_out_of_order_are_refused():
    with pytest.raises(ValueError, match="block by block"):
        answer_batch.block_ranks(np.array([[0, 1, 2, 7, 4, 5, 6, 8]]), 4)


def canvas(begin: int, tokens: list[int], steps: list[int], room: int = 16):
    """A prompt of so many tokens, and an answer."""
    size = begin + room
    tokens_T = np.full(size, CAUSAL.mask_id, np.int32)
    steps_T = np.full(size, NEVER, np.int32)
    log_probs_T = np.full(size, np.nan, np.float32)
    tokens_T[:begin], steps_T[:begin] = 100 + np.arange(begin), GIVEN
    tokens_T[begin : begin + len(tokens)] = tokens
    steps_T[begin : begin + len(tokens)] = steps
    log_probs_T[begin : begin + len(tokens)] = -0.1 * (1 + np.arange(len(tokens)))
    return RecordedCanvas(tokens_T, steps_T, log_probs_T)


TOKENS = [11, 12, 13, END, 14, 15]
CANVASES = [canvas(6, TOKENS, [1, 0, 2, 5, 4, 3]), canvas(9, [21, 22, 23], [0, 2, 1])]


@pytest.mark.parametrize("config", [CAUSAL, FULL], ids=["blocks", "full"])
@pytest.mark.parametrize("whole", [True, False])
def test_what_counts_is_what_was_recorded(config, whole):
    keys = np.arange(4, dtype=np.uint32).reshape(2, 2)
    batch = answer_batch.pack_canvases(CANVASES, keys, config, whole_trajectory=whole)
    counted = [[11, 12, 13, END, 14, 15] if whole else [11, 12, 13, END], [21, 22, 23]]
    for row, want in enumerate(counted):
        start = batch.start_B[row]
        window_R = batch.tokens_BT[row][start:][: batch.steps_BR.shape[1]]
        is_counted_R = batch.is_counted_BR[row]
        assert window_R[is_counted_R].tolist() == want
        recorded = batch.recorded_BR[row][is_counted_R]
        np.testing.assert_allclose(recorded, -0.1 * (1 + np.arange(len(want))), 1e-6)
        assert np.all(batch.recorded_BR[row][~is_counted_R] == 0)
        # The prompt is whole, in front of the answer.
        valid = batch.tokens_BT[row][batch.valid_BT[row]]
        begin = (6, 9)[row]
        assert valid[:begin].tolist() == (100 + np.arange(begin)).tolist()
    assert batch.key_B2.tolist() == keys.tolist()


def test_steps_of_blocks_and_of_canvases():
    keys = np.zeros((2, 2), np.uint32)
    blocks = answer_batch.pack_canvases(CANVASES, keys, CAUSAL)
    assert blocks.start_B.tolist() == [4, 8]
    assert blocks.steps_BR[0, :8].tolist() == [GIVEN, GIVEN, 1, 0, 0, 3, 2, 1]
    assert answer_batch.num_steps(blocks, CAUSAL) == 4
    full = answer_batch.pack_canvases(CANVASES, keys, FULL)
    assert full.steps_BR[1][full.valid_BT[1]][9:12].tolist() == [0, 2, 1]
    assert not np.any(full.is_counted_BR & ~full.valid_BT)
    chain = answer_batch.pack_canvases(CANVASES, keys, FULL, from_left=True)
    assert chain.steps_BR[0][chain.valid_BT[0]][6:12].tolist() == [0, 1, 2, 3, 4, 5]
    shrunk = answer_batch.pack_canvases(CANVASES, keys, FULL, shrink=2)
    assert shrunk.steps_BR[0][shrunk.valid_BT[0]][6:12].tolist() == [0, 0, 1, 2, 2, 1]
    assert answer_batch.num_steps(full, FULL) == 16


@pytest.mark.parametrize("config", [CAUSAL, FULL], ids=["blocks", "full"])
def test_a_given_text_is_laid_out_as_one_that_was_decoded(config):
    tokens = TOKENS[:4]
    decoded = canvas(6, tokens, [0, 1, 2, 3])
    given = canvas_of_text(range(100, 106), tokens, 16, config.mask_id)
    keys = np.zeros((1, 2), np.uint32)
    one, other = (
        answer_batch.pack_canvases(
            [some], keys, config, from_left=True, whole_trajectory=False
        )
        for some in (decoded, given)
    )
    nothing = np.zeros_like(one.recorded_BR)
    for got, want in zip(other, one._replace(recorded_BR=nothing), strict=True):
        np.testing.assert_array_equal(got, want)
    with pytest.raises(ValueError, match="4 tokens and the room is 3; give more"):
        canvas_of_text((1,), tokens, 3, config.mask_id)


def test_rows_that_fill_up_count_nothing():
    keys = np.zeros((2, 2), np.uint32)
    batch = answer_batch.pack_canvases(CANVASES, keys, CAUSAL)
    part = answer_batch.take_rows(batch, [1], 3)
    assert part.is_counted_BR.any(axis=1).tolist() == [True, False, False]
    assert part.start_B.tolist() == [8, 8, 8]
    assert batch.is_counted_BR.any(axis=1).all()
