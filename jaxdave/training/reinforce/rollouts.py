"""Rollouts: several recorded answers to each prompt, with their rewards.

They are decoded with drafts, which change neither tokens nor steps nor rewards: only
how many calls of the network it takes to draw them.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from jaxdave.engine.results import TextCompletion
from jaxdave.engine.sampler import Prompt, Sampler

RewardFn = Callable[[int, TextCompletion], float]
"""(index of the prompt, an answer to it) -> its reward."""


class Rollout(NamedTuple):
    """One answer to a prompt.

    Attributes:
        prompt: Index of the prompt.
        answer: The answer, with its trajectory.
        reward: Its reward.
    """

    prompt: int
    answer: TextCompletion
    reward: float


def sample_rollouts(
    sampler: Sampler,
    prompts: Sequence[Prompt],
    reward_of: RewardFn,
    *,
    group_size: int,
    prompts_per_batch: int = 8,
    first_request: int = 0,
) -> list[list[Rollout]]:
    """Draw a group of answers to each prompt; every prompt is evaluated once.

    Answer k of a group has the noise of request `first_request` + k, whatever it is
    decoded with: it is the answer that this request has alone.

    Args:
        sampler: The model and how it is decoded, with `record_steps`.
        prompts: As `Sampler.batch` takes them.
        reward_of: Grades an answer.
        group_size: Answers of a group.
        prompts_per_batch: Prompts that are decoded together.
        first_request: Request number of the first answer of each group; another one
            for every training step gives other answers to the same prompt.

    Returns:
        For each prompt its group.

    Raises:
        ValueError: The sampler records no steps, or a size is below 1.

    Example:
        Eight answers to each question, right or wrong:

            config = jaxdave.DecodeConfig(
                draft_steps=8, temperature=1.0, record_steps=True
            )
            sampler = jaxdave.Sampler(jaxdave.load("sdar-1m"), config)
            groups = sample_rollouts(sampler, questions, is_right, group_size=8)
    """
    if not sampler.config.record_steps:
        raise ValueError(
            "rollouts need the trajectories of answers; make the sampler with "
            "record_steps=True"
        )
    if group_size < 1 or prompts_per_batch < 1:
        raise ValueError(
            f"group_size={group_size} and prompts_per_batch={prompts_per_batch} must "
            "be at least 1"
        )
    requests = list(range(first_request, first_request + group_size))
    groups: list[list[Rollout]] = []
    for first in range(0, len(prompts), prompts_per_batch):
        chosen = range(first, min(first + prompts_per_batch, len(prompts)))
        answers = sampler.batch(
            [prompts[index] for index in chosen for _ in requests],
            requests=requests * len(chosen),
            group_size=group_size,
        )
        for at, index in enumerate(chosen):
            own = answers[at * group_size : (at + 1) * group_size]
            groups.append([Rollout(index, one, reward_of(index, one)) for one in own])
    return groups
