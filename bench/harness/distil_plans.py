"""The plans of `bench.distil`: which arms are trained, for how long, and how measured.

Their reasons are in the docstring of `bench.distil`, fixed before each was run.
"""

import dataclasses
import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from tokenizers import Tokenizer

from bench.harness import distil_arms
from bench.harness.loading import LoadedModel
from jaxdave.demo_tasks import problem_sets
from jaxdave.demo_tasks.mixture import training_problem
from jaxdave.demo_tasks.problem import Problem
from jaxdave.engine import decoders
from jaxdave.io import checkpoint
from jaxdave.numerics.weight_layout import to_device_layout, to_stacked
from jaxdave.runtime.files import replace_file
from jaxdave.training.demo.recipes import CANVAS_LENGTH, RECIPES, Recipe
from jaxdave.training.demo.warm_start import warm_start_params
from jaxdave.training.distil.certainty import CertaintyForcing
from jaxdave.training.distil.consistency import ConsistencyDistillation
from jaxdave.training.distil.own_answers import RecordedAnswer, own_answers

MODEL, SEED, START_SEED = "llada-1m", 2121, 7
BATCH_SIZE, ROWS, DRAFTS = 32, 20, 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArmPlan:
    """How an arm is trained.

    Attributes:
        method: `certainty` (dParallel), `consistency` (CD4LM), or `plain`, on reference
            answers.
        steps: steps of the optimiser.
        sampling: fields of `StateSampling` that say which tokens are masked.
    """

    method: Literal["certainty", "consistency", "plain"]
    steps: int
    sampling: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class Setting(NamedTuple):
    """How held-out problems are decoded.

    Attributes:
        policy: the policy.
        drafts: drafts of a call.
        most: problems of a set, the first so many; None: all of the plan.
    """

    policy: str
    drafts: int
    most: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What is trained and decoded.

    Attributes:
        arms: arms by name, in the order in which they are trained.
        start_steps: steps of the demo's recipe that all arms start after; 0: from the
            packaged weights.
        learning_rate: of all arms, before it falls.
        prompts: prompts of the model's own answers.
        answers: the policy that decodes them.
        held_out: problems of each test set, the first so many.
        compared: problems of each set whose texts are compared without drafts.
        settings: decodes of the held-out problems.
        aimed: arms that are to reach the aim, with the first of the settings.
        other_model: a packaged model whose room for fewer calls is shown, too.
    """

    arms: Mapping[str, ArmPlan]
    start_steps: int = 0
    learning_rate: float = 2e-3
    prompts: int
    answers: str = "static"
    held_out: Mapping[str, int]
    compared: int
    settings: tuple[Setting, ...]
    aimed: tuple[str, ...]
    other_model: str | None = None

    def problems(self, name: str, most: int | None = None) -> list[Problem]:
        """The held-out problems of a test set.

        Args:
            name: the set.
            most: the first so many; None: all.

        Returns:
            The problems.
        """
        return problem_sets.load(name)[: self.held_out[name]][:most]

    @property
    def policies(self) -> list[str]:
        """The policies of the settings, each once."""
        return list(dict.fromkeys(setting.policy for setting in self.settings))

    def header(self) -> dict[str, Any]:
        """What a file of results is of.

        Returns:
            JSON values.
        """
        plain = json.loads(json.dumps(dataclasses.asdict(self)))
        return {"model": MODEL, "seed": SEED, **plain}


HALVES = {"complementary": True}
"""dParallel's states: a random half of the active block, and its complement."""
CONSISTENCY = {"low": 0.1, "high": 1.0, "order": "recorded"}
FIRST = Plan(
    arms={
        "consistency": ArmPlan(method="consistency", steps=300, sampling=CONSISTENCY),
        "plain": ArmPlan(method="plain", steps=480),
        "certainty": ArmPlan(method="certainty", steps=300, sampling=HALVES),
    },
    prompts=1024,
    held_out={"words_test": 200, "lists_test": 100},
    compared=30,
    settings=(
        Setting("static", DRAFTS),
        Setting("threshold", 1),
        Setting("threshold", DRAFTS),
    ),
    aimed=("certainty", "consistency"),
    other_model="sdar-1m",
)

MORE_MASKS = {"low": 0.5, "high": 1.0}
"""Ratios from dParallel's to the whole block: what the first call of a decode sees."""
SECOND = Plan(
    arms={
        "certainty": ArmPlan(method="certainty", steps=100, sampling=MORE_MASKS),
        "plain": ArmPlan(method="plain", steps=170),
        "halves": ArmPlan(method="certainty", steps=100, sampling=HALVES),
    },
    start_steps=48,
    learning_rate=1e-3,
    prompts=512,
    answers="threshold",
    held_out={"words_test": 450, "lists_test": 150},
    compared=20,
    settings=(Setting("threshold", DRAFTS), Setting("static", DRAFTS, most=20)),
    aimed=("certainty",),
)
QUICK = Plan(
    arms={"consistency": ArmPlan(method="consistency", steps=2, sampling=CONSISTENCY)},
    prompts=BATCH_SIZE,
    held_out={"words_test": 10, "lists_test": 10},
    compared=10,
    settings=(Setting("static", DRAFTS),),
    aimed=(),
)


