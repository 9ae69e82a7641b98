"""States of the trajectory: a plain reading of each, and the network over them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.checkpoint_folders import random

from jaxdave.models.forward import forward
from jaxdave.models.presets import preset
from jaxdave.training.distil.aligned_batch import align_blocks
from jaxdave.training.distil.state_logits import check_model, state_logits
from jaxdave.training.distil.states import StateSampling, draw_states
from jaxdave.training.objective.sequence_model import transformer_logits

MASK, PAD, START, BLOCK = 99, 0, 8, 4
SAMPLES = [
    (list(range(1, 8)), list(range(20, 31))),
    ([5], [40, 41, 42]),
    (list(range(1, 9)), list(range(50, 58))),
]
BATCH = align_blocks(
    SAMPLES, prompt_columns=START, answer_columns=16, block_length=BLOCK, pad_id=PAD
)
CAUSAL = StateSampling(
    answer_start=START, block_length=BLOCK, is_causal=True, copies=400, lookahead=2
)
FULL = dataclasses.replace(CAUSAL, is_causal=False)
ANSWER = BATCH.is_answer_BT[:, START:]
TOKENS = BATCH.tokens_BT[:, START:]


def draw(sampling, seed=0):
    states = draw_states(jax.random.key(seed), sampling, BATCH, mask_id=MASK)
    return jax.tree.map(np.asarray, states)


def answer_blocks(row):
    return sorted(set((np.flatnonzero(ANSWER[row]) // BLOCK).tolist()))


def test_rows_are_aligned_at_the_answers_block():
    # 7 prompt tokens: one whole block before the column, three tokens after it.
    row = [PAD] * 4 + [1, 2, 3, 4] + [5, 6, 7, *range(20, 31), PAD, PAD]
    assert BATCH.tokens_BT[0].tolist() == row
    assert BATCH.is_answer_BT[0].tolist() == [False] * 11 + [True] * 13
    assert BATCH.sample_BT[0].tolist() == [-1] * 4 + [0] * 20
    # An answer that ends before the columns do: its block is filled, no more.
    assert BATCH.tokens_BT[1].tolist() == [PAD] * 8 + [5, 40, 41, 42] + [PAD] * 12
    assert BATCH.sample_BT[1].tolist() == [-1] * 8 + [0] * 4 + [-1] * 12


@pytest.mark.parametrize("sampling", [CAUSAL, FULL], ids=["causal", "full"])
def test_masks_are_those_of_a_trajectory(sampling):
    states = draw(sampling)
    np.testing.assert_array_equal(
        states.noisy_BNA, np.where(states.is_masked_BNA, MASK, TOKENS[:, None])
    )
    for row in range(len(SAMPLES)):
        blocks = answer_blocks(row)
        for copy in range(sampling.copies):
            masked = states.is_masked_BNA[row, copy]
            later = states.is_later_BNA[row, copy]
            first = states.first_block_BNA[row, copy]
            assert not (masked & ~ANSWER[row]).any()
            for block in blocks:
                here = slice(block * BLOCK, (block + 1) * BLOCK)
                active = set(first[here].tolist())
                assert len(active) == 1
                (begin,) = active
                assert begin in blocks
                assert not masked[here].any() or block >= begin
                if block > begin:
                    np.testing.assert_array_equal(masked[here], ANSWER[row, here])
                assert not later[here].any() or block > begin
                assert (masked & later)[here].sum() == later[here].sum()


def test_a_causal_state_is_an_active_block_and_the_ones_drafted_ahead():
    states = draw(CAUSAL)
    for row in range(len(SAMPLES)):
        blocks = np.array(answer_blocks(row))
        begins = states.first_block_BNA[row][:, blocks * BLOCK]
        active = begins == blocks
        assert active[:, 0].all()
        ahead = blocks[None] - begins
        assert ahead.min() == 0 and ahead.max() <= CAUSAL.lookahead
        if len(blocks) > CAUSAL.lookahead:
            # Every block is active, and is drafted ahead, in a third of the copies.
            for block in range(1, len(blocks)):
                assert abs(active[:, block].mean() - 1 / 3) < 0.1
    alone = draw(dataclasses.replace(CAUSAL, lookahead=0))
    assert not alone.is_later_BNA.any()


def test_a_full_state_has_one_active_block_any_of_the_answers():
    states = draw(FULL)
    for row in range(len(SAMPLES)):
        blocks = answer_blocks(row)
        counts = np.bincount(states.first_block_BNA[row, :, 0], minlength=4)
        assert set(np.flatnonzero(counts)) == set(blocks)
        share = counts[blocks] / FULL.copies
        assert (abs(share - 1 / len(blocks)) < 0.1).all()


def test_ratios_are_kept_and_complements_complete():
    sampling = dataclasses.replace(CAUSAL, low=0.2, high=0.9, lookahead=0)
    states = draw(sampling)
    assert states.ratio_BN.min() < 0.25 and states.ratio_BN.max() > 0.85
    share = states.is_masked_BNA[0][:, ANSWER[0]].mean(axis=1)
    assert abs(np.mean(share - states.ratio_BN[0])) < 0.02
    assert np.corrcoef(share, states.ratio_BN[0])[0, 1] > 0.7
    pairs = draw(dataclasses.replace(sampling, complementary=True))
    for even, odd in ((0, 1), (2, 3), (398, 399)):
        a, b = pairs.is_masked_BNA[:, even], pairs.is_masked_BNA[:, odd]
        np.testing.assert_array_equal(a ^ b, ANSWER)
        np.testing.assert_array_equal(
            pairs.first_block_BNA[:, even], pairs.first_block_BNA[:, odd]
        )


SMALL = {"num_layers": 1, "hidden": 16, "inter": 24, "head_dim": 8, "rotary_dim": 8}
MODELS = {
    "causal": preset("sdar-1m", block_length=BLOCK, **SMALL),
    "full": preset("llada-1m", **SMALL),
    "shift": preset("dream-1m", **SMALL),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_network_sees_a_state_as_a_decoder_does(name):
    """Each state by itself, as the whole canvas that a decoder has before it."""
    config = MODELS[name]
    is_causal = name == "causal"
    sampling = dataclasses.replace(CAUSAL, is_causal=is_causal, copies=3)
    mask, params = config.mask_id, random(config)
    states = draw_states(jax.random.key(3), sampling, BATCH, mask_id=mask)
    shift = config.logits_shift != "none"
    check_model(sampling, config)
    function = state_logits(sampling, transformer_logits(config), shift)
    logits = np.asarray(jax.jit(function)(params, BATCH, states))
    states = jax.tree.map(np.asarray, states)
    plain = jax.jit(forward(config))
    for row, (prompt, answer) in enumerate(SAMPLES):
        whole = len(prompt) // BLOCK * BLOCK
        length = -(-(len(prompt) + len(answer)) // BLOCK) * BLOCK
        text = BATCH.tokens_BT[row, START - whole : START - whole + length]
        for copy in range(sampling.copies):
            noisy = states.noisy_BNA[row, copy, : length - whole]
            for column in np.flatnonzero(states.is_masked_BNA[row, copy]):
                seen = np.concatenate([text[:whole], noisy])
                if is_causal:
                    # Text before the active block, the state up to the own block.
                    first = states.first_block_BNA[row, copy, column]
                    begin = whole + first * BLOCK
                    end = whole + (column // BLOCK + 1) * BLOCK
                    seen = np.concatenate([text[:begin], seen[begin:end]])
                want = plain(params, jnp.asarray(seen)[None])[0, whole + column]
                np.testing.assert_allclose(
                    logits[row, copy, column], want, rtol=2e-4, atol=2e-5
                )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"low": 0.6}, "low=0.6 to high=0.5"),
        ({"high": 1.5}, "high=1.5"),
        ({"copies": 3, "complementary": True}, "use 4"),
        ({"copies": 0}, "copies=0 must be at least 1"),
        ({"lookahead": -1}, "lookahead=-1 must be at least 0"),
        ({"block_length": 0}, "block_length=0 must be at least 1"),
    ],
)
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        dataclasses.replace(CAUSAL, **changes)
    assert "\n" not in str(error.value)


def test_models_that_decode_otherwise_are_refused():
    for sampling, name, message in (
        (CAUSAL, "full", "use is_causal=False"),
        (FULL, "causal", "use is_causal=True"),
        (dataclasses.replace(CAUSAL, block_length=2), "causal", "take the model's"),
    ):
        with pytest.raises(ValueError, match=message):
            check_model(sampling, MODELS[name])
    shifted = dataclasses.replace(MODELS["causal"], logits_shift="block")
    with pytest.raises(ValueError, match="predicts in place"):
        check_model(CAUSAL, shifted)


@pytest.mark.parametrize(
    ("samples", "changes", "message"),
    [
        ([], {}, "a batch of 0 samples"),
        ([([1], [])], {}, "sample 0 has an answer of 0 tokens"),
        ([([1] * 12, [2])], {}, "more than prompt_columns=8"),
        ([([1], [2] * 20)], {}, "answer_columns=16; raise them"),
        ([([1], [2])], {"answer_columns": 6}, "use 8"),
    ],
)
def test_samples_that_do_not_fit_are_refused(samples, changes, message):
    settings = {
        "prompt_columns": 8,
        "answer_columns": 16,
        "block_length": 4,
        "pad_id": 0,
    }
    with pytest.raises(ValueError, match=message) as error:
        align_blocks(samples, **(settings | changes))
    assert "\n" not in str(error.value)
