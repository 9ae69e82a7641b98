"""The methods to compare with: their steps in plain numpy, and where they end."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdave.training.constrained.constraint import ConstraintSamples, known
from jaxdave.training.constrained.penalty import (
    MultiplierState,
    linearized_lagrangian,
    penalty_sgd,
)
from jaxdave.training.constrained.projections import box


def apply(params, updates) -> Any:
    """`optax.apply_updates`, of a type that arrays have."""
    return optax.apply_updates(params, updates)


RNG = np.random.default_rng(0)
X, GRAD = RNG.uniform(-1, 1, (2, 3)).astype(np.float32)
MATRICES = RNG.normal(size=(3, 2, 3)).astype(np.float32)
Y = RNG.normal(size=2).astype(np.float32)


def samples():
    return ConstraintSamples(
        *(lambda x, a=matrix: jnp.asarray(a) @ x - 1 for matrix in MATRICES)
    )


def test_a_penalty_step_is_that_of_plain_numpy():
    method = penalty_sgd(0.2, weight=3.0, project=box(-0.5, 0.5))
    updates, _ = method.update(GRAD, method.init(X), X, constraints=samples())
    pull = MATRICES[1].T @ (3 * (MATRICES[2] @ X - 1))
    expected = np.clip(X - 0.2 * (GRAD + pull), -0.5, 0.5)
    np.testing.assert_allclose(X + updates, expected, atol=1e-6)


def test_a_linearized_step_is_that_of_plain_numpy():
    method = linearized_lagrangian(
        0.2, 0.4, penalty=3.0, start_multipliers=jnp.zeros(2), project=box(-0.5, 0.5)
    )
    assert method.init(X).multipliers.tolist() == [0.0, 0.0]
    state = MultiplierState(jnp.asarray(Y))
    updates, state = method.update(GRAD, state, X, constraints=samples())
    new_y = Y + 0.4 * (MATRICES[0] @ X - 1)
    pull = MATRICES[1].T @ (new_y + 3 * (MATRICES[2] @ X - 1))
    expected = np.clip(X - 0.2 * (GRAD + pull), -0.5, 0.5)
    np.testing.assert_allclose(X + updates, expected, atol=1e-6)
    np.testing.assert_allclose(state.multipliers, new_y, atol=1e-6)


def end(method, num_steps=2000):
    """Where ||x||^2 / 2 with x_0 + x_1 = 1 ends, without noise."""

    def step(carry, _):
        params, state = carry
        updates, state = method.update(
            params, state, params, constraints=known(lambda x: jnp.sum(x) - 1)
        )
        return (apply(params, updates), state), None

    carry = (jnp.zeros(2), method.init(jnp.zeros(2)))
    return np.asarray(jax.lax.scan(step, carry, length=num_steps)[0][0])


def test_a_penalty_leaves_the_constraint_violated_and_multipliers_do_not():
    # The penalty's minimiser has x = -w (2 x - 1), so the violation is -1 / (1 + 2 w).
    for weight in (2.0, 20.0):
        found = end(penalty_sgd(0.02, weight=weight, project=box(-1.0, 1.0)))
        np.testing.assert_allclose(found.sum() - 1, -1 / (1 + 2 * weight), atol=1e-5)
    exact = linearized_lagrangian(
        0.1, 0.5, penalty=2.0, start_multipliers=jnp.zeros(()), project=box(-1.0, 1.0)
    )
    np.testing.assert_allclose(end(exact), [0.5, 0.5], atol=1e-5)


def test_params_are_needed():
    method = penalty_sgd(0.1, weight=1.0, project=box(-1.0, 1.0))
    with pytest.raises(ValueError, match="params"):
        method.update(GRAD, method.init(X), constraints=samples())
