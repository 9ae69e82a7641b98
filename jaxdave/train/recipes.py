"""The recipes: every number that the shipped weights depend on, by name."""

import dataclasses

from jaxdave.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One training run.

    steps, warmup, decay: optimiser steps; the rate rises linearly, stays at `rate`, and
    falls linearly to 0 over the last `decay` steps, so a run can be lengthened without
    changing what came before. batch: examples a step, a multiple of 32.
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


SDAR_1M = ModelConfig(
    name="sdar-1m",
    family="sdar",
    num_layers=4,
    hidden=128,
    inter=384,
    heads=4,
    kv_heads=2,
    head_dim=32,
    rotary_dim=32,
    vocab_rows=832,
    vocab_size=776,
    qk_norm=True,
    rope_theta=1e4,
    mask_id=775,
    pad_id=772,
    stop_ids=(774, 772),
    block_length=4,
    max_positions=2048,
)
RECIPES = {"demo": Recipe(config=SDAR_1M, steps=2000)}
