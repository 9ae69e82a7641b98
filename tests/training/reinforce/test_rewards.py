"""Rewards: what they are read from, and what is refused in one line."""

import numpy as np
import pytest

from jaxdave.engine.results import Completion, Nfe
from jaxdave.grading.types import Verdict
from jaxdave.training.reinforce import rewards


def test_rewards_of_a_verdict_and_of_an_answer():
    assert rewards.accuracy_reward(Verdict(False, "7", "not equal")) == 0.0
    answer = Completion(
        token_ids=(1,) * 12,
        finish_reason="stop",
        valid_tokens=12,
        nfe=Nfe(prefill=1, verify=3),
        reference_nfe=13,
        accepted=(),
        committed_at=(),
        steps=12,
    )
    assert rewards.speed_reward(answer) == 3.0


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), None])
def test_what_is_no_number_is_refused(broken):
    with pytest.raises(ValueError, match="answer 2 to prompt 1 is (nan|inf)") as error:
        rewards.checked_rewards([[0, 1, 0], [1, 1, broken]])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([[1.0, 0.0], [1.0]], "prompt 1 has 1 rewards and prompt 0 has 2"),
        ([[1.0]], "prompt 0 has 1 rewards"),
        ([], "there are no rewards"),
    ],
)
def test_groups_that_are_none(groups, message):
    with pytest.raises(ValueError, match=message):
        rewards.checked_rewards(groups)


def test_groups_without_a_spread():
    values = np.array([[1.0, 1.0], [1.0, 1.005], [1.0, 1.5]])
    assert rewards.has_spread(values, 0.01).tolist() == [False, False, True]
    assert rewards.has_spread(values, 0.0).tolist() == [False, True, True]
