"""The smoothed ALM: its step in plain numpy, its limit, potential and safeguard."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdave.training.constrained.constraint import ConstraintSamples, known
from jaxdave.training.constrained.lagrangian import (
    LagrangianState,
    StepSizes,
    safeguard,
    scale_steps,
    smoothed_lagrangian,
)
from jaxdave.training.constrained.projections import box, box_section, whole_space


def apply(params, updates) -> Any:
    """`optax.apply_updates`, of a type that arrays have."""
    return optax.apply_updates(params, updates)


# f = x'Qx/2 + q'x with a direction of negative curvature, one equality, a box.
Q = np.array([[1.0, 0.2, 0.0], [0.2, -0.5, 0.1], [0.0, 0.1, 0.6]])
LINEAR = np.array([0.3, -0.4, 0.5])
A = np.array([[1.0, 1.0, -0.5]])
B = np.array([0.4])
MU = 2.5


def method(steps, **changes):
    settings: dict[str, Any] = dict(
        proximal_weight=MU,
        penalty=1.0,
        multiplier_bound=np.inf,
        start_multipliers=jnp.zeros(1),
        project=box(-1.0, 1.0),
    )
    return smoothed_lagrangian(steps, **(settings | changes))


def gradient(x):
    return jnp.asarray(Q, x.dtype) @ x + jnp.asarray(LINEAR, x.dtype)


def residual(x, matrix=A, right=B):
    return jnp.asarray(matrix, x.dtype) @ x - jnp.asarray(right, x.dtype)


def run(method, params, num_steps):
    """Points, multipliers and centres of a deterministic run, by one scan."""

    def step(carry, _):
        params, state = carry
        updates, state = method.update(
            gradient(params), state, params, constraints=known(residual)
        )
        params = apply(params, updates)
        return (params, state), (params, state.multipliers, state.center)

    scan = functools.partial(jax.lax.scan, step, length=num_steps)
    return jax.jit(scan)((params, method.init(params)))


@pytest.mark.parametrize("center_follows", ["new", "old"])
@pytest.mark.parametrize("bound", [100.0, 0.5])
def test_one_step_is_that_of_plain_numpy(center_follows, bound):
    rng = np.random.default_rng(0)
    x, z, g = (rng.uniform(-1, 1, 3) for _ in range(3))
    y = rng.normal(size=2)
    a_dual, a_back, a_penalty = rng.normal(size=(3, 2, 3))
    b_dual, b_back, b_penalty = rng.normal(size=(3, 2))
    eta, tau, beta, mu, rho = 0.3, 0.2, 0.4, 1.5, 0.7
    new_y = y + eta * (a_dual @ x - b_dual)
    if np.linalg.norm(new_y) >= bound:
        new_y = np.zeros(2)
    assert (bound == 0.5) == (not new_y.any()), "both ways are tried"
    full = g + a_back.T @ (new_y + rho * (a_penalty @ x - b_penalty)) + mu * (x - z)
    new_x = np.clip(x - tau * full, -1, 1)
    new_z = z + beta * ((new_x if center_follows == "new" else x) - z)

    def tree(vector):
        return {"u": jnp.asarray(vector[:1]), "v": jnp.asarray(vector[1:])}

    def sampled(matrix, right):
        def of(params):
            value = jnp.asarray(matrix[:, :1]) @ params["u"]
            value = value + jnp.asarray(matrix[:, 1:]) @ params["v"]
            return tuple(value - jnp.asarray(right))

        return of

    with jax.enable_x64(True):
        transformation = method(
            StepSizes(eta, tau, beta),
            proximal_weight=mu,
            penalty=rho,
            multiplier_bound=bound,
            center_follows=center_follows,
            start_multipliers=tuple(jnp.asarray(y)),
        )
        state = LagrangianState(tuple(jnp.asarray(y)), tree(z), jnp.int32(4))
        updates, state = transformation.update(
            tree(g),
            state,
            tree(x),
            constraints=ConstraintSamples(
                sampled(a_dual, b_dual),
                sampled(a_back, b_back),
                sampled(a_penalty, b_penalty),
            ),
        )
        found = apply(tree(x), updates)
        flat = [np.concatenate([t["u"], t["v"]]) for t in (found, state.center)]
    np.testing.assert_allclose(flat, [new_x, new_z], atol=1e-12)
    np.testing.assert_allclose(state.multipliers, new_y, atol=1e-12)
    assert state.resets == 4 + (bound == 0.5)


def kkt_point():
    """The KKT point by its conditions: x_1 at its bound, x_0 and x_2 free."""
    free, fixed = [0, 2], np.array([0.0, 1.0, 0.0])
    system = np.block([[Q[np.ix_(free, free)], A[:, free].T], [A[:, free], 0]])
    right = np.concatenate([-(Q @ fixed + LINEAR)[free], B - A @ fixed])
    solution = np.linalg.solve(system, right)
    x = fixed.copy()
    x[free] = solution[:2]
    slope = Q @ x + LINEAR + A.T @ solution[2:]
    assert slope[1] < 0 and (abs(x[free]) < 1).all(), "so x_1 stays at its bound"
    return x, solution[2:]


def test_exact_estimates_lead_to_the_kkt_point():
    x, y = kkt_point()
    steps = StepSizes(dual=0.5, primal=0.15, center=0.3)
    (params, state), _ = run(method(steps), jnp.zeros(3), 3000)
    np.testing.assert_allclose(params, x, atol=1e-5)
    np.testing.assert_allclose(state.center, x, atol=1e-5)
    np.testing.assert_allclose(state.multipliers, y, atol=1e-4)
    assert state.resets == 0


def test_updates_lie_in_the_set_and_work_in_float32_and_scans():
    steps = StepSizes(dual=2.0, primal=0.4, center=0.9)
    _, (points, _, _) = run(method(steps), jnp.ones(3), 200)
    assert points.dtype == jnp.float32
    assert (abs(points) <= 1 + 1e-6).all() and (abs(points) >= 1 - 1e-6).any()


def minimum(quadratic, linear, project, steps=400):
    """The minimum of x'Mx/2 + l'x, strictly convex, over a set; by projection."""
    step = 1 / np.linalg.norm(quadratic, 2)
    quadratic, linear = jnp.asarray(quadratic), jnp.asarray(linear)
    x = jax.lax.fori_loop(
        0,
        steps,
        lambda _, x: project(x - step * (quadratic @ x + linear)),
        jnp.zeros(linear.shape),
    )
    return x @ quadratic @ x / 2 + linear @ x


def potential(x, y, z, feasible):
    """K(x, y, z) - 2 d(y, z) + 2 Psi(z), rho = 1."""
    smooth = Q + MU * np.eye(3)
    at_z = jnp.asarray(LINEAR) - MU * z
    constant = MU / 2 * jnp.sum(z**2)
    off = residual(x)
    k = x @ jnp.asarray(Q) @ x / 2 + jnp.asarray(LINEAR) @ x + off @ y
    k = k + off @ off / 2 + MU / 2 * jnp.sum((x - z) ** 2)
    right, matrix = jnp.asarray(B), jnp.asarray(A)
    dual = minimum(smooth + A.T @ A, at_z + matrix.T @ (y - right), box(-1.0, 1.0))
    dual = dual + constant - right @ y + right @ right / 2
    psi = minimum(smooth, at_z, feasible) + constant
    return k - 2 * dual + 2 * psi


def test_the_potential_never_rises_without_noise():
    feasible = box_section([-1] * 3, [1] * 3, A[0], B[0])
    with jax.enable_x64(True):
        steps = StepSizes(dual=0.1, primal=0.1, center=0.02)
        start = jnp.asarray([1.0, -1.0, 1.0])
        _, path = run(method(steps, start_multipliers=jnp.zeros(1)), start, 300)
        values = jax.jit(jax.vmap(lambda x, y, z: potential(x, y, z, feasible)))(*path)
        falls = -np.diff(np.asarray(values))
        assert falls.min() > -1e-10
        assert values[0] - values[-1] > 0.3
        # A dual step far too long makes it rise: the law can fail.
        steps = StepSizes(dual=20.0, primal=0.1, center=0.02)
        _, path = run(method(steps, start_multipliers=jnp.zeros(1)), start, 300)
        values = jax.jit(jax.vmap(lambda x, y, z: potential(x, y, z, feasible)))(*path)
        assert np.diff(np.asarray(values)).max() > 1e-3


def test_a_reset_at_a_bound_high_enough_does_not_raise_the_potential():
    feasible = box_section([-1] * 3, [1] * 3, A[0], B[0])
    rng = np.random.default_rng(5)
    x, z = rng.uniform(-1, 1, (2, 40, 3))
    signs = np.where(rng.random((40, 1)) < 0.5, -1.0, 1.0)

    def rises(norm):
        values = jax.jit(jax.vmap(lambda x, y, z: potential(x, y, z, feasible)))
        return np.asarray(values(x, np.zeros((40, 1)), z) - values(x, norm * signs, z))

    with jax.enable_x64(True):
        assert rises(40.0).max() < 0
        assert rises(0.5).max() > 0


def test_multipliers_are_reset_at_their_bound_and_stay_below_it():
    steps = StepSizes(dual=0.5, primal=0.15, center=0.3)
    _, y = kkt_point()
    too_low = abs(y[0]) / 2
    (_, state), (_, path, _) = run(
        method(steps, multiplier_bound=too_low), jnp.ones(3), 300
    )
    assert (abs(path) < too_low).all()
    assert state.resets == (path[1:] == 0).sum() + (path[0] == 0).sum() > 5
    (_, state), _ = run(method(steps, multiplier_bound=9.0), jnp.ones(3), 300)
    assert state.resets == 0


def test_the_safeguard_takes_one_norm_over_all_multipliers():
    multipliers = {"a": jnp.array([3.0]), "b": jnp.array(4.0)}
    kept, is_reset = safeguard(multipliers, 5.1)
    assert kept == multipliers and not is_reset
    kept, is_reset = safeguard(multipliers, 5.0)
    assert is_reset and kept == {"a": 0.0, "b": 0.0}
    kept, is_reset = safeguard({"a": jnp.array(jnp.nan)}, 5.0)
    assert is_reset and kept == {"a": 0.0}


def mean_update(samples_of, num_samples=20_000):
    """The mean first update under noise in A, at a point that violates A x = b."""
    x = jnp.array([0.5, 0.2, -0.7])
    free = method(
        StepSizes(dual=0.5, primal=1.0, center=0.1),
        penalty=2.0,
        start_multipliers=jnp.array([1.5]),
        project=whole_space,
    )

    def update(key):
        samples = samples_of(key)
        return free.update(gradient(x), free.init(x), x, constraints=samples)[0]

    updates = jax.jit(jax.vmap(update))(
        jax.random.split(jax.random.key(0), num_samples)
    )
    error = updates.std(axis=0).max() / num_samples**0.5
    return np.asarray(updates.mean(axis=0)), float(error)


def noisy(key):
    matrix = jnp.asarray(A, jnp.float32) + jax.random.normal(key, A.shape)
    return lambda x: matrix @ x - jnp.asarray(B, x.dtype)


def test_three_samples_give_an_unbiased_step_and_one_sample_does_not():
    exact, _ = mean_update(lambda key: known(residual), 1)
    three, error = mean_update(
        lambda key: ConstraintSamples(*map(noisy, jax.random.split(key, 3)))
    )
    assert abs(three - exact).max() < 5 * error
    one, error = mean_update(lambda key: known(noisy(key)))
    # E[A'A] x is larger by the variance of the rows, times rho + eta.
    bias = -(2.0 + 0.5) * np.array([0.5, 0.2, -0.7])
    np.testing.assert_allclose(one - exact, bias, atol=6 * error)
    assert abs(bias).max() > 30 * error


def test_numbers_out_of_range_are_refused():
    good = StepSizes(0.1, 0.1, 0.1)
    for steps, changes, words in (
        (good._replace(dual=0.0), {}, "dual step is 0.0"),
        (good._replace(primal=-1.0), {}, "primal step"),
        (good._replace(center=1.5), {}, "center step is 1.5; it must be > 0 and <= 1"),
        (good, {"proximal_weight": float("nan")}, "proximal_weight is nan"),
        (good, {"penalty": -1.0}, "penalty is -1.0; it must be >= 0"),
        (good, {"multiplier_bound": 0.0}, "multiplier_bound"),
        (good, {"center_follows": "both"}, "center_follows is 'both'"),
    ):
        with pytest.raises(ValueError, match=words):
            method(steps, **changes)
    transformation = method(good)
    state = transformation.init(jnp.zeros(3))
    with pytest.raises(ValueError, match="params"):
        transformation.update(jnp.zeros(3), state, constraints=known(residual))


def test_steps_scale_with_the_horizon():
    assert scale_steps(StepSizes(1.0, 2.0, 3.0), 64, 1 / 3) == pytest.approx(
        (0.25, 0.5, 0.75)
    )
