"""Gradients of objectives against finite differences, in float64 on a tiny network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.tiny_sequence_model import VOCAB, tiny_logits, tiny_params

from jaxdave.training.data.token_batch import align_answers, pack_samples
from jaxdave.training.objective.editing import Editing
from jaxdave.training.objective.objective_loss import corrupt, corrupted_loss
from jaxdave.training.objective.objectives import OBJECTIVES
from jaxdave.training.objective.sequence_model import nats_from

PACKED = pack_samples(
    [
        [([5, 6, 7], [8, 9]), ([3], [4, 10])],
        [([11, 12], [13, 14, 15])],
    ],
    length=8,
    pad_id=0,
    block_length=2,
)
ALIGNED = align_answers(
    [([1, 2, 3, 4], [5, 6, 7]), ([8, 9], [10])],
    prompt_columns=4,
    answer_columns=4,
    pad_id=0,
    block_length=2,
)
MASK = 16


@pytest.mark.parametrize(
    "name, settings",
    [
        ("llada-sft", {}),
        ("dream", {}),
        ("fast-dllm-v2", {"block_length": 2}),
        ("llada2-editing", {"block_length": 2, "editing": Editing(keep_weight=0.5)}),
        ("dllm-rl-block", {"block_length": 2, "answer_start": 4}),
    ],
)
def test_gradients_are_finite_differences(name, settings):
    objective = OBJECTIVES[name](**settings)
    batch = ALIGNED if objective.layout == "clean_first" else PACKED
    ids = {"vocab_size": VOCAB, "mask_id": MASK}
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):

        @jax.jit
        @jax.value_and_grad
        def loss(params, key):
            corruption = corrupt(objective, batch, key, **ids)
            return corrupted_loss(
                objective, nats_from(tiny_logits), params, batch, corruption
            ).mean()

        params, key = tiny_params(rng), jax.random.key(1)
        value, grads = loss(params, key)
        assert value.dtype == jnp.float64 and value > 0
        for _ in range(3):
            direction = tiny_params(rng)

            def at(step, direction=direction):
                moved = jax.tree.map(lambda p, d: p + step * d, params, direction)
                return loss(moved, key)[0]

            slope = sum(
                jax.tree.leaves(
                    jax.tree.map(lambda g, d: jnp.sum(g * d), grads, direction)
                )
            )
            measured = (at(1e-6) - at(-1e-6)) / 2e-6
            np.testing.assert_allclose(measured, slope, rtol=1e-7, atol=1e-8)
