"""STORM: its recursion as plain numpy, and in front of the smoothed ALM."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdave.training.constrained.constraint import known
from jaxdave.training.constrained.lagrangian import StepSizes, smoothed_lagrangian
from jaxdave.training.constrained.projections import box
from jaxdave.training.constrained.storm import (
    start_batch,
    storm,
    storm_lagrangian,
    storm_momentum,
)


def apply(params, updates) -> Any:
    """`optax.apply_updates`, of a type that arrays have."""
    return optax.apply_updates(params, updates)


STEPS = StepSizes(dual=0.3, primal=0.2, center=0.4)
CURVATURE = np.array([1.0, -0.4, 0.5])


def settings() -> dict[str, Any]:
    return dict(
        proximal_weight=2.0,
        penalty=1.0,
        multiplier_bound=np.inf,
        start_multipliers=jnp.zeros(()),
        project=box(-1.0, 1.0),
    )


def total_is_half(x):
    return jnp.sum(x) - 0.5


def sampled(x, noise):
    """A gradient whose noise depends on the point."""
    return (jnp.asarray(CURVATURE, x.dtype) + noise) * x + noise


def test_three_steps_are_those_of_plain_numpy():
    rng = np.random.default_rng(0)
    alpha, noises = 0.3, rng.normal(size=(3, 3))
    start = np.array([0.2, -0.1, 0.4])
    x = z = start
    y, g, before, expected = 0.0, None, None, []
    for noise in noises:
        grad = (CURVATURE + noise) * x + noise
        if g is None:
            g = grad
        else:
            g = grad + (1 - alpha) * (g - ((CURVATURE + noise) * before + noise))
        before = x
        y = y + 0.3 * (x.sum() - 0.5)
        full = g + y + (x.sum() - 0.5) + 2.0 * (x - z)
        x = np.clip(x - 0.2 * full, -1, 1)
        z = z + 0.4 * (x - z)
        expected.append(x)
    with jax.enable_x64(True):
        method = storm_lagrangian(alpha, STEPS, **settings())
        params = jnp.asarray(start)
        state = method.init(params)
        for noise, point in zip(jnp.asarray(noises), expected, strict=True):
            previous = sampled(state[0].previous_params, noise)
            updates, state = jax.jit(
                lambda g, s, p, previous: method.update(
                    g, s, p, previous_grads=previous, constraints=known(total_is_half)
                )
            )(sampled(params, noise), state, params, previous)
            params = apply(params, updates)
            np.testing.assert_allclose(params, point, atol=1e-12)
        np.testing.assert_allclose(state[1].center, z, atol=1e-12)
        np.testing.assert_allclose(state[1].multipliers, y, atol=1e-12)
    assert state[0].count == 3


def test_the_first_estimate_is_the_batch_whatever_comes_with_it():
    estimator = storm(0.1)
    params = {"w": jnp.ones(2)}
    grads, nonsense = {"w": jnp.array([1.0, 2.0])}, {"w": jnp.full(2, jnp.nan)}
    g, state = estimator.update(
        grads, estimator.init(params), params, previous_grads=nonsense
    )
    assert g["w"].tolist() == [1.0, 2.0]
    assert state.previous_params["w"].tolist() == [1.0, 1.0]


def test_momentum_one_is_plain_sgd_and_without_noise_it_is_the_gradient():
    for alpha, noise_scale in ((1.0, 1.0), (0.05, 0.0)):
        estimator = storm(alpha)
        params = jnp.ones(3)
        state = estimator.init(params)
        for key in jax.random.split(jax.random.key(0), 4):
            noise = noise_scale * jax.random.normal(key, (3,))
            grads = sampled(params, noise)
            previous = sampled(state.previous_params, noise)
            g, state = estimator.update(grads, state, params, previous_grads=previous)
            np.testing.assert_allclose(g, grads, atol=1e-6)
            params = params - 0.1 * g


def final_points(method, num_steps=3000, seeds=16):
    """Where runs with noisy gradients end, one scan for all seeds."""

    def run(key):
        params = jnp.zeros(3)

        def step(carry, key):
            params, state = carry
            noise = 0.5 * jax.random.normal(key, (3,))
            extra = {}
            if isinstance(state, tuple) and hasattr(state[0], "previous_params"):
                extra = {"previous_grads": sampled(state[0].previous_params, noise)}
            updates, state = method.update(
                sampled(params, noise),
                state,
                params,
                constraints=known(total_is_half),
                **extra,
            )
            return (apply(params, updates), state), None

        carry = (params, method.init(params))
        return jax.lax.scan(step, carry, jax.random.split(key, num_steps))[0][0]

    keys = jax.random.split(jax.random.key(1), seeds)
    return np.asarray(jax.jit(jax.vmap(run))(keys))


def test_it_ends_nearer_to_the_solution_than_without():
    # From 0, x_1 goes to its upper bound, and x_0 = y / 1, x_2 = y / 0.5 share -0.5.
    solution = np.array([-1 / 6, 1.0, -1 / 3])
    steps = StepSizes(dual=0.2, primal=0.1, center=0.2)
    plain = final_points(smoothed_lagrangian(steps, **settings())) - solution
    reduced = final_points(storm_lagrangian(0.01, steps, **settings())) - solution
    plain, reduced = (np.sqrt((d**2).sum(axis=1).mean()) for d in (plain, reduced))
    assert reduced < 0.5 * plain < 0.5


def test_choices_for_a_horizon():
    assert [start_batch(2**k) for k in (6, 12, 13)] == [2, 4, 5]
    assert start_batch(2**12, 1 / 3) == 16
    np.testing.assert_allclose(storm_momentum(4096), 1 / 256, rtol=1e-6)
    assert storm_momentum(8, scale=9.0) == 1.0


@pytest.mark.parametrize("momentum", [0.0, 1.1, float("nan")])
def test_a_momentum_out_of_range_is_refused(momentum):
    with pytest.raises(ValueError, match="momentum is"):
        storm(momentum)
    with pytest.raises(ValueError, match="params"):
        storm(0.5).update(0.0, storm(0.5).init(0.0), previous_grads=0.0)
