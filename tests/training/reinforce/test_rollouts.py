"""Rollouts with drafts and without, in groups and alone: the same, in fewer calls."""

import dataclasses

import jax
import numpy as np
import pytest

import jaxdave
from jaxdave.demo_tasks import grade, problem_sets
from jaxdave.numerics.weight_layout import to_stacked
from jaxdave.training.reinforce.rollouts import (
    Rollout,
    sample_rollouts,
    with_params,
)

MODEL = jaxdave.load("sdar-1m")
PROBLEMS = problem_sets.load("words_test")[:2]
PROMPTS = [problem.prompt for problem in PROBLEMS]
CONFIG = jaxdave.DecodeConfig(
    draft_steps=8, max_new_tokens=48, temperature=1.0, seed=4, record_steps=True
)


def reward(index: int, answer) -> float:
    return float(grade.is_correct(PROBLEMS[index], answer.text))


def facts(rollout: Rollout):
    """What drafts, neighbours and groups may not change."""
    trace = rollout.answer.trajectory
    assert trace is not None
    return trace.positions, trace.token_ids, trace.steps, rollout.reward


@pytest.mark.parametrize(
    ("numerics", "size"),
    [
        pytest.param("guarded", 8, marks=pytest.mark.slow),
        ("exact", 8),
        pytest.param("guarded", 64, marks=pytest.mark.slow),
        pytest.param("exact", 64, marks=pytest.mark.slow),
    ],
)
def test_drafts_and_groups_change_nothing_but_calls(numerics, size):
    sampler = jaxdave.Sampler(MODEL, dataclasses.replace(CONFIG, numerics=numerics))
    quick = sample_rollouts(sampler, PROMPTS, reward, group_size=size)
    plain = sample_rollouts(sampler.undrafted(), PROMPTS, reward, group_size=size)
    pairs = list(zip(sum(quick, []), sum(plain, []), strict=True))
    assert [facts(a) for a, _ in pairs] == [facts(b) for _, b in pairs]
    alone = sampler(PROMPTS[1], request=size + 3)
    assert facts(Rollout(1, alone, reward(1, alone))) == facts(quick[1][3])
    assert quick[1][3].prompt_ids == tuple(sampler.encode(PROMPTS[1]))
    for a, b in pairs:
        first, second = a.answer.trajectory, b.answer.trajectory
        assert first is not None and second is not None
        if numerics == "exact":
            assert first.log_probs == second.log_probs
        np.testing.assert_allclose(
            first.log_probs, second.log_probs, rtol=1e-3, atol=1e-5
        )
    calls = [sum(pair[i].answer.nfe.total for pair in pairs) for i in range(2)]
    assert calls[1] > 2.5 * calls[0]
    # What measures rounding has prompts in groups, too: few decisions are doubted.
    assert sum(a.answer.nfe.recheck for a, _ in pairs) <= 0.05 * calls[0]


def test_other_requests_are_other_answers():
    config = dataclasses.replace(CONFIG, temperature=3.0)
    sampler = jaxdave.Sampler(MODEL, config)
    groups = [
        sample_rollouts(
            sampler, PROMPTS[:1], reward, group_size=4, first_request=first
        )[0]
        for first in (0, 2, 100)
    ]
    texts = [[rollout.answer.text for rollout in group] for group in groups]
    assert texts[0][2:] == texts[1][:2]
    assert len(set(texts[0] + texts[2])) > 1


def test_prompts_of_a_batch_have_noise_of_their_own():
    """The same prompt twice, together or apart: other answers, and always the same."""
    sampler = jaxdave.Sampler(MODEL, dataclasses.replace(CONFIG, temperature=3.0))
    twice = [PROMPTS[0], PROMPTS[0]]
    groups = sample_rollouts(sampler, twice, reward, group_size=4)
    apart = sample_rollouts(sampler, twice, reward, group_size=4, prompts_per_batch=1)
    texts = [[rollout.answer.text for rollout in group] for group in groups]
    assert texts[0] != texts[1]
    assert texts == [[rollout.answer.text for rollout in group] for group in apart]


def test_other_weights_compile_nothing():
    sampler = jaxdave.Sampler(MODEL, dataclasses.replace(CONFIG, numerics="exact"))
    params = jax.tree.map(np.asarray, to_stacked(MODEL.params))
    before = sampler.batch(PROMPTS)
    same = with_params(sampler, params).batch(PROMPTS)
    other = with_params(sampler, params | {"head": -params["head"]}).batch(PROMPTS)
    assert [one.token_ids for one in same] == [one.token_ids for one in before]
    assert [one.token_ids for one in other] != [one.token_ids for one in before]
    assert same[0].compile_seconds == 0 and other[0].compile_seconds == 0


@pytest.mark.parametrize(
    ("changes", "size", "message"),
    [
        ({"record_steps": False}, 2, "record_steps=True"),
        ({}, 0, "group_size=0 and prompts_per_batch=8 must be at least 1"),
    ],
)
def test_bad_settings(changes, size, message):
    sampler = jaxdave.Sampler(MODEL, dataclasses.replace(CONFIG, **changes))
    with pytest.raises(ValueError, match=message):
        sample_rollouts(sampler, PROMPTS, reward, group_size=size)
