"""Inequalities by slack lead where the projection onto their polyhedron leads."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdave.training.constrained.constraint import known
from jaxdave.training.constrained.lagrangian import StepSizes, smoothed_lagrangian
from jaxdave.training.constrained.polyhedron import polyhedron
from jaxdave.training.constrained.projections import box
from jaxdave.training.constrained.slack import (
    Slacked,
    project_slacked,
    slack_residual,
    start_slack,
)

# One of the two holds with equality at the nearest point, the other with slack.
MATRIX = np.array([[1.0, 2.0], [-1.0, 0.3]], np.float32)
BOUND = np.array([0.9, 2.0], np.float32)
TARGET = np.array([1.5, 1.0], np.float32)


def excess(x):
    return jnp.asarray(MATRIX) @ x - jnp.asarray(BOUND)


def test_slack_leads_to_the_projection():
    method = smoothed_lagrangian(
        StepSizes(dual=0.5, primal=0.08, center=0.4),
        proximal_weight=1.5,
        penalty=1.0,
        multiplier_bound=50.0,
        start_multipliers=(jnp.zeros(2), jnp.zeros(())),
        project=project_slacked(box(-1.0, 1.0)),
    )
    # The equality x_0 + x_1 = 0.8 beside the inequalities.
    residual = slack_residual(excess, lambda x: jnp.sum(x) - 0.8)

    def step(carry, _):
        slacked, state = carry
        grads = Slacked(slacked.params - TARGET, jnp.zeros(2))
        updates, state = method.update(
            grads, state, slacked, constraints=known(residual)
        )
        return (optax.apply_updates(slacked, updates), state), None

    start = start_slack(jnp.zeros(2), excess)
    assert start.slack.tolist() == BOUND.tolist()
    carry = (start, method.init(start))
    (slacked, _), _ = jax.jit(lambda c: jax.lax.scan(step, c, length=4000))(carry)
    rows = np.concatenate([MATRIX, [[1, 1], [-1, -1]], np.eye(2), -np.eye(2)])
    bound = np.concatenate([BOUND, [0.8, -0.8], np.ones(4)])
    nearest = polyhedron(rows, bound)(jnp.asarray(TARGET))
    assert abs(MATRIX[0] @ np.asarray(nearest) - 0.9) < 1e-4, "the first is active"
    np.testing.assert_allclose(slacked.params, nearest, atol=1e-3)
    np.testing.assert_allclose(slacked.slack, -excess(nearest), atol=1e-3)
