"""Copies of answers with wrong tokens, which a model that edits learns from."""

import dataclasses

import numpy as np
from helpers.checkpoint_folders import TOKENIZER
from tokenizers import Tokenizer

from jaxdave.training.demo.block_batches import (
    COPIES,
    SHAPES,
    group_shape,
    make_block_batches,
)
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
        assert copies == COPIES + RECIPE.edited_copies
        place_BR = start_B[:, None] + np.arange(window)
        last = clean_BS.shape[1] - 1
        target_BR = np.take_along_axis(clean_BS, np.minimum(place_BR, last), axis=1)
        target_BR = np.where(place_BR > last, PAD, target_BR)
        masked_weight_BR = np.asarray(batch.weight_BCR[:, :COPIES]).sum(axis=1)
        for copy in range(COPIES, copies):
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
            np.testing.assert_array_equal(first_BR, place_BR // 8)
    share = wrong / (wrong + masked + right)
    assert 0.05 < share < 0.4 and masked > 100 and right > wrong
