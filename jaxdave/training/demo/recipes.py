"""The recipes of the demo models: every number that their weights depend on."""

import dataclasses

from jaxdave.core.config import ModelConfig
from jaxdave.models.presets import preset

CANVAS_LENGTH = 64
"""Generated positions of every full-attention training sequence."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The settings of one training run.

    The learning rate rises linearly from 0, stays, and falls linearly to 0 at the end,
    so that a run can be lengthened without changing what came before.

    Attributes:
        config: The model.
        steps: Number of optimiser steps.
        batch_size: Sequences per step, a multiple of 32 (the period of
            `mixture.KINDS`).
        learning_rate: Its value between warm-up and decay.
        warmup_steps: First steps, over which the learning rate rises.
        decay_steps: Last steps, over which it falls.
        weight_decay: Of all parameters.
        max_grad_norm: Gradients are scaled down to this global norm.
        seed: Of the parameters and of the training stream.
        save_every: Steps between checkpoints.
        init_from: Packaged model whose parameters the run starts from
            (`warm_start.warm_start_params`); None: random ones.
        edited_copies: Copies of each answer in which drafted tokens are wrong, beside
            its masked copies, for a model that edits (`block_batches`).
        guessed_copies: Further copies, filled by what the model guesses itself
            (`block_loss.filled_by_guesses`).
        max_new_tokens: Longest answer that the saved checkpoint states for the model,
            where it has learnt canvases of one size; None: not stated.
    """

    config: ModelConfig
    steps: int
    batch_size: int = 96
    learning_rate: float = 2e-3
    warmup_steps: int = 100
    decay_steps: int = 700
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    seed: int = 0
    save_every: int = 50
    init_from: str | None = None
    edited_copies: int = 0
    guessed_copies: int = 0
    max_new_tokens: int | None = None


SDAR_1M = preset("sdar-1m")
RECIPES = {
    "demo": Recipe(config=SDAR_1M, steps=2000),
    "llada-demo": Recipe(
        config=preset("llada-1m"),
        steps=600,
        decay_steps=250,
        init_from="sdar-1m",
        max_new_tokens=CANVAS_LENGTH,
    ),
    "dream-demo": Recipe(
        config=preset("dream-1m"),
        steps=600,
        decay_steps=250,
        init_from="sdar-1m",
        max_new_tokens=CANVAS_LENGTH,
    ),
    "llada2-demo": Recipe(
        config=preset("llada2-1m"),
        steps=400,
        warmup_steps=40,
        decay_steps=200,
        init_from="sdar-1m",
    ),
    "edit-demo": Recipe(
        config=preset("sdar-edit-1m"),
        steps=200,
        batch_size=32,
        warmup_steps=20,
        decay_steps=80,
        init_from="sdar-1m",
        edited_copies=1,
        guessed_copies=1,
        save_every=20,
    ),
}
"""By the name that `jaxdave train --recipe` takes."""
