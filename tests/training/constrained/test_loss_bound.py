"""A bound on a loss: what is sampled of it, and a problem whose solution is known."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdave.training.constrained.constraint import augmented_pull, known
from jaxdave.training.constrained.lagrangian import StepSizes, smoothed_lagrangian
from jaxdave.training.constrained.loss_bound import (
    draw_loss_bound,
    loss_residual,
    project_loss_bound,
    start_loss_bound,
)
from jaxdave.training.constrained.projections import whole_space
from jaxdave.training.constrained.slack import Slacked
from jaxdave.training.constrained.storm import storm_lagrangian

NEAR = np.array([2.0, 1.0], np.float32)


def squares(x_N, data_N):
    """A loss that is not linear: its derivative at x is 2 (x - data)."""
    return jnp.sum((x_N - data_N) ** 2)


def test_the_pull_is_of_the_derivative_where_the_parameters_are():
    x_N, limit, y, rho = np.array([1.0, 3.0]), 0.5, 0.7, 2.0
    a, b, c = np.array([[0.0, 1.0], [2.0, 2.0], [1.0, -1.0]])
    samples = draw_loss_bound(squares, limit, ((a,), (b,), (c,)))
    slacked = Slacked(jnp.asarray(x_N), jnp.asarray(0.25))
    pull = augmented_pull(samples, slacked, jnp.asarray(y), rho)
    weight = y + rho * (np.sum((x_N - c) ** 2) - limit + 0.25)
    np.testing.assert_allclose(pull.params, weight * 2 * (x_N - b), rtol=1e-6)
    np.testing.assert_allclose(pull.slack, weight, rtol=1e-6)
    residual = np.sum((x_N - a) ** 2) - limit + 0.25
    np.testing.assert_allclose(samples.dual(slacked), residual, rtol=1e-6)


def test_slack_is_what_the_bound_leaves_and_stays_within_it():
    assert float(start_loss_bound(NEAR, 0.25, 1.0).slack) == 0.75
    assert float(start_loss_bound(NEAR, 3.0, 1.0).slack) == 0.0
    project = project_loss_bound(whole_space, 1.0)
    slacks = [project(Slacked(NEAR, jnp.float32(w))).slack for w in (-1.0, 0.5, 2.0)]
    assert [float(w) for w in slacks] == [0.0, 0.5, 1.0]


@pytest.mark.parametrize("method", ["A", "B"])
@pytest.mark.parametrize(("limit", "multiplier"), [(1.0, 5**0.5 - 1), (9.0, 0.0)])
def test_the_nearest_point_of_a_disc(method, limit, multiplier):
    """min ||x - (2, 1)||^2 under ||x||^2 <= limit: on the rim, or free if inside.

    There x - near + y x = 0, so that on the unit circle y = sqrt(5) - 1.
    """
    origin_N = jnp.zeros(2, jnp.float32)
    constraints = known(loss_residual(squares, limit, origin_N))
    steps = StepSizes(dual=0.2, primal=0.05, center=0.3)
    settings = {
        "proximal_weight": 4.0,
        "penalty": 1.0,
        "multiplier_bound": 10.0,
        "start_multipliers": jnp.zeros((), jnp.float32),
        "project": project_loss_bound(whole_space, limit),
    }
    is_b = method == "B"
    rule = (
        storm_lagrangian(0.5, steps, **settings)
        if is_b
        else smoothed_lagrangian(steps, **settings)
    )
    start = start_loss_bound(origin_N, 0.0, limit)

    def grads_of(slacked):
        return Slacked(2 * (slacked.params - NEAR), jnp.zeros((), jnp.float32))

    def step(_, carry):
        slacked, state = carry
        more = {"previous_grads": grads_of(state[0].previous_params)} if is_b else {}
        updates, state = rule.update(
            grads_of(slacked), state, slacked, constraints=constraints, **more
        )
        return optax.apply_updates(slacked, updates), state

    end, state = jax.lax.fori_loop(0, 6000, step, (start, rule.init(start)))
    expected_N = NEAR / 5**0.5 if multiplier else NEAR
    np.testing.assert_allclose(end.params, expected_N, atol=1e-3)
    multipliers = state[1].multipliers if is_b else state.multipliers
    np.testing.assert_allclose(multipliers, multiplier, atol=1e-2)
