"""Rollouts: several recorded answers to each prompt, with their rewards.

They are decoded with drafts, which change neither tokens nor steps nor rewards: only
how many calls of the network it takes to draw them.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jaxdave.engine.results import TextCompletion
from jaxdave.engine.sampler import Prompt, Sampler
from jaxdave.numerics.weight_layout import to_device_layout

RewardFn = Callable[[int, TextCompletion], float]
"""(index of the prompt, an answer to it) -> its reward."""


class Rollout(NamedTuple):
    """One answer to a prompt.

    Attributes:
        prompt: Index of the prompt.
        answer: The answer, with its trajectory.
        reward: Its reward.
        prompt_ids: Token ids of the prompt.
    """

    prompt: int
    answer: TextCompletion
    reward: float
    prompt_ids: tuple[int, ...] = ()


def with_params(sampler: Sampler, params: Any) -> Sampler:
    """A sampler of the same model with other weights.

    Programs belong to shapes and settings, so that nothing is compiled again. Under
    guarded numerics, and with several draft lengths, what is a fact of the weights is
    measured again; `numerics="exact"` and one draft length need nothing.

    Args:
        sampler: The sampler.
        params: Parameters of the same shapes, in any layout. They are laid out anew.

    Returns:
        The sampler.

    Raises:
        ValueError: The sampler's model is not one that `jaxdave.load` returns.
    """
    if not dataclasses.is_dataclass(sampler.model):
        raise ValueError(
            f"{type(sampler.model).__name__} is no dataclass, so that its weights "
            "cannot be replaced; take a model that jaxdave.load returns"
        )
    model: Any = sampler.model
    laid_out = to_device_layout(params, model.config)
    return dataclasses.replace(
        sampler, model=dataclasses.replace(model, params=laid_out)
    )


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

    Answer k to prompt p has the noise of request `first_request` + p G + k, G the size
    of a group, whatever it is decoded with: it is the answer that this request has
    alone. No two answers have the same noise: what is learnt from one prompt would
    otherwise depend on the luck of all.

    Args:
        sampler: The model and how it is decoded, with `record_steps`.
        prompts: As `Sampler.batch` takes them.
        reward_of: Grades an answer.
        group_size: Answers of a group.
        prompts_per_batch: Prompts that are decoded together.
        first_request: Request number of the first answer; one beyond the last of a
            training step gives other answers to the same prompts in the next.

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
    ids = [tuple(sampler.encode(prompt)) for prompt in prompts]
    groups: list[list[Rollout]] = []
    for first in range(0, len(prompts), prompts_per_batch):
        chosen = range(first, min(first + prompts_per_batch, len(prompts)))
        begin = first_request + first * group_size
        answers = sampler.batch(
            [prompts[index] for index in chosen for _ in range(group_size)],
            requests=range(begin, begin + len(chosen) * group_size),
            group_size=group_size,
        )
        for at, index in enumerate(chosen):
            own = answers[at * group_size : (at + 1) * group_size]
            groups.append(
                [Rollout(index, one, reward_of(index, one), ids[index]) for one in own]
            )
    return groups
