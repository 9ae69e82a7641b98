"""Reinforcement learning: answer prompts, grade the answers, update, and again.

    rollouts -> rewards -> advantages -> log-probabilities -> clipped updates
    (decoder)   (grader)   (of groups)   (`estimates`)       (optax)

Answers are drawn by the decoder that evaluates the model, with drafts: under `exact`
and `guarded` numerics they are those of plain decoding, and what it records of them are
the old log-probabilities of the first update. A step is a function of the state alone:
prompts go by its index, noise by its index and the state's key.

Axes: P prompts, G answers of a group, B answers of a call, X as in `estimates`.
"""

import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdave.engine.results import TextCompletion
from jaxdave.engine.sampler import Prompt, Sampler
from jaxdave.runtime.messages import one_line
from jaxdave.training.reinforce.advantages import (
    decoupled_advantages,
    group_advantages,
)
from jaxdave.training.reinforce.answer_batch import (
    AnswerBatch,
    num_steps,
    pack_canvases,
    take_rows,
)
from jaxdave.training.reinforce.estimates import estimate_loss, make_estimate
from jaxdave.training.reinforce.learner_config import (
    ReinforceConfig,
    check_sampler,
)
from jaxdave.training.reinforce.rewards import checked_rewards, speed_reward
from jaxdave.training.reinforce.rollouts import (
    RewardFn,
    Rollout,
    sample_rollouts,
    with_params,
)
from jaxdave.training.reinforce.step_maps import canvas_of
from jaxdave.training.update import TrainState

TaskFn = Callable[[int], tuple[Sequence[Prompt], RewardFn]]
"""Index of a step -> its prompts, and what grades an answer to one of them."""


class _Update(NamedTuple):
    """What is added up over the answers of an update."""

    grads: Any
    parts: jax.Array
    """Loss, divergence and share that the clip holds, float32 [3]."""


