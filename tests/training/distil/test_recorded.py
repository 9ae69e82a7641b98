"""A model's own answers: laid out with their steps, and states in that order."""

import dataclasses

import jax
import numpy as np
import pytest
from helpers import fake_model
from helpers.fake_model import prompts_of, weights

from jaxdave import policies
from jaxdave.engine.generation import generate
from jaxdave.engine.trajectory import Trajectory
from jaxdave.training.distil.aligned_batch import align_blocks
from jaxdave.training.distil.own_answers import align_recorded, own_answers
from jaxdave.training.distil.states import StateSampling, draw_states

MASK = 99


def trajectory(positions, tokens, steps) -> Trajectory:
    calls, log_probs = (0,) * len(steps), (0.0,) * len(steps)
    return Trajectory(tuple(positions), tuple(tokens), tuple(steps), calls, log_probs)


# Blocks of 4 from the first token: the answer begins at place 1 of the second block;
# its last block was left with two masks in it.
ANSWER = (
    [1, 2, 3, 4, 5],
    trajectory([1, 0, 2, 3, 6], [21, 20, 22, 30, 33], [0, 1, 2, 3, 4]),
)
LAID_OUT = {"prompt_columns": 8, "answer_columns": 12, "block_length": 4, "pad_id": 0}


def test_a_causal_answer_lies_in_the_blocks_of_its_decoder():
    batch = align_recorded([ANSWER], **LAID_OUT, is_causal=True)
    row = [0] * 4 + [1, 2, 3, 4] + [5, 20, 21, 22, 30, 0, 0, 33] + [0] * 4
    assert batch.tokens_BT[0].tolist() == row
    assert np.flatnonzero(batch.is_answer_BT[0]).tolist() == [9, 10, 11, 12, 15]
    assert batch.step_BT[0, [10, 9, 11, 12, 15]].tolist() == [0, 1, 2, 3, 4]
    assert batch.sample_BT[0].tolist() == [-1] * 4 + [0] * 12 + [-1] * 4


def test_a_full_answer_lies_on_its_canvas():
    batch = align_recorded([ANSWER], **LAID_OUT, is_causal=False)
    row = [0] * 3 + [1, 2, 3, 4, 5] + [20, 21, 22, 30, 0, 0, 33] + [0] * 5
    assert batch.tokens_BT[0].tolist() == row
    assert np.flatnonzero(batch.is_answer_BT[0]).tolist() == [8, 9, 10, 11, 14]
    assert batch.sample_BT[0].tolist() == [-1] * 3 + [0] * 17


@pytest.mark.parametrize("is_causal", [True, False])
def test_masked_are_the_last_tokens_that_were_committed(is_causal):
    """In the recorded order every state of an active block is one of the decoder's."""
    batch = align_recorded([ANSWER], **LAID_OUT, is_causal=is_causal)
    sampling = StateSampling(
        answer_start=8,
        block_length=4,
        is_causal=is_causal,
        copies=300,
        low=0.0,
        high=1.0,
        order="recorded",
    )
    states = draw_states(jax.random.key(0), sampling, batch, mask_id=MASK)
    states = jax.tree.map(np.asarray, states)
    answer, steps = batch.is_answer_BT[0, 8:], batch.step_BT[0, 8:]
    seen = set()
    for copy in range(sampling.copies):
        masked = states.is_masked_BNA[0, copy]
        noisy = states.noisy_BNA[0, copy]
        active = states.first_block_BNA[0, copy]
        for block in range(3):
            here = np.arange(block * 4, block * 4 + 4)
            if not answer[here].any() or active[here[0]] != block:
                continue
            order = here[answer[here]][np.argsort(steps[here][answer[here]])]
            flags = masked[order].tolist()
            assert flags == sorted(flags), "what came first is shown"
            seen.add((block, sum(flags)))
        # What the decoder left masked is masked in all states.
        left = [i for i in range(12) if not answer[i]]
        behind = [i for i in left if i > 1 and batch.sample_BT[0, 8 + i] == 0]
        assert (noisy[behind] == MASK).all()
        shown = answer & ~masked
        np.testing.assert_array_equal(noisy[shown], batch.tokens_BT[0, 8:][shown])
        if is_causal:
            assert noisy[0] == 5, "the end of the prompt is no part of the answer"
    counts = [int(answer[b * 4 : b * 4 + 4].sum()) for b in range(2)]
    assert seen == {(b, k) for b in range(2) for k in range(counts[b] + 1)}


def test_own_answers_are_what_the_decoder_writes():
    decoder = fake_model.build(policies.static(1), 3, 4, 20, record_steps=True)
    net, prompts = weights(1, stop=1.0), prompts_of([5, 9, 6], 1)
    found = own_answers(decoder, net, prompts, prompts_at_once=2)
    plain = fake_model.build(policies.static(1), 1, 4, 20)
    rows = generate(plain, net, prompts).completions
    assert len(found) == 3
    for one, prompt, row in zip(found, prompts, rows, strict=True):
        assert (one is None) == (row.finish_reason != "stop")
        if one is not None:
            assert one[0] == list(prompt)
            by_place = dict(zip(one[1].positions, one[1].token_ids, strict=True))
            text = [by_place[i] for i in range(len(row.token_ids))]
            assert text == list(row.token_ids)
    assert any(one is not None for one in found)
    with pytest.raises(ValueError, match="record_steps=True"):
        own_answers(plain, net, prompts)
    with pytest.raises(ValueError, match="prompts_at_once=0"):
        own_answers(decoder, net, prompts, prompts_at_once=0)


@pytest.mark.parametrize(
    ("answers", "changes", "message"),
    [
        ([], {}, "a batch of 0 answers"),
        ([([1], trajectory([], [], []))], {}, "answer 0 has 0 tokens"),
        ([ANSWER], {"prompt_columns": 3}, "more than prompt_columns=3"),
        ([ANSWER], {"answer_columns": 4}, "answer_columns=4; raise them"),
        ([ANSWER], {"answer_columns": 10}, "use 12"),
    ],
)
def test_answers_that_do_not_fit_are_refused(answers, changes, message):
    with pytest.raises(ValueError, match=message) as error:
        align_recorded(answers, **(LAID_OUT | changes), is_causal=True)
    assert "\n" not in str(error.value)


def test_the_recorded_order_needs_steps_and_whole_blocks():
    sampling = StateSampling(
        answer_start=4, block_length=4, is_causal=True, order="recorded"
    )
    text = align_blocks(
        [([1], [2])], prompt_columns=4, answer_columns=4, block_length=4, pad_id=0
    )
    with pytest.raises(ValueError, match="give a RecordedBatch"):
        draw_states(jax.random.key(0), sampling, text, mask_id=MASK)
    batch = align_recorded([ANSWER], **LAID_OUT, is_causal=True)
    odd = dataclasses.replace(sampling, answer_start=7)
    with pytest.raises(ValueError, match="13 columns of answers are no whole blocks"):
        draw_states(jax.random.key(0), odd, batch, mask_id=MASK)
    with pytest.raises(ValueError, match="order='sorted' must be"):
        dataclasses.replace(sampling, order="sorted")
