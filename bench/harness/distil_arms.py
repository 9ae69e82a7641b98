"""Training a full-attention demo model further, by distillation or as before.

An arm is a way to train: `certainty` (dParallel), `consistency` (CD4LM) or `plain`, the
demo's own recipe continued. All start from one model, with one optimiser and one
schedule. A run that is interrupted goes on from its last checkpoint.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer

from jaxdave.core.config import ModelConfig
from jaxdave.demo_tasks.mixture import kind_of
from jaxdave.training.demo.block_batches import GROUPS, SHAPES
from jaxdave.training.demo.canvas import (
    MAX_PROMPT_LENGTHS,
    make_canvas_batches,
    make_canvas_loss,
)
from jaxdave.training.demo.recipe_run import optimiser_config
from jaxdave.training.demo.recipes import CANVAS_LENGTH, Recipe
from jaxdave.training.distil.certainty import CertaintyForcing, make_certainty_loss
from jaxdave.training.distil.consistency import (
    ConsistencyDistillation,
    make_consistency_loss,
    make_consistency_targets,
    teacher_share,
)
from jaxdave.training.distil.own_answers import RecordedAnswer, align_recorded
from jaxdave.training.distil.states import RecordedBatch, StateSampling
from jaxdave.training.objective.objective_loss import LossSums
from jaxdave.training.optimisers import make_optimiser
from jaxdave.training.run_files import METRICS
from jaxdave.training.supervised import StepBatches, SupervisedSteps
from jaxdave.training.trainer import LoopConfig, fit
from jaxdave.training.update import TrainState, UpdateConfig, init_state

SAVE_EVERY = 40
"""Steps between checkpoints."""

ArmLossFn = Callable[[Any, Any, Any, jax.Array, jax.Array], jax.Array]
"""(params, teacher, batches, key, share of the teacher) -> loss."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arm:
    """A way to train.

    Attributes:
        name: its name.
        steps: steps of the optimiser.
        loss: its loss.
        batches: the batches of a step, by its index.
    """

    name: str
    steps: int
    loss: ArmLossFn
    batches: Callable[[int], dict[str, Any]]


def sampling_of(group: str, config: ModelConfig, **settings: Any) -> StateSampling:
    """Say how states of a length group's problems are drawn.

    Args:
        group: a key of `SHAPES`.
        config: the model.
        **settings: further fields.

    Returns:
        The settings.
    """
    return StateSampling(
        answer_start=MAX_PROMPT_LENGTHS[group],
        block_length=config.block_length,
        is_causal=False,
        **settings,
    )


def certainty_loss_of(
    config: ModelConfig, settings_of: Callable[[str], CertaintyForcing]
) -> ArmLossFn:
    """Make the loss of the arm `certainty`.

    Args:
        config: the model.
        settings_of: the settings of each length group.

    Returns:
        The loss: the mean over problems.
    """
    losses = {
        group: make_certainty_loss(config, settings_of(group)) for group in SHAPES
    }

    def loss(params, teacher, batches, key, share):
        del teacher, share
        return _mean_over_groups(
            batches, key, lambda group, batch, k: losses[group](params, batch, k)[0]
        )

    return loss


def consistency_loss_of(
    config: ModelConfig, settings_of: Callable[[str], ConsistencyDistillation]
) -> ArmLossFn:
    """Make the loss of the arm `consistency`; its teacher stays what it is.

    Args:
        config: the model.
        settings_of: the settings of each length group.

    Returns:
        The loss: the mean over problems.
    """
    settings = {group: settings_of(group) for group in SHAPES}
    targets = {g: make_consistency_targets(config, s) for g, s in settings.items()}
    losses = {g: make_consistency_loss(config, s) for g, s in settings.items()}

    def loss(params, teacher, batches, key, share):
        def one(group, batch, k):
            taught = targets[group](teacher, batch, k, share)
            return losses[group](params, taught, k)[0]

        return _mean_over_groups(batches, key, one)

    return loss


def plain_loss_of(config: ModelConfig) -> ArmLossFn:
    """Make the loss of the arm `plain`: that of the demo's recipe.

    Args:
        config: the model.

    Returns:
        The loss.
    """
    canvas_loss = make_canvas_loss(config)

    def loss(params, teacher, batches, key, share):
        del teacher, key, share
        sums = [canvas_loss(params, batch) for batch in batches.values()]
        totals, weights = map(jnp.stack, zip(*sums, strict=True))
        return jnp.sum(totals) / jnp.sum(weights)

    return loss