class Learner:
    """The steps of a run, as `trainer.fit` takes them.

    Args:
        sampler: The model and how it is sampled: at a temperature, with `record_steps`.
            Its parameters are not looked at again.
        task: The prompts of every step, and their grader.
        optimiser: How parameters follow gradients; float32.
        config: What a step does.
        reference: Parameters that the policy is kept near, where `kl_weight` is above
            0: those at the start, as a rule.

    Raises:
        ValueError: The sampler's answers are not drawn from the distribution that is
            trained, or a divergence has no reference.

    Example:
        Word problems, rewarded 1 for a right answer:

            model = jaxdave.load("sdar-1m")
            config = jaxdave.DecodeConfig(
                draft_steps=4, temperature=1.0, record_steps=True, numerics="exact"
            )
            optimiser = make_optimiser(OptimiserConfig(learning_rate=1e-4), steps=100)
            sampler = jaxdave.Sampler(model, config)
            learner = Learner(sampler, task, optimiser)
            state = init_state(to_stacked(model.params), optimiser, seed=0, ema=False)
            state = fit(learner, state, Path("run"), LoopConfig(steps=100))
    """

    def __init__(
        self,
        sampler: Sampler,
        task: TaskFn,
        optimiser: optax.GradientTransformation,
        config: ReinforceConfig | None = None,
        *,
        reference: Any = None,
    ) -> None:
        self.config = ReinforceConfig() if config is None else config
        check_sampler(sampler, self.config)
        if self.config.loss.kl_weight > 0 and reference is None:
            raise ValueError(
                f"kl_weight={self.config.loss.kl_weight} needs a reference; give "
                "reference=params, or kl_weight=0"
            )
        self.sampler, self.task = sampler, task
        self.reference = reference if self.config.loss.kl_weight > 0 else None
        model, settings = sampler.model.config, self.config
        estimate = make_estimate(
            model, settings.estimate, sampler.config.sampling().temperature
        )
        self._estimate = jax.jit(estimate, static_argnums=2)
        self._add = jax.jit(
            functools.partial(_add_gradient, estimate, settings), static_argnums=2
        )
        self._apply = jax.jit(functools.partial(_apply, optimiser))

    def __call__(self, state: TrainState) -> tuple[TrainState, Mapping[str, Any]]:
        """Take one step.

        Args:
            state: The state before (`update.init_state`), stacked parameters. It is
                not donated.

        Returns:
            The state after it, and what is reported.

        Raises:
            ValueError: A reward is no finite number, or its function has failed.
        """
        begin = time.perf_counter()
        index = int(state.step)
        groups = self.rollouts(state.params, index)
        rewards_PG = reward_table(groups)
        middle = time.perf_counter()
        advantages_B = self.advantages(groups).reshape(-1)
        answers = self.pack(sum(groups, []), step_key(state, 0))
        state, parts = self._update(state, answers, advantages_B)
        jax.block_until_ready(state.params)
        seconds = {
            "rollout_seconds": middle - begin,
            "update_seconds": time.perf_counter() - middle,
        }
        return state, parts | rollout_metrics(groups, rewards_PG) | seconds

    def rollouts(self, params: Any, index: int) -> list[list[Rollout]]:
        """Draw and grade the answers of a step.

        Args:
            params: Stacked parameters.
            index: Index of the step: it chooses prompts and noise.

        Returns:
            A group for each prompt.

        Raises:
            ValueError: The reward function has failed.
        """
        prompts, reward_of = self.task(index)

        def graded(at: int, answer: TextCompletion) -> float:
            try:
                reward = float(reward_of(at, answer))
            except Exception as error:
                raise ValueError(
                    f"step {index}, prompt {at} ({_shown(prompts[at])}): the reward of "
                    f"{_shown(answer.text)} could not be computed "
                    f"({type(error).__name__}: {one_line(error)}); mend the grader"
                ) from error
            if not math.isfinite(reward):
                raise ValueError(
                    f"step {index}, prompt {at} ({_shown(prompts[at])}): the reward of "
                    f"{_shown(answer.text)} is {reward}; rewards are finite numbers: "
                    "mend the grader"
                )
            return reward

        return sample_rollouts(
            with_params(self.sampler, params),
            prompts,
            graded,
            group_size=self.config.group_size,
            prompts_per_batch=self.config.prompts_per_batch,
            first_request=index * len(prompts) * self.config.group_size,
        )

    def pack(self, rollouts: Sequence[Rollout], key: jax.Array) -> AnswerBatch:
        """Lay answers out for the estimate.

        Args:
            rollouts: The answers, with `prompt_ids`.
            key: Of the masks that bounds draw.

        Returns:
            The batch, in their order.
        """
        model, estimate = self.sampler.model.config, self.config.estimate
        assert self.sampler.config.max_new_tokens is not None
        room = self.sampler.config.max_new_tokens
        canvases = []
        for rollout in rollouts:
            assert rollout.answer.trajectory is not None
            canvases.append(
                canvas_of(
                    rollout.prompt_ids, rollout.answer.trajectory, room, model.mask_id
                )
            )
        keys = jax.random.key_data(jax.random.split(key, len(rollouts)))
        return pack_canvases(
            canvases,
            np.asarray(keys),
            model,
            from_left=estimate.method == "chain",
            whole_trajectory=estimate.method in ("trajectory", "selection"),
            shrink=estimate.shrink,
        )

    def advantages(self, groups: Sequence[Sequence[Rollout]]) -> np.ndarray:
        """Compare the answers of every group.

        Args:
            groups: Of each prompt.

        Returns:
            float32 [P, G].
        """
        rewards_PG = reward_table(groups)
        if self.config.advantages != "decoupled":
            how: Any = self.config.advantages
            rewards = jnp.asarray(rewards_PG)
            return np.asarray(group_advantages(rewards, normalize=how))
        speeds = [[speed_reward(one.answer) for one in group] for group in groups]
        rewards_RPG = jnp.asarray(
            np.stack([rewards_PG, np.asarray(speeds, np.float32)])
        )
        weights = (1.0, self.config.speed_weight)
        return np.asarray(decoupled_advantages(rewards_RPG, weights=weights))

    def position(self) -> None:
        """Where the data stands: the state's step says it."""

    def move_to(self, position: Any) -> None:
        """Go on with the data; nothing is to be done.

        Args:
            position: What `position` has returned.
        """

    def validate(self, state: TrainState) -> Mapping[str, Any]:
        """Report nothing beside steps.

        Args:
            state: The state.

        Returns:
            An empty mapping.
        """
        del state
        return {}

    def _update(
        self, state: TrainState, answers: AnswerBatch, advantages_B: np.ndarray
    ) -> tuple[TrainState, dict[str, Any]]:
        """Go through the answers of a step; returns the state, and means to report."""
        settings = self.config
        states = num_steps(answers, self.sampler.model.config)
        old_BX = self.values(state.params, answers, states)
        reference_BX = None
        if self.reference is not None:
            reference_BX = self.values(self.reference, answers, states, recorded=False)
        rng = np.random.default_rng(np.asarray(jax.random.key_data(step_key(state, 1))))
        params, opt, reports = state.params, state.opt, []
        for rows in minibatches(
            rng, len(advantages_B), settings.minibatches, settings.epochs
        ):
            # Without a divergence an answer of no advantage has no gradient.
            has_loss = self.reference is not None
            kept = [row for row in rows if has_loss or advantages_B[row] != 0]
            if not kept:
                continue
            total = self._count(answers, rows)
            sums = _Update(
                jax.tree.map(jnp.zeros_like, params), jnp.zeros(3, jnp.float32)
            )
            size = settings.rows_per_call
            for first in range(0, len(kept), size):
                chosen = kept[first : first + size]
                filled = np.array([*chosen, *[chosen[0]] * (size - len(chosen))])
                part = take_rows(answers, chosen, size)
                share = self._count(part, range(size)) / total
                sums = self._add(
                    params,
                    part,
                    states,
                    old_BX[filled],
                    None if reference_BX is None else reference_BX[filled],
                    advantages_B[filled].astype(np.float32),
                    np.float32(share),
                    sums,
                )
            params, opt, norm = self._apply(params, opt, sums.grads)
            reports.append(np.append(np.asarray(sums.parts), np.asarray(norm)))
        mean = np.mean(reports, axis=0) if reports else np.zeros(4)
        names = ("loss", "kl", "clipped", "grad_norm")
        state = state._replace(params=params, opt=opt, step=state.step + 1)
        return state, dict(zip(names, mean.tolist(), strict=True))

    def values(
        self, params: Any, answers: AnswerBatch, states: int, *, recorded: bool = True
    ) -> np.ndarray:
        """Estimate log-probabilities, without a gradient.

        Args:
            params: Stacked parameters.
            answers: The answers.
            states: Of each (`answer_batch.num_steps`).
            recorded: Take what the decoder has recorded, where that is the estimate.

        Returns:
            float32 [answers, X].
        """
        if recorded and self.config.estimate.is_recorded:
            return answers.recorded_BR
        size, count = self.config.rows_per_call, len(answers.start_B)
        found = []
        for first in range(0, count, size):
            rows = range(first, min(first + size, count))
            values = self._estimate(params, take_rows(answers, rows, size), states)
            found.append(np.asarray(values)[: len(rows)])
        return np.concatenate(found)

    def _count(self, answers: AnswerBatch, rows: Sequence[int] | np.ndarray) -> int:
        """What the loss of some answers is divided by: tokens, or answers."""
        loss, is_of_tokens = self.config.loss, self.config.estimate.is_of_tokens
        if loss.reduction == "token" and loss.ratio == "token" and is_of_tokens:
            return max(int(np.sum(answers.is_counted_BR[np.array(rows)])), 1)
        if loss.reduction == "token":
            # Of answers there is one term each.
            counted_BR = answers.is_counted_BR[np.array(rows)]
            return max(int(np.sum(np.any(counted_BR, axis=1))), 1)
        return len(rows)


