"""Rewards of answers: is it right, and how many tokens did a call confirm.

Rewards are host numbers, checked before they meet anything that is compiled: one that
is no number would spoil every parameter.

Axes: R kinds of reward, P prompts, G answers of a group.
"""

from collections.abc import Sequence

import numpy as np

from jaxdave.engine.results import Completion, TextCompletion
from jaxdave.grading.types import Verdict


def accuracy_reward(verdict: Verdict) -> float:
    """Return 1 for a right answer and 0 for a wrong one.

    Args:
        verdict: The grade of a text, of any grader (`jaxdave.grading`).

    Returns:
        The reward.

    Example:
        >>> accuracy_reward(Verdict(correct=True, extracted="7"))
        1.0
    """
    return float(verdict.correct)


def speed_reward(answer: Completion | TextCompletion) -> float:
    """Return the confirmed tokens of an answer for each call of the model.

    Under lossless drafts it rewards answers that are easy to draft, and costs no
    accuracy by itself: the same text takes fewer calls.

    Args:
        answer: A decoded answer.

    Returns:
        Tokens up to the end of the answer a call, at least 0.

    Source: LightningRL, arXiv 2603.13319 (tokens per forward, response length divided
    by forward passes).
    """
    return answer.tokens_per_call


def checked_rewards(rewards: Sequence[Sequence[float]]) -> np.ndarray:
    """Check the rewards of groups, and return them as one array.

    Args:
        rewards: For each prompt the rewards of its answers, as many for all.

    Returns:
        float32 [P, G].

    Raises:
        ValueError: Groups differ in size, a group has fewer than two answers, or a
            reward is not a finite number.

    Example:
        >>> checked_rewards([[1, 0], [0.5, 1]]).tolist()
        [[1.0, 0.0], [0.5, 1.0]]
    """
    sizes = [len(group) for group in rewards]
    for prompt, size in enumerate(sizes):
        if size < 2 or size != sizes[0]:
            raise ValueError(
                f"prompt {prompt} has {size} rewards and prompt 0 has {sizes[0]}; "
                "answers are compared within groups of one size, at least 2: give "
                "every prompt as many answers"
            )
    if not sizes:
        raise ValueError("there are no rewards; give at least one prompt's")
    rewards_PG = np.asarray(rewards, np.float32)
    broken = np.argwhere(~np.isfinite(rewards_PG))
    if len(broken):
        prompt, answer = broken[0].tolist()
        raise ValueError(
            f"the reward of answer {answer} to prompt {prompt} is "
            f"{rewards_PG[prompt, answer]}; rewards are finite numbers, so mend the "
            "grader or leave this prompt out"
        )
    return rewards_PG


def has_spread(values_PG: np.ndarray, threshold: float) -> np.ndarray:
    """Find the groups whose largest and smallest value differ enough to learn from.

    Args:
        values_PG: Of every answer, for example its speed, float [P, G].
        threshold: The least difference that counts, at least 0.

    Returns:
        bool [P]; False for a group in which nothing differs, whatever the threshold.

    Example:
        >>> has_spread(np.array([[1.0, 1.0], [1.0, 3.0]]), 0.5).tolist()
        [False, True]

    Source: LightningRL, arXiv 2603.13319, dynamic sampling with TPF-aware filtering;
    its code leaves out prompts with a difference below 0.01 tokens per forward.
    """
    spread_P = values_PG.max(axis=1) - values_PG.min(axis=1)
    return (spread_P > 0) & (spread_P >= threshold)
