"""Masks of training: what may be masked, how often, and what is shared."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdave.training.data.token_batch import align_answers, pack_samples, run_starts
from jaxdave.training.objective.editing import Editing, replace_tokens
from jaxdave.training.objective.masking import (
    Masking,
    draw_masks,
    draw_ratios,
    mask_tokens,
    maskable_tokens,
)

MASK, ROWS, LENGTH = 9, 64, 12
SAMPLE = jnp.broadcast_to(jnp.repeat(jnp.arange(2), 6)[None], (ROWS, LENGTH))
BLOCK = jnp.broadcast_to((jnp.arange(LENGTH) % 6 // 3)[None], (ROWS, LENGTH))
# A prompt of two tokens in each sample.
MASKABLE = jnp.broadcast_to((jnp.arange(LENGTH) % 6 >= 2)[None], (ROWS, LENGTH))


def masks(masking: Masking, seed: int = 0):
    key = jax.random.key(seed)
    masked, ratio = draw_masks(key, masking, MASKABLE, SAMPLE, BLOCK)
    return np.asarray(masked), np.asarray(ratio)


@pytest.mark.parametrize("per", ["row", "sample", "block", "token"])
def test_a_unit_shares_its_ratio_and_others_have_their_own(per):
    _, ratio = masks(Masking(per=per))
    units = {
        "row": np.zeros(LENGTH, int),
        "sample": np.arange(LENGTH) // 6,
        "block": np.arange(LENGTH) // 3,
        "token": np.arange(LENGTH),
    }[per]
    for unit in np.unique(units):
        assert (np.ptp(ratio[:, units == unit], axis=1) == 0).all()
    firsts = ratio[:, np.unique(units, return_index=True)[1]]
    assert len(np.unique(firsts)) == firsts.size
    assert 0.001 <= ratio.min() < 0.1 and 0.9 < ratio.max() <= 1


def test_ratios_stay_in_their_range_and_fill_it():
    _, ratio = masks(Masking(low=0.3, high=0.8))
    assert 0.3 <= ratio.min() < 0.35 and 0.75 < ratio.max() <= 0.8


def test_masks_are_as_frequent_as_their_ratio_and_never_in_a_prompt():
    masked, _ = masks(Masking(low=0.25, high=0.25))
    assert not masked[:, np.arange(LENGTH) % 6 < 2].any()
    # 512 tokens: three standard deviations are 0.058.
    assert abs(masked[:, np.asarray(MASKABLE[0])].mean() - 0.25) < 0.058
    masked, _ = masks(Masking(low=1, high=1))
    assert (masked == np.asarray(MASKABLE)).all()


def test_masks_are_a_function_of_the_key():
    first, again, other = masks(Masking(), 1), masks(Masking(), 1), masks(Masking(), 2)
    assert (first[0] == again[0]).all() and (first[1] == again[1]).all()
    assert (first[0] != other[0]).any()


@pytest.mark.parametrize("per", ["row", "sample", "block"])
def test_antithetic_ratios_take_one_stratum_each(per):
    masking = Masking(per=per, antithetic=True, low=0.2, high=1)
    labels = {
        "row": jnp.zeros_like(SAMPLE),
        "sample": SAMPLE,
        "block": 2 * SAMPLE + BLOCK,
    }[per]
    start = run_starts(labels)
    # The second block of the first sample has nothing to mask: it takes no stratum.
    maskable = MASKABLE.at[:, 3:6].set(False)
    ratio = draw_ratios(jax.random.key(3), masking, start, maskable)
    is_unit = np.unique(np.asarray(start[0]))
    if per == "block":
        is_unit = is_unit[is_unit != 3]
    drawn = (np.asarray(ratio)[:, is_unit].reshape(-1) - 0.2) / 0.8
    strata = np.floor(np.sort(drawn) * drawn.size + 1e-3).astype(int)
    assert strata.tolist() == list(range(drawn.size))


def test_antithetic_ratios_of_each_block_are_uniform():
    # Two blocks of one row: the first must get the upper half as often as the lower.
    start = jnp.array([[0, 0, 2, 2]])
    maskable = jnp.ones((1, 4), bool)
    masking = Masking(per="block", antithetic=True)

    def draw(key):
        return draw_ratios(key, masking, start, maskable)[0, jnp.array([0, 2])]

    ratio = np.asarray(jax.vmap(draw)(jax.random.split(jax.random.key(0), 400)))
    assert ((ratio < 0.5).sum(axis=1) == 1).all()
    assert abs((ratio[:, 0] < 0.5).mean() - 0.5) < 0.075


def test_a_sample_without_a_mask_gets_one_at_random():
    masking = Masking(low=1e-6, high=1e-6, at_least_one=True)
    places = np.zeros(LENGTH)
    for seed in range(8):
        masked, _ = masks(masking, seed)
        assert (masked.reshape(ROWS, 2, 6).sum(axis=2) == 1).all()
        places += masked.sum(axis=0)
    assert (places[np.arange(LENGTH) % 6 < 2] == 0).all()
    # 512 draws over four places: three standard deviations about 128 are 29.
    assert (np.abs(places[np.arange(LENGTH) % 6 >= 2] - 128) < 30).all()


def test_forcing_leaves_other_samples_alone_and_empty_ones_empty():
    forced, _ = masks(Masking(low=0.3, high=0.3, at_least_one=True))
    plain, _ = masks(Masking(low=0.3, high=0.3))
    has_any = np.repeat(plain.reshape(ROWS, 2, 6).any(axis=2), 6, axis=1)
    assert has_any.any() and not has_any.all()
    assert (forced[has_any] == plain[has_any]).all()
    masked, _ = draw_masks(
        jax.random.key(0),
        Masking(at_least_one=True),
        jnp.zeros_like(MASKABLE),
        SAMPLE,
        BLOCK,
    )
    assert not masked.any()


def test_complementary_views_mask_every_token_once():
    tokens = jnp.broadcast_to((jnp.arange(LENGTH) % 7)[None], (ROWS, LENGTH))
    masking = Masking(per="block", complementary=True)
    args = jax.random.key(0), masking, tokens, MASKABLE, SAMPLE, BLOCK
    views = mask_tokens(*args, mask_id=MASK)
    first, second = np.split(np.asarray(views.is_masked_BT), 2)
    assert (first ^ second == np.asarray(MASKABLE)).all()
    noisy = np.asarray(views.noisy_BT)
    is_masked = np.asarray(views.is_masked_BT)
    assert (noisy[is_masked] == MASK).all()
    assert (noisy == np.tile(tokens, (2, 1)))[~is_masked].all()
    ratio, complement = np.split(np.asarray(views.ratio_BT), 2)
    np.testing.assert_allclose(ratio + complement, 1, rtol=1e-6)


def test_the_first_token_of_each_sample_can_be_kept():
    is_answer = jnp.ones((1, 5), bool)
    sample = jnp.array([[0, 0, 0, 1, 1]])
    kept = maskable_tokens(is_answer, sample, keep_first=True)
    assert kept.astype(int).tolist() == [[0, 1, 1, 0, 1]]
    assert maskable_tokens(is_answer, sample, keep_first=False).all()


@pytest.mark.parametrize("vocab, mask", [(10, 9), (10, 4), (9, 9)])
def test_replaced_tokens_are_wrong_visible_and_uniform(vocab, mask):
    tokens = jnp.full((200, LENGTH), 3)
    sample = jnp.zeros_like(tokens)
    maskable = jnp.broadcast_to((jnp.arange(LENGTH) >= 2)[None], tokens.shape)
    args = jax.random.key(0), Masking(low=0.5, high=0.5), tokens, maskable
    corruption = mask_tokens(*args, sample, sample, mask_id=mask)
    edited = replace_tokens(
        jax.random.key(1),
        Editing(ratio=0.5),
        corruption,
        maskable,
        vocab_size=vocab,
        mask_id=mask,
    )
    replaced = np.asarray(edited.is_replaced_BT)
    noisy = np.asarray(edited.noisy_BT)
    masked = np.asarray(corruption.is_masked_BT)
    assert not (replaced & masked).any() and not replaced[:, :2].any()
    assert (noisy[masked] == mask).all() and (noisy[~masked & ~replaced] == 3).all()
    counts = np.bincount(noisy[replaced], minlength=vocab)
    allowed = np.array([i not in (3, mask) for i in range(vocab)])
    assert (counts[~allowed[: len(counts)]] == 0).all()
    # About 500 draws over 8 or 7 ids.
    expected = counts.sum() / allowed.sum()
    assert (np.abs(counts[allowed] - expected) < 4 * np.sqrt(expected)).all()


@pytest.mark.parametrize(
    "low, high", [(0, 1), (-0.1, 0.5), (0.6, 0.5), (0.5, 1.1), (float("nan"), 1)]
)
def test_a_mask_ratio_out_of_range_is_refused(low, high):
    with pytest.raises(ValueError, match="0 < low <= high <= 1") as error:
        Masking(low=low, high=high)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("ratio", [0, 1, 1.5, float("nan")])
def test_a_ratio_of_replaced_tokens_out_of_range_is_refused(ratio):
    with pytest.raises(ValueError, match=r"must be in \(0, 1\)"):
        Editing(ratio=ratio)


def test_an_unknown_unit_and_weights_of_nothing_are_refused():
    with pytest.raises(ValueError, match="per='page'"):
        Masking(per="page")  # pyright: ignore
    with pytest.raises(ValueError, match="weight=0"):
        Editing(weight=0)


def test_samples_are_packed_and_aligned():
    batch = pack_samples(
        [[([1], [2, 3]), ([], [4])], [([5], [6])]],
        length=6,
        pad_id=0,
        block_length=3,
        train_padding=True,
    )
    assert batch.tokens_BT.tolist() == [[1, 2, 3, 4, 0, 0], [5, 6, 0, 0, 0, 0]]
    assert batch.sample_BT.tolist() == [[0, 0, 0, 1, 1, 1], [0] * 6]
    assert batch.is_answer_BT.astype(int).tolist() == [
        [0, 1, 1, 1, 1, 1],
        [0, 1, 1, 1, 1, 1],
    ]
    batch = align_answers(
        [([1, 2], [3]), ([], [4, 5])], prompt_columns=3, answer_columns=2, pad_id=0
    )
    assert batch.tokens_BT.tolist() == [[0, 1, 2, 3, 0], [0, 0, 0, 4, 5]]
    assert batch.sample_BT.tolist() == [[-1, 0, 0, 0, -1], [-1, -1, -1, 0, 0]]
    assert batch.is_answer_BT.astype(int).tolist() == [
        [0, 0, 0, 1, 0],
        [0, 0, 0, 1, 1],
    ]


@pytest.mark.parametrize(
    "rows, settings, message",
    [
        ([], {}, "0 rows"),
        ([[]], {}, "row 0 has no sample"),
        ([[([1], [2]), ([1], [])]], {}, "sample 1 of row 0 has an answer of 0 tokens"),
        ([[([1, 2, 3], [4, 5])]], {}, "row 0 has 5 tokens up to sample 0"),
        ([[([1], [2])]], {"block_length": 3}, "length=4 must be a multiple .* use 6"),
    ],
)
def test_samples_that_cannot_be_packed_are_refused(rows, settings, message):
    with pytest.raises(ValueError, match=message) as error:
        pack_samples(rows, length=4, pad_id=0, **settings)
    assert "\n" not in str(error.value)


def test_samples_that_cannot_be_aligned_are_refused():
    size = {"prompt_columns": 1, "answer_columns": 2, "pad_id": 0}
    with pytest.raises(ValueError, match="sample 0 has 2 and 1 tokens"):
        align_answers([([1, 2], [3])], **size)
    with pytest.raises(ValueError, match="answer of 0 tokens"):
        align_answers([([1], [])], **size)
    with pytest.raises(ValueError, match="answer_columns=2 must be a multiple"):
        align_answers([([1], [2])], block_length=4, **size)