def step_key(state: TrainState, use: int) -> jax.Array:
    """The key of a step.

    Args:
        state: The state before it.
        use: What it is for: 0 for masks, 1 for the order of answers.

    Returns:
        The key.
    """
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    return jax.random.fold_in(key, use)


def reward_table(groups: Sequence[Sequence[Rollout]]) -> np.ndarray:
    """The rewards of groups.

    Args:
        groups: Of each prompt.

    Returns:
        float32 [P, G].
    """
    return checked_rewards([[one.reward for one in group] for group in groups])


def minibatches(
    rng: np.random.Generator, count: int, parts: int, epochs: int
) -> Iterator[np.ndarray]:
    """Yield the answers of every update of a step.

    Args:
        rng: Source of randomness; it advances.
        count: Answers.
        parts: Updates of each time.
        epochs: Times that all answers are gone through.

    Yields:
        Indices, int.
    """
    for _ in range(epochs):
        yield from np.array_split(rng.permutation(count), min(parts, count))


def rollout_metrics(
    groups: Sequence[Sequence[Rollout]], rewards_PG: np.ndarray
) -> dict[str, float]:
    """What is reported of the answers of a step.

    Args:
        groups: Of each prompt.
        rewards_PG: Their rewards.

    Returns:
        Numbers by name: the mean reward; the mean over prompts of the reward's variance
        in a group, p (1 - p) for rewards of 0 and 1; the share of groups without any,
        from which nothing is learnt; calls of an answer, and tokens a call.
    """
    answers = [one.answer for group in groups for one in group]
    calls = sum(answer.nfe.total for answer in answers)
    return {
        "reward": float(rewards_PG.mean()),
        "reward_variance": float(rewards_PG.var(axis=1).mean()),
        "equal_groups": float(np.mean(np.ptp(rewards_PG, axis=1) == 0)),
        "calls": calls / len(answers),
        "tokens_per_call": sum(len(answer.token_ids) for answer in answers) / calls,
        "tokens": float(sum(len(answer.token_ids) for answer in answers)),
    }