def _mean_over_groups(
    batches: dict[str, RecordedBatch],
    key: jax.Array,
    loss: Callable[[str, RecordedBatch, jax.Array], jax.Array],
) -> jax.Array:
    total = jnp.float32(0.0)
    for index, (group, batch) in enumerate(batches.items()):
        rows = len(batch.tokens_BT)
        total += rows * loss(group, batch, jax.random.fold_in(key, index))
    return total / sum(len(batch.tokens_BT) for batch in batches.values())


def batches_of_answers(
    answers: Sequence[RecordedAnswer | None], recipe: Recipe, pad_id: int
) -> Callable[[int], dict[str, RecordedBatch]]:
    """Make the function that lays out a model's own answers.

    Args:
        answers: the answers, in the order of a training stream; they are gone through
            again and again.
        recipe: the run: its batch size and blocks.
        pad_id: the id of the padding.

    Returns:
        step -> one batch for each length group. Rows in which an answer is missing
        repeat another one, so that shapes stay the same.
    """
    block_length = recipe.config.block_length

    def batches(step: int) -> dict[str, RecordedBatch]:
        groups: dict[str, list[RecordedAnswer | None]] = {group: [] for group in SHAPES}
        first = step * recipe.batch_size
        for index in range(first, first + recipe.batch_size):
            group = GROUPS[kind_of(index)]
            groups[group].append(answers[index % len(answers)])
        laid_out = {}
        for group, members in groups.items():
            known = [answer for answer in members if answer is not None]
            filled = [known[i % len(known)] for i in range(len(members))]
            laid_out[group] = align_recorded(
                filled,
                prompt_columns=MAX_PROMPT_LENGTHS[group],
                answer_columns=CANVAS_LENGTH,
                block_length=block_length,
                is_causal=False,
                pad_id=pad_id,
            )
        return laid_out

    return batches


def batches_of_recipe(
    recipe: Recipe, tokenizer: Tokenizer
) -> Callable[[int], dict[str, Any]]:
    """Make the function of the demo's own batches, with reference answers.

    Args:
        recipe: the run.
        tokenizer: the demo's tokenizer.

    Returns:
        step -> one batch for each length group.
    """
    return lambda step: make_canvas_batches(recipe, tokenizer, step)


class TimedSteps(SupervisedSteps):
    """Supervised steps that report their processor time as "cpu_seconds".

    The first step of a process, which is compiled in it, counts nothing.
    """

    _since: float | None = None

    def __call__(self, state: TrainState) -> tuple[TrainState, Mapping[str, Any]]:
        state, metrics = super().__call__(state)
        jax.block_until_ready(state.params)
        since, self._since = self._since, time.process_time()
        spent = 0.0 if since is None else self._since - since
        return state, dict(metrics) | {"cpu_seconds": spent}


def train_arm(
    arm: Arm, recipe: Recipe, params: Any, folder: Path
) -> tuple[Any, dict[str, Any]]:
    """Train an arm, or go on with it.

    Args:
        arm: the arm.
        recipe: the optimiser's settings; its steps are the arm's.
        params: where it starts, float32, stacked layers; its teacher, too.
        folder: where its own folder of checkpoints and metrics is.

    Returns:
        The parameters at the end, and a row of the table of trainings.
    """
    optimiser = make_optimiser(optimiser_config(recipe), recipe.steps)

    def loss(student_and_teacher, batches_and_share, key):
        student, teacher = student_and_teacher
        batches, share = batches_and_share
        return LossSums(arm.loss(student, teacher, batches, key, share), jnp.float32(1))

    steps = TimedSteps(
        loss,
        optimiser,
        UpdateConfig(),
        StepBatches(
            lambda step: (arm.batches(step), np.float32(teacher_share(step, arm.steps)))
        ),
        join=lambda student, teacher: (student, teacher),
        frozen=params,
    )
    state = init_state(params, optimiser, recipe.seed, ema=False)
    loop = LoopConfig(steps=arm.steps, save_every=SAVE_EVERY, keep=1)
    state = fit(steps, state, folder / arm.name, loop)
    lines = (folder / arm.name / METRICS).read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return state.params, {
        "arm": arm.name,
        "steps": arm.steps,
        "loss": records[-1]["loss"],
        "CPU seconds": round(sum(record["cpu_seconds"] for record in records), 1),
    }
