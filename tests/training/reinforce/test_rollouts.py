"""Rollouts with drafts and without, in groups and alone: the same, in fewer calls."""

import dataclasses

import numpy as np
import pytest

import jaxdave
from jaxdave.demo_tasks import grade, problem_sets
from jaxdave.training.reinforce.rollouts import Rollout, sample_rollouts

pytestmark = pytest.mark.usefixtures("quick_compiles")
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


@pytest.mark.parametrize("numerics", ["guarded", "exact"])
def test_drafts_and_groups_change_nothing_but_calls(numerics):
    size = 8
    sampler = jaxdave.Sampler(MODEL, dataclasses.replace(CONFIG, numerics=numerics))
    quick = sample_rollouts(sampler, PROMPTS, reward, group_size=size)
    plain = sample_rollouts(sampler.undrafted(), PROMPTS, reward, group_size=size)
    pairs = list(zip(sum(quick, []), sum(plain, []), strict=True))
    assert [facts(a) for a, _ in pairs] == [facts(b) for _, b in pairs]
    alone = sampler(PROMPTS[1], request=3)
    assert facts(Rollout(1, alone, reward(1, alone))) == facts(quick[1][3])
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
