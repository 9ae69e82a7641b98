"""Gradients of distillation losses, against finite differences on a tiny network."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.distil_cases import BATCH, DISTILLATION, FORCING, MASK, RECORDED
from helpers.tiny_sequence_model import tiny_logits, tiny_params

from jaxdave.training.distil.certainty import certainty_loss
from jaxdave.training.distil.consistency import ask_teacher, consistency_loss
from jaxdave.training.distil.state_logits import state_logits
from jaxdave.training.distil.states import draw_states


def tiny_certainty(rng, key):
    del rng
    function = state_logits(FORCING.sampling, tiny_logits)
    states = draw_states(key, FORCING.sampling, BATCH, mask_id=MASK)
    return lambda params: certainty_loss(FORCING, function, params, BATCH, states)[0]


def tiny_order(rng, key):
    del rng
    settings = dataclasses.replace(FORCING, order_weight=0.8)
    function = state_logits(settings.sampling, tiny_logits)
    states = draw_states(key, settings.sampling, RECORDED, mask_id=MASK)
    return lambda params: certainty_loss(settings, function, params, RECORDED, states)[
        0
    ]


def tiny_consistency(rng, key):
    function = state_logits(DISTILLATION.sampling, tiny_logits)
    states = draw_states(key, DISTILLATION.sampling, BATCH, mask_id=MASK)
    batch = ask_teacher(
        DISTILLATION,
        function,
        tiny_params(rng),
        BATCH,
        states,
        key,
        0.6,
    )
    return lambda params: consistency_loss(DISTILLATION, function, params, batch)[0]


@pytest.mark.parametrize("make", [tiny_certainty, tiny_order, tiny_consistency])
def test_gradients_are_finite_differences(make):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        loss = jax.jit(jax.value_and_grad(make(rng, jax.random.key(1))))
        params = tiny_params(rng)
        value, grads = loss(params)
        assert value.dtype == jnp.float64 and value > 0
        for _ in range(3):
            direction = tiny_params(rng)

            def at(step, direction=direction):
                moved = jax.tree.map(lambda p, d: p + step * d, params, direction)
                return loss(moved)[0]

            slope = sum(
                jax.tree.leaves(
                    jax.tree.map(lambda g, d: jnp.sum(g * d), grads, direction)
                )
            )
            measured = (at(1e-6) - at(-1e-6)) / 2e-6
            np.testing.assert_allclose(measured, slope, rtol=1e-7, atol=1e-8)


def test_asking_the_teacher_is_no_part_of_the_gradient():
    function = state_logits(DISTILLATION.sampling, tiny_logits)
    params = tiny_params(np.random.default_rng(0))

    def through_the_teacher(teacher):
        states = draw_states(
            jax.random.key(0), DISTILLATION.sampling, BATCH, mask_id=MASK
        )
        batch = ask_teacher(
            DISTILLATION,
            function,
            teacher,
            BATCH,
            states,
            jax.random.key(1),
            1.0,
        )
        return consistency_loss(DISTILLATION, function, params, batch)[0]

    grads = jax.jit(jax.grad(through_the_teacher))(params)
    assert all(not g.any() for g in jax.tree.leaves(grads))
