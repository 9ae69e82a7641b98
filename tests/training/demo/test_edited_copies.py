"""Copies of answers with wrong tokens, which a model that edits learns from."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from helpers.checkpoint_folders import TOKENIZER
from tokenizers import Tokenizer

from jaxdave.models import transformer
from jaxdave.training.demo.block_batches import (
    COPIES,
    SHAPES,
    group_shape,
    make_block_batches,
)
from jaxdave.training.demo.block_loss import filled_by_guesses, make_block_loss
from jaxdave.training.demo.recipes import RECIPES
from jaxdave.training.demo.tokenizer import pad_and_mask_ids

TOKENS = Tokenizer.from_file(str(TOKENIZER / "tokenizer.json"))
RECIPE = RECIPES["edit-demo"]
PAD, MASK = pad_and_mask_ids(TOKENS)


def test_windows_are_whole_blocks_and_those_of_blocks_of_four_stay():
    for group, shape in SHAPES.items():
        assert group_shape(group, 4) == shape
        size, window = group_shape(group, 8)
        assert size == shape[0] and window % 8 == 0 and window >= shape[1] + 4


def test_masked_copies_do_not_depend_on_edited_ones():
    """The demo models' recipes draw what they always drew."""
    plain = dataclasses.replace(RECIPES["demo"], batch_size=32)
    batches = make_block_batches(plain, TOKENS, 3)
    for batch in batches.values():
        assert batch.noisy_BCR.shape[1] == COPIES
    again = make_block_batches(plain, TOKENS, 3)
    for name, batch in batches.items():
        np.testing.assert_array_equal(batch.noisy_BCR, again[name].noisy_BCR)


def test_an_edited_copy_predicts_all_of_its_answer_and_nothing_else():
    wrong = masked = right = 0
    for batch in make_block_batches(RECIPE, TOKENS, 5).values():
        clean_BS, start_B = np.asarray(batch.clean_BS), np.asarray(batch.start_B)
        copies, window = batch.noisy_BCR.shape[1:]
        edited = COPIES + RECIPE.edited_copies
        assert copies == edited + RECIPE.guessed_copies
        place_BR = start_B[:, None] + np.arange(window)
        last = clean_BS.shape[1] - 1
        target_BR = np.take_along_axis(clean_BS, np.minimum(place_BR, last), axis=1)
        target_BR = np.where(place_BR > last, PAD, target_BR)
        masked_weight_BR = np.asarray(batch.weight_BCR[:, :COPIES]).sum(axis=1)
        for copy in range(COPIES, edited):
            noisy_BR, weight_BR = batch.noisy_BCR[:, copy], batch.weight_BCR[:, copy]
            is_answer_BR = weight_BR > 0
            # Where a masked copy may be masked an edited one is always predicted.
            assert (is_answer_BR | (masked_weight_BR == 0)).all()
            changed_BR = noisy_BR != target_BR
            assert not (changed_BR & ~is_answer_BR).any()
            is_masked_BR = noisy_BR == MASK
            wrong += int((changed_BR & ~is_masked_BR).sum())
            masked += int(is_masked_BR.sum())
            right += int((is_answer_BR & ~changed_BR).sum())
            # Each block is a group of its own, behind clean text.
            first_BR = batch.first_block_BCR[:, copy]
            np.testing.assert_array_equal(
                first_BR, place_BR // RECIPE.config.block_length
            )
    share = wrong / (wrong + masked + right)
    assert 0.05 < share < 0.4 and masked > 100 and right > wrong


def test_a_guessed_copy_predicts_all_of_its_answer():
    for batch in make_block_batches(RECIPE, TOKENS, 5).values():
        weight_BCR = np.asarray(batch.weight_BCR)
        masked_BR = (np.asarray(batch.noisy_BCR) == MASK)[:, -1]
        assert masked_BR.any() and not (masked_BR & (weight_BCR[:, -1] == 0)).any()
        # As in an edited copy, of which it is true that all of the answer is.
        np.testing.assert_array_equal(weight_BCR[:, -1], weight_BCR[:, COPIES])


def test_guesses_fill_masks_of_the_last_copies_if_they_are_sure():
    batch = make_block_batches(RECIPE, TOKENS, 5)["words3"]
    shape = batch.noisy_BCR.shape
    vocab, sure = RECIPE.config.vocab_size, 7
    is_sure_BR = np.arange(shape[0] * shape[2]).reshape(shape[0], -1) % 2 == 0

    def logits(some):
        assert (
            some.noisy_BCR.shape
            == some.first_block_BCR.shape
            == (
                shape[0],
                1,
                shape[2],
            )
        )
        # The mask is the likeliest, and is not to be predicted.
        found = np.zeros((shape[0], shape[2], vocab), np.float32)
        found[..., sure] = np.where(is_sure_BR, 20.0, 0.0)
        found[..., MASK] = 30.0
        return jnp.asarray(found)

    filled = filled_by_guesses(batch, 1, logits, MASK, jax.random.key(0))
    before, after = np.asarray(batch.noisy_BCR), np.asarray(filled.noisy_BCR)
    np.testing.assert_array_equal(before[:, :-1], after[:, :-1])
    expected_BR = np.where((before[:, -1] == MASK) & is_sure_BR, sure, before[:, -1])
    np.testing.assert_array_equal(after[:, -1], expected_BR)


def test_the_loss_of_guessed_copies_needs_no_more_than_a_key():
    """Its gradient is of the filled copies alone, and finite."""
    config = dataclasses.replace(RECIPE.config, num_layers=1)
    loss = make_block_loss(config, 1)
    batch = make_block_batches(RECIPE, TOKENS, 5)["short"]
    params = transformer.init(config, 0)

    def mean(params, key):
        total, weight = loss(params, batch, key)
        return total / weight

    value, grads = jax.value_and_grad(mean)(params, jax.random.key(1))
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