def arms_of(
    plan: Plan, loaded: LoadedModel, folder: Path
) -> dict[str, tuple[distil_arms.Arm, Recipe]]:
    """Make the arms of a plan.

    Args:
        plan: the plan.
        loaded: the model.
        folder: where the model's own answers are kept.

    Returns:
        Arms and their optimisers' settings, by name.
    """
    arms = {}
    for name, own in plan.arms.items():
        recipe = Recipe(
            config=loaded.config,
            steps=own.steps,
            batch_size=BATCH_SIZE,
            learning_rate=plan.learning_rate,
            warmup_steps=min(10, own.steps - 1),
            decay_steps=own.steps * 2 // 3,
            seed=SEED,
        )
        if own.method == "plain":
            batches = distil_arms.batches_of_recipe(recipe, _tokenizer())
        else:
            answers = answers_of(plan, loaded, folder)
            batches = distil_arms.batches_of_answers(
                answers, recipe, loaded.config.pad_id
            )
        arm = distil_arms.Arm(
            name=name, steps=own.steps, loss=loss_of(own, loaded), batches=batches
        )
        arms[name] = arm, recipe
    return arms


def loss_of(own: ArmPlan, loaded: LoadedModel) -> distil_arms.ArmLossFn:
    """Make the loss of an arm.

    Args:
        own: the arm.
        loaded: the model.

    Returns:
        The loss.
    """
    config = loaded.config
    if own.method == "plain":
        return distil_arms.plain_loss_of(config)
    if own.method == "certainty":
        return distil_arms.certainty_loss_of(
            config,
            lambda group: CertaintyForcing(
                sampling=distil_arms.sampling_of(group, config, **own.sampling)
            ),
        )
    return distil_arms.consistency_loss_of(
        config,
        lambda group: ConsistencyDistillation(
            sampling=distil_arms.sampling_of(group, config, **own.sampling),
            keep_low=0.5,
            keep_high=1.0,
            teacher_low=0.0,
            teacher_high=1.0,
        ),
    )


def start_of(plan: Plan, packaged: LoadedModel, folder: Path) -> LoadedModel:
    """Load or train the model that all arms start from.

    Args:
        plan: the plan.
        packaged: the packaged model.
        folder: where the state of its training is kept.

    Returns:
        The model.
    """
    if not plan.start_steps:
        return packaged
    recipe = dataclasses.replace(
        RECIPES["llada-demo"],
        steps=plan.start_steps,
        batch_size=BATCH_SIZE,
        warmup_steps=10,
        decay_steps=plan.start_steps // 2,
        seed=START_SEED,
    )
    source = to_stacked(checkpoint.load("sdar-1m").params)
    params = in_float32(warm_start_params(recipe.config, source))
    arm = distil_arms.Arm(
        name="start",
        steps=recipe.steps,
        loss=distil_arms.plain_loss_of(recipe.config),
        batches=distil_arms.batches_of_recipe(recipe, _tokenizer()),
    )
    params, row = distil_arms.train_arm(arm, recipe, params, folder)
    print(row, flush=True)
    trained = to_device_layout(params, packaged.config)
    return dataclasses.replace(packaged, params=trained)


def in_float32(params: Any) -> Any:
    """Parameters that can be trained.

    Args:
        params: parameters in any layout.

    Returns:
        The same in float32.
    """
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)


def _tokenizer() -> Tokenizer:
    folder = checkpoint.find_model(MODEL)[1]
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def answers_of(
    plan: Plan, loaded: LoadedModel, folder: Path
) -> list[RecordedAnswer | None]:
    """Decode the model's own answers, unless that was done.

    Args:
        plan: the plan.
        loaded: the model.
        folder: where they are kept.

    Returns:
        Recorded answers, of `own_answers.own_answers`.
    """
    path = folder / "answers.pickle"
    if path.exists():
        return pickle.loads(path.read_bytes())
    decoder = decoders.freedave(
        loaded.config,
        plan.answers,
        draft_steps=DRAFTS,
        max_new_tokens=CANVAS_LENGTH,
        record_steps=True,
    )
    problems = [training_problem(SEED, index) for index in range(plan.prompts)]
    prompts = loaded.encode_prompts(problems)
    answers = own_answers(decoder, loaded.params, prompts, prompts_at_once=ROWS)
    replace_file(path, pickle.dumps(answers))
    return answers
