"""The demo models' training: their recipes, run by the trainer."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from tokenizers import Tokenizer

from jaxdave.core.model_api import Params
from jaxdave.io import checkpoint
from jaxdave.models import transformer
from jaxdave.numerics.weight_layout import to_stacked
from jaxdave.training.demo.block_batches import make_block_batches
from jaxdave.training.demo.block_loss import make_block_loss
from jaxdave.training.demo.canvas import make_canvas_batches, make_canvas_loss
from jaxdave.training.demo.recipes import Recipe
from jaxdave.training.demo.warm_start import warm_start_params
from jaxdave.training.objective.objective_loss import LossSums
from jaxdave.training.optimisers import OptimiserConfig, make_optimiser, make_schedule
from jaxdave.training.supervised import StepBatches, SupervisedSteps
from jaxdave.training.trainer import LoopConfig, fit
from jaxdave.training.update import TrainState, UpdateConfig, init_state

# The kind of attention decides what a batch is and what its loss is.
BATCH_MAKERS = {"block_causal": make_block_batches, "full": make_canvas_batches}
LOSS_MAKERS = {"block_causal": make_block_loss, "full": make_canvas_loss}


def train(recipe: Recipe, tokenizer: Tokenizer, folder: Path) -> TrainState:
    """Run, or go on with, a recipe.

    A run that was killed at any point resumes from its last checkpoint, to the same
    parameters and the same losses as without the kill.

    Args:
        recipe: The training run.
        tokenizer: The demo's tokenizer (`build_tokenizer`).
        folder: Where checkpoints and metrics are written, and looked for.

    Returns:
        The state after the last step.

    Raises:
        ValueError: As `trainer.fit`.

    Example:
        The run that the packaged `sdar-1m` comes from:

            folder = Path("run")
            tokenizer = build_tokenizer(folder / "tokenizer")
            state = train(RECIPES["demo"], tokenizer, folder)
    """
    make_batches = BATCH_MAKERS[recipe.config.attention]
    settings = optimiser_config(recipe)
    optimiser = make_optimiser(settings, recipe.steps)
    steps = SupervisedSteps(
        _loss(recipe),
        optimiser,
        UpdateConfig(),
        StepBatches(lambda step: make_batches(recipe, tokenizer, step)),
        schedule=make_schedule(settings, recipe.steps),
    )
    state = init_state(_first_params(recipe), optimiser, recipe.seed, ema=False)
    loop = LoopConfig(steps=recipe.steps, save_every=recipe.save_every)
    return fit(steps, state, folder, loop)


def optimiser_config(recipe: Recipe) -> OptimiserConfig:
    """The optimiser of a recipe.

    Args:
        recipe: The training run.

    Returns:
        Its settings: Muon on the matrices of layers, AdamW on all else.
    """
    return OptimiserConfig(
        name="muon",
        learning_rate=recipe.learning_rate,
        warmup_steps=recipe.warmup_steps,
        decay_steps=recipe.decay_steps,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
    )


def _loss(recipe: Recipe) -> Callable[[Params, Any, jax.Array], LossSums]:
    """The loss over the tokens of all length groups of a batch together."""
    if recipe.guessed_copies:
        group_loss = make_block_loss(recipe.config, recipe.guessed_copies)
    else:
        masked_loss = LOSS_MAKERS[recipe.config.attention](recipe.config)

        def group_loss(params: Params, batch: Any, key: jax.Array):
            del key  # the batches are masked already
            return masked_loss(params, batch)

    def loss(params: Params, batches: Any, key: jax.Array) -> LossSums:
        sums = [
            LossSums(*group_loss(params, batch, jax.random.fold_in(key, index)))
            for index, batch in enumerate(batches.values())
        ]
        return jax.tree.map(lambda *parts: functools.reduce(jnp.add, parts), *sums)

    return loss


def _first_params(recipe: Recipe) -> Params:
    """The parameters before the first step."""
    if recipe.init_from is None:
        return transformer.init(recipe.config, recipe.seed)
    source = to_stacked(checkpoint.load(recipe.init_from).params)
    return warm_start_params(recipe.config, source)
