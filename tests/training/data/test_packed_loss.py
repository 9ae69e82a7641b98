"""Samples that share a row are trained as if each had a row of its own."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.checkpoint_folders import random

from jaxdave.models.presets import preset
from jaxdave.training.data.batch_config import BatchConfig
from jaxdave.training.data.data_stream import batches_of
from jaxdave.training.data.token_batch import TokenBatch
from jaxdave.training.objective.masking import Corruption
from jaxdave.training.objective.objective_loss import corrupted_loss
from jaxdave.training.objective.objectives import OBJECTIVES, Objective
from jaxdave.training.objective.sequence_model import transformer_nats

SMALL = {"num_layers": 1, "hidden": 16, "inter": 24, "head_dim": 8, "rotary_dim": 8}
FULL = preset("llada-1m", **SMALL)
SHIFTED = preset("dream-1m", **SMALL)
CAUSAL = preset("sdar-1m", block_length=4, **SMALL)
RNG = np.random.default_rng(0)
# Lengths that are no whole blocks; every token is told from all others by its id.
IDS = iter(RNG.permutation(700).tolist())
SAMPLES = [
    ([next(IDS) for _ in range(prompt)], [next(IDS) for _ in range(answer)])
    for prompt, answer in [(3, 6), (1, 2), (7, 5), (2, 9), (5, 3), (4, 4), (3, 3)]
]
RATIO = dict(zip([0, *range(700)], [0.5, *RNG.uniform(0.2, 1, 700)], strict=True))
HIDDEN = set(np.flatnonzero(RNG.random(700) < 0.6).tolist())


def fixed_masks(batch: TokenBatch, mask_id: int) -> Corruption:
    """Masks that depend on tokens only, not on where they are."""
    is_masked_BT = batch.is_answer_BT & np.isin(batch.tokens_BT, list(HIDDEN))
    ratio_BT = np.vectorize(lambda token: RATIO.get(token, 0.5))(batch.tokens_BT)
    return Corruption(
        noisy_BT=jnp.where(is_masked_BT, mask_id, batch.tokens_BT),
        is_masked_BT=jnp.asarray(is_masked_BT),
        is_replaced_BT=jnp.zeros(is_masked_BT.shape, bool),
        ratio_BT=jnp.asarray(ratio_BT, jnp.float32),
    )


@pytest.mark.parametrize(
    "config, objective",
    [
        (FULL, OBJECTIVES["mdlm"]()),
        (FULL, dataclasses.replace(OBJECTIVES["llada-sft"](), weight="one")),
        (SHIFTED, OBJECTIVES["dream"]()),
        (CAUSAL, OBJECTIVES["sdar"](4)),
        (CAUSAL, OBJECTIVES["llada2"](4)),
    ],
)
def test_the_loss_of_packed_samples_is_the_sum_of_their_losses(
    config, objective: Objective
):
    params, nats_fn = random(config), transformer_nats(config)
    loss = jax.jit(
        lambda batch, corruption: corrupted_loss(
            objective, nats_fn, params, batch, corruption
        )
    )

    def sums(packing, end_padding):
        settings = BatchConfig(
            batch_size=4,
            length=24,
            pad_id=config.pad_id,
            epochs=1,
            packing=packing,
            end_padding=end_padding,
            block_length=4 if end_padding == "block" else None,
            prefetch=0,
        )
        batches = list(batches_of(SAMPLES, settings))
        parts = [loss(b, fixed_masks(b, config.mask_id)) for b in batches]
        total = sum(float(part.total) for part in parts)
        return total, sum(float(part.divisor) for part in parts), batches

    for end_padding in ("none", "block"):
        packed_total, packed_divisor, [batch] = sums("pack", end_padding)
        total, divisor, rows = sums("one", end_padding)
        assert batch.sample_BT.max() >= 1 and len(rows) == 2
        assert total > 1
        np.testing.assert_allclose(packed_total, total, rtol=2e-6)
        np.testing.assert_allclose(packed_divisor, divisor, rtol=1e-6)