def _add_gradient(
    estimate: Callable[..., jax.Array],
    config: ReinforceConfig,
    params: Any,
    answers: AnswerBatch,
    states: int,
    old_BX: jax.Array,
    reference_BX: jax.Array | None,
    advantages_B: jax.Array,
    share: jax.Array,
    sums: _Update,
) -> _Update:
    """Add the gradient of some answers of an update, which are `share` of it."""

    def loss_of(params):
        found = estimate_loss(
            config.estimate,
            config.loss,
            estimate(params, answers, states),
            old_BX,
            advantages_B,
            jnp.asarray(answers.is_counted_BR),
            reference_BX=reference_BX,
        )
        parts = jnp.stack([found.loss, found.kl, found.clipped])
        return share * found.loss, share * parts

    grads, parts = jax.grad(loss_of, has_aux=True)(params)
    return _Update(jax.tree.map(jnp.add, sums.grads, grads), sums.parts + parts)


def _apply(
    optimiser: optax.GradientTransformation, params: Any, opt: Any, grads: Any
) -> tuple[Any, Any, jax.Array]:
    """(parameters, state of the optimiser, norm of the gradient) after an update."""
    norm = optax.tree.norm(grads)
    updates, new_opt = optimiser.update(grads, opt, params)
    new = optax.apply_updates(params, updates), new_opt
    # What is not finite would spoil every parameter; it shows in the metrics.
    is_finite = jnp.isfinite(norm)
    kept = jax.tree.map(lambda a, b: jnp.where(is_finite, a, b), new, (params, opt))
    return *kept, norm


def _shown(text: Any) -> str:
    """A prompt or an answer in a message."""
    return repr(one_line(text)[:60])
