"""The log-linear policy: closed forms by finite differences, and the talk's bounds."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdave.training.reinforce import curvature


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


class Point(NamedTuple):
    """A question, its right answer and parameters."""

    features: jax.Array
    reward: jax.Array
    theta: jax.Array


def point(seed: int, answers: int = 4, size: int = 3) -> Point:
    """Draw a point; scales vary, so that p comes near 0 and near 1."""
    generator = np.random.default_rng(seed)
    scale = 10 ** generator.uniform(-1, 0.7)
    return Point(
        jnp.asarray(scale * generator.normal(size=(answers, size))),
        jnp.asarray(np.arange(answers) == generator.integers(answers), float),
        jnp.asarray(generator.normal(size=size)),
    )


def differences(function, theta_D, step=1e-5):
    """Central differences of a function of the parameters, the last axis theirs."""
    return jnp.stack(
        [
            (function(theta_D + offset) - function(theta_D - offset)) / (2 * step)
            for offset in step * jnp.eye(len(theta_D))
        ],
        axis=-1,
    )


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("is_graded", [False, True])
def test_closed_forms_are_the_derivatives(seed, is_graded):
    features, reward, theta = point(seed)
    if is_graded:  # the forms hold for any rewards, the bound for 0 and 1
        reward = jnp.asarray(np.random.default_rng(seed).normal(size=len(reward)))

    def objective(theta_D):
        weights = jnp.exp(features @ theta_D)
        return jnp.sum(weights * reward) / jnp.sum(weights)

    np.testing.assert_allclose(
        curvature.expected_reward(features, reward, theta), objective(theta), rtol=1e-12
    )
    grad = curvature.gradient(features, reward, theta)
    np.testing.assert_allclose(grad, differences(objective, theta), atol=1e-8)
    np.testing.assert_allclose(
        curvature.hessian(features, reward, theta),
        differences(
            lambda theta_D: curvature.gradient(features, reward, theta_D), theta
        ),
        atol=1e-7,
    )


def test_the_bound_holds_at_drawn_points():
    points = [point(seed) for seed in range(400)]
    found = jax.jit(jax.vmap(curvature.curvature))(
        *(jnp.stack(part) for part in zip(*points, strict=True))
    )
    assert bool(jnp.all(found.norm <= found.bound))
    p_range = found.variance
    assert float(jnp.min(p_range)) < 1e-3 and float(jnp.max(p_range)) > 0.24


def test_it_holds_where_p_is_one_to_rounding():
    features, reward = jnp.array([[1.0], [-1.0], [-1.5]]), jnp.array([1.0, 0.0, 0.0])
    theta = jnp.array([40.0])
    assert float(curvature.expected_reward(features, reward, theta)) == 1.0
    norm, bound, variance = curvature.curvature(features, reward, theta)
    assert 0 < float(norm) <= float(bound)
    np.testing.assert_allclose(variance, np.exp(-80.0), rtol=1e-6)


@pytest.mark.parametrize("p", [1e-4, 0.1, 0.5])
def test_how_much_of_it_two_answers_reach(p):
    features = jnp.array([[2.0], [-2.0]])
    theta = jnp.array([np.log(p / (1 - p)) / 4])
    norm, bound, variance = curvature.curvature(features, jnp.array([1.0, 0.0]), theta)
    np.testing.assert_allclose(variance, p * (1 - p), rtol=1e-9)
    np.testing.assert_allclose(norm / bound, (1 - 2 * p) / 2, atol=1e-9)


@pytest.mark.parametrize("seed", range(8))
def test_a_grpo_step_stays_where_the_objective_is_smooth(seed):
    """The two facts that the talk's rate of GRPO rests on."""
    features, reward, theta = point(seed)
    x_max = curvature.largest_norm(features[None])
    p = curvature.expected_reward(features, reward, theta)
    deviation = jnp.sqrt(p * (1 - p))
    radius = deviation / x_max
    step = curvature.gradient(features, reward, theta) / (2 * x_max**2 * deviation)
    assert float(jnp.linalg.norm(step)) <= float(radius)
    way = np.random.default_rng(seed).normal(size=(64, len(theta)))
    way /= np.linalg.norm(way, axis=1, keepdims=True)
    for offset in jnp.asarray(way) * radius:
        norm = curvature.curvature(features, reward, theta + offset).norm
        assert float(norm) <= float(2.5 * x_max**2 * deviation)


def questions(seed: int, count: int = 6):
    """Questions of orthogonal gradients and features of unlike size, rewards, start."""
    points = [point(100 * seed + index) for index in range(count)]
    features, reward, theta = (jnp.stack(part) for part in zip(*points, strict=True))
    return curvature.separate_questions(features), reward, theta.reshape(-1)


@pytest.mark.parametrize("normalize", ["none", "std"])
@pytest.mark.parametrize("seed", range(4))
def test_both_updates_keep_the_bounds_of_the_talk(normalize, seed):
    features, reward, theta = questions(seed)
    run = curvature.ascend(features, reward, theta, 100, normalize=normalize)
    found = curvature.convergence(run, features, normalize=normalize)
    assert bool(jnp.all(found.least_Q <= found.bound_Q))
    # Where the objective is flat to rounding a gain in its units says nothing.
    is_flat = run.square_SQ[:-1] < 1e-13
    assert float(jnp.mean(is_flat)) < 0.5
    gain = jnp.where(is_flat, jnp.inf, found.gain_SQ)
    assert float(jnp.min(gain)) >= found.least_gain * (1 - 1e-6)
    assert bool(jnp.all(run.p_SQ[-1] >= run.p_SQ[0]))


def test_a_run_by_hand():
    """One step of each update, from its formula."""
    features, reward, theta = questions(0, count=3)
    square = float(max(np.linalg.norm(x, 2) for x in np.asarray(features))) ** 2
    for normalize in ("none", "std"):
        step, p_before = np.zeros_like(theta), []
        for x, r in zip(np.asarray(features), np.asarray(reward), strict=True):
            weights = np.exp(x @ np.asarray(theta))
            probs = weights / weights.sum()
            p = float(probs @ r)
            p_before.append(p)
            grad = p * (x[int(np.argmax(r))] - probs @ x)
            step += (
                grad / square
                if normalize == "none"
                else (grad / (2 * square * np.sqrt(p * (1 - p))))
            )
        run = curvature.ascend(features, reward, theta, 1, normalize=normalize)
        np.testing.assert_allclose(run.p_SQ[0], p_before, rtol=1e-9)
        want = jax.vmap(curvature.expected_reward, (0, 0, None))(
            features, reward, theta + step
        )
        np.testing.assert_allclose(run.p_SQ[1], want, rtol=1e-9)
        np.testing.assert_allclose(run.theta_SD[0], theta, rtol=0)
        np.testing.assert_allclose(run.theta_SD[1], theta + step, rtol=1e-9)


def test_hard_questions_are_learnt_faster_with_the_division():
    """From p = 0.01, at the step sizes of the talk's theorems."""
    features = curvature.separate_questions(jnp.array([[[1.0], [-1.0]]]))
    reward, theta = jnp.array([[1.0, 0.0]]), jnp.array([np.log(0.01 / 0.99) / 2])
    final = {
        normalize: float(
            curvature.ascend(features, reward, theta, 30, normalize=normalize).p_SQ[
                -1, 0
            ]
        )
        for normalize in ("none", "std")
    }
    assert final["std"] > 0.9 and final["none"] < 0.1
