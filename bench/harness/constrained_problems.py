"""Two nonconvex problems under three budgets and a box, for `bench.constrained`.

Everything here was fixed before its first run. Both objectives have gradients of
Lipschitz constant 1.

Axes: K budgets, N coordinates of a budget, D rows of data, F coordinates in all.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdave.training.constrained.projections import box, project_box_section

BUDGETS, COORDINATES, ROWS, BATCH = 3, 6, 120, 4
GRADIENT_NOISE, CONSTRAINT_NOISE = 0.5, 0.3
BOX = box(-1.0, 1.0)

_RNG = np.random.default_rng(2504_07607)
WEIGHT_KN = _RNG.uniform(0.3, 1.0, (BUDGETS, COORDINATES))
WEIGHT_KN /= np.linalg.norm(WEIGHT_KN, axis=1, keepdims=True)
TOTAL_K = (WEIGHT_KN * _RNG.uniform(-0.5, 0.5, WEIGHT_KN.shape)).sum(axis=1)


class Problem(NamedTuple):
    """An objective.

    Attributes:
        name: Its name.
        gradient: Its gradient, from [K, N] to [K, N].
        sample: An unbiased gradient, from a point and a key.
    """

    name: str
    gradient: Callable[[jax.Array], jax.Array]
    sample: Callable[[jax.Array, jax.Array], jax.Array]


def make_quadratic() -> Problem:
    """Build x'Qx/2 + q'x, Q's eigenvalues evenly from -1/2 to 1.

    A sample adds s (e_1 x + e_2) to the gradient, e_1 and e_2 normal, coordinatewise.
    """
    rng = np.random.default_rng(1)
    size = BUDGETS * COORDINATES
    axes, _ = np.linalg.qr(rng.normal(size=(size, size)))
    curvature = axes @ np.diag(np.linspace(-0.5, 1, size)) @ axes.T
    linear_KN = jnp.asarray(0.5 * rng.normal(size=(BUDGETS, COORDINATES)))

    def gradient(x_KN: jax.Array) -> jax.Array:
        return jnp.reshape(curvature @ x_KN.reshape(-1), x_KN.shape) + linear_KN

    def sample(x_KN: jax.Array, key: jax.Array) -> jax.Array:
        slope, shift = jax.random.normal(key, (2, *x_KN.shape), x_KN.dtype)
        return gradient(x_KN) + GRADIENT_NOISE * (slope * x_KN + shift)

    return Problem("quadratic", gradient, sample)


def make_regression() -> Problem:
    """Build robust regression: the mean of r^2 / (1 + r^2) / 2 over rows of data.

    A fifth of the rows are outliers. A sample is the mean over BATCH drawn rows.
    """
    rng = np.random.default_rng(2)
    data = rng.normal(size=(ROWS, BUDGETS * COORDINATES))
    data /= np.sqrt(np.linalg.norm(data.T @ data / ROWS, 2))
    target = data @ rng.uniform(-0.8, 0.8, data.shape[1]) + 0.1 * rng.normal(size=ROWS)
    target += np.where(rng.random(ROWS) < 0.2, 3 * rng.normal(size=ROWS), 0)
    data_DF, target_D = jnp.asarray(data), jnp.asarray(target)

    def mean_gradient(x_KN: jax.Array, rows: Any) -> jax.Array:
        left_D = data_DF[rows] @ x_KN.reshape(-1) - target_D[rows]
        slope_D = left_D / (1 + left_D**2) ** 2
        return (slope_D @ data_DF[rows]).reshape(x_KN.shape) / slope_D.shape[0]

    def sample(x_KN: jax.Array, key: jax.Array) -> jax.Array:
        return mean_gradient(x_KN, jax.random.randint(key, (BATCH,), 0, ROWS))

    return Problem("regression", lambda x: mean_gradient(x, slice(None)), sample)


def exact_residual(x_KN: jax.Array) -> jax.Array:
    """A x - b: what every budget is off by, [K]."""
    return jnp.sum(WEIGHT_KN * x_KN, axis=1) - TOTAL_K


def sampled_residual(key: jax.Array) -> Callable[[jax.Array], jax.Array]:
    """Draw A(zeta) x - b(zeta): normal noise in weights and totals."""
    noise = CONSTRAINT_NOISE * jax.random.normal(key, (BUDGETS, COORDINATES + 1), float)
    weight_KN = WEIGHT_KN + noise[:, :-1] / COORDINATES**0.5
    return lambda x_KN: jnp.sum(weight_KN * x_KN, axis=1) - (TOTAL_K + noise[:, -1])


def project_feasible(x_KN: jax.Array) -> jax.Array:
    """Project onto the box and the budgets at once, each budget by itself."""
    ones_N = np.ones(COORDINATES)
    return jax.vmap(
        lambda x_N, weight_N, total: project_box_section(
            x_N, -ones_N, ones_N, weight_N, total
        )
    )(x_KN, jnp.asarray(WEIGHT_KN), jnp.asarray(TOTAL_K))
