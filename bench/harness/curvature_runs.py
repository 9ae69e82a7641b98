"""A GRPO run of the demo model whose curvature is measured: `curvature_in_training`.

Axes: S measured steps, P prompts, K answers of a group, D parameters.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

import jaxdave
from bench.harness import tuning_problems
from jaxdave.core.config import ModelConfig
from jaxdave.demo_tasks import words
from jaxdave.demo_tasks.grade import is_correct
from jaxdave.demo_tasks.problem import Problem
from jaxdave.io.checkpoint import Model
from jaxdave.training.optimisers import with_own_rules
from jaxdave.training.reinforce import answer_curvature
from jaxdave.training.reinforce.answer_batch import (
    AnswerBatch,
    pack_canvases,
    take_rows,
)
from jaxdave.training.reinforce.estimates import EstimateConfig, make_estimate
from jaxdave.training.reinforce.learner import Learner, reward_table
from jaxdave.training.reinforce.learner_config import ReinforceConfig
from jaxdave.training.reinforce.policy_loss import PolicyLossConfig
from jaxdave.training.reinforce.rollouts import Rollout
from jaxdave.training.reinforce.step_maps import canvas_of_text
from jaxdave.training.update import init_state

OPS, ROOM = 5, 56
"""Operations of a problem, one more than the packaged model has learnt; its room."""
WARM_UP_ROWS, WARM_UP_POOL, WARM_UP_RATE = 8, 512, 3e-4
WARM_UP_TO, WARM_UP_CHECKED, WARM_UP_MOST = 0.3, 16, 40
"""It ends at this mean likelihood of so many answers, or after so many steps."""
RATE = 1e-4
PRODUCTS = 3
"""Of the Hessian and a vector, for the largest eigenvalue."""
ESTIMATE = EstimateConfig(method="chain")
DECODE = jaxdave.DecodeConfig(
    policy="left_to_right",
    draft_steps=4,
    max_new_tokens=ROOM,
    temperature=1.0,
    record_steps=True,
    numerics="exact",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
    """How much is measured.

    Attributes:
        prompts: Problems, all of them trained on in every step.
        group_size: Answers to each in a step, K.
        steps: Steps of GRPO.
        measure_every: Steps from one measurement to the next; the first is before the
            first step, and the last after the last where it divides `steps`.
    """

    prompts: int = 24
    group_size: int = 8
    steps: int = 8
    measure_every: int = 2


class Exact(NamedTuple):
    """What is known of a prompt without a draw.

    Attributes:
        p: Likelihood of the reference answer.
        norm: Spectral norm of its Hessian.
        residual: Of the eigenvalue, over the norm.
        direction: The eigenvector, of the structure of the parameters.
        gradient_D: The gradient.
    """

    p: jax.Array
    norm: jax.Array
    residual: jax.Array
    direction: Any
    gradient_D: jax.Array


class OnceDrawn(Learner):
    """A learner that draws the answers of a step once, however often they are asked."""

    def rollouts(self, params: Any, index: int) -> list[list[Rollout]]:
        """As the learner's; the parameters of an index must be the same each time.

        Args:
            params: Stacked parameters.
            index: Index of the step.

        Returns:
            A group for each prompt.
        """
        if self._drawn is None or self._drawn[0] != index:
            self._drawn = index, super().rollouts(params, index)
        return self._drawn[1]

    _drawn: tuple[int, list[list[Rollout]]] | None = None


def problems_of(seed: int, count: int) -> list[Problem]:
    """The problems of a run.

    Args:
        seed: Of the run.
        count: How many.

    Returns:
        Different problems of the train side.
    """
    rng = np.random.default_rng((seed, OPS, 8))
    found: dict[str, Problem] = {}
    while len(found) < count:
        problem = words.sample_from_split(rng, "train", (OPS,), None)
        found.setdefault(problem.key, problem)
    return list(found.values())


def warmed_up(seed: int) -> Any:
    """Train the packaged model on other problems of the kind until some are likely.

    Args:
        seed: Of the run.

    Returns:
        Its parameters, stacked.
    """
    rng = np.random.default_rng((seed, OPS, 9))
    count = WARM_UP_POOL + WARM_UP_CHECKED
    problems = [
        words.sample_from_split(rng, "train", (OPS,), None) for _ in range(count)
    ]
    model = tuning_problems.demo_model()
    trained, checked = problems[:WARM_UP_POOL], problems[WARM_UP_POOL:]
    batch = tuning_problems.pack(model.codec, trained, tuning_problems.NEW_LENGTH)
    batch = jax.tree.map(jnp.asarray, batch)
    answers = reference_answers(model, checked)
    loss, optimiser = (
        tuning_problems.loss_fn(),
        with_own_rules(optax.adam(WARM_UP_RATE)),
    )
    estimate = make_estimate(model.config, ESTIMATE, DECODE.sampling().temperature)

    @jax.jit
    def step(params, opt, key):
        rows, masks = tuning_problems.draw(batch, key, WARM_UP_ROWS)
        updates, opt = optimiser.update(jax.grad(loss)(params, rows, masks), opt)
        params = optax.apply_updates(params, updates)
        log_probs_BR = estimate(params, answers, model.config.block_length)
        return params, opt, jnp.mean(jnp.exp(jnp.sum(log_probs_BR, axis=1)))

    params = tuning_problems.start_params()
    opt = optimiser.init(params)
    for key in jax.random.split(jax.random.key(seed), WARM_UP_MOST):
        params, opt, likelihood = step(params, opt, key)
        if likelihood >= WARM_UP_TO:
            break
    return params


def reference_answers(model: Model, problems: Sequence[Problem]) -> AnswerBatch:
    """Lay the reference answers out for the chain.

    Args:
        model: The model.
        problems: The problems.

    Returns:
        The batch.
    """
    codec, config = model.codec, model.config
    canvases = [
        canvas_of_text(
            codec.encode_prompt(problem.prompt),
            codec.encode_answer(problem.answer),
            ROOM,
            config.mask_id,
        )
        for problem in problems
    ]
    keys = np.zeros((len(canvases), 2), np.uint32)
    return pack_canvases(canvases, keys, config, from_left=True, whole_trajectory=False)


@functools.cache
def exact_fn(config: ModelConfig) -> Callable[[Any, AnswerBatch], Exact]:
    """Make the curvature of one reference answer's likelihood.

    Args:
        config: The model's shape.

    Returns:
        A compiled function of parameters and of a batch of one answer.
    """
    estimate = make_estimate(config, ESTIMATE, DECODE.sampling().temperature)

    def exact(params: Any, answer: AnswerBatch) -> Exact:
        likelihood = answer_curvature.answer_likelihood(
            lambda params: estimate(params, answer, config.block_length)
        )
        p, grads = jax.value_and_grad(likelihood)(params)
        top = answer_curvature.largest_curvature(likelihood, params, grads, PRODUCTS)
        norm = jnp.abs(top.value)
        residual = top.residual / jnp.where(norm > 0, norm, 1.0)
        return Exact(p, norm, residual, top.direction, ravel_pytree(grads)[0])

    return jax.jit(exact)


@functools.cache
def sampled_fn(config: ModelConfig) -> Callable[..., jax.Array]:
    """Make the curvature of sampled rewards along a direction.

    Args:
        config: The model's shape.

    Returns:
        A compiled function of parameters, answers, their weights and the direction.
    """
    estimate = make_estimate(config, ESTIMATE, DECODE.sampling().temperature)

    def sampled(
        params: Any, answers: AnswerBatch, weights_K: jax.Array, direction: Any
    ) -> jax.Array:
        objective = answer_curvature.sampled_reward(
            lambda params: jnp.sum(
                estimate(params, answers, config.block_length), axis=1
            ),
            params,
            weights_K,
        )
        return answer_curvature.curvature_along(objective, params, direction)

    return jax.jit(sampled)


def sampled_curvatures(
    learner: Learner,
    params: Any,
    groups: Sequence[Sequence[Rollout]],
    directions: Sequence[Any],
) -> list[float]:
    """Estimate every prompt's curvature from a group of its answers.

    Args:
        learner: It lays answers out.
        params: The parameters that they were drawn at.
        groups: A group of each prompt.
        directions: A direction of each.

    Returns:
        The absolute values; 0 for a group of equal rewards.
    """
    weights_PK = answer_curvature.leave_one_out(jnp.asarray(reward_table(groups)))
    answers = learner.pack(sum(map(list, groups), []), jax.random.key(0))
    size, found = len(groups[0]), []
    sampled = sampled_fn(learner.sampler.model.config)
    for at, direction in enumerate(directions):
        if not np.any(weights_PK[at]):
            found.append(0.0)
            continue
        own = take_rows(answers, range(at * size, (at + 1) * size), size)
        found.append(abs(float(sampled(params, own, weights_PK[at], direction))))
    return found


def measure(
    learner: Learner,
    params: Any,
    references: AnswerBatch,
    groups: Sequence[Sequence[Rollout]],
    others: Sequence[Sequence[Rollout]],
    problems: Sequence[Problem],
) -> dict[str, Any]:
    """Measure all prompts at some parameters.

    Args:
        learner: The run's.
        params: The parameters.
        references: Reference answers.
        groups: A group of answers to each, drawn at the parameters.
        others: Another, independent one.
        problems: The problems.

    Returns:
        Lists over prompts by name, and the absolute cosines of pairs.
    """
    exact_of = exact_fn(learner.sampler.model.config)
    found = [
        exact_of(params, take_rows(references, [at], 1)) for at in range(len(problems))
    ]
    directions = [one.direction for one in found]
    p_P = np.array([float(one.p) for one in found])
    gradients_PD = jnp.stack([one.gradient_D for one in found])
    texts = [
        (one.answer.text, problems[one.prompt].answer)
        for group in groups
        for one in group
        if one.reward
    ]
    variances = [
        np.asarray(answer_curvature.sampled_variance(jnp.asarray(reward_table(some))))
        for some in (groups, others)
    ]
    return {
        "p": _numbers(p_P),
        "variance": _numbers(p_P * (1 - p_P)),
        "norm": _numbers([one.norm for one in found]),
        "residual": _numbers([one.residual for one in found]),
        "rewards": _numbers(reward_table(groups).mean(axis=1)),
        "own variance": _numbers(variances[0]),
        "other variance": _numbers(variances[1]),
        "sampled": _numbers(sampled_curvatures(learner, params, groups, directions)),
        "right": len(texts),
        "right as the reference": sum(text == want for text, want in texts),
        "cosines": _numbers(answer_curvature.absolute_cosines(gradients_PD)),
    }


def run(seed: int, size: Size) -> dict[str, Any]:
    """Warm up, take steps of GRPO, and measure between them.

    Args:
        seed: Of the run: its problems, the warm-up, the noise of answers.
        size: How much is measured.

    Returns:
        A record of JSON values.
    """
    model = tuning_problems.demo_model()
    problems = problems_of(seed, size.prompts)
    prompts = [problem.prompt for problem in problems]

    def reward_of(at: int, answer) -> float:
        return float(is_correct(problems[at], answer.text))

    config = ReinforceConfig(
        advantages="std",
        group_size=size.group_size,
        estimate=ESTIMATE,
        loss=PolicyLossConfig(kl_weight=0.0, reduction="sum"),
        rows_per_call=16,
    )
    sampler = jaxdave.Sampler(model, dataclasses.replace(DECODE, seed=seed))
    optimiser = with_own_rules(optax.adam(RATE))
    learner = OnceDrawn(sampler, lambda _: (prompts, reward_of), optimiser, config)
    state = init_state(warmed_up(seed), optimiser, seed, ema=False)
    references = reference_answers(model, problems)
    records = []
    for done in range(size.steps + 1):
        if done % size.measure_every == 0:
            # Noise goes by the index: the second group is that of the step itself.
            others, groups = (
                learner.rollouts(state.params, index)
                for index in (done + size.steps + 1, done)
            )
            record = measure(
                learner, state.params, references, groups, others, problems
            )
            records.append({"step": done, **record})
        if done < size.steps:
            state, _ = learner(state)
    return {"seed": seed, "measured": records}


def _numbers(values: Any) -> list[float]:
    return [float(f"{float(value):.6g}") for value in values]
