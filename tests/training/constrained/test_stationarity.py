"""The gradient of the Moreau envelope, against what defines it."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxdave.training.constrained.projections import box_section
from jaxdave.training.constrained.stationarity import (
    envelope_gradient,
    proximal_point,
    stationarity,
)

CURVATURE = np.diag([1.0, -0.8, 0.3])
LINEAR = np.array([0.2, -0.1, 0.4])
WEIGHT = 2.0
FEASIBLE = box_section([-1] * 3, [1] * 3, [1, 1, 1], 0.5)


def value(x):
    curvature, linear = (jnp.asarray(v, x.dtype) for v in (CURVATURE, LINEAR))
    return x @ curvature @ x / 2 + linear @ x


def envelope(z):
    x = proximal_point(jax.grad(value), FEASIBLE, z, WEIGHT)
    return value(x) + WEIGHT / 2 * jnp.sum((x - z) ** 2)


def test_it_is_the_gradient_of_the_envelope_by_differences():
    with jax.enable_x64(True):
        z_KN = np.random.default_rng(0).normal(size=(5, 3))
        gradients = jax.jit(
            jax.vmap(lambda z: envelope_gradient(jax.grad(value), FEASIBLE, z, WEIGHT))
        )(jnp.asarray(z_KN))
        values = jax.jit(jax.vmap(envelope))
        for axis, step in enumerate(1e-5 * np.eye(3)):
            ahead, behind = (values(jnp.asarray(z_KN + d)) for d in (step, -step))
            slopes = (ahead - behind) / 2e-5
            np.testing.assert_allclose(gradients[:, axis], slopes, atol=1e-5)


def test_the_proximal_point_beats_every_feasible_point():
    z = jnp.array([0.5, -2.0, 1.0])
    x = jax.jit(lambda z: proximal_point(jax.grad(value), FEASIBLE, z, WEIGHT))(z)
    assert abs(x.sum() - 0.5) < 1e-5 and (abs(x) <= 1).all()
    drawn = np.random.default_rng(1).normal(size=(500, 3))
    others = jax.vmap(FEASIBLE)(jnp.asarray(drawn, jnp.float32))
    values = jax.vmap(lambda u: value(u) + WEIGHT / 2 * jnp.sum((u - z) ** 2))(others)
    assert values.min() >= jax.jit(envelope)(z) - 1e-5


def test_it_vanishes_where_projected_descent_has_ended_and_only_there():
    with jax.enable_x64(True):
        x = jax.lax.fori_loop(
            0,
            300,
            lambda _, x: FEASIBLE(x - 0.3 * jax.grad(value)(x)),
            jnp.zeros(3, float),
        )
        norm = jax.jit(lambda z: stationarity(jax.grad(value), FEASIBLE, z, WEIGHT))
        assert norm(x) < 1e-9
        assert norm(x + 0.1) > 0.1
