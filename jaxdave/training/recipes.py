"""The recipes: every number that the shipped weights depend on, by name."""

import dataclasses

from jaxdave.core.config import ModelConfig
from jaxdave.models.presets import preset

CANVAS = 64
"""Generated positions of every full-attention training sequence."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One training run.

    steps, warmup, decay: optimiser steps; the rate rises linearly, stays at `rate`, and
    falls linearly to 0 over the last `decay` steps, so a run can be lengthened without
    changing what came before. batch: examples a step, a multiple of 32. start: the
    packaged model that the parameters are made from (`warm.widen`); None: from nothing.
    room: the longest answer, where the model has learnt canvases of one size.
    """

    config: ModelConfig
    steps: int
    batch: int = 96
    rate: float = 2e-3
    warmup: int = 100
    decay: int = 700
    weight_decay: float = 0.01
    clip: float = 1.0
    seed: int = 0
    save_every: int = 50
    start: str | None = None
    room: int | None = None


SDAR_1M = preset("sdar-1m")
RECIPES = {
    "demo": Recipe(config=SDAR_1M, steps=2000),
    "llada-demo": Recipe(
        config=preset("llada-1m"), steps=600, decay=250, start="sdar-1m", room=CANVAS
    ),
    "dream-demo": Recipe(
        config=preset("dream-1m"), steps=600, decay=250, start="sdar-1m", room=CANVAS
    ),
}
